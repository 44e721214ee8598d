"""Compiling for accelerators that are not there, and what the result costs."""
