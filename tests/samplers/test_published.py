"""The methods as their papers print them, step by step in NumPy, on a denoiser that is not linear.

Both meet the same noise, in float64. EDM's algorithm is in its own variables, x_t / alpha against
sigma / alpha; so every schedule is a test of the translation.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.parts import SAMPLERS, covering
from tests.samplers.known import FOUR_SCHEDULES, each_schedule, given_noise, keys, numbers
from vitdiff_jax.diffusion.schedules import Cosine, RectifiedFlow

SHAPE = (2, 3, 2, 1)
TIMES = np.array([0.95, 0.8, 0.62, 0.4, 0.22, 0.1, 0.03])
DRAWS = np.random.default_rng(0).standard_normal((len(TIMES), *SHAPE))
START = np.random.default_rng(1).standard_normal(SHAPE)

pytestmark = pytest.mark.usefixtures("x64")


def denoise(x_t, t):
    return jnp.tanh(x_t - x_t.mean((1, 2, 3), keepdims=True)) * jnp.cos(3 * t)[:, None, None, None]


def estimate(x, t):
    return np.asarray(denoise(jnp.asarray(x), jnp.full(len(x), t)))


def sampled(name, schedule, times=TIMES, **options):
    with given_noise(lambda keys, i, x: jnp.asarray(DRAWS)[i]):
        x, k = jnp.asarray(START), keys(2)
        with jax.disable_jit():  # so few steps take less time than to compile them
            return np.asarray(SAMPLERS[name](denoise, schedule, times, x, k, **options))


def pairs():
    return enumerate(itertools.pairwise(TIMES))


@pytest.mark.parametrize(
    ("schedule", "eta"), covering(itertools.product(FOUR_SCHEDULES, [0.0, 0.4, 1.0])), ids=str
)
def test_ddim(schedule, eta):
    """arXiv:2010.02502, eq. 12, for alpha^2 + sigma^2 of any size.

    The noise of q(x_s | x_t, x) has the precision 1 / sigma_s^2 of x's path and r^2 / q of
    x_t = r x_s + sqrt(q) e, added.
    """
    x = START
    for i, (t, s) in pairs():
        (alpha_t, sigma_t), (alpha_s, sigma_s) = numbers(schedule, t), numbers(schedule, s)
        r = alpha_t / alpha_s
        q = sigma_t**2 - (r * sigma_s) ** 2
        tau = eta / np.sqrt(1 / sigma_s**2 + r**2 / q)
        x_hat = estimate(x, t)
        eps = (x - alpha_t * x_hat) / sigma_t
        x = alpha_s * x_hat + np.sqrt(sigma_s**2 - tau**2) * eps + tau * DRAWS[i]
    np.testing.assert_allclose(sampled("ddim", schedule, eta=eta), x, rtol=1e-9, atol=1e-9)
    if eta == 1:
        np.testing.assert_allclose(sampled("ancestral", schedule), x, rtol=1e-9, atol=1e-9)


@each_schedule
def test_euler_maruyama(schedule):
    """arXiv:2011.13456, eq. 6, with f and g^2 from differences of log(alpha) and sigma^2."""

    def slope(function, t, d=1e-5):
        return (function(t + d) - function(t - d)) / (2 * d)

    x = START
    for i, (t, s) in pairs():
        alpha, sigma = numbers(schedule, t)
        f = slope(lambda t: np.log(numbers(schedule, t)[0]), t)
        g2 = slope(lambda t: numbers(schedule, t)[1] ** 2, t) - 2 * f * sigma**2
        score = (alpha * estimate(x, t) - x) / sigma**2
        x = x + (f * x - g2 * score) * (s - t) + np.sqrt(g2 * (t - s)) * DRAWS[i]
    np.testing.assert_allclose(sampled("euler_maruyama", schedule), x, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("schedule", [RectifiedFlow(), Cosine()], ids=lambda s: type(s).__name__)
def test_euler_maruyama_at_the_ends(schedule):
    """Fresh noise after pure noise, where f is infinite; and the estimate at last."""
    alpha, sigma = numbers(schedule, 0.4)
    x = alpha * estimate(START, 1.0) + sigma * DRAWS[0]
    found = sampled("euler_maruyama", schedule, np.array([1.0, 0.4, 0.0]))
    np.testing.assert_allclose(found, estimate(x, 0.4), rtol=1e-9)


@each_schedule
def test_edm_stochastic(schedule):
    """arXiv:2206.00364, algorithm 2, with a level that is cut off and levels without churn."""
    churn, s_min, s_max, s_noise, steps = 1.5, 0.2, 15.0, 1.01, len(TIMES) - 1

    def level(t):
        alpha, sigma = numbers(schedule, t)
        return sigma / alpha

    def at(y, r):
        t = float(schedule.t_from_logsnr(jnp.asarray(-2 * np.log(r))))
        return estimate(numbers(schedule, t)[0] * y, t)

    y = START / numbers(schedule, TIMES[0])[0]
    for i, (t, s) in pairs():
        r, r_next = level(t), level(s)
        gamma = min(churn / steps, np.sqrt(2) - 1) if s_min <= r <= s_max else 0
        r_hat = min(r * (1 + gamma), level(1.0) if numbers(schedule, 1.0)[0] else np.inf)
        y_hat = y + np.sqrt(r_hat**2 - r**2) * s_noise * DRAWS[i]
        d = (y_hat - at(y_hat, r_hat)) / r_hat
        y = y_hat + (r_next - r_hat) * d
        d_next = (y - at(y, r_next)) / r_next
        y = y_hat + (r_next - r_hat) * (d + d_next) / 2
    options = dict(s_churn=churn, s_min=s_min, s_max=s_max, s_noise=s_noise)
    x = numbers(schedule, TIMES[-1])[0] * y
    found = sampled("edm_stochastic", schedule, **options)
    np.testing.assert_allclose(found, x, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("schedule", [RectifiedFlow(), Cosine()], ids=lambda s: type(s).__name__)
def test_edm_stochastic_from_pure_noise(schedule):
    """No churn above infinity, and the trapezoid in alpha / sigma."""
    alpha, sigma = numbers(schedule, 0.4)
    eps = START / numbers(schedule, 1.0)[1]
    first = estimate(START, 1.0)
    second = estimate(alpha * first + sigma * eps, 0.4)
    for s_max in (50.0, np.inf):
        found = sampled("edm_stochastic", schedule, np.array([1.0, 0.4]), s_max=s_max)
        np.testing.assert_allclose(found, alpha * (first + second) / 2 + sigma * eps, rtol=1e-9)


@each_schedule
def test_dpmpp_2m(schedule):
    """arXiv:2211.01095, algorithm 2."""
    half_logsnr = [np.log(a / b) for a, b in (numbers(schedule, t) for t in TIMES)]
    x, past = START, []
    for i, (t, s) in pairs():
        (_, sigma_t), (alpha_s, sigma_s) = numbers(schedule, t), numbers(schedule, s)
        past.append(estimate(x, t))
        h, d = half_logsnr[i + 1] - half_logsnr[i], past[-1]
        if i:
            r = (half_logsnr[i] - half_logsnr[i - 1]) / h
            d = (1 + 1 / (2 * r)) * past[-1] - 1 / (2 * r) * past[-2]
        x = sigma_s / sigma_t * x - alpha_s * (np.exp(-h) - 1) * d
    np.testing.assert_allclose(sampled("dpmpp_2m", schedule), x, rtol=1e-9, atol=1e-12)


def integral(schedule, points, values, start, end):
    """int exp(l) p(l) dl by quadrature, p the polynomial through values at points."""
    nodes, weights = np.polynomial.legendre.leggauss(20)
    places = start + (end - start) * (nodes + 1) / 2
    total = 0
    for j, value in enumerate(values):
        others = [p for k, p in enumerate(points) if k != j]
        lagrange = np.prod([(places - p) / (points[j] - p) for p in others], axis=0)
        total = total + (weights * np.exp(places) * lagrange).sum() * (end - start) / 2 * value
    return total


@each_schedule
def test_dpmpp_3m(schedule):
    """The integral of the parabola itself, by quadrature; a line in the second step."""
    levels = [np.log(a / b) for a, b in (numbers(schedule, t) for t in TIMES)]
    x, past = START, []
    for i, (t, s) in pairs():
        sigma_t, sigma_s = numbers(schedule, t)[1], numbers(schedule, s)[1]
        past.append(estimate(x, t))
        known = slice(max(0, i - 2), i + 1)
        drawn = integral(schedule, levels[known], past[known], levels[i], levels[i + 1])
        x = sigma_s / sigma_t * x + sigma_s * drawn
    np.testing.assert_allclose(sampled("dpmpp_3m", schedule), x, rtol=1e-8, atol=1e-12)


@each_schedule
def test_unipc(schedule):
    """arXiv:2302.04867, algorithm 1 for p = 2 with B_2(h) = exp(-h) - 1, data prediction (table 1).

    In the corrector R_2 a B(h) = phi is solved; with one value before it, and in the predictor, a
    is 1/2.
    """
    levels = [np.log(a / b) for a, b in (numbers(schedule, t) for t in TIMES)]
    x, past = START, [estimate(START, TIMES[0])]
    for i, (t, s) in pairs():
        (_, sigma_t), (alpha_s, sigma_s) = numbers(schedule, t), numbers(schedule, s)
        h = levels[i + 1] - levels[i]
        b = np.expm1(-h)
        straight = sigma_s / sigma_t * x - alpha_s * b * past[-1]
        r = (levels[i - 1] - levels[i]) / h if i else None
        before = (past[-2] - past[-1]) / r if i else 0
        predicted = straight - alpha_s * b * before / 2
        past.append(estimate(predicted, s))
        new = past[-1] - past[-2]
        if i:
            first = b / -h - 1  # the paper's k! h^k phi_{k+1} of -h, with its signs
            second = 2 * (first / -h - 0.5)
            a = np.linalg.solve([[1, 1], [r, 1]], np.array([first, second]) / b)
            x = straight - alpha_s * b * (a[0] * before + a[1] * new)
        else:
            x = straight - alpha_s * b * new / 2
    np.testing.assert_allclose(sampled("unipc", schedule), predicted, rtol=1e-8, atol=1e-12)
