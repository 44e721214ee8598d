"""Our DiT against independent DiT and SiT in PyTorch (`dit_torch.py`): same weights and output."""

import jax.numpy as jnp
import numpy as np
import pytest

from vitdiff_jax.diffusion import schedules
from vitdiff_jax.models import dit

torch = pytest.importorskip("torch", reason='needs PyTorch: pip install -e ".[parity]"')

from tests.parity.dit_torch import DiT, SiT  # noqa: E402 - needs torch
from tests.parity.test_vit import (  # noqa: E402
    TOLERANCE,
    difference,
    gradient_difference,
    imported,
    inputs,
    random_weights,
    steps,
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


def pair(shape, scan=False, **options):
    """The two networks as functions of (x, time, label)."""
    theirs = random_weights(DiT(shape, **options))
    found, ours = imported(
        "dit", dit, theirs, scan, heads=options["heads"], size=shape[:2], null_row=True
    )
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
    options = SMALL | CASES["square"]
    ours, theirs = pair(**options)
    x, _, label = inputs(options["shape"], options["classes"])
    assert gradient_difference(ours, theirs, x, steps(3), label, channels=8) < TOLERANCE


SIT = {  # what is not SMALL's: half of the channels idles
    "as published": dict(shape=(8, 8, 4), depth=2),
    "one output": dict(shape=(4, 8, 3), depth=2, learned_sigma=False),
    "unconditional": dict(shape=(6, 6, 4), depth=2, classes=None),
}


@pytest.mark.parametrize("path", ["linear", "gvp"])
@pytest.mark.parametrize("case", SIT)
def test_velocity_is_minus_sits(case, path):
    """u = dx_t/dt in our t = 1 - their t, which the schedule gives the network as it is."""
    options = SMALL | SIT[case]
    shape = options["shape"]
    x, t, label = inputs(shape, options["classes"])
    theirs = random_weights(SiT(**options))
    known = dict(heads=options["heads"], size=shape[:2], path=path, null_row=True)
    found, ours = imported("sit", dit, theirs, **known)
    name = found.config["diffusion"]["schedule"]["name"]
    scale, time = getattr(schedules, name)().network_input(jnp.asarray(t))
    np.testing.assert_array_equal(scale, 1)
    out = ours(x, time, label)
    wanted = torch_apply(theirs, options["classes"])(x, 1 - t, label)
    out = out[..., : wanted.shape[-1]]  # without the variances that nobody uses
    assert difference(-out, wanted) < TOLERANCE


def test_paths_are_sits():
    """x_t of our schedules at our t is theirs at 1 - t: linear and sine (arXiv:2401.08740)."""
    t = jnp.linspace(0, 1, 11)
    for found, (alpha, sigma) in (
        (schedules.RectifiedFlow().alpha_sigma(1 - t), (t, 1 - t)),
        (schedules.GVP().alpha_sigma(1 - t), (jnp.sin(jnp.pi / 2 * t), jnp.cos(jnp.pi / 2 * t))),
    ):
        np.testing.assert_allclose(found, (alpha, sigma), atol=1e-6)
