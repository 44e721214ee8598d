"""scikit-learn's 1,797 handwritten digits, 8x8, grey: real data without a download.

From the UCI repository (Alpaydin and Kaynak, 1998). 30 % are held out, in a fixed split.
"""

import numpy as np

from vitdiff_jax.data.pipeline import Dataset, InMemory


def dataset(heldout: float = 0.3) -> Dataset:
    """The digits with class labels. heldout: the fraction held out."""
    if not 0 < heldout < 1:
        raise ValueError(f"heldout: {heldout} is not between 0 and 1")
    from sklearn.datasets import load_digits  # takes a second to import

    pixels, labels = load_digits(return_X_y=True)  # [N, 64] in 0..16, [N]
    images = np.round(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    labels = labels.astype(np.int32)
    order = np.random.default_rng(0).permutation(len(images))
    test, train = np.split(order, [round(heldout * len(order))])
    return Dataset(
        train=InMemory(images[train], labels[train]),
        heldout=InMemory(images[test], labels[test]),
        shape=(8, 8, 1),
        conditions={"label": tuple("0123456789")},
        origin=f"scikit-learn's digits ({len(train):,} images, {len(test)} held out)",
    )
