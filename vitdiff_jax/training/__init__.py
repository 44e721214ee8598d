"""The training loop, one functional step, and what watches over a run."""
