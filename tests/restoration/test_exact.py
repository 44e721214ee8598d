"""PiGDM with Tweedie's covariance samples the posterior of Gaussian images, with enough steps.

For every linear operator and kind of covariance its mean and covariance, known without sampling
error, tend to the closed form at the order of the sampler that walks the posterior's denoiser.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.parts import quick
from tests.restoration.gaussians import METHODS, OPERATORS, PRIORS, SIZE, moments, problem
from tests.samplers.known import FOUR_SCHEDULES, numbers
from vitdiff_jax.diffusion import grids
from vitdiff_jax.diffusion.schedules import EDM, Cosine, RectifiedFlow

TWEEDIE = dict(covariance="tweedie", sampler="heun", iterations=SIZE)
EXACT = {"pigdm": TWEEDIE, "flower": dict(gamma=1.0)}
"""The options under which a method is exact; {} for those that are not in here."""
NOISE_STD = 0.1


def marginal(case, schedule, t):
    """Mean and covariance of x_t given y."""
    (alpha, sigma), (mean, covariance) = numbers(schedule, t), case.posterior()
    return alpha * mean, alpha**2 * covariance + sigma**2 * np.eye(SIZE)


def errors(case, schedule, steps, options):
    """Of mean and covariance of x_t / alpha at log-SNR 6, from the truth at log-SNR -8."""
    times = np.array(schedule.t_from_logsnr(jnp.linspace(-8, 6, steps + 1)))
    mean, covariance = marginal(case, schedule, times[0])
    start = mean, np.linalg.cholesky(covariance)
    fresh = steps if options["sampler"] == "ancestral" else 0
    found = moments("pigdm", case, schedule, times, fresh, start, **options)
    alpha, _ = numbers(schedule, times[-1])
    mean, covariance = marginal(case, schedule, times[-1])
    return np.array(
        [abs(found[0] - mean).max() / alpha, abs(found[1] - covariance).max() / alpha**2]
    )


def tweedie(case):
    """As many conjugate gradients as the matrix has directions, and a quarter more: rounding spoils
    the directions (of 16 for a mask the mean is off by 2e-6, of 20 by 1e-15)."""
    rank = int(np.linalg.matrix_rank(case.matrix))
    return TWEEDIE | dict(iterations=rank + rank // 4)


def test_the_exact_methods_are_those_that_say_so():
    assert {name for name, method in METHODS.items() if method.TRAITS.exact} == EXACT.keys()


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("operator", quick({"mask"}, OPERATORS))
def test_error_falls_at_the_samplers_order(operator):
    """The second for Heun, with every prior; schedules change from one operator to the next.

    Not on LinearVP, where so few steps that are even in log-SNR are not yet in that regime. Where
    paths are straight the mean is exact.
    """
    schedule = [RectifiedFlow(), Cosine(), EDM()][list(OPERATORS).index(operator) % 3]
    for kind in PRIORS if operator != "radon" else ["full"]:  # which is slow to transpose
        case = problem(operator, kind, NOISE_STD)
        few, many = (errors(case, schedule, n, tweedie(case)) for n in (16, 32))
        assert (many < np.maximum(few / 2**1.8, 1e-9)).all()
        assert (many < 0.01 * np.sqrt(case.prior.variances.max())).all()


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_error_of_an_ancestral_walk_falls_at_the_first_order():
    """Its draws of noise are part of the map."""
    case = problem("average", "circulant", NOISE_STD)
    options = tweedie(case) | dict(sampler="ancestral")
    few, many = (errors(case, RectifiedFlow(), n, options) for n in (24, 48))
    assert (many < np.maximum(few / 2**0.8, 1e-9)).all()


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("schedule", quick([EDM()], FOUR_SCHEDULES), ids=str)
def test_from_noise_to_data(schedule):
    """As the contract says: from sigma(1) eps down to t = 0, on every schedule.

    What is left of the mean on EDM is its start at sigma 80 as if the mean were 0.
    """
    case = problem("average", "circulant", NOISE_STD)
    times = grids.uniform_logsnr(schedule, 64, low=-9, high=9)
    mean, covariance = moments("pigdm", case, schedule, times, **tweedie(case))
    wanted = case.posterior()
    np.testing.assert_allclose(mean, wanted[0], atol=0.002)
    np.testing.assert_allclose(covariance, wanted[1], atol=0.001)
