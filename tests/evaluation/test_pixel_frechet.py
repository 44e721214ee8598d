"""The Fréchet distance in pixels, of real images and noise; see `test_frechet` for the formula."""

import numpy as np
import pytest

from tests.evaluation.test_frechet import by_sqrtm
from vitdiff_jax.data import pipeline
from vitdiff_jax.evaluation import pixel_frechet


def test_real_images_have_no_distance_to_themselves(dataset, heldout):
    """And the floor beside it is the distance of the two real splits."""
    metric = pixel_frechet.Metric(dataset)
    metric.update(heldout["image"], {"label": heldout["label"]})
    result = metric.result()
    assert abs(result["value"]) < 1e-6
    first, second = (
        (v.mean(0), np.cov(v.T))
        for v in (
            split["image"].reshape(-1, 64) / 127.5 - 1
            for split in (pipeline.stacked(dataset.train), heldout)
        )
    )
    # Pixels that are always black have no variance: a little on the diagonal helps SciPy's root.
    wanted = by_sqrtm(*((mean, cov + 1e-12 * np.eye(64)) for mean, cov in (first, second)))
    assert result["floor"] == pytest.approx(wanted, rel=1e-3)


def test_noise_is_far_from_real_images(dataset):
    metric = pixel_frechet.Metric(dataset)
    images = np.random.default_rng(0).integers(0, 256, (500, 8, 8, 1), np.uint8)
    metric.update(images, {"label": np.zeros(500)})
    result = metric.result()
    assert result["value"] > 20 * result["floor"]
