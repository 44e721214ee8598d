"""The digits, but few of them: for networks that take a tenth of a second an image."""

import dataclasses

from vitdiff_jax.data import digits
from vitdiff_jax.data.pipeline import InMemory


def dataset(train: int = 40, heldout: int = 30):
    """So many of each split."""
    whole = digits.dataset()
    splits = {
        "train": InMemory(whole.train.images[:train], whole.train.labels[:train]),
        "heldout": InMemory(whole.heldout.images[:heldout], whole.heldout.labels[:heldout]),
    }
    return dataclasses.replace(whole, **splits)
