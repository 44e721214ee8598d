"""SiT's velocity against ours: their time runs the other way, half of their channels idles."""

import jax.numpy as jnp
import numpy as np
import pytest

from vitdiff_jax.diffusion import schedules
from vitdiff_jax.models import dit

pytest.importorskip("torch", reason='needs PyTorch: pip install -e ".[parity]"')

from tests.parity.dit_torch import SiT
from tests.parity.test_vit import (
    TOLERANCE,
    difference,
    imported,
    inputs,
    random_weights,
    torch_apply,
)

pytestmark = pytest.mark.extra

SMALL = dict(classes=7, patch=2, width=40, depth=2, heads=4, hidden=160, learned_sigma=True)
CASES = {  # what is not SMALL's
    "as published": dict(shape=(8, 8, 4)),
    "one output": dict(shape=(4, 8, 3), learned_sigma=False),
    "unconditional": dict(shape=(6, 6, 4), classes=None),
}


@pytest.mark.parametrize("path", ["linear", "gvp"])
@pytest.mark.parametrize("case", CASES)
def test_velocity_is_minus_sits(case, path):
    """u = dx_t/dt in our t = 1 - their t, which the schedule gives the network as it is."""
    options = SMALL | CASES[case]
    shape = options["shape"]
    x, t, label = inputs(shape, options["classes"])
    theirs = random_weights(SiT(**options))
    found, ours = imported("sit", dit, theirs, heads=options["heads"], size=shape[:2], path=path)
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
