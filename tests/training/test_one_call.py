"""Models of one network call: from the config to the images, and what refuses them."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from tests.runtime import test_parallel as layouts
from vitdiff_jax.experiment import build as experiment_lib
from vitdiff_jax.experiment import config as config_lib
from vitdiff_jax.experiment.config import ConfigError
from vitdiff_jax.inference import loading
from vitdiff_jax.runtime import parallel
from vitdiff_jax.training import finetune
from vitdiff_jax.training.step import TrainState

SHAPE, CLASSES = (8, 8, 1), {"label": tiny.DIGITS}
AVERAGE = dict(
    model=dict(interval=True, depth=1), diffusion=dict(average_velocity=dict(share=0.5)),
    sample=dict(sampler=dict(name="average_velocity"), steps=1),
)  # fmt: skip


def built(**changes):
    return experiment_lib.build(config_lib.complete(tiny.config(**changes)), SHAPE, CLASSES)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit", "dit"])
def test_a_trained_model_goes_on_unchanged(tmp_path, name):
    """The embedding of an interval's length starts at zero, whatever the length."""
    model = (
        dict(name="dit", patch=4, width=16, depth=1, heads=2) if name == "dit" else dict(depth=1)
    )
    source = tiny.save(tmp_path / "source", tiny.config(model=model))
    new = built(
        model=model | dict(interval=True), diffusion=AVERAGE["diffusion"],
        train=dict(init_from=str(source)),
    )  # fmt: skip
    params = jax.device_put(tiny.random_params(new), parallel.replicated(parallel.make_mesh()))
    last = params["interval"]["out"]
    params["interval"]["out"] = jax.tree.map(jnp.zeros_like, last)
    state = finetune.init_from(TrainState(jnp.int32(0), jnp.int32(0), params, {}, {}), new)
    old = loading.load(source)
    x, t = (
        np.random.default_rng(0).standard_normal((3, *SHAPE)).astype("f4"),
        jnp.array([0.2, 0.5, 1]),
    )
    cond = {"label": np.array([0, 3, -1], np.int32)}
    wanted = old.experiment.denoiser(old.params, cond)(x, t)
    for to in (None, jnp.zeros(()), t / 2):
        found = new.denoiser(state.params, cond, to)(x, t)
        np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.slow
def test_the_network_starts_with_no_notion_of_the_length():
    """So does every new model; afterwards the length matters."""
    experiment = built(**AVERAGE)
    x, time = jnp.ones((2, *SHAPE)), jnp.full((2, 2), 0.5)
    cond = {"label": np.zeros(2, np.int32)}
    init = jax.jit(experiment.model.init)
    params = init(jax.random.key(0), x, time[:, 0], cond)["params"]
    assert not np.any(params["interval"]["out"]["kernel"])
    params = tiny.random_params(experiment)
    same, other = (
        experiment.network(params, cond)(x, t) for t in (time, time + jnp.array([0, 0.4]))
    )
    assert np.abs(same - other).max() > 1e-3


@pytest.mark.slow
def test_training_and_sampling_by_the_command(tmp_path, capsys):
    log = dict(every=1, sample_every=8, heldout_every=8, heldout_images=8)
    flag = tiny.write(tmp_path / "config.py", **AVERAGE, train=dict(steps=8), log=log)
    assert tiny.call(flag, "--workdir", tmp_path / "run") == 0
    assert tiny.call("--workdir", tmp_path / "run", "--mode=sample", "--n=4") == 0
    assert "step8-seed0-n4" in capsys.readouterr().out
    state = tiny.run(tiny.config(**AVERAGE, train=dict(steps=8)), tmp_path / "run").state()
    assert np.any(state.params["interval"]["out"]["kernel"])  # it learned from intervals


PIXELS = dict(
    model=tiny.PLAIN, diffusion=tiny.UNIFORM,
    train=dict(steps=4, ema=(0.9,), frechet=dict(spaces=("pixel_frechet",), decay=0.9, images=400)),
)  # fmt: skip


@pytest.fixture
def post_trained(tmp_path):
    """Settings of a run that goes on from another model."""
    with tiny.plain_network():
        source = tiny.save(tmp_path / "source", tiny.config(model=tiny.PLAIN))
        train = PIXELS["train"] | dict(init_from=str(source))
        yield tiny.config(**PIXELS | dict(train=train))


def steps_of(run, state, which):
    values = {}
    for batch in [*layouts.batches(run)][which]:
        state, values = run.step(state, parallel.put_batch(run.mesh, batch))
    return state, values


@pytest.mark.slow
def test_post_training_lowers_the_distance(post_trained, tmp_path):
    settings = post_trained | dict(optimizer=dict(learning_rate=3e-3))
    settings["train"] = settings["train"] | dict(batch=64)
    run = tiny.run(settings, tmp_path / "run")
    state, distances = run.state(), []
    for batch in itertools.islice(run._batches(0), 40):
        state, values = run.step(state, batch)
        distances.append(float(values["loss"]))
    assert distances[-1] < 0.8 * distances[0]


