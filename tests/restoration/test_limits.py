"""What the methods tend to for Gaussian images as the steps grow: the biases in their docstrings.

In the recursions, which `test_recursions` shows to be what the methods do. Where a fixed share of
the noise is replaced in every step (DDRM, DiffPIR), or every step starts anew (PnP-Flow), the
images come to rest at each noise level; where there is little noise left, that is Langevin's
equation with a wrong temperature, whose moments are known.
"""

import dataclasses

import numpy as np
import pytest

from tests.restoration import recursions
from tests.restoration.gaussians import SIZE, problem
from vitdiff_jax.diffusion import grids
from vitdiff_jax.diffusion.schedules import RectifiedFlow

pytestmark = [pytest.mark.usefixtures("x64"), pytest.mark.slow]
FLOW, NOISE_STD, ETA, ZETA, STRENGTH = RectifiedFlow(), 0.1, 0.85, 0.3, 8.0
OPERATORS = ["average", "fourier"]  # some of the image is not measured, and nothing is a pixel


def away(case, moments, wanted):
    """Largest error of the mean, in posterior standard deviations, and relative of the trace."""
    (mean, covariance), (wanted_mean, wanted_covariance) = moments, wanted
    scale = np.sqrt(np.trace(wanted_covariance) / SIZE)
    return np.array([
        np.sqrt(((mean - wanted_mean) ** 2).mean()) / scale,
        np.linalg.norm(covariance - wanted_covariance) / np.linalg.norm(wanted_covariance),
    ])  # fmt: skip


def tends_to(name, case, wanted, within, **options):
    """Nearer with four times the steps, and then within that of it."""
    errors = [
        away(case, getattr(recursions, name)(case, FLOW, times, **options), wanted)
        for times in (grids.uniform_logsnr(FLOW, n, low=-8, high=12) for n in (300, 1200))
    ]
    assert (errors[1] < np.maximum(0.7 * errors[0], 1e-8)).all(), errors
    assert (errors[1] < within).all(), errors


def posterior(case, noise_std):
    """Mean and covariance as if the noise in y had been of another size."""
    return dataclasses.replace(case, noise_std=noise_std).posterior()


def heat(share):
    """What replacing this share of the noise's variance in each step leaves of the variance."""
    return (1 + np.sqrt(1 - share)) / 2


@pytest.mark.parametrize("operator", OPERATORS)
def test_ddrm_reproduces_the_noise_of_y_and_is_too_cold(operator):
    """The posterior without noise in y, and (1 + sqrt(1 - eta^2)) / 2 of its covariance."""
    for noise_std, within in ((0.0, 0.03), (NOISE_STD, 0.15)):
        case = problem(operator, "full", noise_std)
        mean, covariance = posterior(case, 0)
        tends_to("ddrm", case, (mean, heat(ETA**2) * covariance), within, eta=ETA)


@pytest.mark.parametrize("operator", OPERATORS)
def test_diffpir_sees_more_noise_than_there_is_and_is_too_cold(operator):
    """The posterior for noise sqrt(strength) times as large, times (1 + sqrt(1 - zeta)) / 2."""
    for noise_std in (0.0, NOISE_STD):
        case = problem(operator, "full", noise_std)
        mean, covariance = posterior(case, np.sqrt(STRENGTH) * noise_std)
        wanted = mean, heat(ZETA) * covariance
        tends_to("diffpir", case, wanted, 0.06, strength=STRENGTH, zeta=ZETA)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("draws", [1, 3])
def test_pnpflow_reproduces_the_noise_of_y_and_hardly_varies(operator, draws):
    """The posterior without noise in y, and 1 / (2 draws) of its covariance."""
    case = problem(operator, "full", NOISE_STD)
    mean, covariance = posterior(case, 0)
    tends_to("pnpflow", case, (mean, covariance / (2 * draws)), 0.12, draws=draws)


def test_repaint_needs_resampling():
    """With it, the mean tends to the posterior's without noise in y; alone, or in DDNM, it stays a
    quarter of a standard deviation off, however many steps there are."""
    case = problem("mask", "full", NOISE_STD)
    wanted = posterior(case, 0)

    def off(name, steps, **options):
        times = grids.uniform_logsnr(FLOW, steps, low=-8, high=12)
        return away(case, getattr(recursions, name)(case, FLOW, times, **options), wanted)[0]

    alone = [off("repaint", 300, jump=10, resample=1), off("repaint", 1200, jump=10, resample=1)]
    alone += [off("ddnm", 300), off("ddnm", 1200)]
    assert min(alone) > 0.2
    assert max(alone) < 0.3
    resampled = [off("repaint", 150, jump=10, resample=n) for n in (3, 10, 30)]
    assert resampled[0] < 0.2
    assert resampled[1] < 0.1
    assert resampled[2] < 0.03


def test_ddnm_reproduces_the_noise_of_y():
    """The part that is measured tends to y itself and stops varying, all noise is in it."""
    case = problem("average", "full", NOISE_STD)
    vt, values, y = recursions.parts(case)
    seen = vt[values > 0]
    errors = []
    for steps in (300, 1200):
        times = grids.uniform_logsnr(FLOW, steps, low=-8, high=12)
        mean, covariance = recursions.ddnm(case, FLOW, times)
        errors.append(np.sqrt([
            ((seen @ mean - y[values > 0]) ** 2).mean(), np.trace(seen @ covariance @ seen.T) / 8
        ]))  # fmt: skip
    assert (errors[1] < 0.6 * errors[0]).all()
    assert (errors[1] < 0.1 * NOISE_STD / values.max()).all()


def test_pigdm_with_a_scalar_covariance_is_exact_for_white_images_only():
    """Its mean is off by a tenth of a standard deviation where pixels depend on each other."""
    case = problem("average", "full", NOISE_STD)
    white = case.prior._replace(variances=np.full(SIZE, 0.25))
    simple = dataclasses.replace(case, prior=white)
    tends_to("pigdm", simple, simple.posterior(), 0.02)
    times = grids.uniform_logsnr(FLOW, 1200, low=-8, high=12)
    off, _ = away(case, recursions.pigdm(case, FLOW, times), case.posterior())
    assert 0.05 < off < 0.2
