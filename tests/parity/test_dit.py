"""Our DiT against an independent one in PyTorch (`dit_torch.py`): same weights, same output."""

import jax
import numpy as np
import pytest

from vitdiff_jax.models import dit

torch = pytest.importorskip("torch", reason='needs PyTorch: pip install -e ".[parity]"')

from tests.parity.dit_torch import DiT  # noqa: E402 - needs torch
from tests.parity.test_vit import (  # noqa: E402
    TOLERANCE,
    difference,
    imported,
    inputs,
    random_weights,
    torch_apply,
)

pytestmark = pytest.mark.extra

SMALL = dict(classes=7, patch=2, width=40, depth=3, heads=4, hidden=160, learned_sigma=True)
CASES = {  # what is not SMALL's
    "square": dict(shape=(8, 8, 4)),
    "unconditional": dict(shape=(8, 8, 3), classes=None, heads=5),
    "without variances": dict(shape=(6, 6, 1), learned_sigma=False, hidden=90),
    "wide": dict(shape=(4, 12, 4), depth=2),
    "tall, in one block": dict(shape=(12, 3, 4), patch=3, depth=1, classes=None),
}


def steps(batch):
    """Numbers of steps, what DiT's networks see of the time: the first, the last, and others."""
    return np.append([0, 999], np.random.default_rng(3).uniform(0, 999, batch - 2)).astype("f4")


def pair(shape, scan=False, **options):
    """The two networks as functions of (x, time, label)."""
    theirs = random_weights(DiT(shape, **options))
    found, ours = imported("dit", dit, theirs, scan, heads=options["heads"], size=shape[:2])
    assert found.shape == shape
    assert found.config["model"].get("learned_sigma", False) == options["learned_sigma"]
    return ours, torch_apply(theirs, options["classes"])


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_output_is_dits(case, scan):
    options = SMALL | CASES[case]
    x, _, label = inputs(options["shape"], options["classes"])
    ours, theirs = pair(scan=scan, **options)
    time = steps(len(x))
    assert difference(ours(x, time, label), theirs(x, time, label)) < TOLERANCE


def test_gradient_is_dits():
    """Of a random projection of the output, with respect to the latents."""
    options = SMALL | CASES["square"]
    x, _, label = inputs(options["shape"], options["classes"])
    ours, theirs = pair(**options)
    time = steps(len(x))
    direction = np.random.default_rng(2).standard_normal((*x.shape[:3], 8), np.float32)
    ours_grad = jax.grad(lambda x: (direction * ours(x, time, label)).sum())(x)
    leaf = torch.from_numpy(x).requires_grad_()
    (torch.from_numpy(direction) * theirs(leaf, time, label)).sum().backward()
    assert difference(ours_grad, leaf.grad) < TOLERANCE


def test_published_dimensions_need_nothing_told():
    """DiT-S/8, two of its blocks: the heads of a published width are known."""
    shape = (32, 32, 4)
    dims = dit.SIZES["S"] | dict(depth=2)
    x, _, label = inputs(shape, 1000, batch=2)
    theirs = random_weights(
        DiT(shape, classes=1000, patch=8, hidden=4 * 384, learned_sigma=True, **dims)
    )
    _, ours = imported("dit", dit, theirs)
    time = steps(2)
    found = difference(ours(x, time, label), torch_apply(theirs, 1000)(x, time, label))
    assert found < TOLERANCE
