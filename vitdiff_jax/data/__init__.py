"""Data sets, one file each, and the input pipeline."""