@pytest.mark.slow
def test_post_training_resumes_bitwise(post_trained, tmp_path):
    """The first moments are those of images that the source makes; checkpoints have them."""
    run = tiny.run(post_trained, tmp_path / "run")
    first = run.state()
    mean, second = first.moments["pixel_frechet"]
    assert mean.shape == (74,)  # pixels and classes
    assert np.all(np.diag(second) >= np.asarray(mean) ** 2 - 1e-5)
    half, _ = steps_of(run, first, slice(2))
    run.checkpoints.save(2, half, loading.meta_of(run.dataset))
    run.checkpoints.close()
    again = tiny.run(post_trained, tmp_path / "run")
    found, _ = steps_of(again, again.state(), slice(2, 4))
    wanted, _ = steps_of(run, half, slice(2, 4))
    tiny.assert_same(tiny.arrays(found), tiny.arrays(wanted))
    assert any(".moments" in name for name in tiny.arrays(wanted))


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["data parallel", "fsdp 2x2, accumulated", "zero1", "pmap"])
def test_four_devices_post_train_as_one(post_trained, tmp_path, variant):
    options, parts = layouts.VARIANTS[variant]
    settings = post_trained | dict(parallel=options)
    settings["train"] = settings["train"] | dict(accumulate=parts)
    one = tiny.run(post_trained, tmp_path / "one")
    wanted, _ = steps_of(one, one.state(), slice(3))
    with pytest.MonkeyPatch.context() as patch:
        made = functools.partial(parallel.make_mesh, devices=layouts.four())
        patch.setattr(parallel, "make_mesh", made)
        four = tiny.run(settings, tmp_path / "four")
        found, _ = steps_of(four, four.state(), slice(3))
    for name, a in tiny.arrays(wanted).items():
        if name.startswith((".params", ".ema", ".moments")):
            b = tiny.arrays(found)[name]
            assert np.abs(a - b).max() <= 2e-4 * np.abs(a).max() + 1e-6, name


@pytest.mark.slow
def test_a_post_trained_model_restores_nothing_and_is_no_judge_of_itself(
    post_trained, tmp_path, capsys
):
    flag = tiny.write(tmp_path / "config.py", **post_trained)
    run = ["--workdir", tmp_path / "run"]
    assert tiny.call(flag, *run, "--config.train.steps=1") == 0
    task = ["--config.restore.tasks=('denoise',)", "--config.restore.metrics=('psnr',)"]
    assert tiny.call(*run, "--mode=restore", *task) == 2
    assert "is no denoiser any more" in capsys.readouterr().err
    metrics = "--config.evaluate.metrics=('pixel_frechet','fdr')"
    few = ["--config.evaluate.images=20", "--config.sample.steps=1"]
    assert tiny.call(*run, "--mode=evaluate", metrics, *few) == 0
    assert "pixel_frechet: the model was trained to lower this distance" in capsys.readouterr().out
    assert tiny.call(*run, "--mode=plan", "--topology=v5e:2x2") == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(model=dict(interval=True)), "config.model.interval: without config.diffusion"),
        (dict(diffusion=AVERAGE["diffusion"]), "share: needs a network that takes the length"),
        (
            dict(AVERAGE, model=dict(interval=True, attention="pallas")),
            "config.model.attention: pallas has no forward-mode derivative",
        ),
        (
            dict(AVERAGE, diffusion=AVERAGE["diffusion"] | dict(schedule=dict(name="Cosine"))),
            "config.diffusion.schedule: Cosine has no average velocities",
        ),
        (
            dict(
                model=dict(interval=True),
                diffusion=dict(average_velocity=dict(share=1.0, guidance=2.0), label_dropout=0.0),
            ),
            "average_velocity.guidance: needs a null condition",
        ),
        (
            dict(diffusion=dict(average_velocity=dict(tangent="mine"))),
            "config.diffusion.average_velocity.tangent: 'mine' is not one of own, data",
        ),
    ],
    ids=str,
)  # fmt: skip
def test_average_velocities_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        built(**changes)


def test_their_sampler_needs_them(tmp_path, capsys):
    source = tiny.save(tmp_path / "source", tiny.config(model=dict(depth=1)))
    flag = "--config.sample.sampler.name=average_velocity"
    assert tiny.call("--workdir", source, "--mode=sample", "--n=1", flag) == 2
    assert "average_velocity needs a model with average velocities" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(), "needs a trained model to begin with, config.train.init_from"),
        (dict(degradation=dict(operators=("denoise",))), "not for a restoration model"),
        (dict(diffusion=dict(schedule=dict(name="EDM"))), "EDM ends before the data"),
        (dict(train=dict(frechet=dict(spaces=("kid",)))), "unknown name 'kid'; available"),
    ],
    ids=str,
)
def test_what_cannot_be_post_trained_is_refused(changes, message, tmp_path):
    train = dict(frechet=dict(spaces=("pixel_frechet",)), init_from="x" if changes else None)
    train |= changes.pop("train", {})
    with tiny.plain_network(), pytest.raises(ConfigError, match=message):
        tiny.run(tiny.config(model=tiny.PLAIN, train=train, **changes), tmp_path)
