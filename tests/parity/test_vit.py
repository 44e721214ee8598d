"""Our ViT against an independent JiT in PyTorch (`jit_torch.py`): one set of weights, one output.

The weights are random, all of them: the published initialisation has zero gates and a zero head,
with which any two networks agree. They come to us through `interop.families`, as published ones do.
"""

import jax
import numpy as np
import pytest

from tests.models.tiny_models import param_shapes
from vitdiff_jax.interop import families
from vitdiff_jax.models import conditions, vit

torch = pytest.importorskip("torch", reason='needs PyTorch: pip install -e ".[parity]"')

from tests.parity.jit_torch import JiT  # noqa: E402 - needs torch

pytestmark = pytest.mark.extra

SMALL = dict(patch=4, width=40, depth=3, heads=2, bottleneck=12, class_tokens=5)
CASES = {  # head size 20, hidden size 106 (of 106.7); what is not SMALL's
    "tokens in the middle": dict(shape=(16, 16, 3), classes=7, class_tokens_from=1),
    "tokens from the first block": dict(shape=(12, 12, 1), classes=7, class_tokens_from=0),
    "tokens never": dict(shape=(8, 8, 4), classes=7, class_tokens_from=3),
    "no tokens": dict(shape=(16, 16, 3), classes=7, class_tokens_from=1, class_tokens=0),
    "unconditional": dict(shape=(16, 16, 3), classes=None, class_tokens_from=1),
    "wide": dict(shape=(8, 24, 1), classes=7, class_tokens_from=2),
    "tall, unconditional": dict(shape=(40, 10, 4), classes=None, class_tokens_from=0, patch=5),
}
TOLERANCE = 1e-4
"""Allowed max|difference| / max|output| in float32; measured 8e-7 and less."""


def random_weights(model, seed=0):
    """The model with variance-preserving matrices and everything else of the order of 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if not weight.requires_grad:
            continue
        noise = torch.randn(weight.shape, generator=generator)
        if "norm" in name:
            weight.data = 1 + 0.3 * noise
        elif name.endswith(".weight") and "embedding_table" not in name:
            weight.data = noise / weight[0].numel() ** 0.5
        else:
            weight.data = 0.5 * noise
    return model


def tensors(model):
    """A PyTorch model's state dict as NumPy arrays."""
    return {name: value.numpy() for name, value in model.state_dict().items()}


def inputs(shape, classes, batch=3, seed=1):
    """Images NHWC, times, and labels of which the last is -1, "no class" (None: no labels)."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((batch, *shape), np.float32)
    time = random.uniform(0, 1, batch).astype(np.float32)
    if classes is None:
        return x, time, None
    return x, time, np.append(random.integers(0, classes, batch - 1), -1)


def torch_apply(model, classes):
    """A PyTorch model as a function of our inputs: channels first, "no class" is `classes`."""

    def apply(x, time, label):
        if label is not None:
            label = torch.from_numpy(np.where(label < 0, classes, label))
        x = x if isinstance(x, torch.Tensor) else torch.from_numpy(x)
        return model(x.permute(0, 3, 1, 2), torch.from_numpy(time), label).permute(0, 2, 3, 1)

    return apply


def flax_apply(model, params):
    """Our model as a compiled function of (x, time, label), matrix products in full float32."""

    def apply(x, time, label):
        cond = {} if label is None else {"label": label}
        with jax.default_matmul_precision("highest"):
            return model.apply({"params": params}, x, time, cond)

    return jax.jit(apply)


def imported(family, module, theirs, scan=False, **known):
    """Our network of the module, from a PyTorch model by way of a family: (what it is, function).

    It has exactly its own parameters, and they give the PyTorch model's tensors back, bit by bit.
    """
    state = tensors(theirs)
    found, params = families.from_torch(family, state, **known)
    options = {name: v for name, v in found.config["model"].items() if name != "name"}
    sizes = conditions.sizes_of(found.conditions)
    model = module.Model(conditions=sizes, scan=scan, **options)
    model.check(found.shape)
    wanted = param_shapes(model, found.shape)
    params = families.stack_blocks(params, wanted)
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, wanted)
    back = families.to_torch(family, found, params)
    assert back.keys() == state.keys()
    for name, tensor in state.items():
        np.testing.assert_array_equal(back[name], tensor, err_msg=name, strict=True)
    return found, flax_apply(model, params)


def pair(shape, classes, scan=False, **options):
    """The two networks as functions of (x, time, label)."""
    theirs = random_weights(JiT(shape, classes=classes, **options))
    known = dict(size=shape[:2], class_tokens_from=options["class_tokens_from"])
    found, ours = imported("jit", vit, theirs, scan, **known)
    assert found.shape == shape
    assert len(found.conditions.get("label", ())) == (classes or 0)
    return ours, torch_apply(theirs, classes)


def difference(ours, theirs):
    """max|ours - theirs| / max|theirs|, of an output that is not nothing."""
    ours, theirs = np.asarray(ours), theirs.detach().numpy()
    assert ours.shape == theirs.shape
    assert np.abs(theirs).max() > 0.1
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


def gradient_difference(ours, theirs, x, time, label, channels):
    """Of a random projection of the output, with respect to the images."""
    direction = np.random.default_rng(2).standard_normal((*x.shape[:3], channels), np.float32)
    ours_grad = jax.grad(lambda x: (direction * ours(x, time, label)).sum())(x)
    leaf = torch.from_numpy(x).requires_grad_()
    (torch.from_numpy(direction) * theirs(leaf, time, label)).sum().backward()
    return difference(ours_grad, leaf.grad)


def steps(batch):
    """Numbers of steps, as DiT's and U-ViT's networks see the time: first, last, and others."""
    return np.append([0, 999], np.random.default_rng(3).uniform(0, 999, batch - 2)).astype("f4")


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_output_is_jits(case, scan):
    """For every shape and place of the class tokens; rolled in one body, or in two around them."""
    options = SMALL | CASES[case]
    x, time, label = inputs(options["shape"], options["classes"])
    ours, theirs = pair(scan=scan, **options)
    assert difference(ours(x, time, label), theirs(x, time, label)) < TOLERANCE


def test_gradient_is_jits():
    options = SMALL | CASES["tokens in the middle"]
    ours, theirs = pair(**options)
    given = inputs(options["shape"], options["classes"])
    assert gradient_difference(ours, theirs, *given, channels=3) < TOLERANCE


def test_jit_b16_dimensions():
    """The published size by its name, two blocks deep, the second with the class tokens."""
    options = dict(depth=2, class_tokens_from=1, class_tokens=32, patch=16)
    options |= {name: vit.SIZES["B"][name] for name in ("width", "heads", "bottleneck")}
    assert (options["width"], options["heads"], options["bottleneck"]) == (768, 12, 128)
    x, time, label = inputs((256, 256, 3), 1000, batch=2)
    ours, theirs = pair((256, 256, 3), 1000, **options)
    assert difference(ours(x, time, label), theirs(x, time, label)) < TOLERANCE
