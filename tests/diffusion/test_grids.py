"""Grids of sampling times: from exactly 1 to exactly 0, and spaced as they say."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.parts import GRIDS, SCHEDULES, covering, quick
from vitdiff_jax.diffusion import grids
from vitdiff_jax.diffusion.schedules import EDM, Cosine, LinearVP, RectifiedFlow, logsnr
from vitdiff_jax.samplers import ddim

each_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=str)


def noise_ratio(schedule, times):
    """sigma / alpha along a grid."""
    alpha, sigma = schedule.alpha_sigma(jnp.asarray(times))
    return np.asarray(sigma / alpha)


@pytest.mark.parametrize(
    ("grid", "schedule", "steps"),
    covering(itertools.product(GRIDS, SCHEDULES, [7, 2, 250])),
    ids=str,
)
def test_every_grid_falls_from_1_to_0_in_so_many_steps(grid, schedule, steps):
    """Where noise is left at t = 0 the exact clean end is a step too, so the grid has one less."""
    times = GRIDS[grid](schedule, steps)
    assert isinstance(times, np.ndarray)  # a grid is a constant of the compiled sampler
    assert times.dtype == np.float64
    assert times[0] == 1
    assert times[-1] == 0
    assert (np.diff(times) < 0).all()
    assert (np.diff(times.astype(np.float32)) < 0).all()  # samplers walk it in float32
    clean_end = schedule.alpha_sigma(jnp.zeros(()))[1] > 0
    assert len(times) - 1 + clean_end == steps


@jax.disable_jit()
@pytest.mark.parametrize(
    ("grid", "schedule"), covering(itertools.product(GRIDS, SCHEDULES)), ids=str
)
def test_a_single_step_leads_to_the_data_or_is_refused(grid, schedule):
    """`config.sample.steps` may be 1. DDIM is exact on a point mass, in one step as in many.

    The point is only seen in an x_t that has the noise of its t, as with a trained network.
    """

    def denoise(x_t, t):
        alpha, sigma = (a[:, None, None, None] for a in schedule.alpha_sigma(t))
        return jnp.where(abs(x_t - 0.3 * alpha) <= 1.1 * sigma, 0.3, jnp.nan)

    try:
        times = GRIDS[grid](schedule, 1)
    except ValueError:
        return
    noise = float(schedule.alpha_sigma(jnp.ones(()))[1]) * jnp.ones((1, 2, 2, 1))
    keys = jax.random.split(jax.random.key(0), 1)
    found = ddim.sample(denoise, schedule, times, noise, keys)
    np.testing.assert_allclose(found, 0.3, atol=1e-5)


@each_schedule
def test_linear_is_uniform(schedule):
    gaps = np.diff(grids.linear(schedule, 10))
    np.testing.assert_allclose(gaps, gaps[0], rtol=1e-12)


@pytest.mark.parametrize("shift", [1.0, 3.0, 6.0])
def test_shifted_multiplies_the_noise_ratio(shift):
    """On rectified flow the shift of arXiv:2403.03206 (eq. 23) is sigma/alpha times `shift`."""
    schedule = RectifiedFlow()
    plain = noise_ratio(schedule, grids.linear(schedule, 12)[1:])
    found = noise_ratio(schedule, grids.shifted(schedule, 12, shift=shift)[1:])
    np.testing.assert_allclose(found, shift * plain, rtol=1e-5)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "schedule", quick([EDM()], [RectifiedFlow(), Cosine(), LinearVP(), EDM()]), ids=str
)
def test_uniform_logsnr_is_uniform(schedule):
    """Between `low` and `high`; the two outer points are moved to t = 1 and 0."""
    times = grids.uniform_logsnr(schedule, 20, low=-7.0, high=9.0)
    levels = np.asarray(logsnr(schedule, jnp.asarray(times[1:-1])))
    gap = 16 / (len(times) - 1)
    np.testing.assert_allclose(levels, -7 + gap * np.arange(1, len(times) - 1), rtol=1e-9)


@pytest.mark.usefixtures("x64")
def test_uniform_logsnr_is_cut_to_the_schedules_range():
    """EDM goes from sigma = 80 to 0.002: log-SNR from -2 ln 80 to -2 ln 0.002."""
    times = grids.uniform_logsnr(EDM(), 20)
    levels = np.asarray(logsnr(EDM(), jnp.asarray(times)))
    np.testing.assert_allclose(levels, np.linspace(-2 * np.log(80), -2 * np.log(0.002), 20))


def edms_sigmas(steps, rho):
    """Equation 5 of arXiv:2206.00364 with sigma_max = 80 and sigma_min = 0.002."""
    i = np.arange(steps)
    high, low = 80 ** (1 / rho), 0.002 ** (1 / rho)
    return (high + i / (steps - 1) * (low - high)) ** rho


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("rho", [7.0, 3.0])
def test_edm_rho_is_edms(rho):
    """All of EDM's N noise levels on its own schedule; its t_N = 0 is the clean end."""
    found = noise_ratio(EDM(), grids.edm_rho(EDM(), 18, rho=rho))
    np.testing.assert_allclose(found, edms_sigmas(18, rho), rtol=1e-9)


@pytest.mark.usefixtures("x64")
def test_edm_rho_elsewhere_has_edms_noise_to_signal_ratios():
    """All but the first, which is pure noise on rectified flow, and the last, which is the data."""
    found = noise_ratio(RectifiedFlow(), grids.edm_rho(RectifiedFlow(), 18)[1:-1])
    np.testing.assert_allclose(found, edms_sigmas(18, 7.0)[1:], rtol=1e-9)


@pytest.mark.parametrize("of", quick([250], [1000, 250]))
def test_respaced_keeps_the_steps_that_adm_and_dit_keep(of):
    """Their rule: from step 0 on add a stride as a float, each time rounded (halves to even)."""
    for count in range(2, of + 1):
        kept, place = [], 0.0
        for _ in range(count):
            kept.append(round(place))
            place += (of - 1) / (count - 1)
        found = grids.respaced(LinearVP(), count, of=of)
        wanted = [(i + 1) / of for i in reversed(kept)]
        np.testing.assert_array_equal(found, [*wanted, 0.0])


def test_respaced_cannot_keep_more_than_there_are():
    assert len(grids.respaced(LinearVP(), 100, of=100)) == 101
    with pytest.raises(ValueError, match=r"^steps: 101 is more than the 100"):
        grids.respaced(LinearVP(), 101, of=100)
