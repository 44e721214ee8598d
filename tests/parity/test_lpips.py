"""Our LPIPS against torchvision's networks and the formula in PyTorch, with random weights."""

import jax
import numpy as np
import pytest

from tests.parity.test_inception import difference
from vitdiff_jax.models import lpips

pytestmark = pytest.mark.extra

REASON = 'needs PyTorch: pip install -e ".[parity]"'
torch = pytest.importorskip("torch", reason=REASON)
models = pytest.importorskip("torchvision.models", reason=REASON)

TOLERANCE = 1e-4
"""Allowed max|difference| / max|value| in float32; measured 3e-6 and less."""
TAPS = {"vgg16": (3, 8, 15, 22, 29), "alexnet": (1, 4, 7, 9, 11)}  # ReLUs in `features`
SIZES = [(64, 64), (67, 41)]


@pytest.fixture(scope="module", params=["vgg16", "alexnet"])
def network(request):
    """(name, torchvision's layers with random weights, the same as our parameters)."""
    layers = getattr(models, request.param)(weights=None).features.eval()
    generator, params = torch.Generator().manual_seed(0), {}
    for layer in layers:
        if isinstance(layer, torch.nn.Conv2d):
            noise = torch.randn(layer.weight.shape, generator=generator)
            layer.weight.data = noise * (2 / layer.weight[0].numel()) ** 0.5
            layer.bias.data = 0.2 * torch.randn(layer.bias.shape, generator=generator)
            params[f"conv{len(params)}"] = {
                "kernel": layer.weight.detach().numpy().transpose(2, 3, 1, 0),
                "bias": layer.bias.detach().numpy(),
            }
    return request.param, layers, params


def pictures(size, seed):
    return np.random.default_rng(seed).uniform(-1, 1, (2, *size, 3)).astype(np.float32)


def taps(name, layers, images):
    """The five compared layers NCHW of images NHWC in [-1, 1], scaled as in LPIPS's code."""
    shift = torch.tensor([-0.030, -0.088, -0.188])[:, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450])[:, None, None]
    x, found = (torch.from_numpy(images).permute(0, 3, 1, 2) - shift) / scale, []
    with torch.no_grad():
        for i, layer in enumerate(layers[: max(TAPS[name]) + 1]):
            x = layer(x)
            if i in TAPS[name]:
                found.append(x.clone())
    return found


@pytest.mark.parametrize("size", SIZES)
def test_the_compared_layers_are_torchvisions(network, size):
    name, layers, params = network
    images = pictures(size, 0)
    ours = jax.jit(lpips.Backbone(name).apply)({"params": params}, images)
    wanted = taps(name, layers, images)
    assert len(ours) == len(wanted) == 5
    for found, layer in zip(ours, wanted):
        assert difference(np.asarray(found), layer.permute(0, 2, 3, 1).numpy()) < TOLERANCE


@pytest.mark.parametrize("size", SIZES)
def test_the_distance_is_the_formulas(network, size):
    """Layers divided by their norm at each place, squared, weighted, averaged, summed."""
    name, layers, params = network
    first, second = pictures(size, 0), pictures(size, 1)
    second[0] = first[0] + 0.1 * second[0]
    generator, wanted, weights = torch.Generator().manual_seed(1), torch.zeros(2), {}
    for i, (a, b) in enumerate(zip(taps(name, layers, first), taps(name, layers, second))):
        linear = torch.rand(1, a.shape[1], 1, 1, generator=generator)
        weights[f"weights{i}"] = linear.numpy().ravel()
        a, b = (x / (x.pow(2).sum(1, keepdim=True).sqrt() + 1e-10) for x in (a, b))
        squares = (a - b) ** 2
        wanted += torch.nn.functional.conv2d(squares, linear).mean((1, 2, 3))
    params = {"backbone": params, **weights}
    found = jax.jit(lpips.Lpips(name).apply)({"params": params}, first, second)
    np.testing.assert_allclose(found, wanted, rtol=TOLERANCE)
    assert found[0] < 0.5 * found[1]
