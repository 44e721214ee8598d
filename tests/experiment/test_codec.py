"""Models of latents through the command, from pictures to pictures.

The autoencoder is a tiny one with random parameters, in diffusers' file; what comes out is compared
with that network's own answers.
"""

import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

import vitdiff_jax
from tests import tiny
from tests.data import homes
from vitdiff_jax.data import text
from vitdiff_jax.data.pipeline import DataError
from vitdiff_jax.experiment import build as experiment_lib
from vitdiff_jax.experiment import config as config_lib
from vitdiff_jax.experiment.config import ConfigError
from vitdiff_jax.interop import families
from vitdiff_jax.interop.rules import NetworkSpec
from vitdiff_jax.interop.weights import WeightsError
from vitdiff_jax.models.autoencoder import Autoencoder

SIZE = 8
OPTIONS = dict(channels=(32, 32), blocks=1, latent_channels=4)
MODEL = Autoencoder(**OPTIONS)
SETTINGS = dict(
    model=tiny.PLAIN,
    train=dict(steps=2),
    log=dict(
        every=2, sample_every=2, heldout_every=2, heldout_images=2, heldout_levels=2,
        nearest_every=2,
    ),
    evaluate=dict(images=6, metrics=("pixel_frechet",)),
)  # fmt: skip


def save_autoencoder(path, seed=0, **changes):
    """A file as diffusers writes it; returns the parameters in it."""
    options, random = OPTIONS | changes, np.random.default_rng(seed)
    side = 2 ** (len(options["channels"]) - 1)
    shapes = jax.eval_shape(
        Autoencoder(**options).init, jax.random.key(0), jnp.zeros((1, side, side, 3))
    )

    def draw(path, leaf):
        around = 1.0 if jax.tree_util.keystr(path).endswith("['scale']") else 0.0
        return np.float32(around + random.standard_normal(leaf.shape) / 12)

    params = jax.tree_util.tree_map_with_path(draw, shapes["params"])
    found = NetworkSpec(dict(autoencoder=options), (side, side, 3), {})
    save_file(families.to_torch("autoencoder", found, params), path)
    return params


@jax.jit
def encoded(params, images):
    """What the network itself makes of uint8 images."""
    return MODEL.apply({"params": params}, images / 127.5 - 1, method="encode")


@jax.jit
def decoded(params, z):
    return MODEL.apply({"params": params}, z, method="decode")


def pixels_of(x):
    """float in [-1, 1] as uint8, as a file has it."""
    return np.clip(np.round((np.asarray(x) + 1) * 127.5), 0, 255).astype(int)


def save_pictures(root, count=10):
    """Colour gradients in two classes, each with two captions."""
    rng, lines = np.random.default_rng(0), []
    for i in range(count):
        path = root / ("cats", "dogs")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        corners = rng.integers(0, 256, (2, 2, 3), np.uint8)
        Image.fromarray(corners).resize((SIZE, SIZE), Image.Resampling.BILINEAR).save(path)
        name = path.relative_to(root).as_posix()
        lines += [json.dumps({"file_name": name, "text": f"{kind} {i}"}) for kind in ("one", "a")]
    (root / "metadata.jsonl").write_text("\n".join(lines))
    return root


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory, plain):
    """Where all lies; and what is known of folders."""
    path = tmp_path_factory.mktemp("latents")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(path / "cache"))
        yield path


@pytest.fixture(scope="module")
def params(place):
    return save_autoencoder(place / "autoencoder.safetensors")


@pytest.fixture(scope="module")
def flags(place, params):
    """Of every mode, without the autoencoder; the latents are prepared."""
    data = dict(name="folder", path=str(save_pictures(place / "photos")), size=SIZE, heldout=0.3)
    latent = dict(factor=2, path=str(place / "prepared"))
    config = tiny.write(place / "tiny.py", data=data, latent=latent, **SETTINGS)
    given = f"--config.latent.autoencoder={place / 'autoencoder.safetensors'}"
    code, out, error = homes.run("--mode=prepare", config, f"--workdir={place / 'none'}", given)
    assert code == 0, error
    assert f"(train): writing latents 0 of 7 to {place / 'prepared' / 'train' / '00000'}" in out
    assert "ready: " in out
    assert not (place / "none").exists()
    return [config, f"--workdir={place / 'run'}"]


@pytest.fixture(scope="module")
def autoencoder(place):
    return f"--config.latent.autoencoder={place / 'autoencoder.safetensors'}"


