"""config.sample: each option reaches the sampler, and does there what it says.

Networks have random parameters and are asked by hand too, in a loop of Euler steps written here.
"""

import re
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import vitdiff_jax
from tests import tiny
from tests.data import homes
from vitdiff_jax import restoration
from vitdiff_jax.diffusion import grids
from vitdiff_jax.diffusion.schedules import DiscreteVP
from vitdiff_jax.experiment import build as experiment_lib
from vitdiff_jax.experiment import config as config_lib
from vitdiff_jax.experiment.config import ConfigError
from vitdiff_jax.inference import sampling
from vitdiff_jax.inference.model import TrainedModel
from vitdiff_jax.inference.sampling import SamplingError
from vitdiff_jax.interop import images as image_lib
from vitdiff_jax.runtime import parallel

SHAPE, CLASSES = (4, 4, 3), ("a", "b")
PLAIN = tiny.PLAIN
VIT = dict(name="vit", patch=2, width=16, depth=1, heads=2, bottleneck=4, class_tokens=0)
DIT = dict(name="dit", patch=4, width=16, depth=1, heads=2, learned_sigma=True)
VARIANCE = dict(
    prediction="eps", loss_space="eps", schedule=dict(name="DiscreteVP"),
    times=dict(name="discrete"), learned_variance=1000,
)  # fmt: skip
LEARNED = dict(sampler=dict(name="ancestral_learned"), grid=dict(name="respaced"), steps=3)
pytestmark = pytest.mark.usefixtures("plain")
EULER = dict(sampler=dict(name="euler"), steps=4)


def settings(model=PLAIN, diffusion=None, sample=EULER, **sections):
    """A complete config of a tiny model; model: all of its options."""
    given = {name: dict(section) for name, section in tiny.CONFIG.items()} | sections
    given |= dict(model=dict(model), diffusion=diffusion or {}, sample=dict(sample))
    return config_lib.complete(given)


def built(config, shape=SHAPE, classes=CLASSES):
    return experiment_lib.build(config, shape, {"label": classes})


def trained(config, seed=0, **options):
    """A `TrainedModel` of random parameters; options of `built`."""
    known = built(config, **options)
    return TrainedModel(known, tiny.random_params(known, seed), 0, parallel.make_mesh())


@pytest.fixture
def floats(monkeypatch):
    """Images come out as they are, not as 8 bits."""
    monkeypatch.setattr(image_lib, "to_uint8", lambda x: x)


PROGRAMS = {}


def compiled(model):
    """(parameters, x, time, cond) -> the network's output; kept, by what Flax says of the model."""

    def apply(params, x, time, cond):
        return model.apply({"params": params}, x, time, cond)

    return PROGRAMS.setdefault(repr(model), jax.jit(apply))


def asked(model, x, t, label):
    """E[x | x_t] of a network of x on rectified flow, by a straight call; label: of all images."""
    cond = {"label": np.full(len(x), label, np.int32)}
    network, count = compiled(model.experiment.model), len(x)
    return np.asarray(network(model.params, x, np.full(count, 1 - t, np.float32), cond))


def start(n, shape=SHAPE):
    """The noise that the seeds 0, 1, ... begin with."""
    keys = [jax.random.split(jax.random.key(seed))[0] for seed in range(n)]
    return np.stack([np.asarray(jax.random.normal(key, shape)) for key in keys])


def euler(denoise, x, steps=4):
    """[x at each time] of Euler's method on rectified flow, on a linear grid."""
    path = [x]
    for i in range(steps):
        t, s = 1 - i / steps, 1 - (i + 1) / steps
        x = x + (s - t) * (x - denoise(x, t)) / t
        path.append(x)
    return path


def by_hand(model, scale, label=1, n=3, channels=3, rescale=0.0, low=0.0, high=1.0):
    """Guided samples: away from the model's answer without the label."""

    def denoise(x, t):
        told = asked(model, x, t, label)
        null = asked(model, x, t, -1)
        if not low <= t <= high:
            return told
        guided = null + scale * (told - null)
        guided[..., channels:] = told[..., channels:]
        for i in range(len(x)):
            guided[i] *= 1 - rescale + rescale * told[i].std() / guided[i].std()
        return guided

    return euler(denoise, start(n))[-1]


