"""What holds for every method in the folder, whatever the denoiser: see `restoration`.

Few steps, one operation after the other (`disable_jit`): far quicker than to compile each loop.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.operators.test_operators import make
from tests.parts import only, quick
from tests.restoration.gaussians import METHODS, OPERATORS, PRIORS, SHAPE, noise, problem
from tests.samplers.known import keys
from vitdiff_jax.diffusion import grids
from vitdiff_jax.diffusion.process import PREDICTIONS, Process, target_coefficients
from vitdiff_jax.diffusion.schedules import EDM, Cosine, LinearVP, RectifiedFlow, per_image
from vitdiff_jax.operators.mask import Mask

FLOW, TIMES = RectifiedFlow(), np.array([1, 0.6, 0.3, 0.0])
QUICK = {
    "repaint": dict(jump=2, resample=2),
    "pnpflow": dict(draws=2),
    "daps": dict(ode=2, langevin=2),
}
each_method = pytest.mark.parametrize("name", METHODS)
eager = jax.disable_jit()


def mixing(x_t, t):
    """Nonlinear, and every pixel sees its whole image, but no other image."""
    return jnp.tanh(x_t - x_t.mean((1, 2, 3), keepdims=True) + jnp.cos(t)[:, None, None, None])


def restore(name, denoise, schedule, times, x, k, **given):
    return METHODS[name].restore(denoise, schedule, times, x, k, **given, **QUICK.get(name, {}))


def masked(name):
    """A method as a function of arrays alone, the masks of its images among them."""

    @jax.jit
    def run(x, k, known, y):
        operator = Mask(known, SHAPE[2])
        return restore(name, mixing, FLOW, TIMES, x, k, operator=operator, y=y, noise_std=0.2)

    random = np.random.default_rng(1)
    known = (random.random((2, *SHAPE[:2], 1)) < 0.5).astype(np.float32)
    known[0] = 0
    y = known * random.uniform(-1, 1, (2, *SHAPE)).astype(np.float32)
    return run, [noise(FLOW, 2), keys(2), jnp.asarray(known), jnp.asarray(y)]


@pytest.mark.parametrize("name", quick({"ddnm", "dps", "repaint", "palette"}, METHODS))
def test_an_image_depends_on_its_own_key_and_measurement_alone(name):
    """The same at any place, beside one of which nothing is known or another of which all is."""
    run, given = masked(name)
    both = np.asarray(run(*given))
    assert both.dtype == np.float32
    np.testing.assert_allclose(run(*(a[::-1] for a in given)), both[::-1], atol=1e-5)
    x, k, known, y = given
    beside = run(
        x.at[0].set(0.1), jnp.stack([keys(1, 9)[0], k[1]]), known.at[0].set(1), y.at[0].set(0.3)
    )
    np.testing.assert_allclose(beside[1], both[1], atol=1e-5)
    # Another start or key, for those who look at it, is another image.
    other = run(x[::-1], k[::-1], known, y)
    assert abs(other - both).max() > 1e-3
    changed = abs(run(x[::-1], k[::-1], known, y + 0.1 * known) - other).max()
    assert (changed > 1e-3) == (not METHODS[name].TRAITS.hint)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_compiled_alone_is_the_same(name):
    """With the operator and all else as arguments, in a batch of 1."""
    run, given = masked(name)
    with jax.disable_jit():
        both = run(*given)
    np.testing.assert_allclose(run(*(a[1:] for a in given)), both[1:], atol=1e-5)


@eager
@pytest.mark.parametrize(
    ("name", "noise_std"),
    only(  # quick: those that have an end of their own
        [("ddnm", 0.0), ("ddrm", 0.2), ("repaint", 0.0), ("pnpflow", 0.2)],
        itertools.product(METHODS, [0.0, 0.2]),
    ),
)
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


@eager
@pytest.mark.parametrize(
    ("name", "schedule"),
    only(
        [("pigdm", FLOW), ("ddrm", Cosine()), ("diffpir", LinearVP()), ("repaint", FLOW)],
        itertools.product(METHODS, [FLOW, Cosine(), LinearVP()]),
    ),
    ids=str,
)
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


def degraded(name):
    if name == "nothing":
        return make(dict(name="mask", kind="random", share=1.0), (4, 4, 1))
    return make(OPERATORS.get(name, dict(name=name)), (4, 4, 1))


SERVED = [
    (name, degradation)
    for degradation in ("hdr", "jpeg", "fourier", "nothing")
    for name in METHODS
    if METHODS[name].TRAITS.supports(degraded(degradation))
]
SERVED_FIRST = [("pnpflow", "hdr")]


@eager
@pytest.mark.parametrize(("name", "degradation"), only(SERVED_FIRST, SERVED), ids=str)
def test_every_operator_that_is_served_gives_an_image(name, degradation):
    """Finite, real and float32: also of what is not linear, complex, or not there."""
    operator, shape = degraded(degradation), (4, 4, 1)
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
            found = target_coefficients(prediction, schedule, t)
            a, b, alpha, sigma = map(per_image, found)
            return a * x + b * (scaled - alpha * x) / sigma

        return Process(schedule, prediction, loss_space="x").denoiser(network)(x_t, t)

    def each(x_t, t):
        found = [answer(p, x_t[i : i + 1], t[i : i + 1]) for i, p in enumerate(PREDICTIONS)]
        return jnp.concatenate(found)

    return each


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@eager
@each_method
def test_the_same_through_every_parameterisation(name):
    """A batch of one image five times, by networks that predict x, eps, v, u and EDM's F."""
    schedule, case, count = LinearVP(), problem("mask", "full", 0.1), len(PREDICTIONS)
    denoise = parameterised(schedule, case.prior.denoiser(schedule))
    found = np.asarray(restore(
        name, denoise, schedule, grids.uniform_logsnr(schedule, 3, low=-4, high=6),
        jnp.repeat(noise(schedule, 1), count, 0), jnp.repeat(keys(1), count),
        operator=case.operator, y=jnp.repeat(jnp.asarray(case.y, jnp.float32), count, 0),
        noise_std=0.1,
    ))  # fmt: skip
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, found[:1].repeat(count, 0), atol=1e-6)