@pytest.fixture(scope="module")
def trained(flags, place, autoencoder):
    measured = ["--config.log.evaluate_every=2", "--config.log.evaluate_images=4"]
    code, out, error = homes.run(*flags, autoencoder, *measured)
    assert code == 0, error
    assert "data: latents in " in out
    assert "fd/pixels" in out  # of pictures
    return place / "run"


@pytest.fixture(scope="module")
def settings(flags, place):
    """(changes) -> a complete config of these data."""
    data = dict(name="folder", path=str(place / "photos"), size=SIZE, heldout=0.3)
    latent = dict(
        factor=2, path=str(place / "prepared"), autoencoder=str(place / "autoencoder.safetensors")
    )

    def complete(**changes):
        sections = tiny.config(data=data, latent=latent, **SETTINGS)
        for name, section in changes.items():
            sections[name] = sections.get(name, {}) | section
        return config_lib.complete(sections)

    return complete


@pytest.fixture(scope="module")
def untrained(settings, place):
    """Random parameters, at step 0."""
    return tiny.save(place / "untrained", settings(), shape=(4, 4, 4), classes=("cats", "dogs"))


def tell_apart(found, wanted, error):
    """Within the rounding to float16, relative to 1 or to the number."""
    apart = abs(np.asarray(found) - wanted) / np.maximum(abs(np.asarray(wanted)), 1)
    assert apart.max() < error, apart.max()


@pytest.mark.slow
def test_what_is_prepared_is_the_autoencoders_own(flags, params, settings):
    """To float16: measured 4.3e-4, at most 2^-11 = 4.9e-4. Mirror images too; the same classes."""
    config = settings()
    pictures, latents = experiment_lib.pixel_dataset(config), experiment_lib.dataset(config)
    assert latents.shape == (4, 4, 4)
    assert latents.conditions == pictures.conditions == {"label": ("cats", "dogs")}
    for split in ("train", "heldout"):
        source, images = getattr(latents, split), getattr(pictures, split)
        assert len(source) == len(images)
        assert source.shape[0] == (2 if split == "train" else 1)
        for i in range(len(source)):
            example, image = source.example(i), images.example(i)
            assert example["label"] == image["label"]
            mean, log_variance = encoded(params, image["image"][None])
            assert mean.std() > 0.01
            tell_apart(example["image"], mean[0], 1.01 * 2**-11)
            record = np.frombuffer(source._shards[0][i], np.float16, np.prod(source.shape))
            moments = record.reshape(source.shape)
            tell_apart(moments[0], np.concatenate([mean, log_variance], -1)[0], 1.01 * 2**-11)
            if split == "train":
                mirrored = encoded(params, image["image"][None, :, ::-1])
                tell_apart(moments[1], np.concatenate(mirrored, -1)[0], 1.01 * 2**-11)


def test_prepared_again_nothing_changes(flags, place, autoencoder):
    """By a copy of the autoencoder under another name too: it is what it computes."""
    before = tiny.files(place / "prepared")
    copy = shutil.copy(place / "autoencoder.safetensors", place / "copy.safetensors")
    for given in (autoencoder, f"--config.latent.autoencoder={copy}"):
        code, out, _ = homes.run("--mode=prepare", *flags, given)
        assert code == 0
        assert "latents 0 of" not in out
    assert tiny.files(place / "prepared") == before


def test_captions_come_along(settings, place):
    """One of several, at random; without random numbers the first."""
    config = settings(
        data=dict(captions="metadata.jsonl", length=8),
        latent=dict(path=str(place / "captioned")),
    )
    from vitdiff_jax.experiment import codec

    codec.prepare(experiment_lib.clean_dataset(config), config, print)
    latents = experiment_lib.dataset(config)
    assert latents.conditions == {"label": ("cats", "dogs"), "text": 8}
    names = experiment_lib.pixel_dataset(config).train.records.names
    numbers = [int(pathlib.Path(name).stem) for name in names]
    rng = np.random.default_rng(0)
    for i, number in enumerate(numbers):
        one, other = (text.to_bytes(f"{kind} {number}", 8).tobytes() for kind in ("one", "a"))
        assert latents.train.example(i)["text"].tobytes() == one
        drawn = {latents.train.example(i, rng)["text"].tobytes() for _ in range(30)}
        assert drawn == {one, other}


