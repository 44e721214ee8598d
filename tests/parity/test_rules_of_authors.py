"""The rules by which authors sample their published models, written out from their papers and code.

Each is in NumPy, in the authors' own variables and time, on networks that are not linear; all
without PyTorch.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.parts import covering
from tests.samplers.known import given_noise, keys
from vitdiff_jax.diffusion import grids, guidance
from vitdiff_jax.diffusion.process import Process
from vitdiff_jax.diffusion.schedules import GVP, RectifiedFlow
from vitdiff_jax.experiment import config as config_lib
from vitdiff_jax.interop import families, rules
from vitdiff_jax.interop.families import dit, jit, sit, uvit
from vitdiff_jax.samplers import euler_maruyama, heun

SHAPE = (2, 3, 2, 1)
START = np.random.default_rng(1).standard_normal(SHAPE)
CLASS, NONE = 1.0, -0.5


def network(x, time, label, lib=np):
    """Of images, times [B] (1 is data) and a class; nothing of it is linear or symmetric."""
    time = time.reshape(-1, 1, 1, 1)
    return 0.6 * x + 0.5 * lib.sin(3 * x + label) * lib.cos(3 * time + label)


# --- JiT: guidance on 0.1 < t < 1, t = 1 is data --------------------------------------------------


def jit_heun(scale, low, high, steps):
    """LTH14/JiT: x-prediction, velocities with the floor 0.05, Heun's steps and at last Euler's."""
    times = np.linspace(0, 1, steps + 1)

    def velocity(z, t):
        at = np.full(len(z), t)
        cond, null = ((network(z, at, label) - z) / max(1 - t, 0.05) for label in (CLASS, NONE))
        inside = np.float32(t) < np.float32(high) and (low == 0 or np.float32(t) > np.float32(low))
        return null + (scale if inside else 1) * (cond - null)

    z = START
    for t, after in itertools.pairwise(times[:-1]):
        slope = velocity(z, t)
        z = z + (after - t) * (slope + velocity(z + (after - t) * slope, after)) / 2
    return z + (times[-1] - times[-2]) * velocity(z, times[-2])


def our_heun(scale, low, high, steps):
    process = Process(RectifiedFlow(), "x", floor=0.05)

    def denoiser(label):
        return process.denoiser(lambda x, time: network(x, time, label, jnp))

    guided = guidance.guide(denoiser(CLASS), denoiser(NONE), scale, low, high)
    times = grids.linear(RectifiedFlow(), steps)
    sample = jax.jit(lambda x: heun.sample(guided, RectifiedFlow(), times, x, keys(2)))
    return np.asarray(sample(jnp.asarray(START)))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("steps", "interval"),
    covering(itertools.product([50, 25, 100], [(0.1, 1.0), (0.0, 1.0), (0.3, 0.8)])),
)
def test_jits_guidance_interval_is_open(steps, interval):
    """At 50 steps their grid meets t = 0.1, which is not guided, and ours 0.9."""
    low, high = interval
    found = our_heun(3.0, 1 - high, 1 - low, steps)
    wanted = jit_heun(3.0, low, high, steps)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6 * np.abs(wanted).max())


def test_an_interval_that_is_closed_is_another_image():
    """So the test above can tell."""
    wanted = jit_heun(3.0, 0.1, 1.0, 50)
    closed = jit_heun(3.0, 0.1 - 1e-6, 1.0, 50)
    assert np.abs(closed - wanted).max() > 1e-5 * np.abs(wanted).max()


# --- SiT: the SDE of form "sigma", the mean step of 0.04 at last ----------------------------------

PATHS = {  # their t: alpha, sigma and their slopes
    "linear": lambda t: (t, 1 - t, 1.0, -1.0),
    "gvp": lambda t: (
        np.sin(np.pi / 2 * t), np.cos(np.pi / 2 * t),
        np.pi / 2 * np.cos(np.pi / 2 * t), -np.pi / 2 * np.sin(np.pi / 2 * t),
    ),
}  # fmt: skip


def sit_sde(path, steps, draws):
    """willisma/SiT: drift v + w score, diffusion sqrt(2 w), w = sigma; `last_step="Mean"`."""
    times = np.linspace(0, 1 - 0.04, steps)

    def drift(x, t):
        alpha, sigma, d_alpha, d_sigma = PATHS[path](t)
        v = network(x, np.full(len(x), t), CLASS)
        ratio = alpha / d_alpha
        score = (ratio * v - x) / (sigma**2 - ratio * d_sigma * sigma)
        return v + sigma * score

    x, dt = START, times[1] - times[0]
    for i, t in enumerate(times[:-1]):
        sigma = PATHS[path](t)[1]
        x = x + drift(x, t) * dt + np.sqrt(2 * sigma * dt) * draws[i]
    return x + drift(x, times[-1]) * 0.04


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("steps", [250, 10])
def test_sits_sde_is_theirs(path, steps):
    """By the config that an import writes, in as many network calls."""
    schedule = {"linear": RectifiedFlow(), "gvp": GVP()}[path]
    shapes = dit_shapes()
    sample = config_lib.complete(sit.read(shapes, heads=2, null_row=True, path=path).config).sample
    assert (sample.sampler.name, sample.grid.name) == ("euler_maruyama", "linear")
    assert sample.steps == euler_maruyama.nfe(250) == 250
    times = grids.linear(schedule, steps, last=sample.grid.last)
    assert len(times) == steps + 1
    draws = np.random.default_rng(0).standard_normal((steps, *SHAPE))
    process = Process(schedule, "u")
    denoise = process.denoiser(lambda x, time: -network(x, time, CLASS, jnp))
    with given_noise(lambda keys, i, x: jnp.asarray(draws)[i]):
        found = jax.jit(
            lambda x: euler_maruyama.sample(
                denoise, schedule, times, x, keys(2), form=sample.sampler.form
            )
        )(jnp.asarray(START))
    wanted = sit_sde(path, steps, draws)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6 * np.abs(wanted).max())


# --- The settings that authors publish with their weights -----------------------------------------


def dit_shapes():
    """Of a small network for latents, with three classes and none."""
    model = dict(name="dit", patch=2, width=8, depth=1, heads=2, learned_sigma=True)
    spec = rules.NetworkSpec(dict(model=model, diffusion={}), (8, 8, 4), rules.classes(3))
    return {rule.theirs: rule.shape for rule in dit.network_rules(model, spec)}


def read(module, model, diffusion, shape, **known):
    """The config of a published network of this size, from its shapes."""
    spec = rules.NetworkSpec(dict(model=model, diffusion=diffusion), shape, rules.classes(1000))
    return module.read({rule.theirs: rule.shape for rule in module.rules(spec)}, **known).config


@pytest.mark.parametrize(
    ("size", "patch", "scale"),
    [
        ("B", 16, 3.0), ("B", 32, 3.0), ("L", 16, 2.4), ("L", 32, 2.5), ("H", 16, 2.2),
        ("H", 32, 2.3),
    ],
)  # fmt: skip
def test_jits_guidance(size, patch, scale):
    """The README's --cfg, with --interval_min 0.1 --interval_max 1, --noise_scale 1 or 2."""
    found = read(jit, dict(name="vit", size=size, patch=patch), {}, (16 * patch, 16 * patch, 3))
    full = config_lib.complete(found)
    assert (full.sample.guidance, full.sample.guidance_low) == (scale, 0)
    assert full.sample.guidance_high == 1 - 0.1
    assert (full.sample.sampler.name, full.sample.steps) == ("heun", 50)
    assert full.diffusion.schedule.noise_scale == patch / 16
    assert full.diffusion.floor == 0.05


