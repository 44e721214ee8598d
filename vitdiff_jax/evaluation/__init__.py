"""Metrics: FID, IS, KID, precision and recall, PSNR, ..., one file each."""
