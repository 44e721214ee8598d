"""Denoisers and other networks; the only room that imports flax.linen."""
