"""Devices, processes, checkpoints, files and buckets, logs."""
