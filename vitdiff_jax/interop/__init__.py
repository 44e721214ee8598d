"""Reading and writing images and published weights."""
