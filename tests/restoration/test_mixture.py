"""Images of two kinds, and a measurement that leaves open which: the shares that each method gives.

Four pixels, all near 0.6 (a share of 0.3) or all near -0.6, each with a standard deviation of 0.25;
one pixel is known, 0.1 with noise of 0.1. By Bayes' rule the first kind's share is then 0.69; only
the exact posterior's denoiser has a reason to find it. Measured (`pytest -s` prints it) with 2000
images, so to 0.01, after 60 steps on rectified flow, with the default options otherwise:

    dps 0.62, pigdm 0.56 (tweedie 0.53), repaint 0.37 (without resampling 0.32), ddnm 0.35,
    diffpir 0.35, ddrm 0.34, pnpflow 0.09

Gradients through the network carry what one pixel says to the others early, while the kind is still
open; where y is only put in, it comes too late, and PnP-Flow goes to the kind that is more common.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.parts import quick
from tests.restoration.gaussians import METHODS, keys
from vitdiff_jax.diffusion import grids
from vitdiff_jax.diffusion.schedules import RectifiedFlow
from vitdiff_jax.operators.mask import Mask

FLOW, SHAPE, COUNT = RectifiedFlow(), (2, 2, 1), 2000
MEAN, STD, SHARE, Y, NOISE_STD = 0.6, 0.25, 0.3, 0.1, 0.1
RUNS = [
    *((name, {}) for name in METHODS),
    ("pigdm", dict(covariance="tweedie")),
    ("repaint", dict(resample=1)),
]


def log_odds(x_t, alpha, sigma):
    """Of the first kind over the second, given x_t [B, H, W, C]."""
    prior = np.log(SHARE / (1 - SHARE))
    return prior + 2 * alpha * MEAN * x_t.sum((1, 2, 3)) / (alpha**2 * STD**2 + sigma**2)


def denoise(x_t, t):
    """E[x | x_t]: of each kind, weighted by its probability."""
    alpha, sigma = FLOW.alpha_sigma(t)
    share = jax.nn.sigmoid(log_odds(x_t, alpha, sigma))[:, None, None, None]
    alpha, sigma = (a[:, None, None, None] for a in (alpha, sigma))
    gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
    up, down = (m + gain * (x_t - alpha * m) for m in (MEAN, -MEAN))
    return share * up + (1 - share) * down


@functools.cache
def program(name, options):
    """A method compiled, for any mask."""
    times = grids.uniform_logsnr(FLOW, 60, low=-9, high=9)

    def run(x, k, operator, y):
        return METHODS[name].restore(
            denoise, FLOW, times, x, k, operator=operator, y=y, noise_std=NOISE_STD, **dict(options)
        )

    return jax.jit(run)


def share_found(name, options, known):
    """The share of the first kind among a method's images."""
    y = jnp.full((COUNT, *SHAPE), Y) * known
    start = jax.random.normal(jax.random.key(9), (COUNT, *SHAPE))
    found = program(name, tuple(options.items()))(start, keys(COUNT), Mask(known, 1), y)
    return (np.asarray(found).sum((1, 2, 3)) > 0).mean()


def one_pixel():
    known = np.zeros((2, 2, 1), np.float32)
    known[0, 0] = 1
    return known


@pytest.mark.slow
def test_shares_are_reported():
    odds = np.log(SHARE / (1 - SHARE)) + 2 * MEAN * Y / (STD**2 + NOISE_STD**2)
    print(f"\nBayes {1 / (1 + np.exp(-odds)):.3f}")
    for name, options in RUNS:
        share = share_found(name, options, one_pixel())
        print(f"{name} {options or ''} {share:.3f}")
        assert 0 < share < 1


@pytest.mark.parametrize(
    "name", quick({"repaint"}, [n for n, m in METHODS.items() if m.TRAITS.prior])
)
def test_the_priors_shares_where_nothing_is_known(name):
    """To 4.5 standard errors and two per cent for the steps."""
    options = dict(resample=1) if name == "repaint" else {}
    share = share_found(name, options, 0 * one_pixel())
    assert abs(share - SHARE) < 4.5 * np.sqrt(SHARE * (1 - SHARE) / COUNT) + 0.02
