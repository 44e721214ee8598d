"""Data sets, one file each, and the pipeline that makes batches of them."""
