"""Average velocities of Gaussian data, where the path through each point is known."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.parts import covering
from vitdiff_jax.diffusion import times
from vitdiff_jax.diffusion.average_velocity import EPSILON, AverageVelocity
from vitdiff_jax.diffusion.process import Process
from vitdiff_jax.diffusion.schedules import Cosine, RectifiedFlow
from vitdiff_jax.samplers import average_velocity as sampler

B, SHAPE = 6, (2, 3, 1)
RANDOM = np.random.default_rng(0)
MEAN, STD = RANDOM.standard_normal(SHAPE), RANDOM.uniform(0.2, 2, SHAPE)
T, R = np.linspace(0.2, 1, B), np.linspace(0.0, 0.9, B)
X, EPS = RANDOM.standard_normal((2, B, *SHAPE))


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def images(a):
    return jnp.reshape(a, (-1, 1, 1, 1))


def std(t, noise):
    return jnp.sqrt(((1 - t) * STD) ** 2 + (noise * t) ** 2)


def moved(z, t, r, noise=1.0):
    """z_r on the path through z_t of data N(MEAN, STD^2), pixel by pixel."""
    return (1 - r) * MEAN + std(r, noise) / std(t, noise) * (z - (1 - t) * MEAN)


def velocity(z, t, noise=1.0):
    """E[noise e - x | z_t = z]."""
    gain = (noise**2 * t - (1 - t) * STD**2) / std(t, noise) ** 2
    return -MEAN + gain * (z - (1 - t) * MEAN)


def exact(prediction, noise=1.0):
    """The network whose average velocities are exact, predicting x or u."""

    def network(z, time):
        t, length = (1 - time, 0) if time.ndim == 1 else (1 - time[:, 0], images(time[:, 1]))
        t = images(t)
        far = jnp.where(length == 0, 1.0, length)
        u = jnp.where(length == 0, velocity(z, t, noise), (z - moved(z, t, t - far, noise)) / far)
        return z - t * u if prediction == "x" else u

    return network


@pytest.mark.parametrize(
    ("prediction", "noise", "tangent"),
    covering(itertools.product("xu", (1.0, 2.0), ("own", "data"))),
)
def test_exact_average_velocities_are_the_fixed_point(prediction, noise, tangent):
    """Of all x and e that lead to z, those whose velocity is the expected one have no error."""
    process = Process(RectifiedFlow(noise), prediction)
    z, t = jnp.asarray(EPS), images(T)
    v = velocity(z, t, noise)
    x, eps = z - t * v, (z + (1 - t) * v) / noise
    network = exact(prediction, noise)
    how = AverageVelocity(share=1.0, tangent=tangent)
    weighted, error = how.loss(process, network, network, x, eps, jnp.asarray(T), jnp.asarray(R))
    assert error.shape == weighted.shape == (B,)
    assert np.sqrt(error).max() < 1e-9


@pytest.mark.parametrize("noise", [1.0, 2.0])
@pytest.mark.parametrize("grid", [(1.0, 0.0), (1.0, 0.4, 0.0), (0.9, 0.8, 0.3, 0.1)])
def test_the_sampler_with_exact_average_velocities_is_exact(grid, noise):
    process = Process(RectifiedFlow(noise), "x")
    z = jnp.asarray(EPS)

    def denoise_to(x_t, t, s):
        return process.denoiser(exact("x", noise), s)(x_t, t)

    found = sampler.sample(
        process.denoiser(exact("x", noise)), process.schedule, np.array(grid), z, None,
        denoise_to=denoise_to,
    )  # fmt: skip
    np.testing.assert_allclose(found, moved(z, grid[0], grid[-1], noise), rtol=1e-9, atol=1e-9)
    assert sampler.nfe(len(grid) - 1) == len(grid) - 1


def affine(p):
    """Not exact, and another without conditions."""

    def network(z, time, null=0.0):
        t, h = (time, 0 * time) if time.ndim == 1 else (time[:, 0], time[:, 1])
        wave = jnp.sin(p[0] * z + p[1] * images(t)) + p[2] * images(h * t) * z**2
        return wave + p[3] * (1 - null)

    return network


@pytest.mark.parametrize(
    ("tangent", "guidance", "power"),
    covering(itertools.product(("own", "data"), (1.0, 2.5), (0.0, 0.5, 1.0))),
)
def test_the_loss_and_its_gradient_against_finite_differences(tangent, guidance, power):
    """The product is a difference along the path; only u has a gradient, weights have none."""
    process, p = Process(RectifiedFlow(), "u"), np.array([0.7, 1.3, 0.4, 0.2])
    how = AverageVelocity(share=1.0, tangent=tangent, guidance=guidance, power=power)
    t, r, z = images(T), images(R), (1 - images(T)) * X + images(T) * EPS

    def u(p, z, t, r, null=0.0):
        return affine(p)(z, jnp.stack([1 - t[:, 0, 0, 0], (t - r)[:, 0, 0, 0]], 1), null)

    own, own_null = u(p, z, t, t), u(p, z, t, t, 1.0)
    target = EPS - X + (1 - 1 / guidance) * (own - own_null) * (guidance > 1)
    v, d = own if tangent == "own" else target, 1e-5
    du = (u(p, z + d * v, t + d, r) - u(p, z - d * v, t - d, r)) / (2 * d)
    error = np.asarray(u(p, z, t, r) + (t - r) * du - target)
    squares = (error**2).sum((1, 2, 3))
    weight = (squares + EPSILON) ** -power

    def loss(p):
        network = affine(p)
        return how.loss(
            process, network, lambda z, time: network(z, time, 1.0), jnp.asarray(X),
            jnp.asarray(EPS), jnp.asarray(T), jnp.asarray(R),
        )  # fmt: skip

    (found, errors), gradient = loss(jnp.asarray(p)), jax.grad(lambda p: loss(p)[0].sum())(p)
    np.testing.assert_allclose(errors, squares / error[0].size, rtol=1e-6)
    np.testing.assert_allclose(found, weight * squares, rtol=1e-6)
    for i, wanted in enumerate(np.eye(4)):
        slope = (u(p + d * wanted, z, t, r) - u(p - d * wanted, z, t, r)) / (2 * d)
        by_hand = (weight * (2 * error * np.asarray(slope)).sum((1, 2, 3))).sum()
        assert gradient[i] == pytest.approx(by_hand, rel=1e-6)


def test_a_step_back_to_the_same_time_is_flow_matching():
    process, t = Process(RectifiedFlow(), "x"), jnp.asarray(T)
    how = AverageVelocity(share=0.5)
    network = affine(np.array([0.7, 1.3, 0.4, 0.2]))
    _, found = how.loss(process, network, network, jnp.asarray(X), jnp.asarray(EPS), t, t)
    out = process.call(network, process.add_noise(jnp.asarray(X), jnp.asarray(EPS), t), t)
    np.testing.assert_allclose(found, process.loss(out, X, EPS, t), rtol=1e-9)


def test_the_earlier_times_are_another_draw():
    """r is the smaller of two draws for `share` of the images, and t for the others."""
    process, count = Process(RectifiedFlow()), 20_000
    keys = jax.random.split(jax.random.key(1), count)
    u = jax.random.uniform(jax.random.key(2), count, jnp.float64)
    later, r = AverageVelocity(share=0.3).earlier(times.uniform, process, keys, u)
    apart = np.asarray(r < later)
    assert apart.mean() == pytest.approx(0.3, abs=0.015)
    assert (r <= later).all()
    assert (later >= u).all()
    # Of two uniform numbers the larger is 2/3 on average, the smaller 1/3.
    assert later.mean() == pytest.approx(2 / 3, abs=0.01)
    assert r[apart].mean() == pytest.approx(1 / 3, abs=0.02)


@pytest.mark.parametrize(
    ("process", "message"),
    [
        (Process(Cosine()), "schedule: Cosine has no average velocities"),
        (Process(RectifiedFlow(), loss_space="x"), "loss_space: 'x', but average velocities need"),
        (Process(RectifiedFlow(), min_snr=5.0), "min_snr: 5.0, but average velocities need 0.0"),
    ],
    ids=str,
)
def test_what_has_no_average_velocities_is_refused(process, message):
    with pytest.raises(ValueError, match=message):
        AverageVelocity(share=0.5).check(process)