@pytest.mark.usefixtures("floats")
@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(channels=1, rescale=1.0, high=0.8),
        pytest.param(dict(channels=2), marks=pytest.mark.slow),
        pytest.param(dict(rescale=0.7), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_options_of_guidance(options):
    """As a loop by hand; the interval goes with them, and each changes something."""
    model = trained(settings())
    given = {f"guidance_{name}": value for name, value in options.items()}
    found = model.sample(label=1, n=3, guidance=3.0, **given)
    np.testing.assert_allclose(found, by_hand(model, 3.0, **options), rtol=1e-4, atol=2e-5)
    if options:
        assert abs(found - by_hand(model, 3.0)).max() > 0.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(guidance_rescale=1.5), "guidance_rescale: 1.5 is not in [0, 1]"),
        (dict(threshold="hard"), "config.sample.threshold: 'hard' is not one of none, static, "),
        (dict(threshold_quantile=0.0), "threshold_quantile: 0.0 is not in (0, 1]"),
        (dict(sampler="ancestral_learned"), "config.sample.sampler.name: ancestral_learned needs"),
        (dict(frames=-2), "frames: -2 is neither 0 (none) nor at least 2"),
        (dict(guide_with="elsewhere"), "guide_with: not an option of sampling"),
        (dict(grid="linear"), "grid: not an option of sampling"),
        (dict(colour="red"), "colour: not an option of sampling"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)  # fmt: skip
def test_impossible_options(options, message):
    """Before anything is drawn, in one line."""
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        trained(settings()).sample(n=1, **options)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def workdirs(tmp_path_factory, plain):
    """Two models of digits, the second smaller; only to be read."""
    home, sample = tmp_path_factory.mktemp("draw"), EULER | dict(guidance=2.0)
    small = settings(PLAIN | dict(width=8), sample=sample | dict(guide_with=str(home / "guide")))
    tiny.save(home / "model", settings(sample=sample), 1, scale=0.2)
    tiny.save(home / "guide", small, 2, scale=0.2)
    return home


@pytest.fixture(scope="module")
def guided_digit(workdirs):
    """By hand: (the model's answer, away from the guide's; the model's)."""
    model, guide = (vitdiff_jax.load(workdirs / name) for name in ("model", "guide"))

    def denoise(x, t, label):
        told = asked(model, x, t, label)
        return 2 * told - asked(guide, x, t, label), told

    return denoise


@pytest.fixture
def home(workdirs, tmp_path):
    return shutil.copytree(workdirs, tmp_path / "home")


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture).astype(int)


def as_pixels(x):
    return np.clip(np.round(127.5 * (x + 1)), 0, 255)


@pytest.mark.slow
def test_sampling_with_a_second_workdir(home, guided_digit):
    """Which itself says to be guided by itself, and is not."""
    flags = [f"--workdir={home / 'model'}", "--mode=sample", "--n=3", "--label=4", "--npz"]
    code, _, error = homes.run(*flags, f"--config.sample.guide_with={home / 'guide'}")
    assert code == 0, error
    name = "step0-label-4-guide_with-guide-seed0-n3.npz"
    with np.load(home / "model" / "samples" / name) as file:
        images = file["arr_0"]
    path = euler(lambda x, t: guided_digit(x, t, 4)[0], start(3, (8, 8, 1)))
    assert abs(as_pixels(path[-1]) - images).max() <= 1
    plain = euler(lambda x, t: guided_digit(x, t, 4)[1], start(3, (8, 8, 1)))
    assert abs(as_pixels(plain[-1]) - images).max() > 10


