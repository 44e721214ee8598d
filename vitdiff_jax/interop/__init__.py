"""Images and published weights, in and out."""
