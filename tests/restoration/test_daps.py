"""DAPS: step by step against NumPy, its limits for Gaussian images, nonlinear operators."""

import dataclasses
import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from tests.operators.test_operators import make
from tests.parts import only
from tests.restoration import recursions
from tests.restoration.gaussians import SHAPE, SIZE, draw, moments, noise, problem
from tests.restoration.recursions import EYE
from tests.restoration.test_limits import tends_to
from tests.restoration.test_traits import NOTHING
from tests.samplers.known import keys, numbers
from vitdiff_jax.diffusion import grids
from vitdiff_jax.diffusion.schedules import EDM, LinearVP, RectifiedFlow
from vitdiff_jax.restoration.daps import MIN_TAU
from vitdiff_jax.samplers import fresh_noise

pytestmark = pytest.mark.usefixtures("x64")
FLOW, STEPS, NOISE_STD, COUNT = RectifiedFlow(), 4, 0.1, 5


def ode(case, schedule, t, count):
    """(matrix, offset) of x_hat from x_t: DDIM between levels that are uniform in r / (1 + r).

    The levels are written as a rectified flow's, (1 - u, u), since a step does not depend on the
    scale of x_t; a schedule that ends with noise is followed to its end.
    """
    (alpha, sigma), (_, least) = t, numbers(schedule, 0)
    first = sigma / (alpha + sigma)
    shares = [max(first * (1 - j / count), least / (1 + least)) for j in range(1, count)]
    path = [t, *((1 - u, u) for u in shares), (1, least)]
    matrix, offset = EYE, np.zeros(SIZE)
    for here, there in itertools.pairwise(path):
        (gain, plus), (a, b, _) = recursions.estimate(case, *here), recursions.ddim(here, there, 0)
        step = a * gain + b * EYE
        matrix, offset = step @ matrix, step @ offset + a * plus
    return matrix, offset


def recursion(case, schedule, times, count=2, langevin=3, step=0.2, tau=0.0):
    """arXiv:2407.01521, algorithm 1: (mean, covariance) of the images."""
    state, a = recursions.State(numbers(schedule, times[0])[1]), case.matrix
    tau_sq = max(tau or case.noise_std, MIN_TAU) ** 2
    norm = np.linalg.norm(a, 2) ** 2 or 1
    for t, (alpha, sigma) in recursions.pairs(schedule, times):
        matrix, offset = ode(case, schedule, t, count)
        precision = (t[0] / t[1]) ** 2
        eta = step / (precision + norm / tau_sq)
        kept = EYE - eta * (precision * EYE + a.T @ a / tau_sq)
        on_x, on_1, covariance = EYE, np.zeros(SIZE), np.zeros((SIZE, SIZE))
        for _ in range(langevin):  # of v = on_x x_hat + on_1 and noise
            on_x = kept @ on_x + eta * precision * EYE
            on_1 = kept @ on_1 + eta * a.T @ case.y_flat / tau_sq
            covariance = kept @ covariance @ kept + 2 * eta * EYE
        state.go(on_x @ matrix, on_x @ offset + on_1, np.linalg.cholesky(covariance))
        state.go(alpha * EYE, np.zeros(SIZE), sigma * EYE)
    if end := recursions.clean_end(schedule, times):
        state.go(*recursions.estimate(case, *end))
    return state.moments


CASES = [  # (operator, noise of y, options)
    ("mask", NOISE_STD, dict(ode=2, langevin=3)),
    ("average", NOISE_STD, dict(ode=1, langevin=2, step=0.5)),
    ("fourier", NOISE_STD, dict(ode=3, langevin=2, tau=0.3)),
    ("denoise", 0.0, dict(ode=2, langevin=1, step=1.0)),  # where tau is MIN_TAU
]
FEW = [CASES[2], CASES[3]]


@pytest.mark.parametrize(("operator", "noise_std", "options"), only(FEW, CASES))
@pytest.mark.parametrize(
    "schedule", [FLOW, *(pytest.param(s, marks=pytest.mark.slow) for s in (EDM(), LinearVP()))],
    ids=str,
)  # fmt: skip
def test_moments_are_those_of_the_algorithm(operator, noise_std, options, schedule):
    times = grids.uniform_logsnr(schedule, STEPS, low=-6, high=6)
    given = {"count" if key == "ode" else key: value for key, value in options.items()}
    case = problem(operator, "full", noise_std)
    wanted = recursion(case, schedule, times, **given)
    draws = STEPS * (options["langevin"] + 1)
    found = moments("daps", case, schedule, times, draws, **options)
    np.testing.assert_allclose(found[0], wanted[0], atol=1e-8)
    np.testing.assert_allclose(found[1], wanted[1], atol=1e-8)


