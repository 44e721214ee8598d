"""The training loop, one functional training step, monitoring and fine-tuning."""
