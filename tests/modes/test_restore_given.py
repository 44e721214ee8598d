"""`--mode=restore` on what people bring: turned photographs, painted layers, arrays."""

import numpy as np
import pytest
from PIL import Image

import vitdiff_jax
from tests import tiny

pytestmark = pytest.mark.usefixtures("plain")
RANDOM = np.random.default_rng(0)


def test_a_painted_layer_on_a_photograph_that_was_turned(workdir, tmp_path):
    """What was painted is redrawn, and nothing else, in the picture as it is looked at."""
    seen = RANDOM.integers(0, 256, (8, 8), np.uint8)
    layer = np.zeros((8, 8, 4), np.uint8)
    layer[:3, 5:] = (255, 0, 0, 255)
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(np.rot90(seen)).save(tmp_path / "photo.png", exif=exif)
    Image.fromarray(np.rot90(layer)).save(tmp_path / "mask.png", exif=exif)
    code = tiny.call(
        f"--workdir={workdir}", "--mode=restore", f"--input={tmp_path / 'photo.png'}",
        f"--mask={tmp_path / 'mask.png'}", "--noise=0",
    )  # fmt: skip
    assert code == 0
    with Image.open(workdir / "restored" / "photo.png") as image:
        found = np.asarray(image)
    kept = layer[..., 3] == 0
    np.testing.assert_array_equal(found[kept], seen[kept])
    assert (found != seen)[~kept].mean() > 0.5


def test_masks_from_python_all_mean_the_same(untrained, plain):
    model = vitdiff_jax.load(untrained)
    image, missing = RANDOM.integers(0, 256, (8, 8), np.uint8), np.zeros((8, 8), bool)
    missing[:3, 5:] = True
    masks = [missing, missing.astype(np.uint8), missing.tolist(), missing[..., None] * 1.0]
    found = [model.restore(image, mask=mask, noise_std=0).images for mask in masks]
    np.testing.assert_array_equal(found[0][0, ..., 0][~missing], image[~missing])
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])
    wide = model.restore(image.astype(np.uint16) * 257, mask=Image.fromarray(missing), noise_std=0)
    np.testing.assert_array_equal(wide.images, found[0])
