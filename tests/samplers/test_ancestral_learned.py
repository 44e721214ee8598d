"""Ancestral sampling with a learned variance: DiT's step, and exactness where it can be exact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.parts import quick
from tests.samplers.known import keys
from vitdiff_jax.diffusion import grids
from vitdiff_jax.diffusion.guidance import guide
from vitdiff_jax.diffusion.process import Process
from vitdiff_jax.diffusion.schedules import Cosine, DiscreteVP, LinearVP, RectifiedFlow
from vitdiff_jax.samplers import ancestral, ancestral_learned, fresh_noise

eager = jax.disable_jit()  # few steps: quicker than to compile the loop
CHAIN = DiscreteVP()
FOUR = quick([CHAIN], [RectifiedFlow(), CHAIN, LinearVP(), Cosine()])
VARIANCE = 0.3  # of the Gaussian data, mean 0


def known(schedule, t, s):
    """(E[x | x_t] / x_t, smallest, true and largest Var(x_s | x_t)) of the Gaussian data."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = (schedule.alpha_sigma(a) for a in (t, s))

    def conditional(data):
        of_s, of_t = alpha_s**2 * data + sigma_s**2, alpha_t**2 * data + sigma_t**2
        return of_s - (alpha_t / alpha_s * of_s) ** 2 / of_t

    gain = alpha_t * VARIANCE / (alpha_t**2 * VARIANCE + sigma_t**2)
    return gain, *map(conditional, (0, VARIANCE, 1))


@pytest.mark.parametrize("schedule", FOUR, ids=str)
def test_is_exact_on_gaussian_data_with_their_variance(schedule):
    """In four steps, where the smallest variance gives far too little; to five standard errors."""
    times = jnp.array([1.0, 0.8, 0.5, 0.3, 0.1])

    def denoise(x_t, t):
        return known(schedule, t, 0.9 * t)[0][:, None, None, None] * x_t

    def variance(x_t, t):
        s = jnp.append(times, 0)[jnp.argmin(abs(times - t[0])) + 1]
        _, low, true, high = known(schedule, t, jnp.broadcast_to(s, t.shape))
        fraction = jnp.log(true / low) / jnp.log(high / low)
        return jnp.broadcast_to(fraction[:, None, None, None], x_t.shape)

    (alpha, sigma), (alpha_s, sigma_s) = (schedule.alpha_sigma(times[i]) for i in (0, -1))
    start = jnp.sqrt(alpha**2 * VARIANCE + sigma**2)
    x = start * np.random.default_rng(9).standard_normal((8, 64, 64, 1)).astype(np.float32)
    wanted = float(alpha_s**2 * VARIANCE + sigma_s**2)

    @jax.jit
    def sample(share):
        return ancestral_learned.sample(
            denoise, schedule, np.asarray(times), x, keys(8),
            variance=lambda x_t, t: share * variance(x_t, t),
        )  # fmt: skip

    found, least = sample(1.0), sample(0.0)
    errors = 5 * np.sqrt(2 / x.size)
    assert abs(np.var(found) / wanted - 1) < errors
    assert np.var(least) / wanted - 1 < -3 * errors


@eager
@pytest.mark.parametrize("schedule", FOUR[:3], ids=str)
def test_the_smallest_variance_is_ancestral(schedule):
    times = np.linspace(1, 0, 6)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 2, 1)), jnp.float32)

    def denoise(x_t, t):
        return jnp.tanh(x_t)

    found = ancestral_learned.sample(
        denoise, schedule, times, x, keys(2), variance=lambda x_t, t: 0 * x_t
    )
    wanted = ancestral.sample(denoise, schedule, times, x, keys(2))
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@eager
def test_a_step_is_dits():
    """From 400 to 396 of 1000, with the respaced chain's own betas; fractions are not clipped."""
    random = np.random.default_rng(0)
    x_t, x_hat = random.standard_normal((2, 2, 3, 3, 4))
    v = random.uniform(-1.3, 1.3, x_t.shape)
    after, before = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[[399, 395]]
    beta = 1 - after / before
    posterior = beta * (1 - before) / (1 - after)
    mean = np.sqrt(before) * beta / (1 - after) * x_hat
    mean += np.sqrt(1 - beta) * (1 - before) / (1 - after) * x_t
    log_variance = (v + 1) / 2 * np.log(beta) + (1 - v) / 2 * np.log(posterior)
    wanted = mean + np.exp(log_variance / 2) * fresh_noise(keys(2), 0, jnp.zeros(x_t.shape))

    found = ancestral_learned.sample(
        lambda x, t: jnp.asarray(x_hat, x.dtype), CHAIN, np.array([0.4, 0.396]),
        jnp.asarray(x_t, jnp.float32), keys(2),
        variance=lambda x, t: jnp.asarray((v + 1) / 2, x.dtype),
    )  # fmt: skip
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@eager
@pytest.mark.parametrize("fraction", [-0.5, 0.0, 0.5, 1.0, 1.5])
@pytest.mark.parametrize("schedule", [CHAIN, RectifiedFlow()], ids=str)
def test_the_last_step_adds_no_noise(schedule, fraction):
    """The smallest variance is 0 there, its logarithm infinite: whatever the network says."""
    found = ancestral_learned.sample(
        lambda x, t: 0 * x + 0.25, schedule, np.array([1, 0.001, 0.0]), jnp.ones((2, 3, 2, 1)),
        keys(2), variance=lambda x, t: 0 * x + fraction,
    )  # fmt: skip
    np.testing.assert_allclose(found, 0.25, atol=1e-6)


def dense(params, scan):
    """A network of x, time and a condition: four blocks, one after the other or in a loop."""

    def network(x, time, cond):
        h = x.reshape(len(x), -1) @ params["first"] + jnp.cos(time)[:, None] + cond

        def block(h, w):
            return h + jax.nn.gelu(h @ w), None

        if scan:
            h, _ = jax.lax.scan(jax.checkpoint(block), h, params["blocks"])
        else:
            for w in params["blocks"]:
                h, _ = block(h, w)
        return (h @ params["last"]).reshape(*x.shape[:3], 2 * x.shape[3])

    return network


@pytest.mark.slow
@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_the_network_runs_once_for_both(scale, scan):
    """The estimate and its variance are two functions; XLA merges their calls, guided or not."""
    process, shape = Process(CHAIN, "eps", "eps", learned_variance=1000), (2, 4, 4, 3)
    params = dict(first=(48, 64), blocks=(4, 64, 64), last=(64, 96))
    params = {name: jnp.ones(size) for name, size in params.items()}
    times = grids.respaced(CHAIN, 4)

    def flops(learned):
        def sample(params, x, keys):
            network = dense(params, scan)
            told, null = (lambda x, time, c=c: network(x, time, c) for c in (1.0, 0.0))
            denoise = guide(process.denoiser(told), process.denoiser(null), scale, low=0.3)
            variance = process.variance(told) if learned else lambda x_t, t: 0 * x_t
            return ancestral_learned.sample(denoise, CHAIN, times, x, keys, variance=variance)

        compiled = jax.jit(sample).lower(params, jnp.ones(shape), keys(2)).compile()
        return compiled.cost_analysis()["flops"]

    network = 2 * 2 * (48 * 64 + 64 * 64 + 64 * 96)  # for two images, with one block
    assert flops(True) - flops(False) < 0.1 * network
