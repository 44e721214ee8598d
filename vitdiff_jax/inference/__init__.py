"""A trained model at work: sampling, restoration, evaluation."""
