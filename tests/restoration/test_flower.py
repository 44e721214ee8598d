"""Flower on Gaussian images: step by step against NumPy, and what it tends to with more steps."""

import dataclasses
import itertools

import numpy as np
import pytest

from tests.parts import only
from tests.restoration import recursions
from tests.restoration.gaussians import PRIORS, SIZE, moments, problem
from tests.restoration.recursions import EYE
from tests.restoration.test_limits import tends_to
from tests.restoration.test_traits import NOTHING
from vitdiff_jax.diffusion import grids
from vitdiff_jax.diffusion.schedules import EDM, LinearVP, RectifiedFlow
from vitdiff_jax.operators.inverse import MIN_WEIGHT

pytestmark = pytest.mark.usefixtures("x64")
STEPS, NOISE_STD = 5, 0.1


def recursion(case, schedule, times, gamma=0.0):
    """arXiv:2509.26287, steps 1 to 3: (mean, covariance) of the images.

    Given x_t, x_0 has the mean N (A^T y / n^2 + x_hat / nu^2) and the covariance gamma^2 N, with
    N = (A^T A / n^2 + I / nu^2)^{-1}, here in units of n^2.
    """
    state, a = recursions.State(recursions.numbers(schedule, times[0])[1]), case.matrix

    def refine(alpha, sigma, gamma):
        nu = sigma / np.sqrt(alpha**2 + sigma**2)
        weight = max((case.noise_std / nu) ** 2, MIN_WEIGHT)
        matrix, offset = recursions.estimate(case, alpha, sigma)
        inverse = np.linalg.inv(a.T @ a + weight * EYE)
        spread = nu * np.linalg.cholesky(weight * inverse)
        state.go(
            inverse @ (weight * matrix), inverse @ (a.T @ case.y_flat + weight * offset),
            gamma * spread,
        )  # fmt: skip

    for t, (alpha, sigma) in recursions.pairs(schedule, times):
        refine(*t, gamma)
        state.go(alpha * EYE, np.zeros(SIZE), sigma * EYE)
    if end := recursions.clean_end(schedule, times):
        refine(*end, 0)
    return state.moments


CASES = [*itertools.product(["mask", "average", "fourier", "photo"], [0.0, 0.6, 1.0])]


@pytest.mark.parametrize(
    ("operator", "gamma"), only([("fourier", 1.0), ("average", 0.0)], [*CASES, ("radon", 0.0)])
)
def test_moments_are_those_of_the_formulas(operator, gamma):
    """With an SVD or conjugate gradients, complex y, and on a schedule that has a clean end."""
    schedule = [RectifiedFlow(), LinearVP(), EDM()][len(operator) % 3]
    times = grids.uniform_logsnr(schedule, STEPS, low=-6, high=6)
    for kind in PRIORS if operator != "radon" else ["full"]:
        case = problem(operator, kind, NOISE_STD)
        wanted = recursion(case, schedule, times, gamma)
        found = moments("flower", case, schedule, times, 4 * STEPS, gamma=gamma)
        np.testing.assert_allclose(found[0], wanted[0], atol=1e-8)
        np.testing.assert_allclose(found[1], wanted[1], atol=1e-8)


@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_a_measurement_without_noise(gamma):
    """Is reproduced by every image; the rest is drawn as the formulas say."""
    case, schedule = problem("average", "full", 0.0), RectifiedFlow()
    times = grids.uniform_logsnr(schedule, STEPS, low=-6, high=6)
    mean, covariance = moments("flower", case, schedule, times, 4 * STEPS, gamma=gamma)
    np.testing.assert_allclose(case.matrix @ mean, case.y_flat, atol=1e-4)
    np.testing.assert_allclose(case.matrix @ covariance, 0, atol=1e-4)
    wanted = recursion(case, schedule, times, gamma)
    np.testing.assert_allclose(covariance, wanted[1], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("operator", ["average", "fourier", None])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_the_posterior_at_the_heat_of_gamma(operator, gamma):
    """Its mean, and (1 + gamma^2) / 2 of its covariance; the prior's where nothing is known."""
    case = problem(operator, "full", NOISE_STD, operator=None if operator else NOTHING)
    mean, covariance = case.posterior()
    wanted = mean, (1 + gamma**2) / 2 * covariance
    tends_to(recursion, case, wanted, 0.03, gamma=gamma)
    if gamma == 1:  # and not to that of another noise
        other = dataclasses.replace(case, noise_std=2 * NOISE_STD).posterior()
        if operator:
            with pytest.raises(AssertionError):
                tends_to(recursion, case, other, 0.03, gamma=gamma)
