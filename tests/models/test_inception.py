"""The pieces of Inception against NumPy: folded normalisation, pools, TensorFlow 1's resize.

The whole network is compared with others in `tests/parity`.
"""

import itertools

import jax
import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from tests.evaluation import weights
from tests.parts import covering, quick
from vitdiff_jax.models import inception

RANDOM = np.random.default_rng(0)


@pytest.fixture(scope="module")
def tensors():
    """Random tensors by the published names, as they follow from our own parameters' paths."""
    return weights.tensors()


@pytest.fixture(scope="module")
def params(tensors):
    return inception.from_torch(tensors)


def slow_average(x):
    """Mean over 3x3 of the places inside the image, in float64: NaN is what is outside."""
    padded = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)], constant_values=np.nan)
    return np.nanmean(sliding_window_view(padded, (3, 3), (1, 2)), (-2, -1))


def slow_conv(x, tensors, name, stride, same):
    """Convolution, then batch normalisation, then ReLU, as published, in float64."""
    kernel = tensors[f"{name}.conv.weight"].astype(np.float64)
    height, width = kernel.shape[2:]
    if same:
        x = np.pad(x, [(0, 0), (height // 2,) * 2, (width // 2,) * 2, (0, 0)])
    windows = sliding_window_view(x, (height, width), (1, 2))[:, ::stride, ::stride]
    y = np.einsum("nyxihw,oihw->nyxo", windows, kernel)
    gamma, beta, mean, variance = (
        tensors[f"{name}.bn.{part}"].astype(np.float64)
        for part in ("weight", "bias", "running_mean", "running_var")
    )
    return np.maximum(gamma * (y - mean) / np.sqrt(variance + 0.001) + beta, 0)


LAYERS = [
    ("Conv2d_1a_3x3", 3, dict(kernel=3, stride=2, same=False)),
    ("Conv2d_2a_3x3", 32, dict(kernel=3, same=False)),
    ("Conv2d_2b_3x3", 32, dict(kernel=3)),
    ("Mixed_5b.branch5x5_2", 48, dict(kernel=5)),
    ("Mixed_6b.branch7x7_2", 128, dict(kernel=(1, 7))),
    ("Mixed_6b.branch7x7_3", 128, dict(kernel=(7, 1))),
    ("Mixed_5b.branch1x1", 192, {}),
    ("Mixed_5b.branch_pool", 192, dict(pool=inception.avg_pool)),
]


@pytest.mark.parametrize(
    ("layer", "size"),
    covering(itertools.product(LAYERS, [(9, 12), (10, 7)])),
    ids=lambda value: str(value[0]),
)
def test_a_convolution_with_folded_normalisation(tensors, params, layer, size):
    """Even and odd sizes, strips, and the average that is taken after the product."""
    path, channels, options = layer
    x = RANDOM.standard_normal((2, *size, channels))
    mine = params
    for name in path.split("."):
        mine = mine[name]
    features = len(mine["bias"])
    found = inception.Conv(features, **options).apply({"params": mine}, x.astype(np.float32))
    before = slow_average(x) if "pool" in options else x
    stride, same = options.get("stride", 1), options.get("same", True)
    wanted = slow_conv(before, tensors, path, stride, same)
    assert found.shape == wanted.shape
    assert 0.2 < (wanted > 0).mean() < 1
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())


def test_logits_have_no_bias(tensors, params):
    assert params["fc"].keys() == {"kernel"}
    np.testing.assert_array_equal(params["fc"]["kernel"], tensors["fc.weight"].T)


@pytest.mark.parametrize("size", quick([(8, 5)], [(3, 3), (8, 5), (7, 10)]))
def test_pools(size):
    x = RANDOM.standard_normal((2, *size, 3)).astype(np.float32) - 5
    windows = sliding_window_view(x, (3, 3), (1, 2))
    np.testing.assert_array_equal(inception.max_pool_halve(x), windows[:, ::2, ::2].max((-2, -1)))
    padded = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)], constant_values=-np.inf)
    around = sliding_window_view(padded, (3, 3), (1, 2)).max((-2, -1))
    np.testing.assert_array_equal(inception.max_pool(x), around)
    np.testing.assert_allclose(inception.avg_pool(x), slow_average(x), rtol=1e-5)


@pytest.mark.parametrize("size", quick([(31, 400)], [(8, 8), (299, 299), (31, 400)]))
def test_outputs_have_the_published_sizes(params, size):
    """Whatever the images' size; every parameter of ours is one of the network's."""
    images = jax.ShapeDtypeStruct((3, *size, 3), np.uint8)
    found = jax.eval_shape(inception.Inception().apply, {"params": params}, images)
    assert {name: (a.shape, a.dtype) for name, a in found.items()} == {
        "pool": ((3, 2048), np.float32),
        "logits": ((3, 1008), np.float32),
        "spatial": ((3, 2023), np.float32),
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("Mixed_6b.branch7x7_2.bn.running_var"),
         "tensor Mixed_6b.branch7x7_2.bn.running_var is missing"),
        (lambda t: t.pop("fc.bias"), "tensor fc.bias is missing"),
        (lambda t: t.update({"AuxLogits.fc.weight": np.ones(3)}),
         "unknown tensor AuxLogits.fc.weight"),
        (lambda t: t.update({"Mixed_6b.branch7x7_2.conv.weight": np.ones((128, 128, 7, 1))}),
         r"Mixed_6b.branch7x7_2.conv.weight has shape \(128, 128, 7, 1\), not"
         r" \(128, 128, 1, 7\)"),
        (lambda t: t.update({"fc.weight": np.ones((1000, 2048))}),
         r"fc.weight has shape \(1000, 2048\), not \(1008, 2048\)"),
    ],
)  # fmt: skip
def test_wrong_tensors_are_named(tensors, change, message):
    tensors = dict(tensors)
    change(tensors)
    with pytest.raises(ValueError, match=f"^{message}$"):
        inception.from_torch(tensors)


def test_counters_of_batches_are_no_weights(tensors, params):
    """Files of some PyTorch versions have them."""
    counter = {"Mixed_5b.branch1x1.bn.num_batches_tracked": np.array(0)}
    found = inception.from_torch(tensors | counter)
    jax.tree.map(np.testing.assert_array_equal, found, params)


@pytest.mark.parametrize("size", quick([(7, 4)], [(1, 1), (7, 4), (299, 299)]))
def test_resize_to_the_same_size_changes_nothing(size):
    images = RANDOM.integers(0, 256, (2, *size, 3), np.uint8)
    found = inception.resize(images, *size)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, images)


@pytest.mark.parametrize("after", quick([(16, 4)], [(16, 4), (32, 32), (2, 64), (8, 8)]))
def test_resize_of_a_ramp(after):
    """Row i lies at i * H / height, and behind the last row there is only that row."""
    ramp = (10 * np.arange(8)[:, None] + 3 * np.arange(8)).astype(np.uint8)
    rows, columns = (np.minimum(np.arange(n) * 8 / n, 7) for n in after)
    wanted = 10 * rows[:, None] + 3 * columns
    found = inception.resize(ramp[None, ..., None], *after)
    np.testing.assert_array_equal(found[0, ..., 0], wanted)
