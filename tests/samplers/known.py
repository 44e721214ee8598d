"""Data whose every conditional expectation is known, and noise that is given, for the samplers.

For data N(m, s^2) per pixel, E[x | x_t] is linear and the probability-flow ODE has the solution
x_t = alpha m + sqrt(alpha^2 s^2 + sigma^2) z with z constant. Every sampler is an affine map of its
input and its noise there, so that a few pixels tell its whole error.
"""

import contextlib
import itertools
import unittest.mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import parts
from tests.parts import SAMPLERS, covering
from vitdiff_jax import samplers
from vitdiff_jax.diffusion.schedules import EDM, Cosine, LinearVP, RectifiedFlow

ORDERS = {"heun": 2, "edm_stochastic": 2, "dpmpp_2m": 2, "dpmpp_3m": 3, "unipc": 3}
"""Of convergence; 1 for the others."""
STOCHASTIC = {"ancestral", "ancestral_learned", "euler_maruyama", "edm_stochastic"}
MODULES = parts.modules(samplers, "sample")
FOUR_SCHEDULES = [RectifiedFlow(), Cosine(), LinearVP(), EDM()]
MEAN, STDS = 0.3, np.array([0.2, 0.5, 1.0])  # of the pixels in a row

each_sampler = pytest.mark.parametrize("name", SAMPLERS)
each_schedule = pytest.mark.parametrize("schedule", FOUR_SCHEDULES, ids=lambda s: type(s).__name__)


def pairs(names=SAMPLERS, schedules=FOUR_SCHEDULES):
    """Of names (or (name, options)) and schedules: slow but for each of them once."""
    cases = itertools.product(names, schedules)
    return pytest.mark.parametrize(("name", "schedule"), covering(cases), ids=str)


def keys(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


def numbers(schedule, t):
    """(alpha, sigma) as floats."""
    alpha, sigma = schedule.alpha_sigma(jnp.asarray(float(t)))
    return float(alpha), float(sigma)


def noise(schedule, shape, seed=0):
    """Where sampling starts: sigma(1) eps, from one seed per image."""
    eps = [np.random.default_rng(seed + i).standard_normal(shape[1:]) for i in range(shape[0])]
    return jnp.asarray(numbers(schedule, 1)[1] * np.stack(eps), jnp.float32)


def gaussian_denoiser(schedule, std=0.5):
    """E[x | x_t] for pixels from N(MEAN, std^2); std [1] or [W, 1]."""
    variance = jnp.asarray(std) ** 2

    def denoise(x_t, t):
        alpha, sigma = (a[:, None, None, None] for a in schedule.alpha_sigma(t))
        gain = alpha * variance / (alpha**2 * variance + sigma**2)
        return MEAN + gain * (x_t - alpha * MEAN)

    return denoise


def marginal(schedule, t, std=STDS):
    """(mean, standard deviation) of x_t for these data."""
    alpha, sigma = numbers(schedule, t)
    return alpha * MEAN, np.sqrt(alpha**2 * std**2 + sigma**2)


@contextlib.contextmanager
def given_noise(draw):
    """Instead of normal noise, draw(keys, i, x), in every sampler that is traced inside."""
    with contextlib.ExitStack() as stack:
        for module in MODULES.values():
            if hasattr(module, "fresh_noise"):
                stack.enter_context(unittest.mock.patch.object(module, "fresh_noise", draw))
        yield


def moments(sample, schedule, times, start, **options):
    """(mean, standard deviation) [3] of what comes out for data of STDS, without sampling error.

    start: (mean, standard deviation) of where it starts. The noise is taken apart: the first image
    starts at the mean and meets none, the second starts at one deviation, and image 2 + i meets a 1
    in draw i alone.
    """
    mean, std = (np.broadcast_to(float(a) if np.ndim(a) == 0 else a, 3) for a in start)
    rows = len(times) + 1
    x = np.tile(mean, (rows, 1))
    x[1] += std
    with given_noise(lambda keys, i, x: jnp.ones_like(x) * (keys == i)[:, None, None, None]):
        found = jax.jit(
            lambda x, k: sample(
                gaussian_denoiser(schedule, STDS[:, None]), schedule, times, x, k, **options
            )
        )(jnp.asarray(x)[:, None, :, None], jnp.arange(rows) - 2)
    found = np.asarray(found, np.float64)[:, 0, :, 0]
    return found[0], np.sqrt(((found[1:] - found[0]) ** 2).sum(0))


def between(schedule, steps):
    """Times from 0.99 to 0.01 uniform in log-SNR, on which the orders of all are reached."""
    ends = np.array([numbers(schedule, t) for t in (0.99, 0.01)])
    levels = 2 * np.log(ends[:, 0] / ends[:, 1])
    return np.array(schedule.t_from_logsnr(jnp.linspace(*levels, steps + 1)))
