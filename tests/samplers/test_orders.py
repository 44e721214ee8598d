"""On Gaussian data, in float64: what comes out tends to the data at the order of the method.

Errors of mean and standard deviation are known without sampling error, for the stochastic samplers
too: see `known.moments`.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.parts import SAMPLERS, only, quick
from tests.samplers import known
from vitdiff_jax.diffusion import grids
from vitdiff_jax.diffusion.schedules import LinearVP, RectifiedFlow

OPTIONS = {"edm_stochastic": [dict(s_churn=8.0, s_noise=1.0)], "ddim": [{}, dict(eta=0.6)]}
RUNS = [(name, options) for name in SAMPLERS for options in OPTIONS.get(name, [{}])]
CASES = only(  # quick: those of higher order, each on another schedule
    zip([run for run in RUNS if run[0] in known.ORDERS], itertools.cycle(known.FOUR_SCHEDULES)),
    itertools.product(RUNS, known.FOUR_SCHEDULES),
)
LEAST = {1: 0.9, 2: 1.9, 3: 2.8}  # slope of log error over log steps


def relative_errors(name, options, schedule, steps):
    """Of mean and deviation at t = 0.01 in deviations, started as the data are at t = 0.99."""
    times = known.between(schedule, steps)
    mean, std = known.marginal(schedule, times[-1])
    start = known.marginal(schedule, times[0])
    found = known.moments(SAMPLERS[name], schedule, times, start, **options)
    return np.concatenate([(found[0] - mean) / std, found[1] / std - 1])


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("run", "schedule"), CASES, ids=str)
def test_error_falls_at_the_order(run, schedule):
    """Four times as many steps, 4^order times less of it; and 32 steps are close already."""
    name, options = run
    few, many = (relative_errors(name, options, schedule, n) for n in (32, 128))
    order = known.ORDERS.get(name, 1)
    assert np.log(np.linalg.norm(few) / np.linalg.norm(many)) / np.log(4) > LEAST[order]
    assert abs(few).max() < {1: 0.2, 2: 0.05, 3: 0.005}[order]


@pytest.mark.usefixtures("x64")
@known.pairs(sorted(known.STOCHASTIC))
def test_from_noise_to_data(name, schedule):
    """As the contract says, from sigma(1) eps to t = 0: deviations to 2 % in 256 steps."""
    times = grids.uniform_logsnr(schedule, 256, low=-9, high=9)
    options = dict(s_noise=1.0) if name == "edm_stochastic" else {}
    start = 0, known.numbers(schedule, 1)[1]
    mean, std = known.moments(SAMPLERS[name], schedule, times, start, **options)
    np.testing.assert_allclose(std, known.STDS, rtol=0.02)
    np.testing.assert_allclose(mean, 0.3, atol=0.01)


@pytest.mark.usefixtures("x64")
@jax.disable_jit()
@known.pairs(sorted(SAMPLERS.keys() - {"euler", "heun"}))
def test_the_last_step_is_the_denoisers_answer(name, schedule):
    """To sigma = 0 all are of first order, with nothing of the past and no noise."""
    sigma = known.numbers(schedule, 0)[1]
    times = np.array([1, 0.5, 0.2, 0.02, 0.0])
    options = dict(s_churn=0.0) if name == "edm_stochastic" else {}
    denoise = known.gaussian_denoiser(schedule)
    x = known.noise(schedule, (2, 3, 2, 1)).astype(float)

    def run(times):
        return SAMPLERS[name](denoise, schedule, times, x, known.keys(2), **options)

    before, last = (run(times), 0.0) if sigma else (run(times[:-1]), 0.02)
    if sigma:  # the clean end comes after the grid
        before = run(np.append(times[:-1], 1e-12))
    answer = denoise(before, jnp.full(2, last))
    np.testing.assert_allclose(run(times), answer, rtol=1e-7)


@known.pairs(["dpmpp_2m", "dpmpp_3m", "unipc"], [RectifiedFlow(), LinearVP()])
def test_few_steps_from_pure_noise_gain_by_the_past(name, schedule):
    """With 8 calls, and the first from a log-SNR of -infinity: 0.6 of DDIM's error at most."""
    with jax.enable_x64(True):
        times = grids.uniform_logsnr(schedule, 8, low=-8, high=8)
        start = 0, known.numbers(schedule, 1)[1]
        find = functools.partial(known.moments, schedule=schedule, times=times, start=start)
        error, ddims = (abs(find(SAMPLERS[n])[1] / known.STDS - 1) for n in (name, "ddim"))
    assert (error < 0.6 * ddims).all()


@pytest.mark.parametrize("name", quick({"dpmpp_3m", "edm_stochastic"}, SAMPLERS))
def test_float32_is_enough(name):
    """A hundred steps from alpha = 0 to sigma = 0, the shortest ones at either end."""
    schedule = RectifiedFlow()
    with jax.enable_x64(True):
        times = grids.uniform_logsnr(schedule, 100)
        table = np.random.default_rng(0).standard_normal((101, 1, 8, 8, 1))
        x = known.numbers(schedule, 1)[1] * np.random.default_rng(1).standard_normal((1, 8, 8, 1))

    def run(dtype):
        denoise = known.gaussian_denoiser(schedule, jnp.asarray(0.5, dtype))
        with known.given_noise(lambda keys, i, x: jnp.asarray(table, dtype)[i]):
            return jax.jit(lambda x: SAMPLERS[name](denoise, schedule, times, x, known.keys(1)))(
                jnp.asarray(x, dtype)
            )

    single = np.asarray(run(jnp.float32))
    assert single.dtype == np.float32
    with jax.enable_x64(True):
        np.testing.assert_allclose(single, run(jnp.float64), atol=1e-4)
