"""Our Inception against pytorch-fid's and torch-fidelity's, block by block, with equal weights.

The weights are random, with batch statistics that are far from none: ours have them folded in.
"""

import functools

import jax
import numpy as np
import pytest

from vitdiff_jax.models import inception

pytestmark = pytest.mark.extra

REASON = 'needs PyTorch: pip install -e ".[parity]"'
torch = pytest.importorskip("torch", reason=REASON)
torchvision = pytest.importorskip("torchvision", reason=REASON)
theirs_of_pytorch_fid = pytest.importorskip("pytorch_fid.inception", reason=REASON)
theirs_of_torch_fidelity = pytest.importorskip(
    "torch_fidelity.feature_extractor_inceptionv3", reason=REASON
)
tensorflow1 = pytest.importorskip("torch_fidelity.interpolate_compat_tensorflow", reason=REASON)

TOLERANCE = 1e-4
"""Allowed max|difference| / max|value| in float32; measured 2e-6 and less."""


def random_weights(shapes, seed=0):
    """Tensors that keep activations of the order of 1 through all layers."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, like in shapes.items():
        noise = torch.randn(like.shape, generator=generator)
        if name.endswith("running_var"):
            tensors[name] = 1.2 + 0.5 * noise.tanh()
        elif name.endswith("bn.weight"):
            tensors[name] = 1 + 0.4 * noise.tanh()
        elif name.endswith(("bias", "running_mean")):
            tensors[name] = 0.4 * noise
        elif name.endswith("num_batches_tracked"):
            tensors[name] = torch.tensor(1)
        else:
            tensors[name] = noise * (2 / like[0].numel()) ** 0.5
    return tensors


@pytest.fixture(scope="module")
def state():
    """A state dict in the published file's names, without the published file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torchvision.models.Inception3, "load_state_dict", lambda self, state: None)
        patch.setattr(theirs_of_pytorch_fid, "load_state_dict_from_url", lambda *_, **__: None)
        return random_weights(theirs_of_pytorch_fid.fid_inception_v3().state_dict())


@pytest.fixture(scope="module")
def images():
    """Two pictures of noise, neither square nor of the network's size, uint8 NHWC."""
    return np.random.default_rng(0).integers(0, 256, (2, 40, 57, 3), np.uint8)


@pytest.fixture(scope="module")
def ours(state, images):
    """(outputs, {block: output}) of our network."""
    params = inception.from_torch({name: tensor.numpy() for name, tensor in state.items()})
    model = inception.Inception()

    @jax.jit
    def apply(params, images):
        found, kept = model.apply({"params": params}, images, capture_intermediates=True)
        blocks = kept["intermediates"]
        return found, {
            name: block["__call__"][0] for name, block in blocks.items() if name in params
        }

    return jax.tree.map(np.asarray, apply(params, images))


def theirs(module, images):
    """(output, {block: output NHWC}) of one of the others."""
    blocks = {}

    def keep(_, __, output, name):
        blocks[name] = output.permute(0, 2, 3, 1).numpy()

    for name, child in module.named_children():
        if name.startswith(("Conv2d", "Mixed")):
            child.register_forward_hook(functools.partial(keep, name=name))
    with torch.no_grad():
        return module.eval()(images), blocks


def difference(found, wanted):
    """max|found - wanted| / max|wanted|, of something that is not nothing."""
    assert found.shape == wanted.shape
    assert np.abs(wanted).max() > 0.1
    return np.abs(found - wanted).max() / np.abs(wanted).max()


def assert_same_blocks(ours, theirs):
    assert ours.keys() - {"fc"} == theirs.keys()
    assert len(theirs) == 16
    found = {name: difference(ours[name], theirs[name]) for name in theirs}
    assert max(found.values()) < TOLERANCE, found


def nchw(images):
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def test_torch_fidelitys_network(monkeypatch, state, images, ours):
    """From uint8 on: its own resize, scaling, blocks, pool and logits without bias."""
    monkeypatch.setattr(
        theirs_of_torch_fidelity, "load_state_dict_from_url", lambda *_, **__: state
    )
    module = theirs_of_torch_fidelity.FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048", "logits_unbiased"]
    )
    (pool, logits), blocks = theirs(module, nchw(images))
    found, found_blocks = ours
    assert_same_blocks(found_blocks, blocks)
    assert difference(found["pool"], pool.numpy()) < TOLERANCE
    assert difference(found["logits"], logits.numpy()) < TOLERANCE
    spatial = blocks["Mixed_6d"][..., :7].reshape(len(images), -1)  # as ADM: NHWC, then flattened
    assert spatial.shape == (2, 2023)
    assert difference(found["spatial"], spatial) < TOLERANCE


def test_pytorch_fids_network(monkeypatch, state, images, ours):
    """Its own resize is PyTorch's, so it gets images that are resized already."""
    monkeypatch.setattr(theirs_of_pytorch_fid, "load_state_dict_from_url", lambda *_, **__: state)
    resized = tensorflow1.interpolate_bilinear_2d_like_tensorflow1x(
        nchw(images).float(), (299, 299), align_corners=False
    )
    module = theirs_of_pytorch_fid.fid_inception_v3()
    module.avgpool.register_forward_hook(lambda _, __, output: pools.append(output.flatten(1)))
    pools = []
    logits, blocks = theirs(module, (resized - 128) / 128)
    found, found_blocks = ours
    assert_same_blocks(found_blocks, blocks)
    assert difference(found["pool"], pools[0].numpy()) < TOLERANCE
    assert difference(found["logits"], (logits - module.fc.bias).detach().numpy()) < TOLERANCE