def test_restoring_with_a_second_workdir(home, guided_digit, monkeypatch):
    """What methods see is the guided denoiser: one that returns its answer shows it."""

    def restore(denoise, schedule, times, x, keys, *, operator, y, noise_std):
        return denoise(x, jnp.full(len(x), 0.5))

    monkeypatch.setattr(restoration.methods()["ddnm"], "restore", restore)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(home / "photo.png")
    code, _, error = homes.run(
        f"--workdir={home / 'model'}", "--mode=restore", f"--input={home / 'photo.png'}",
        "--task=denoise", "--noise=0.5", "--method=ddnm", "--label=4",
        f"--config.sample.guide_with={home / 'guide'}",
    )  # fmt: skip
    assert code == 0, error
    wanted, plain = guided_digit(start(1, (8, 8, 1)), 0.5, 4)
    found = pixels(home / "model" / "restored" / "photo.png")
    assert abs(found - as_pixels(wanted[0, ..., 0])).max() <= 1
    assert abs(found - as_pixels(plain[0, ..., 0])).max() > 10


@pytest.mark.slow
def test_watching_with_a_second_workdir(home):
    """Samples that training shows are those that --mode=sample draws afterwards."""
    config = tiny.write(
        home / "tiny.py", model=PLAIN, train=dict(steps=1),
        log=dict(every=1, sample_every=1), optimizer=dict(warmup=0),
        sample=EULER | dict(guidance=2.0, guide_with=str(home / "guide")),
    )  # fmt: skip
    code, _, error = homes.run(config, f"--workdir={home / 'run'}")
    assert code == 0, error
    assert homes.run("--mode=sample", f"--workdir={home / 'run'}", "--n=4")[0] == 0
    shown = pixels(home / "run" / "samples" / "00000001.png")
    assert abs(shown - pixels(home / "run" / "samples" / "step1-seed0-n4.png")).max() <= 1


@pytest.mark.parametrize(
    ("diffusion", "shape", "classes", "what"),
    [
        (dict(schedule=dict(name="Cosine")), (8, 8, 1), tiny.DIGITS, "schedule"),
        pytest.param(dict(), (4, 8, 1), tiny.DIGITS, "image size", marks=pytest.mark.slow),
        pytest.param(dict(), (8, 8, 1), tuple("abc"), "conditions", marks=pytest.mark.slow),
    ],
    ids=["schedule", "shape", "conditions"],
)
def test_models_that_cannot_guide(home, tmp_path, diffusion, shape, classes, what):
    """Sampling, restoring and training refuse them, before they begin."""
    other = tiny.save(tmp_path / "other", settings(diffusion=diffusion), 3, shape, classes)
    flag = f"--config.sample.guide_with={other}"
    line = f"error: config.sample.guide_with: {other} cannot guide this model, its {what} differs"
    for mode in ("sample", "restore", "train") if what == "schedule" else ("sample",):
        code, _, error = homes.run(f"--mode={mode}", f"--workdir={home / 'model'}", flag)
        assert code == 2
        assert error.startswith(line)
    code, _, error = homes.run(
        "--mode=sample", f"--workdir={home / 'model'}", f"--config.sample.guide_with={tmp_path}"
    )
    assert code == 2
    assert error.startswith(f"error: {tmp_path}")


@pytest.mark.usefixtures("floats")
@pytest.mark.parametrize("kind", ["dynamic", pytest.param("static", marks=pytest.mark.slow)])
def test_a_threshold_keeps_samples_within_range(kind):
    """DDIM ends on the denoiser's last answer, which guidance had driven out."""
    model = trained(settings(sample=dict(sampler=dict(name="ddim"), steps=3, guidance=9.0)))
    free = model.sample(label=1, n=3)
    found = model.sample(label=1, n=3, threshold=kind, threshold_quantile=0.9)
    assert abs(free).max() > 1.5
    assert abs(found).max() <= 1
    assert abs(abs(found).max((1, 2, 3)) - 1).max() < 1e-6
    assert np.median(abs(found - free)) > 0.01
    other = model.sample(label=1, n=3, threshold=kind, threshold_quantile=0.5)
    assert (abs(other - found).max() > 0.01) == (kind == "dynamic")


