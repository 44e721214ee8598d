"""Steps back and their variational term, against the discrete formulas of the papers in float64.

DDPM and DiT have them as tables made of the betas of a chain, here in NumPy; we have them as
functions of any two times of any schedule.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from tests.parts import SCHEDULES, quick
from vitdiff_jax.diffusion import grids
from vitdiff_jax.diffusion.process import Process
from vitdiff_jax.diffusion.reverse import (
    discretized_log_likelihood,
    log_variances,
    posterior_mean_coefficients,
    vlb_bpd,
)
from vitdiff_jax.diffusion.schedules import Cosine, DiscreteVP, RectifiedFlow

RANDOM = np.random.default_rng(0)
CHAIN = DiscreteVP()
BETAS = np.linspace(1e-4, 0.02, 1000)
STEPS = np.array([0, 0, 1, 2, 30, 400, 998, 999])  # of the chain; the first one twice
SHAPE = (len(STEPS), 3, 2, 2)


class Chain:
    """The tables of a chain of betas, first step first (arXiv:2006.11239, eq. 6 and 7)."""

    def __init__(self, alpha_bar):
        before = np.append(1.0, alpha_bar[:-1])
        self.alpha_bar = alpha_bar
        self.beta = 1 - alpha_bar / before
        self.variance = self.beta * (1 - before) / (1 - alpha_bar)
        self.on_x = np.sqrt(before) * self.beta / (1 - alpha_bar)
        self.on_x_t = np.sqrt(1 - self.beta) * (1 - before) / (1 - alpha_bar)

    def log_variance(self):
        """That of the posterior; the first step's, of 0, taken from the second."""
        return np.log(np.append(self.variance[1], self.variance[1:]))


FULL = Chain(np.cumprod(1 - BETAS))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("count", [10, 250, 1000])
def test_steps_are_those_of_the_respaced_chain(count):
    """A chain of the kept steps alone, with betas made of what is kept of alpha_bar."""
    times = grids.respaced(CHAIN, count)
    kept = np.round(times[:-1] * 1000).astype(int)[::-1] - 1
    chain = Chain(FULL.alpha_bar[kept])
    t, s = jnp.asarray(times[:-1])[::-1], jnp.asarray(times[1:])[::-1]
    on_x, on_x_t = posterior_mean_coefficients(CHAIN, t, s)
    np.testing.assert_allclose(on_x, chain.on_x, rtol=1e-8)
    np.testing.assert_allclose(on_x_t, chain.on_x_t, rtol=1e-8)
    low, high = log_variances(CHAIN, t, s)
    np.testing.assert_allclose(np.exp(low), chain.variance, rtol=1e-8)
    np.testing.assert_allclose(np.exp(high), chain.beta, rtol=1e-8)


def test_steps_lose_little_in_float32():
    """Of all 1000: a step is a small difference of two noise levels."""
    times = jnp.asarray(grids.respaced(CHAIN, 1000), jnp.float32)
    t, s = times[:-2][::-1], times[1:-1][::-1]
    low, high = log_variances(CHAIN, t, s)
    np.testing.assert_allclose(low, np.log(FULL.variance[1:]), atol=5e-4)
    np.testing.assert_allclose(high, np.log(FULL.beta[1:]), atol=5e-4)
    on_x, _ = posterior_mean_coefficients(CHAIN, t, s)
    np.testing.assert_allclose(on_x, FULL.on_x[1:], rtol=5e-4)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_bounds_are_the_variances_of_points_and_of_white_data(schedule):
    """Var(x_s | x_t) by the normal equations of two jointly Gaussian variables."""
    t, s = np.array([0.1, 0.4, 0.99, 1.0]), np.array([0.05, 0.39, 0.2, 0.9])
    (alpha_t, sigma_t), (alpha_s, sigma_s) = (
        (np.asarray(a) for a in schedule.alpha_sigma(jnp.asarray(time))) for time in (t, s)
    )
    for found, data in zip(log_variances(schedule, jnp.asarray(t), jnp.asarray(s)), (0, 1)):
        of_s, of_t = alpha_s**2 * data + sigma_s**2, alpha_t**2 * data + sigma_t**2
        covariance = alpha_t / alpha_s * of_s
        np.testing.assert_allclose(np.exp(found), of_s - covariance**2 / of_t, rtol=1e-7)


def problem():
    """8-bit images with both extreme values, noise, and a network's output, [B, H, W, 2C]."""
    x = RANDOM.integers(0, 256, SHAPE) / 127.5 - 1
    x[:, 0, 0, 0], x[:, 0, 0, 1] = -1, 1
    eps = RANDOM.standard_normal(SHAPE)
    guess = eps + 0.3 * RANDOM.standard_normal(SHAPE)
    return x, eps, np.concatenate([guess, RANDOM.uniform(-1.2, 1.2, SHAPE)], -1)


