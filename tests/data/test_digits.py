"""The digits are scikit-learn's, all of them, split once and for all."""

import collections

import numpy as np
import pytest
from sklearn.datasets import load_digits

from vitdiff_jax.data import digits, pipeline


@pytest.fixture(scope="module")
def dataset():
    return digits.dataset()


@pytest.fixture(scope="module")
def splits(dataset):
    return pipeline.stacked(dataset.train), pipeline.stacked(dataset.heldout)


def test_shapes_and_types(dataset, splits):
    assert dataset.shape == (8, 8, 1)
    assert dataset.classes == 10
    for split in splits:
        assert split["image"].shape[1:] == dataset.shape
        assert split["image"].dtype == np.uint8
        assert split["label"].dtype == np.int32


def examples(images, labels):
    """How often each (image, label) comes: scans may be equal, so sets would not do."""
    return collections.Counter(
        (image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True)
    )


@pytest.mark.parametrize("heldout", [0.3, 0.1])
def test_splits_are_disjoint_and_lose_nothing(heldout):
    """Together they are the 1,797 scans, each once: none is in both, none is left out."""
    dataset = digits.dataset(heldout)
    assert (len(dataset.heldout), len(dataset.train)) == (
        round(heldout * 1797),
        1797 - round(heldout * 1797),
    )
    raw = load_digits()
    found = sum(
        (examples(s.images, s.labels) for s in (dataset.train, dataset.heldout)),
        start=collections.Counter(),
    )
    levels = np.rint(raw.images * 255 / 16).astype(np.uint8)  # 17 levels of grey
    assert found == examples(levels, raw.target)


def test_the_split_is_the_same_for_everyone(splits):
    for split, again in zip(splits, (digits.dataset().train, digits.dataset().heldout)):
        np.testing.assert_array_equal(split["image"], again.images)
        np.testing.assert_array_equal(split["label"], again.labels)


def test_every_class_is_in_both_splits(splits):
    """About equally often, as the data is: the split is random, not by writer or class."""
    for split in splits:
        share = np.bincount(split["label"], minlength=10) / len(split["label"])
        assert ((share > 0.06) & (share < 0.14)).all()