@pytest.mark.slow
def test_a_learned_variance_through_the_command(tmp_path):
    """Trained for a few steps and sampled from."""
    model = PLAIN | dict(learned_sigma=True)
    sections = dict(model=model, diffusion=VARIANCE, train=dict(steps=3), sample=LEARNED)
    config = tiny.write(tmp_path / "tiny.py", **sections)
    code, out, error = homes.run(config, f"--workdir={tmp_path / 'run'}")
    assert code == 0, error
    assert "finished at step 3" in out
    code, _, error = homes.run("--mode=sample", f"--workdir={tmp_path / 'run'}", "--n=4", "--npz")
    assert code == 0, error
    with np.load(tmp_path / "run" / "samples" / "step3-seed0-n4.npz") as file:
        images = file["arr_0"]
    assert images.shape == (4, 8, 8, 1)
    assert np.ptp(images) > 100
    plain = [config, f"--workdir={tmp_path / 'plain'}", "--config.model.learned_sigma=False"]
    code, _, error = homes.run(*plain)
    assert code == 2
    assert error.startswith(
        "error: config.diffusion.learned_variance: needs a network that predicts the variance, "
    )
    assert not (tmp_path / "plain").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("floats")
def test_the_variance_is_the_models_own_whatever_guides():
    """A guided estimate, by its first channel only; the variance of the network with its label."""
    model = trained(settings(DIT, VARIANCE, LEARNED))
    schedule, network = DiscreteVP(), compiled(model.experiment.model)

    def ask(x_t, t, label):
        cond = {"label": jnp.full(len(x_t), label, jnp.int32)}
        out = network(model.params, x_t, 1000 * t - 1, cond)
        alpha, sigma = (a[:, None, None, None] for a in schedule.alpha_sigma(t))
        return (x_t - sigma * out[..., :3]) / alpha, (out[..., 3:] + 1) / 2

    def denoise(x_t, t):
        told, null = ask(x_t, t, 1)[0], ask(x_t, t, -1)[0]
        guided = null + 1.5 * (told - null)
        return jnp.concatenate([guided[..., :1], told[..., 1:]], -1)

    keys = jax.vmap(lambda seed: jax.random.split(jax.random.key(seed)))(jnp.arange(2))
    _, sigma = schedule.alpha_sigma(jnp.ones(()))
    from vitdiff_jax.samplers import ancestral_learned

    def by_hand(variance):
        return ancestral_learned.sample(
            denoise, schedule, grids.respaced(schedule, 3), sigma * start(2), keys[:, 1],
            variance=variance,
        )  # fmt: skip

    found = model.sample(label=1, n=2, guidance=1.5, guidance_channels=1)
    wanted = by_hand(lambda x_t, t: ask(x_t, t, 1)[1])
    size = abs(wanted).max()
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4 * size)
    assert abs(found - by_hand(lambda x_t, t: ask(x_t, t, -1)[1])).max() > 1e-2 * size


