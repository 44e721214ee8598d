"""Devices, processes, checkpoints, files, pictures and buckets, logging."""
