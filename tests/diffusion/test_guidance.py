"""Guidance against its formulas, and that it runs the second network only where it must."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitdiff_jax.diffusion.guidance import batched, guide

SHAPE = (7, 2, 3, 1)
RANDOM = np.random.default_rng(0)


def flat(value):
    """A `Denoise` that answers with one value whatever it is asked."""
    return lambda x_t, t: jnp.full_like(x_t, value)


@pytest.mark.parametrize(("scale", "wanted"), [(0.0, 2), (3.0, 11)])
def test_guidance_is_its_formula(scale, wanted):
    """x_null + scale (x - x_null): 2 + 3 (5 - 2)."""
    found = guide(flat(5.0), flat(2.0), scale)(jnp.zeros(SHAPE), jnp.full(7, 0.5))
    np.testing.assert_allclose(found, wanted)


def test_guidance_of_scale_1_is_the_denoiser_itself():
    """So that unconditional models and plain sampling pay for one network only."""
    denoise = flat(5.0)
    assert guide(denoise, None, 1.0) is denoise


@pytest.mark.parametrize(
    ("t", "inside"),
    [(0.0, False), (0.2, False), (0.21, True), (0.5, True), (0.69, True), (0.7, False)],
)
def test_guidance_keeps_to_its_interval_and_saves_the_second_network(t, inside):
    """Its ends do not belong to it, as in JiT; outside, the null network is not run at all."""
    runs = []

    def null(x_t, t):
        jax.debug.callback(lambda: runs.append(1))
        return jnp.full_like(x_t, 2.0)

    guided = jax.jit(guide(flat(5.0), null, 3.0, low=0.2, high=0.7))
    found = guided(jnp.zeros(SHAPE), jnp.full(7, t))
    jax.effects_barrier()
    np.testing.assert_allclose(found, 11 if inside else 5)
    assert len(runs) == inside


def answer(values):
    """A `Denoise` that answers with these images."""
    return lambda x_t, t: jnp.asarray(values, x_t.dtype)


X, NULL = RANDOM.standard_normal((2, 3, 4, 5, 4))
ZEROS, HALF = jnp.zeros(X.shape), jnp.full(3, 0.5)


def test_guidance_of_some_channels_of_x_is_that_of_eps():
    """DiT guides three of four channels of eps; x is an affine function of it, each by itself."""
    alpha, sigma, x_t = 0.6, 0.8, RANDOM.standard_normal(X.shape)
    eps, eps_null = ((x_t - alpha * x) / sigma for x in (X, NULL))
    guided = np.concatenate([(eps_null + 4 * (eps - eps_null))[..., :3], eps[..., 3:]], -1)
    found = guide(answer(X), answer(NULL), 4.0, channels=3)(jnp.asarray(x_t), HALF)
    np.testing.assert_allclose(found, (x_t - sigma * guided) / alpha, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found[..., 3], X[..., 3].astype(np.float32))


@pytest.mark.parametrize("rescale", [0.0, 0.7, 1.0])
def test_rescaled_guidance_is_the_papers(rescale):
    """arXiv:2305.08891, eq. 15 and 16, image by image, here of the estimate of x."""
    found = np.asarray(guide(answer(X), answer(NULL), 4.0, rescale=rescale)(ZEROS, HALF))
    for image, x, null in zip(found, X, NULL):
        guided = null + 4 * (x - null)
        rescaled = guided * x.std() / guided.std()
        wanted = rescale * rescaled + (1 - rescale) * guided
        np.testing.assert_allclose(image, wanted, rtol=1e-4, atol=1e-5)


def test_rescaling_an_image_without_contrast_is_finite():
    found = guide(flat(5.0), flat(2.0), 3.0, rescale=1.0)(ZEROS, HALF)
    assert np.isfinite(found).all()


def test_autoguidance_is_the_other_models():
    """The second estimate may be anything's: here of another scale of another x_t."""
    good, bad = (lambda x_t, t: 0.9 * x_t), (lambda x_t, t: 0.5 * x_t + t[:, None, None, None])
    x_t = jnp.asarray(X, jnp.float32)
    found = guide(good, bad, 2.0)(x_t, HALF)
    np.testing.assert_allclose(found, 2 * 0.9 * X - (0.5 * X + 0.5), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [(dict(channels=-1), "channels: -1"), (dict(rescale=1.5), "rescale: 1.5")],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        guide(flat(5.0), flat(2.0), 1.0, **options)


# --- Both estimates in one call ---


def denoise_of(cond):
    """A network that looks at its conditions, and whose images do not mix."""
    calls.append(cond)

    def denoise(x_t, t):
        told = cond["label"][:, None, None, None] + cond["hint"]
        return jnp.sin(x_t + told) * (1 + t[:, None, None, None])

    return denoise


calls = []
COND = {"label": jnp.arange(3.0), "hint": jnp.asarray(NULL, jnp.float32)}
UNTOLD = jax.tree.map(lambda a: jnp.full_like(a, -1), COND)


def with_slope(function, x):
    value, back = jax.vjp(function, x)
    return value, back(3 * value**2)[0]


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.5, 0.6), (0.6, 1.0)])
def test_one_call_of_a_doubled_batch_is_two_calls(low, high):
    """Also its derivative, which methods of restoration take."""
    x_t, ways = jnp.asarray(X, jnp.float32), []
    for both in (None, batched(denoise_of, COND, UNTOLD)):
        guided = guide(
            denoise_of(COND), denoise_of(UNTOLD), 3.0, low, high, channels=3, rescale=0.7, both=both
        )  # fmt: skip
        ways.append(jax.jit(lambda x, f=guided: with_slope(lambda x: f(x, HALF), x))(x_t))
    for apart, together in zip(*ways):
        np.testing.assert_allclose(together, apart, rtol=1e-5, atol=1e-5 * abs(apart).max())


@pytest.mark.parametrize(("t", "images"), [(0.0, [3]), (0.5, [6]), (0.71, [3])])
def test_outside_of_the_interval_a_batch_is_not_doubled(t, images):
    seen = []

    def seeing(cond):
        def denoise(x_t, t):
            jax.debug.callback(lambda: seen.append(len(x_t)))
            return denoise_of(cond)(x_t, t)

        return denoise

    both = batched(seeing, COND, UNTOLD)
    guided = jax.jit(guide(seeing(COND), seeing(UNTOLD), 3.0, 0.2, 0.7, both=both))
    guided(ZEROS, jnp.full(3, t))
    jax.effects_barrier()
    assert seen == images


def test_a_guided_loop_compiles_one_network():
    """Without an interval; a network that comes alone need not be compiled as well."""
    calls.clear()
    guided = guide(flat(jnp.nan), None, 3.0, both=batched(denoise_of, COND, UNTOLD))
    assert np.isfinite(jax.jit(guided)(ZEROS, HALF)).all()
    assert len(calls) == 1