@pytest.mark.slow
def test_training_shows_pictures(trained):
    found = {path.name for path in (trained / "samples").glob("0000*")}
    assert "00000002.png" in found
    with Image.open(trained / "samples" / "00000002.png") as picture:
        assert (picture.mode, picture.size[0] > 2 * SIZE) == ("RGB", True)
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert any(line.get("heldout/loss", 0) > 0 for line in lines)
    assert any("memorised" in line for line in lines)


def sampled(workdir, *flags):
    code, _, error = homes.run(
        "--mode=sample", f"--workdir={workdir}", "--n=3", "--label=dogs", *flags
    )
    assert code == 0, error
    return workdir / "samples" / "step0-label-dogs-seed0-n3.png"


@pytest.mark.slow
def test_samples_are_the_latents_decoded(untrained, params):
    """To a grey level: the network's own answer."""
    path = sampled(untrained, "--latents")
    with np.load(path.with_name(f"{path.stem}-latents.npz")) as file:
        assert file.files == ["latents"]
        z = file["latents"]
    assert (z.shape, z.dtype) == ((3, 4, 4, 4), np.float32)
    assert not path.exists()
    sampled(untrained, "--npz")
    with np.load(path.with_suffix(".npz")) as file:
        images = file["arr_0"]
    assert images.shape == (3, SIZE, SIZE, 3)
    assert np.ptp(images) > 5
    assert abs(pixels_of(decoded(params, z)) - images).max() <= 1


@pytest.mark.slow
def test_the_way_of_an_image_is_decoded_too(untrained, params):
    """Noise first, the image itself last."""
    model = vitdiff_jax.load(untrained)
    way = model.sample(label=0, n=2, frames=3)
    assert way.shape == (2, 3, SIZE, SIZE, 3)
    assert abs(way[:, -1].astype(int) - model.sample(label=0, n=2)).max() <= 1
    keys = [jax.random.split(jax.random.key(seed))[0] for seed in (0, 1)]
    noise = jnp.stack([jax.random.normal(key, (4, 4, 4)) for key in keys])
    assert abs(pixels_of(decoded(params, noise)) - way[:, 0]).max() <= 1


def test_without_the_autoencoder_there_are_latents_only(untrained):
    none = "--config.latent.autoencoder="
    missing = "config.latent.autoencoder: required to decode the samples of this latent model"
    flags = ["--mode=sample", f"--workdir={untrained}", "--n=2", none]
    code, _, error = homes.run(*flags)
    assert code == 2
    assert error.startswith(f"error: {missing}")
    assert error.endswith("--mode=sample --latents")
    assert not list(untrained.glob("samples/*-n2.*"))
    assert homes.run(*flags, "--latents")[0] == 0
    for flag in ("--npz", "--nearest", "--frames=2"):
        code, _, error = homes.run(*flags, "--latents", flag)
        assert (code, error) == (
            2, "error: --latents: writes no images; omit --npz, --nearest and --frames"
        )  # fmt: skip


def test_training_without_the_autoencoder(flags, place):
    """Samples, if they are asked for, need it."""
    code, _, error = homes.run(flags[0], f"--workdir={place / 'blind'}")
    assert code == 2
    assert error.startswith("error: config.latent.autoencoder: required to decode the samples of")
    assert not (place / "blind").exists()


@pytest.mark.slow
def test_the_latents_are_enough_where_no_samples_are_asked_for(flags, place):
    none = "--config.log.sample_every=0", "--config.log.nearest_every=0"
    code, _, error = homes.run(flags[0], f"--workdir={place / 'blind'}", *none)
    assert code == 0, error


def frechet(a, b):
    """Of the pixels of two sets of images, by the definition, in float64."""
    a, b = (x.reshape(len(x), -1) / 127.5 - 1 for x in (a, b))
    (ca, cb) = (np.cov(x, rowvar=False) for x in (a, b))
    roots = np.sqrt(np.maximum(np.linalg.eigvals(ca @ cb).real, 0))
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca) + np.trace(cb) - 2 * roots.sum()


