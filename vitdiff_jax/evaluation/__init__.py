"""Metrics, one file each with a class `Metric(dataset)`: name, update(images, labels), result()."""
