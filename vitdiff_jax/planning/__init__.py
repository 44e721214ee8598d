"""Ahead-of-time compilation for other accelerators, and the cost of the result."""
