"""Devices, processes, checkpoints, files and buckets, logging."""
