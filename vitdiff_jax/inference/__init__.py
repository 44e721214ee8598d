"""Inference with a trained model: sampling, restoration, evaluation."""
