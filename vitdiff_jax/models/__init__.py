"""Denoisers, one file each with a flax module `Model`; the only folder that imports flax.linen."""
