"""Schedules against the formulas of their papers, and as the inverse functions they claim to be."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

from tests.parts import SCHEDULES, quick
from vitdiff_jax.diffusion.schedules import (
    EDM,
    GVP,
    LOGSNR_MAX,
    Cosine,
    DiscreteVP,
    LinearVP,
    RectifiedFlow,
    derivatives,
    ends,
    logsnr,
)

each_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
VARIANCE_PRESERVING = [Cosine(), GVP(), LinearVP(), DiscreteVP()]
CHAINS = [DiscreteVP(), DiscreteVP(4000, 2.5e-5, 5e-3), DiscreteVP(100, 2e-3, 0.2)]


def alpha_bar(chain):
    """prod (1 - beta) at every step of a chain of linear betas (arXiv:2006.11239)."""
    return np.cumprod(1 - np.linspace(chain.beta_min, chain.beta_max, chain.steps))


ENDS = {  # alpha(0), sigma(0), alpha(1), sigma(1) by the formulas that name the schedules
    RectifiedFlow(): (1, 0, 0, 1),
    RectifiedFlow(noise_scale=2.0): (1, 0, 0, 2),
    Cosine(): (1, 0, 0, 1),
    LinearVP(): (1, 0, np.exp(-(0.1 + 20) / 4), np.sqrt(1 - np.exp(-(0.1 + 20) / 2))),
    GVP(): (1, 0, 0, 1),
    DiscreteVP(): (1, 0, np.sqrt(alpha_bar(CHAINS[0])[-1]), np.sqrt(1 - alpha_bar(CHAINS[0])[-1])),
    EDM(): (1, 0.002, 1, 80),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("schedule", ENDS, ids=str)
def test_ends(schedule):
    """Noise ends in sigma(1), data in sigma(0); zeros are zeros, samplers divide by the others."""
    alpha, sigma = schedule.alpha_sigma(jnp.array([0.0, 1.0]))
    found = np.array([alpha[0], sigma[0], alpha[1], sigma[1]])
    wanted = np.array(ENDS[schedule])
    np.testing.assert_allclose(found, wanted, rtol=1e-12)
    assert ((found == 0) == (wanted == 0)).all()


@each_schedule
def test_ends_are_exact_in_float32(schedule):
    """`ends` decides whether eps is refused and a clean end added: a rounded zero would mislead."""
    t = jnp.array([0.0, 1.0])
    alpha, sigma = schedule.alpha_sigma(t)
    assert ends(schedule) == (float(alpha[1]), float(sigma[0]))
    assert alpha[0] == 1
    assert np.isfinite(logsnr(schedule, t)).all()
    assert abs(logsnr(schedule, t)).max() <= LOGSNR_MAX


@each_schedule
def test_noise_only_grows(schedule):
    """Times are names of noise levels: log-SNR falls strictly, from data to noise."""
    levels = np.asarray(logsnr(schedule, jnp.linspace(0.001, 0.999, 200)))
    assert (np.diff(levels) < 0).all()


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("schedule", VARIANCE_PRESERVING, ids=str)
def test_variance_is_preserved(schedule):
    alpha, sigma = schedule.alpha_sigma(jnp.linspace(0, 1, 200))
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=1e-14)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("schedule", [LinearVP(), LinearVP(beta_min=0.5, beta_max=9.0)], ids=str)
def test_linear_vp_is_the_integral_of_beta(schedule):
    """alpha = exp(-1/2 int_0^t beta), beta from beta_min to beta_max (arXiv:2011.13456)."""

    def beta(s):
        return schedule.beta_min + s * (schedule.beta_max - schedule.beta_min)

    t = np.linspace(0, 1, 11)
    wanted = [np.exp(-quad(beta, 0, end)[0] / 2) for end in t]
    np.testing.assert_allclose(schedule.alpha_sigma(jnp.asarray(t))[0], wanted, rtol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("chain", quick(CHAINS[2:], CHAINS), ids=str)
def test_discrete_vp_is_the_chain(chain):
    """At every one of its steps, both alpha and the small noise of the first steps."""
    t = jnp.arange(1, chain.steps + 1) / chain.steps
    alpha, sigma = chain.alpha_sigma(t)
    np.testing.assert_allclose(alpha**2, alpha_bar(chain), rtol=1e-8)
    np.testing.assert_allclose(sigma**2, 1 - alpha_bar(chain), rtol=1e-8)


@pytest.mark.parametrize("chain", quick(CHAINS[2:], CHAINS), ids=str)
def test_discrete_vp_is_the_chain_in_float32(chain):
    """The rounding of t and of log alpha (-5 at the end) is all that is lost."""
    t = jnp.asarray(np.arange(1, chain.steps + 1) / chain.steps, jnp.float32)
    alpha, sigma = (np.asarray(a, np.float64) for a in chain.alpha_sigma(t))
    np.testing.assert_allclose(alpha, np.sqrt(alpha_bar(chain)), rtol=1.5e-6)
    np.testing.assert_allclose(sigma, np.sqrt(1 - alpha_bar(chain)), rtol=1.5e-6)
    np.testing.assert_allclose(chain.network_input(t)[1], np.arange(chain.steps), atol=2e-4)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("chain", quick(CHAINS[2:], CHAINS), ids=str)
def test_discrete_vp_grows_between_its_steps_too(chain):
    """A wiggle between the points of the fit would show; the first step from t = 0 included."""
    t = jnp.linspace(0, 1, 10 * chain.steps + 1)[1:]
    assert (np.diff(chain.alpha_sigma(t)[1]) > 0).all()
    slope = derivatives(chain, t)[0] / chain.alpha_sigma(t)[0]  # -beta / 2 of continuous time
    assert (np.diff(slope) < 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(steps=1), "steps: 1 is less"),
        (dict(beta_max=1.0), "beta_max: 1.0"),
        (dict(beta_min=0.03), "beta_max: 0.02"),
        (dict(beta_min=1e-6), "beta_min: 1e-06 is too small for 1000 steps"),
        (dict(steps=100, beta_min=1e-3, beta_max=0.2), "beta_min: 0.001 is too small for 100"),
        (dict(beta_min=1e-2, beta_max=0.99), "beta_max: 0.99 is too large"),
    ],
)
def test_discrete_vp_refuses_what_is_no_chain(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        DiscreteVP(**options)


@pytest.mark.usefixtures("x64")
@each_schedule
def test_t_from_logsnr_inverts_logsnr(schedule):
    """Both ways round, over all levels that the clipping at +-20 leaves."""
    t = jnp.linspace(0.001, 0.999, 200)
    np.testing.assert_allclose(schedule.t_from_logsnr(logsnr(schedule, t)), t, rtol=1e-9)
    noisiest, cleanest = logsnr(schedule, jnp.array([1.0, 0.0]))
    levels = jnp.linspace(noisiest, cleanest, 200)[1:-1]
    found = logsnr(schedule, schedule.t_from_logsnr(levels))
    np.testing.assert_allclose(found, levels, rtol=1e-7, atol=1e-9)


@each_schedule
def test_t_from_logsnr_loses_little_in_float32(schedule):
    """Grids are made in float32: nothing may cancel between log-SNR -12 and 12."""
    noisiest, cleanest = logsnr(schedule, jnp.array([1.0, 0.0]))
    levels = jnp.linspace(max(noisiest, -12), min(cleanest, 12), 200)
    found = logsnr(schedule, schedule.t_from_logsnr(levels))
    np.testing.assert_allclose(found, levels, atol=1e-3)


@pytest.mark.usefixtures("x64")
@each_schedule
def test_derivatives_are_slopes(schedule):
    """Against central differences, whose error is of the order of the step squared."""
    t, step = jnp.linspace(0.05, 0.95, 200), 1e-5
    after, before = schedule.alpha_sigma(t + step), schedule.alpha_sigma(t - step)
    for found, high, low in zip(derivatives(schedule, t), after, before):
        np.testing.assert_allclose(found, (high - low) / (2 * step), rtol=1e-6, atol=1e-9)


@pytest.mark.usefixtures("x64")
def test_network_input_of_edm_is_the_papers():
    """Table 1 of arXiv:2206.00364: c_in = 1 / sqrt(sigma^2 + sigma_data^2), c_noise = ln sigma / 4.

    c_in is what gives inputs of variance 1 when the data has the standard deviation sigma_data.
    """
    sigma = np.array([0.01, 0.5, 3.0, 70.0])
    for sigma_data in (0.5, 1.5):
        schedule = EDM(sigma_data=sigma_data)
        t = jnp.asarray((sigma - 0.002) / (80 - 0.002))
        scale, time = schedule.network_input(t)
        np.testing.assert_allclose(scale**2 * (sigma_data**2 + sigma**2), 1, rtol=1e-9)
        np.testing.assert_allclose(time, np.log(sigma) / 4, rtol=1e-9)


@pytest.mark.parametrize(
    ("schedule", "at_data", "at_noise"),
    [
        (RectifiedFlow(), 1, 0),  # JiT and SiT: 1 is data
        (Cosine(), 0, 1000),
        (GVP(), 1, 0),
        (LinearVP(), 0, 1000),
        (LinearVP(time_scale=999.0), 0, 999),  # U-ViT
        (DiscreteVP(), -1, 999),  # DiT: its integer steps, t = 0 is before the first
    ],
    ids=str,
)
def test_network_input_of_the_others(schedule, at_data, at_noise):
    """Images as they are, and a time that is linear in t."""
    t = jnp.linspace(0, 1, 5)
    scale, time = schedule.network_input(t)
    np.testing.assert_array_equal(scale, np.ones(5))
    np.testing.assert_allclose(time, np.linspace(at_data, at_noise, 5), rtol=1e-6)


@each_schedule
def test_network_input_is_finite_at_both_ends(schedule):
    """Sampling starts at t = 1, and EDM's clean end asks at t = 0."""
    t = jnp.array([0.0, 1.0])
    for value in schedule.network_input(t):
        assert value.shape == t.shape
        assert np.isfinite(value).all()


@pytest.mark.usefixtures("x64")
def test_noise_scale_multiplies_the_noise():
    """Noise of scale s on the same line: the ratio alpha / sigma falls by s at every time."""
    t = jnp.linspace(0.1, 0.9, 9)
    alpha, sigma = RectifiedFlow(noise_scale=2.0).alpha_sigma(t)
    np.testing.assert_allclose(alpha, 1 - t, rtol=1e-14)
    np.testing.assert_allclose(sigma, 2 * t, rtol=1e-14)
    shift = logsnr(RectifiedFlow(), t) - logsnr(RectifiedFlow(noise_scale=2.0), t)
    np.testing.assert_allclose(shift, 2 * np.log(2), rtol=1e-12)


@each_schedule
def test_is_a_frozen_value(schedule):
    """A schedule is a constant of compiled programs: it must hash, and equal its copy."""
    assert hash(schedule) == hash(dataclasses.replace(schedule))
    with pytest.raises(dataclasses.FrozenInstanceError):
        schedule.anything = 1.0
