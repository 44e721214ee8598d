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
FLOW, NOISE_STD = RectifiedFlow(), 0.1


def away(case, moments, wanted):
    """Largest error of the mean, in posterior standard deviations, and relative of the trace."""
    (mean, covariance), (wanted_mean, wanted_covariance) = moments, wanted
    scale = np.sqrt(np.trace(wanted_covariance) / SIZE)
    return np.array([
        np.sqrt(((mean - wanted_mean) ** 2).mean()) / scale,
        np.linalg.norm(covariance - wanted_covariance) / np.linalg.norm(wanted_covariance),
    ])  # fmt: skip


def tends_to(run, case, wanted, within, **options):
    """Nearer with four times the steps, and then within that of it."""
    errors = [
        away(case, run(case, FLOW, times, **options), wanted)
        for times in (grids.uniform_logsnr(FLOW, n, low=-8, high=12) for n in (300, 1200))
    ]
    assert (errors[1] < np.maximum(0.7 * errors[0], 1e-8)).all(), errors
    assert (errors[1] < within).all(), errors


def heat(share):
    """What replacing this share of the noise's variance in each step leaves of the variance."""
    return (1 + np.sqrt(1 - share)) / 2


LIMITS = [  # (method, options, noise of y, as how much it counts, share of the variance, error)
    ("ddrm", dict(eta=0.85), 0.0, 0, heat(0.85**2), 0.03),
    ("ddrm", dict(eta=0.85), NOISE_STD, 0, heat(0.85**2), 0.15),
    *(("diffpir", dict(strength=8.0, zeta=0.3), noise_std, np.sqrt(8), heat(0.3), 0.06)
      for noise_std in (0.0, NOISE_STD)),
    *(("pnpflow", dict(draws=draws), NOISE_STD, 0, 1 / (2 * draws), 0.12) for draws in (1, 3)),
]  # fmt: skip


@pytest.mark.parametrize("operator", ["average", "fourier"])  # not all is measured, nor any pixel
@pytest.mark.parametrize("limit", LIMITS, ids=str)
def test_the_posterior_for_other_noise_and_too_cold(limit, operator):
    """The noise of y is reproduced where it counts for nothing; the images vary too little."""
    name, options, noise_std, counts, share, within = limit
    case = problem(operator, "full", noise_std)
    mean, covariance = dataclasses.replace(case, noise_std=counts * noise_std).posterior()
    tends_to(getattr(recursions, name), case, (mean, share * covariance), within, **options)


def test_repaint_needs_resampling():
    """With it, the mean tends to the posterior's without noise in y; alone, or in DDNM, it stays a
    quarter of a standard deviation off, however many steps there are."""
    case = problem("mask", "full", NOISE_STD)
    wanted = dataclasses.replace(case, noise_std=0).posterior()

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
    tends_to(recursions.pigdm, simple, simple.posterior(), 0.02)
    times = grids.uniform_logsnr(FLOW, 1200, low=-8, high=12)
    off, _ = away(case, recursions.pigdm(case, FLOW, times), case.posterior())
    assert 0.05 < off < 0.2
