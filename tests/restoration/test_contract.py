"""What holds for every method in the folder, whatever the denoiser: see `restoration`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.operators.test_operators import make
from tests.restoration.gaussians import (
    METHODS,
    OPERATORS,
    PRIORS,
    SHAPE,
    keys,
    noise,
    problem,
)
from vitdiff_jax.diffusion import grids
from vitdiff_jax.diffusion.process import PREDICTIONS, Process, pair
from vitdiff_jax.diffusion.schedules import EDM, Cosine, LinearVP, RectifiedFlow, per_image
from vitdiff_jax.operators.mask import Mask

FLOW, TIMES = RectifiedFlow(), np.linspace(1, 0, 5)
QUICK = {"repaint": dict(jump=2, resample=2), "pnpflow": dict(draws=2)}
each_method = pytest.mark.parametrize("name", METHODS)


def mixing(x_t, t):
    """Nonlinear, and every pixel sees its whole image, but no other image."""
    return jnp.tanh(x_t - x_t.mean((1, 2, 3), keepdims=True) + jnp.cos(t)[:, None, None, None])


@pytest.fixture
def eager():
    """Few steps, one operation after the other: far quicker than to compile the loop for each."""
    with jax.disable_jit():
        yield


def masks(count):
    """Another mask for each image, and among them one of which nothing and one all is known."""
    known = np.random.default_rng(1).random((count, *SHAPE[:2], 1)) < 0.5
    known[0], known[1] = False, True
    return known.astype(np.float32)


def restore(name, denoise, schedule, times, x, k, **given):
    return METHODS[name].restore(denoise, schedule, times, x, k, **given, **QUICK.get(name, {}))


@each_method
def test_an_image_depends_on_its_own_key_and_measurement_alone(name):
    """The same in batches of 1, 3 and 8, at any place, each with its own mask; all under jit."""

    @jax.jit
    def run(x, k, known, y):
        operator = Mask(known, SHAPE[2])
        return restore(name, mixing, FLOW, TIMES, x, k, operator=operator, y=y, noise_std=0.2)

    known = masks(8)
    y = known * np.random.default_rng(2).uniform(-1, 1, (8, *SHAPE)).astype(np.float32)
    given = [noise(FLOW, 8), keys(8), jnp.asarray(known), jnp.asarray(y)]
    whole = np.asarray(run(*given))
    assert whole.dtype == np.float32
    for part in (slice(2, 3), slice(5, 2, -1)):
        np.testing.assert_allclose(run(*(a[part] for a in given)), whole[part], atol=1e-5)
    for place in (0, 1):  # another start or key, for those who look at it, is another image
        given[place] = given[place][::-1]
    assert abs(np.asarray(run(*given)) - whole).max() > 1e-3
    given[3] = given[3] + 0.1 * known
    changed = abs(np.asarray(run(*given)) - np.asarray(run(*given[:3], jnp.asarray(y)))).max()
    assert (changed > 1e-3) == (not METHODS[name].TRAITS.hint)


@pytest.mark.usefixtures("eager")
@each_method
@pytest.mark.parametrize("noise_std", [0.0, 0.2])
def test_clean_end_is_the_denoisers_answer(name, noise_std):
    """Where sigma(0) > 0, what is not known is E[x | x_0] itself; a grid that stops has no end."""
    schedule, known = EDM(), np.zeros((*SHAPE[:2], 1), np.float32)
    known[:2] = 1

    def denoise(x_t, t):  # an answer at t = 0 that no step could reach
        return jnp.where(t[:, None, None, None] == 0, 7.0, mixing(x_t, t))

    def run(times):
        return np.asarray(restore(
            name, denoise, schedule, times, noise(schedule, 2), keys(2),
            operator=Mask(known, SHAPE[2]), y=jnp.zeros((2, *SHAPE)), noise_std=noise_std,
        ))  # fmt: skip

    assert (run(np.array([1, 0.3, 0.0]))[:, 2:] == 7).all()
    assert (run(np.array([1, 0.3, 0.01]))[:, 2:] != 7).all()


@pytest.mark.usefixtures("eager")
@each_method
@pytest.mark.parametrize("schedule", [FLOW, Cosine(), LinearVP()], ids=lambda s: type(s).__name__)
def test_the_denoiser_is_not_asked_where_there_is_no_noise(name, schedule):
    """Nor does anything else become infinite at the ends, where alpha or sigma is 0."""
    gaussian = PRIORS["full"].denoiser(schedule)

    def denoise(x_t, t):
        return jnp.where(t[:, None, None, None] == 0, jnp.nan, gaussian(x_t, t))

    operator = make(OPERATORS["mask"], SHAPE)
    for noise_std in (0.0, 0.1):
        found = restore(
            name, denoise, schedule, np.linspace(1, 0, 4), noise(schedule, 2), keys(2),
            operator=operator, y=operator.forward(jnp.ones((2, *SHAPE))), noise_std=noise_std,
        )  # fmt: skip
        assert np.isfinite(found).all()


@pytest.mark.usefixtures("eager")
@each_method
@pytest.mark.parametrize("degradation", ["hdr", "jpeg", "fourier", "nothing"])
def test_every_operator_that_is_served_gives_an_image(name, degradation):
    """Finite, real and float32: also of what is not linear, complex, or not there."""
    shape = (4, 4, 1)
    options = OPERATORS.get(degradation, dict(name=degradation))
    if degradation == "nothing":
        options = dict(name="mask", kind="random", share=1.0)
    operator = make(options, shape)
    if not METHODS[name].TRAITS.serves(operator):
        return
    x = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, *shape)), jnp.float32)
    for noise_std in (0.0, 0.1):
        found = restore(
            name, mixing, FLOW, TIMES, noise(FLOW, 2)[..., :1], keys(2),
            operator=operator, y=operator.forward(x), noise_std=noise_std,
        )  # fmt: skip
        assert found.shape == x.shape
        assert found.dtype == jnp.float32
        assert np.isfinite(found).all()


def parameterised(schedule, denoise):
    """A denoiser of len(PREDICTIONS) images, each from a network with another prediction."""

    def answer(prediction, x_t, t):
        def network(scaled, time):  # knows t only as its feature, which is 1000 t here
            t = time / 1000
            x = denoise(scaled, t)
            a, b, alpha, sigma = (per_image(v) for v in pair(prediction, schedule, t))
            return a * x + b * (scaled - alpha * x) / sigma

        return Process(schedule, prediction, loss_space="x").denoiser(network)(x_t, t)

    def each(x_t, t):
        found = [answer(p, x_t[i : i + 1], t[i : i + 1]) for i, p in enumerate(PREDICTIONS)]
        return jnp.concatenate(found)

    return each


@pytest.mark.usefixtures("eager")
@each_method
def test_the_same_through_every_parameterisation(name):
    """A batch of one image five times, by networks that predict x, eps, v, u and EDM's F."""
    schedule, case, count = LinearVP(), problem("mask", "full", 0.1), len(PREDICTIONS)
    denoise = parameterised(schedule, case.prior.denoiser(schedule))
    found = np.asarray(restore(
        name, denoise, schedule, grids.uniform_logsnr(schedule, 6, low=-4, high=6),
        jnp.repeat(noise(schedule, 1), count, 0), jnp.repeat(keys(1), count),
        operator=case.operator, y=jnp.repeat(jnp.asarray(case.y, jnp.float32), count, 0),
        noise_std=0.1,
    ))  # fmt: skip
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, found[:1].repeat(count, 0), atol=1e-5)