@pytest.mark.parametrize(("side", "patch", "added"), [(32, 2, 0.4), (64, 4, 0.7)])
def test_uvits_guidance(side, patch, added):
    """Theirs is cond + scale (cond - null), scale 0.4 at 256 and 0.7 at 512 px."""
    model = dict(name="uvit", size="L", patch=patch)
    diffusion = dict(schedule=dict(name="LinearVP"), prediction="eps")
    found = read(uvit, model, diffusion, (side, side, 4))
    assert found["sample"]["guidance"] == pytest.approx(1 + added)
    assert found["sample"]["steps"] == 50


@pytest.mark.parametrize(("side", "patch", "added"), [(32, 2, 0.4), (64, 4, 0.7)])
def test_uvit_h_has_stable_diffusions_betas(side, patch, added):
    """As its authors spell them, with timesteps 1 to 1000; and it goes out again."""
    model = dict(name="uvit", size="H", patch=patch, final_conv=False)
    found = read(uvit, model, dict(schedule=uvit.HUGE, prediction="eps"), (side, side, 4))
    assert found["model"] == model
    assert (found["sample"]["guidance"], found["diffusion"]["label_dropout"]) == (1 + added, 0.1)
    known = config_lib.complete(found)
    make, options = config_lib.component(known, "diffusion.schedule")
    schedule = make(**options)
    betas = np.linspace(0.00085**0.5, 0.0120**0.5, 1000) ** 2
    numbers = np.arange(1, 1001)
    with jax.enable_x64(True):
        t = jnp.asarray(numbers / 1000)
        alpha, sigma = schedule.alpha_sigma(t)
        _, time = schedule.network_input(t)
        back = schedule.t_from_logsnr(2 * jnp.log(alpha / sigma))
    np.testing.assert_allclose(alpha**2, np.cumprod(1 - betas), rtol=1e-6)
    np.testing.assert_allclose(time, numbers, rtol=1e-12)
    np.testing.assert_allclose(back, t, rtol=1e-6)
    clean = found["sample"]["grid"]["high"]
    assert clean == pytest.approx(np.log((1 - betas[0]) / betas[0]), abs=0.01)


def test_another_schedule_is_not_uvits():
    """DiT's betas with U-ViT's network would be taken for others by the authors' code."""
    model, diffusion = dict(name="uvit"), dict(schedule=dict(name="DiscreteVP"), prediction="eps")
    spec = rules.NetworkSpec(dict(model=model, diffusion=diffusion), (32, 32, 4), {})
    with pytest.raises(ValueError, match="DiscreteVP is not this family's LinearVP"):
        uvit.rules(spec)


def test_guidance_scales_are_one_apart():
    """U-ViT's formula with s is ours with 1 + s."""
    cond, null = np.random.default_rng(0).standard_normal((2, *SHAPE))
    found = guidance.guide(lambda x, t: jnp.asarray(cond), lambda x, t: jnp.asarray(null), 1.7)(
        jnp.zeros(SHAPE), jnp.full(2, 0.5)
    )
    np.testing.assert_allclose(found, cond + 0.7 * (cond - null), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", ["dit", "sit"])
def test_latent_guidance(family):
    """DiT's and SiT's published FIDs have --cfg-scale 1.5, on three channels."""
    sample = families.find(family).read(dit_shapes(), heads=2, null_row=True).config["sample"]
    assert (sample["guidance"], sample["guidance_channels"], sample["steps"]) == (1.5, 3, 250)