def limit(case, count, langevin, step):
    """The closed form in the docstring: another prior, another noise, another heat."""
    left = (1 - step) ** langevin
    wider = case.prior._replace(variances=2 * count / (count + 1) * case.prior.variances)
    noise_std = case.noise_std / np.sqrt(1 - left)
    mean, covariance = dataclasses.replace(case, prior=wider, noise_std=noise_std).posterior()
    return mean, (1 + (1 - left**2) / (1 - step / 2)) / 2 * covariance


@pytest.mark.slow
@pytest.mark.parametrize("operator", ["average", "fourier", None])
@pytest.mark.parametrize(
    "options",
    [dict(count=1, langevin=30, step=0.1), dict(count=5, langevin=10, step=0.2),
     dict(count=2, langevin=1, step=0.5)],
    ids=str,
)  # fmt: skip
def test_the_posterior_of_a_wider_prior(operator, options):
    """Of the true prior for one ODE step; after few Langevin steps, y counts for less."""
    case = problem(operator, "full", 0.3, operator=None if operator else NOTHING)
    tends_to(recursion, case, limit(case, **options), 0.05, **options)


@pytest.mark.slow
def test_an_exact_ode_doubles_the_prior():
    """Variance 1/4 and noise of variance 1/2 have the posterior variance 1/6; DAPS tends to 1/4."""
    case = problem("denoise", "diagonal", np.sqrt(0.5))
    case = dataclasses.replace(case, prior=case.prior._replace(variances=np.full(SIZE, 0.25)))
    times = grids.uniform_logsnr(FLOW, 400, low=-8, high=10)
    _, covariance = recursion(case, FLOW, times, count=40, langevin=200, step=0.05)
    assert np.diag(covariance) == pytest.approx(np.full(SIZE, 0.25), rel=0.05)


def clipped(x):
    return np.clip(2 * x, -1, 1)


@pytest.mark.slow
def test_an_operator_that_is_not_linear():
    """Image by image, with the same noise: clipping has the slope 2, or 0 where it clips."""
    case = problem(None, "full", NOISE_STD, operator=make(dict(name="hdr"), SHAPE))
    times, langevin, step = grids.uniform_logsnr(FLOW, STEPS, low=-6, high=6), 3, 0.2
    start = np.asarray(noise(FLOW, COUNT)).reshape(COUNT, SIZE)

    def fresh(i):
        return np.asarray(fresh_noise(keys(COUNT), i, jnp.zeros((COUNT, *SHAPE)))).reshape(
            start.shape
        )

    x, calls = start, langevin + 1
    for i, (t, (alpha, sigma)) in enumerate(recursions.pairs(FLOW, times)):
        matrix, offset = ode(case, FLOW, t, 2)
        x_hat = v = x @ matrix.T + offset
        precision = (t[0] / t[1]) ** 2
        eta = step / (precision + 1 / NOISE_STD**2)
        for k in range(langevin):
            away = np.where(abs(2 * v) < 1, 2, 0) * (clipped(v) - case.y_flat)
            slope = precision * (v - x_hat) + away / NOISE_STD**2
            v = v - eta * slope + np.sqrt(2 * eta) * fresh(calls * i + k)
        x = alpha * v + sigma * fresh(calls * i + langevin)
    found = draw("daps", case, FLOW, times, COUNT, ode=2, langevin=langevin, step=step)
    np.testing.assert_allclose(found.reshape(COUNT, SIZE), x, atol=1e-8)


@pytest.mark.slow
def test_the_posterior_mean_under_an_operator_that_is_not_linear():
    """Of each pixel by quadrature, where pixels are independent; ode = 1, 200 levels.

    Not the variance: Langevin's steps suit |A| = 1, and here the slope is 2 or, where clipped, 0.
    """
    case = problem(None, "diagonal", 0.3, operator=make(dict(name="hdr"), SHAPE))
    times = grids.uniform_logsnr(FLOW, 200, low=-8, high=9)
    images = draw("daps", case, FLOW, times, 150, ode=1, langevin=30, step=0.05)
    images = images.reshape(-1, SIZE)
    grid = np.linspace(-4, 4, 4001)[:, None]
    energy = (grid - case.prior.mean) ** 2 / case.prior.variances
    energy += (clipped(grid) - case.y_flat) ** 2 / case.noise_std**2
    weights = np.exp(-energy / 2)
    weights /= weights.sum(0)
    mean = (weights * grid).sum(0)
    variance = (weights * (grid - mean) ** 2).sum(0)
    assert abs((images.mean(0) - mean) / np.sqrt(variance)).max() < 4 / np.sqrt(150) + 0.05
