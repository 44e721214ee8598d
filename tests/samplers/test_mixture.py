"""Data with two modes: each gets its share of the images, and its spread."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.parts import SAMPLERS, only
from tests.samplers.known import FOUR_SCHEDULES, keys, noise
from vitdiff_jax.diffusion import grids
from vitdiff_jax.diffusion.schedules import EDM, RectifiedFlow, per_image

MODES, SHARES, STD = np.array([-0.7, 0.4]), np.array([0.3, 0.7]), 0.15
IMAGES = 4000
QUICK = [("edm_stochastic", EDM()), ("unipc", RectifiedFlow())]
CASES = only(QUICK, itertools.product(SAMPLERS, FOUR_SCHEDULES))


def mixture_denoiser(schedule):
    """E[x | x_t] for images of one pixel."""

    def denoise(x_t, t):
        alpha, sigma = (per_image(a)[..., None] for a in schedule.alpha_sigma(t))
        variance = (alpha * STD) ** 2 + sigma**2
        away = x_t[..., None] - alpha * MODES  # [B, 1, 1, 1, 2]
        share = jax.nn.softmax(jnp.log(SHARES) - away**2 / (2 * variance), -1)
        return (share * (MODES + alpha * STD**2 / variance * away)).sum(-1)

    return denoise


@pytest.mark.parametrize(("name", "schedule"), CASES, ids=str)
def test_modes_have_their_shares(name, schedule):
    """To four standard errors, and the spread within a mode to 15 %."""
    times = grids.uniform_logsnr(schedule, 64, low=-8, high=8)
    denoise, options = mixture_denoiser(schedule), {}
    if name == "edm_stochastic":
        options = dict(s_noise=1.0)
    run = jax.jit(lambda x, k: SAMPLERS[name](denoise, schedule, times, x, k, **options))
    x = np.asarray(run(noise(schedule, (IMAGES, 1, 1, 1)), keys(IMAGES))).ravel()
    right = x > MODES.mean()
    assert abs(right.mean() - SHARES[1]) < 4 * np.sqrt(SHARES.prod() / IMAGES)
    for found, mode in ((x[~right], MODES[0]), (x[right], MODES[1])):
        assert found.mean() == pytest.approx(mode, abs=0.03)
        assert found.std() == pytest.approx(STD, rel=0.15)
