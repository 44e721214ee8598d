"""Images of two kinds: where nothing is known, each method of the prior gives their shares."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.parts import quick
from tests.restoration.gaussians import METHODS
from tests.samplers.known import keys
from vitdiff_jax.diffusion import grids
from vitdiff_jax.diffusion.schedules import RectifiedFlow, per_image
from vitdiff_jax.operators.mask import Mask

FLOW, SHAPE, COUNT = RectifiedFlow(), (2, 2, 1), 2000
MEAN, STD, SHARE = 0.6, 0.25, 0.3  # of the first kind, whose pixels are all near the mean


def denoise(x_t, t):
    """E[x | x_t]: of each kind, weighted by its probability."""
    alpha, sigma = map(per_image, FLOW.alpha_sigma(t))
    gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
    total = x_t.sum((1, 2, 3), keepdims=True)
    share = jax.nn.sigmoid(np.log(SHARE / (1 - SHARE)) + 2 * MEAN * gain / STD**2 * total)
    up, down = (m + gain * (x_t - alpha * m) for m in (MEAN, -MEAN))
    return share * up + (1 - share) * down


@pytest.mark.parametrize(
    "name", quick({"repaint"}, [n for n, m in METHODS.items() if m.TRAITS.prior])
)
def test_the_priors_shares_where_nothing_is_known(name):
    """To 4.5 standard errors and two per cent for the steps."""
    options = dict(resample=1) if name == "repaint" else {}
    times = grids.uniform_logsnr(FLOW, 60, low=-9, high=9)
    nothing, y = Mask(np.zeros((2, 2, 1), np.float32), 1), jnp.zeros((COUNT, *SHAPE))

    @jax.jit
    def run(x, k):
        return METHODS[name].restore(
            denoise, FLOW, times, x, k, operator=nothing, y=y, noise_std=0.1, **options
        )

    found = run(jax.random.normal(jax.random.key(9), (COUNT, *SHAPE)), keys(COUNT))
    share = (np.asarray(found).sum((1, 2, 3)) > 0).mean()
    assert abs(share - SHARE) < 4.5 * np.sqrt(SHARE * (1 - SHARE) / COUNT) + 0.02