def papers_bits(x, eps, out):
    """L_vlb of arXiv:2102.09672 with eq. 15 for the variance and arXiv:2006.11239's eq. 13."""
    found = []
    for i, image, noise, (guess, v) in zip(STEPS, x, eps, ((o[..., :2], o[..., 2:]) for o in out)):
        bar = FULL.alpha_bar[i]
        x_t = np.sqrt(bar) * image + np.sqrt(1 - bar) * noise
        x_hat = (x_t - np.sqrt(1 - bar) * guess) / np.sqrt(bar)
        truth, mean = (FULL.on_x[i] * a + FULL.on_x_t[i] * x_t for a in (image, x_hat))
        low, high = FULL.log_variance()[i], np.log(FULL.beta[i])
        std = np.exp(((v + 1) / 2 * high + (1 - v) / 2 * low) / 2)
        if i == 0:
            upper = np.where(image == 1, np.inf, image + 1 / 255)
            lower = np.where(image == -1, -np.inf, image - 1 / 255)
            nats = -np.log(norm.cdf(upper, mean, std) - norm.cdf(lower, mean, std))
        else:
            true_std = np.exp(low / 2)
            nats = np.log(std / true_std) - 0.5
            nats += (true_std**2 + (truth - mean) ** 2) / (2 * std**2)
        found.append(nats.mean() / np.log(2))
    return np.array(found)


@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_the_hybrid_loss_is_the_papers(precision):
    """As DiT trains: the squared error of eps, plus the bound in bits per dimension, in full.

    (DiT's own code approximates the normal distribution function; we do not.)
    """
    x, eps, out = problem()
    process = Process(CHAIN, "eps", "eps", learned_variance=1000)
    with jax.enable_x64(precision == "float64"):
        t = (jnp.asarray(STEPS) + 1) / 1000
        loss = np.asarray(
            jax.jit(process.loss)(*(jnp.asarray(a, precision) for a in (out, x, eps, t)))
        )
    wanted = ((out[..., :2] - eps) ** 2).mean((1, 2, 3)) + papers_bits(x, eps, out)
    np.testing.assert_allclose(loss, wanted, rtol=1e-6 if precision == "float64" else 2e-3)


@pytest.mark.usefixtures("x64")
def test_the_bound_has_no_gradient_through_the_prediction():
    """Channels of the prediction learn from the squared error alone, the others from the bound."""
    x, eps, out = map(jnp.asarray, problem())
    t = (jnp.asarray(STEPS) + 1) / 1000

    def gradient(process, out):
        return jax.jit(jax.grad(lambda out: process.loss(out, x, eps, t).sum()))(out)

    found = gradient(Process(CHAIN, "eps", "eps", learned_variance=1000), out)
    alone = gradient(Process(CHAIN, "eps", "eps"), out[..., :2])
    np.testing.assert_allclose(found[..., :2], alone, rtol=1e-12)
    assert (abs(found[..., 2:]) > 0).all()


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("schedule", quick([CHAIN], [CHAIN, RectifiedFlow(2.0), Cosine()]), ids=str)
def test_the_bound_is_least_at_the_true_variance(schedule):
    """Of Gaussian data: fitted to the errors of E[x | x_t], it is Var(x_s | x_t) that is learned.

    The bound is affine in the squared error, so that its expectation stands for the average.
    """
    t, data = jnp.array([0.002, 0.1, 0.5, 1.0]), 0.3
    (alpha_t, sigma_t), (alpha_s, sigma_s) = (schedule.alpha_sigma(a) for a in (t, t - 1e-3))
    of_s, of_t = alpha_s**2 * data + sigma_s**2, alpha_t**2 * data + sigma_t**2
    truth = jnp.log(of_s - (alpha_t / alpha_s * of_s) ** 2 / of_t)
    low, high = log_variances(schedule, t, t - 1e-3)
    fraction = ((truth - low) / (high - low))[:, None, None, None]
    error = jnp.sqrt(data * sigma_t**2 / of_t)[:, None, None, None]

    def bits(fraction):
        return vlb_bpd(schedule, 1000, 0 * error, error, fraction, t).sum()

    assert ((fraction > 0) & (fraction < 1)).all()
    slope = jax.jit(jax.grad(bits))
    assert (abs(slope(fraction)) < 1e-5 * abs(slope(fraction + 0.1))).all()


@pytest.mark.parametrize("std", [0.003, 0.1, 2.0])
@pytest.mark.parametrize("mean", [-1.4, 0.123, 0.99])
def test_probabilities_of_all_values_sum_to_one(mean, std):
    values = jnp.asarray(np.arange(256) / 127.5 - 1, jnp.float32)
    found = jnp.exp(discretized_log_likelihood(values, jnp.float32(mean), jnp.float32(std)))
    np.testing.assert_allclose(found.sum(), 1, rtol=1e-4)


def test_probabilities_far_off_are_finite_and_have_slopes():
    """Where the distribution function is 0 or 1 in float32; -distance^2 / 2 to leading order."""
    mean, std = jnp.float32(-0.5), jnp.float32(0.01)
    value = jnp.float32(99 / 127.5 - 1)
    found, slope = jax.value_and_grad(discretized_log_likelihood, 2)(value, mean, std)
    near = (99 / 127.5 - 1 - 1 / 255 + 0.5) / 0.01  # the nearer end of the value's bin
    np.testing.assert_allclose(found, norm.logsf(near), rtol=1e-3)
    np.testing.assert_allclose(slope, near**2 / 0.01, rtol=0.02)


def test_wild_variances_have_finite_slopes():
    """An untrained network may say anything: no NaN from the likelihood that is not in use."""
    x, t = jnp.zeros((2, 1, 1, 1)), jnp.array([0.002, 0.5])
    slope = jax.grad(lambda f: vlb_bpd(CHAIN, 1000, x, x + 0.1, f, t).sum())
    assert np.isfinite(jax.jit(slope)(x + 150.0)).all()
