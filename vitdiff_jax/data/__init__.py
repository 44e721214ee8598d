"""Data sets, one file each with `dataset(**options)`; `pipeline` makes batches of them."""