@pytest.mark.usefixtures("floats")
@pytest.mark.parametrize(
    ("schedule", "prediction", "grid"),
    [
        ("RectifiedFlow", "x", "linear"),
        pytest.param("EDM", "edm", "edm_rho", marks=pytest.mark.slow),
        pytest.param("Cosine", "v", "linear", marks=pytest.mark.slow),
    ],
)
def test_frames_from_noise_to_the_image(schedule, prediction, grid):
    """The noise at unit contrast, then nearer and nearer; EDM's clean end is the last one."""
    diffusion = dict(schedule=dict(name=schedule), prediction=prediction, loss_space=prediction)
    sample = dict(sampler=dict(name="ddim"), grid=dict(name=grid), steps=6)
    model = trained(settings(PLAIN, diffusion, sample))
    way = model.sample(label=1, n=2, frames=4)
    assert way.shape == (2, 4, *SHAPE)
    np.testing.assert_allclose(way[:, -1], model.sample(label=1, n=2), atol=1e-5)
    np.testing.assert_allclose(way[:, 0], start(2), atol=1e-3)  # EDM's noise is 80 x 0.99992
    both = model.sample(label=1, n=2, frames=2)
    np.testing.assert_allclose(both, way[:, [0, -1]], atol=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("floats")
def test_frames_between_are_those_of_the_loop():
    """x_t of four Euler steps, each at unit contrast; more frames than steps repeat some."""
    model = trained(settings())
    path = euler(lambda x, t: asked(model, x, t, 1), start(2))
    scaled = [x / np.hypot(t, 1 - t) for x, t in zip(path, (1, 0.75, 0.5, 0.25, 0))]
    way = model.sample(label=1, n=2, frames=5)
    np.testing.assert_allclose(way, np.stack(scaled, 1), rtol=1e-4, atol=2e-5)
    nine = model.sample(label=1, n=2, frames=9)
    np.testing.assert_allclose(nine[:, [0, 2, 4, 6, 8]], way, atol=1e-5)


def jump(denoise, schedule, times, x, keys):
    """A sampler from outside that walks no grid: it has no way to show."""
    return denoise(x, jnp.ones(len(x)))


sample = jump


def test_a_sampler_that_does_not_walk():
    model = trained(
        settings(sample=dict(sampler=dict(name="tests.inference.test_sampling"), steps=2))
    )
    assert model.sample(n=2).shape == (2, *SHAPE)
    with pytest.raises(ConfigError) as caught:
        model.sample(n=2, frames=2)
    assert str(caught.value) == "frames: tests.inference.test_sampling records no trajectory"


@pytest.mark.slow
def test_frames_as_a_picture(home):
    """A row for each image; the arrays of --npz are the last of them."""
    flags = [f"--workdir={home / 'model'}", "--mode=sample", "--n=3", "--npz"]
    assert homes.run(*flags)[0] == 0
    assert homes.run(*flags, "--frames=5")[0] == 0
    stem = home / "model" / "samples" / "step0-seed0-n3"
    with Image.open(f"{stem}-frames5.png") as picture:
        width, height = picture.size
    assert (width - 2) * 3 == (height - 2) * 5
    arrays = []
    for path in (f"{stem}.npz", f"{stem}-frames5.npz"):
        with np.load(path) as file:
            arrays.append(file["arr_0"].astype(int))
    assert abs(arrays[0] - arrays[1]).max() <= 1
    code, _, error = homes.run(*flags, "--frames=1")
    assert (code, error) == (2, "error: frames: 1 is neither 0 (none) nor at least 2")
    code, _, error = homes.run(*flags[:3], "--latents")
    assert (code, error) == (2, "error: --latents: this is a pixel-space model")


def test_what_is_not_finite_is_one_line():
    """Also on the way there."""
    model = trained(settings())
    model.weights = (jax.tree.map(lambda a: a * jnp.nan, model.params), None)
    for frames in (0, 2):
        with pytest.raises(SamplingError, match=r"^the sample of seed 7 is not finite: the para"):
            model.sample(label=0, n=2, seed=7, frames=frames)


def test_the_next_call_begins_before_the_last_one_is_taken():
    """So that devices never wait for the host; never more than two at once."""
    done = []
    for result in sampling.dispatch_ahead(lambda i: done.append(f"begin {i}") or i, range(3)):
        done.append(f"take {result}")
    assert done == ["begin 0", "begin 1", "take 0", "begin 2", "take 1", "take 2"]
    assert list(sampling.dispatch_ahead(str, [])) == []


@pytest.mark.parametrize(
    ("most", "count", "devices", "batch"),
    [(256, 1, 1, 1), (256, 256, 4, 256), (256, 260, 4, 132), (256, 5, 4, 8), (6, 24, 4, 8)],
)
def test_calls_are_of_equal_batches(most, count, devices, batch):
    """A last call that is filled up with zeros costs as much as a whole one."""
    mesh = types.SimpleNamespace(size=devices)
    assert sampling.batch_size(most, count, mesh) == batch
    assert batch * -(-count // most) - count < devices * -(-count // most)
