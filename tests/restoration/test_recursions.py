"""Every method gives Gaussian images of just the mean and covariance that its formulas say.

Against `recursions`, written from the papers with dense matrices, to rounding: for every linear
operator that the method serves, every kind of covariance, with noise in y and without.
"""

import itertools

import numpy as np
import pytest

from tests.operators.test_operators import make
from tests.parts import only
from tests.restoration import recursions
from tests.restoration.gaussians import METHODS, OPERATORS, PRIORS, SHAPE, moments, problem
from tests.samplers.known import numbers
from vitdiff_jax.diffusion import grids
from vitdiff_jax.diffusion.schedules import EDM, Cosine, LinearVP, RectifiedFlow

pytestmark = pytest.mark.usefixtures("x64")
STEPS = 6
QUICK = {  # options under which a method's draws of noise are few
    "repaint": dict(jump=4, resample=2),
    "pnpflow": dict(draws=1),
}
OTHERS = [  # and others than the defaults
    ("ddnm", dict(eta=0.6)),
    ("ddrm", dict(eta=0.6, eta_b=0.7)),
    ("diffpir", dict(strength=2.0, zeta=0.8)),
    ("pigdm", dict(data_std=0.8)),
    ("repaint", dict(jump=2, resample=3)),
    ("pnpflow", dict(power=1.5, draws=3)),
]
NAMES = [name for name, _ in OTHERS]
DRAWS = {"repaint": 60, "pnpflow": 18}  # of noise, at most; one a step for the others
SERVED = [
    (name, operator)
    for name in NAMES
    for operator in OPERATORS
    if METHODS[name].TRAITS.supports(make(OPERATORS[operator], SHAPE))
]

FIRST = [*zip(NAMES, ["circular", "average", "fourier", "colourise", "mask", "denoise"])]


def few(schedule):
    """Times that reach from noise to data in six steps."""
    return grids.uniform_logsnr(schedule, STEPS, low=-6, high=6)


def compare(name, case, schedule, times, **options):
    wanted = getattr(recursions, name)(case, schedule, times, **options)
    mean, covariance = moments(name, case, schedule, times, DRAWS.get(name, STEPS), **options)
    # The operator's norm is found by power steps where there is no SVD.
    atol = 1e-5 if name == "pnpflow" and not hasattr(case.operator, "svd") else 1e-8
    np.testing.assert_allclose(mean, wanted[0], atol=atol)
    np.testing.assert_allclose(covariance, wanted[1], atol=atol)


@pytest.mark.parametrize(("name", "operator"), only(FIRST, SERVED))
def test_moments_are_those_of_the_papers_formulas(name, operator):
    """On a schedule that changes from one operator to the next."""
    place = NAMES.index(name) + list(OPERATORS).index(operator)
    schedule = [RectifiedFlow(), LinearVP(), EDM()][place % 3]
    for kind in PRIORS if operator != "radon" else ["full"]:  # which is slow to transpose
        for noise_std in (0.1, 0.0):
            case = problem(operator, kind, noise_std)
            compare(name, case, schedule, few(schedule), **QUICK.get(name, {}))


@pytest.mark.parametrize(
    ("other", "schedule"),
    only(
        [*zip(OTHERS[1::2], [Cosine(), EDM(), Cosine()])],
        itertools.product(OTHERS, [Cosine(), EDM()]),
    ),
    ids=str,
)
def test_options_and_schedules(other, schedule):
    """With options that are not the defaults, and a grid that ends before the data."""
    name, options = other
    for noise_std, high in ((0.3, 4), (0.0, 8)):
        times = grids.uniform_logsnr(schedule, STEPS, low=-4, high=high)
        times[-1] = 0.0 if noise_std else times[-2] / 2
        compare(name, problem("mask", "full", noise_std), schedule, times, **options)


@pytest.mark.parametrize("name", ["ddnm", "ddrm"])
def test_singular_values_each_meet_their_own_threshold(name):
    """Of a blur: in some step the noise outweighs what is added in some directions only."""
    schedule, case = LinearVP(), problem("circular", "full", 0.05)
    times = few(schedule)
    _, values, _ = recursions.parts(case)
    sides = set()
    for t, s in recursions.pairs(schedule, times):
        a, _, tau = recursions.ddim(t, s)
        weigh = (a, tau) if name == "ddnm" else numbers(schedule, times[3])
        above = weigh[0] * case.noise_std / values > weigh[1]
        sides.add((above.any(), not above.all()))
    assert (True, True) in sides  # of the test itself
    compare(name, case, schedule, times)