@pytest.mark.slow
def test_pictures_are_what_is_measured(untrained, settings):
    """Samples and held-out images of 8x8x3 numbers each, not latents of 4x4x4."""
    code, out, error = homes.run("--mode=evaluate", f"--workdir={untrained}", "--npz")
    assert code == 0, error
    assert "6 images are too few for 192 features" in out
    report = json.loads((untrained / "evaluation.json").read_text())
    (path,) = (untrained / "evaluation").glob("samples-*.npz")
    with np.load(path) as file:
        samples = file["arr_0"]
    heldout = experiment_lib.pixel_dataset(settings()).heldout
    true = np.stack([heldout.example(i)["image"] for i in range(len(heldout))])
    value = report["rows"][0]["results"]["fd/pixels"]["value"]
    assert value == pytest.approx(frechet(samples, true), rel=1e-3)
    path = sampled(untrained, "--nearest")
    assert path.with_name(f"{path.stem}-nearest.png").is_file()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(data=dict(random_area=0.5)), "config.latent.factor: latents are made from one fixed"),
        (dict(latent=dict(factor=3)), "config.latent.factor: 3 does not fit images of 8x8x3"),
        (dict(latent=dict(factor=0)), "config.latent.factor: 0 is less than 1"),
        (dict(latent=dict(path=None)), "config.latent.path: required: the folder of the latents"),
        (dict(data=dict(channels=1)), "config.latent.factor: 2 does not fit images of 8x8x1"),
        (
            dict(degradation=dict(operators=("denoise",))),
            "config.degradation.operators: needs pixel space",
        ),
        (dict(sample=dict(threshold="static")), "config.sample.threshold: not for latents"),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, dict) else "",
)
def test_refused_in_one_line(settings, tmp_path, changes, message):
    from vitdiff_jax.training import loop

    if "latent" in changes:
        settings()  # a factor and a path of None are possible as such
    with pytest.raises(ConfigError) as caught:
        loop.train(settings(**changes), tmp_path / "run")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["digits", "scenes"])
def test_data_without_picture_files(place, name):
    """Also --mode=prepare says so."""
    size = dict(size=SIZE) if name == "scenes" else {}
    config = tiny.write(
        place / f"{name}.py", data=dict(name=name) | size, model=dict(depth=1),
        latent=dict(factor=2, path=str(place / "other")),
    )  # fmt: skip
    for mode in ("train", "prepare"):
        code, _, error = homes.run(config, f"--mode={mode}", f"--workdir={place / 'none'}")
        assert code == 2
        assert error.startswith("error: config.latent.factor: ")
        assert ("dataset of image files" in error) == (name == "scenes")
    assert not (place / "other").exists()


def test_preparing_needs_the_autoencoder(flags):
    code, _, error = homes.run("--mode=prepare", *flags)
    assert code == 2
    assert error.startswith("error: config.latent.autoencoder: required to encode images: ")


def test_no_restoration_of_latents(untrained, place):
    line = "config.latent.factor: restoration needs a pixel-space model, not a latent one"
    photo = next((place / "photos" / "cats").iterdir())
    for given in ([], [f"--input={photo}"]):
        code, _, error = homes.run("--mode=restore", f"--workdir={untrained}", *given)
        assert (code, error) == (2, f"error: {line}")
    with pytest.raises(ConfigError, match=line):
        vitdiff_jax.load(untrained).restore(np.zeros((SIZE, SIZE, 3), np.uint8))


def test_another_autoencoder(settings, place, tmp_path):
    """Of other weights, of another factor, or none at all."""
    other = tmp_path / "other.safetensors"
    save_autoencoder(other, seed=1)

    def refused(error, line):
        with pytest.raises(error, match=line):
            experiment_lib.dataset(settings(latent=dict(autoencoder=str(other))))

    refused(DataError, r"latents of different data: encoder is 'SHA-256 .*, not")
    save_autoencoder(other, channels=(32, 32, 32))
    line = f"config.latent.autoencoder: {other} has a downsampling factor of 4, not"
    refused(WeightsError, line)
    save_file({"weight": np.zeros(3, np.float32)}, other)
    refused(WeightsError, f"^config.latent.autoencoder: {other}: .*autoencoder")
    other.write_bytes(b"nothing")
    refused(WeightsError, f"^config.latent.autoencoder: {other}: not a file of")
    other.unlink()
    refused(WeightsError, f"autoencoder: there is no file {other}")


def test_latents_of_other_pictures(settings):
    """Of another size, or none yet."""
    with pytest.raises(DataError, match="crop is 'centre to 8x8', not 'centre to 16x16'"):
        experiment_lib.dataset(settings(data=dict(size=16)))
    with pytest.raises(DataError, match="no latents: run the same config with --mode=prepare"):
        experiment_lib.dataset(settings(latent=dict(path="/nowhere")))
