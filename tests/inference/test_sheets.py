"""What sheets of samples say of themselves, and where their images stand."""

import numpy as np
import pytest

from vitdiff_jax.data import pipeline
from vitdiff_jax.inference import sampling

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), np.uint8)


def test_class_names():
    """Of numbers of a checkpoint's conditions; -1 is none."""
    known = {"label": ("cat", "dog")}
    assert sampling.class_names(known, {"label": np.array([1, 0, -1])}) == ["dog", "cat", ""]
    assert sampling.class_names({"text": 128}, {"text": np.zeros((3, 128))}) == []


@pytest.mark.parametrize(
    ("names", "columns"),
    [
        (["cat", "dog", "eel"] * 4, 3),  # a column for each
        ([str(i) for i in range(12)], 12),
        (["cat"] * 12, 4),  # as square as can be
        ([], 4),
        (["cat", "cat", "dog"] * 4, 4),  # not in turn
    ],
)
def test_a_few_classes_in_turn_have_a_column_each(names, columns):
    sheet = sampling.samples_sheet(IMAGES, names, step=3)
    assert (sheet.kind, sheet.columns, sheet.names) == ("samples", columns, names)
    assert sheet.about == {"step": 3}
    np.testing.assert_array_equal(sheet.images[:, 0], IMAGES)


def test_many_classes_are_as_square_as_can_be():
    images = np.zeros((100, 8, 8, 1), np.uint8)
    assert sampling.samples_sheet(images, [str(i % 50) for i in range(100)]).columns == 10


def test_restored_images_stand_between_degraded_and_original():
    """The originals are the held-out examples in turn."""
    source = pipeline.InMemory(IMAGES[:2], np.zeros(2, np.int32))
    data = pipeline.Dataset(source, source, (8, 8, 3), {})
    hint = np.zeros((3, 8, 8, 3), np.float32)  # middle grey
    sheet = sampling.restored_sheet(IMAGES[5:8], hint, data, step=1)
    assert sheet.kind == "restored"
    assert abs(sheet.images[:, 0].astype(int) - 127.5).max() < 1
    np.testing.assert_array_equal(sheet.images[:, 1], IMAGES[5:8])
    np.testing.assert_array_equal(sheet.images[:, 2], IMAGES[[0, 1, 0]])
