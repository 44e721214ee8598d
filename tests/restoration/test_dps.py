"""DPS, which is not linear, step by step against NumPy with the gradient written out."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.operators.test_operators import make
from tests.parts import quick
from tests.restoration import recursions
from tests.restoration.gaussians import OPERATORS, PRIORS, SHAPE, SIZE, draw, noise, problem
from tests.samplers.known import keys
from vitdiff_jax.diffusion import grids
from vitdiff_jax.diffusion.schedules import EDM, LinearVP, RectifiedFlow
from vitdiff_jax.restoration import dps
from vitdiff_jax.samplers import fresh_noise

pytestmark = pytest.mark.usefixtures("x64")
COUNT, NOISE_STD = 5, 0.1


def particles(case, schedule, times, scale, forward, slope):
    """arXiv:2209.14687, algorithm 1, image by image: forward(x) is A(x), slope(x, v) A'(x)^T v.

    For Gaussian images x_hat = K x_t + k, so that the gradient of |y - A(x_hat)| is
    -K^T A'^T (y - A(x_hat)) / |y - A(x_hat)|.
    """
    start = np.asarray(noise(schedule, COUNT, times[0])).reshape(COUNT, SIZE)
    images = start.copy()
    for i, (t, s) in enumerate(recursions.pairs(schedule, times)):
        fresh = np.asarray(fresh_noise(keys(COUNT), i, start.reshape(COUNT, *SHAPE)))
        (matrix, offset), (a, b, tau) = recursions.estimate(case, *t), recursions.ddim(t, s)
        for n, x in enumerate(images):
            x_hat = matrix @ x + offset
            away = case.y_flat - forward(x_hat)
            down = matrix.T @ slope(x_hat, away) / np.linalg.norm(away)
            images[n] = a * x_hat + b * x + tau * fresh[n].ravel() + scale * down
    if end := recursions.clean_end(schedule, times):
        matrix, offset = recursions.estimate(case, *end)
        images = images @ matrix.T + offset
    return images


@pytest.mark.parametrize("operator", quick({"fourier"}, ["mask", "fourier", "radon"]))
def test_images_are_those_of_the_formula(operator):
    """With the same noise, also where y is complex."""
    schedule = [RectifiedFlow(), LinearVP(), EDM()][list(OPERATORS).index(operator) % 3]
    times = grids.uniform_logsnr(schedule, 6, low=-6, high=6)
    a = problem(operator).matrix
    for kind in PRIORS:
        case = problem(operator, kind, NOISE_STD)
        wanted = particles(case, schedule, times, 0.7, lambda x: a @ x, lambda x, v: a.T @ v)
        found = draw("dps", case, schedule, times, COUNT, scale=0.7).reshape(COUNT, SIZE)
        np.testing.assert_allclose(found, wanted, atol=1e-8)


def test_an_operator_that_is_not_linear():
    """Clipping has the slope 2, or 0 where it clips."""
    operator = make(dict(name="hdr"), SHAPE)
    case = problem(None, "full", NOISE_STD, operator=operator)
    times = grids.uniform_logsnr(RectifiedFlow(), 6, low=-6, high=6)
    wanted = particles(
        case, RectifiedFlow(), times, 0.3,
        lambda x: np.clip(2 * x, -1, 1), lambda x, v: np.where(abs(2 * x) < 1, 2 * v, 0),
    )  # fmt: skip
    found = draw("dps", case, RectifiedFlow(), times, COUNT, scale=0.3)
    np.testing.assert_allclose(found.reshape(COUNT, SIZE), wanted, atol=1e-8)


@pytest.mark.parametrize("copies", quick({2}, [2, 3]))
def test_the_default_step_does_not_depend_on_the_size(copies):
    """Copies of an image side by side, each degraded alike, become copies of what it becomes."""
    schedule, times = RectifiedFlow(), np.array([0.8, 0.0])  # the last step adds no noise
    x = noise(schedule, COUNT, times[0])
    y = 0.3 * np.cos(np.arange(x.size)).reshape(x.shape)

    def run(side):
        whole = [np.tile(part, (1, 1, side, 1)) for part in (x, y)]
        return dps.restore(
            lambda x_t, t: 0.5 * x_t + 0.1 * jnp.sin(x_t), schedule, times, whole[0], keys(COUNT),
            operator=make(dict(name="denoise"), whole[0].shape[1:]), y=whole[1], noise_std=0.1,
        )  # fmt: skip

    np.testing.assert_allclose(run(copies), np.tile(run(1), (1, 1, copies, 1)), atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(("operator", "value"), [("denoise", 1), ("average", 1 / 2)])
def test_y_is_missed_by_half_a_step_whatever_its_noise(operator, value):
    """Near the end a step changes A x by scale s^2 along y - A x, s the singular value: there and
    back over y. So |y - A x| is half of that on average, if y has noise or none."""
    for noise_std, scale, steps in ((0.0, 0.3, 60), (0.1, 1.0, 180)):
        case = problem(operator, "full", noise_std)
        times = grids.uniform_logsnr(RectifiedFlow(), steps, low=-9, high=9)
        found = draw("dps", case, RectifiedFlow(), times, 100, scale=scale)
        norms = np.linalg.norm(found.reshape(100, SIZE) @ case.matrix.T - case.y_flat, axis=1)
        assert norms.mean() == pytest.approx(scale * value**2 / 2, rel=0.1)
        assert norms.max() < scale * value**2
