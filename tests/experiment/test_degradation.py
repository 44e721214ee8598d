"""Damages drawn at random: what they are, that nothing else decides them, and a model learns."""

import functools
import itertools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import vitdiff_jax
from tests import tiny, toy_network
from tests.runtime.test_parallel import TOLERANCE, assert_equal, awake, four, on_four
from vitdiff_jax import operators
from vitdiff_jax.data import pipeline
from vitdiff_jax.data.pipeline import Dataset
from vitdiff_jax.experiment import build as experiment_lib
from vitdiff_jax.experiment import config as config_lib
from vitdiff_jax.experiment import degradation
from vitdiff_jax.experiment.config import ConfigError
from vitdiff_jax.operators.inverse import as_image
from vitdiff_jax.operators.parsing import parse
from vitdiff_jax.runtime import parallel
from vitdiff_jax.training import loop
from vitdiff_jax.training import step as step_lib

SHAPE, NOISE, BANK, SEED = (16, 16, 3), 0.3, 3, (5, 0)
KINDS = {  # -> how many are drawn of it
    "mask:kind=random,share=0.4": BANK,
    "mask:kind=strokes": BANK,
    "denoise": 1,
    "downsample:factor=2": 1,
    "colourise": 1,
    "blur:kind=motion,size=5": BANK,
    "blur:kind=gaussian,size=5,border=circular": 1,
    "jpeg:quality=50": 1,
    "hdr": 1,
    "radon:angles=7": 1,
    "fourier": BANK,
    "downsample:factor=2+colourise+mask:kind=box": BANK,
}
FEW = ("mask:kind=random,share=0.4", "downsample:factor=2", "fourier")
SMALL = ("mask:kind=random", "downsample:factor=2", "denoise")
"""For digits."""
VARIANTS = {"data parallel": (dict(), 1), "pmap, accumulated": (dict(compiler="pmap"), 2)}
STEPS = 3
slow = pytest.mark.slow


def made(texts, noise=NOISE, bank=BANK, seed=SEED, shape=SHAPE):
    return degradation.make(tuple(texts), shape, noise=noise, bank=bank, seed=seed)


def images(count, shape=SHAPE):
    return jnp.asarray(np.random.default_rng(1).uniform(-1, 1, (count, *shape)), jnp.float32)


def keys(count):
    return jax.random.split(jax.random.key(2), count)


def normal(key, y):
    """White noise like y, in both parts of complex numbers."""
    if not jnp.iscomplexobj(y):
        return jax.random.normal(key, y.shape)
    real, imaginary = jax.random.normal(key, (2, *y.shape))
    return real + 1j * imaginary


@jax.jit
def forward(operator, x):
    return operator.forward(x)


@jax.jit
def shown(operator, y):
    return as_image(operator, y, SHAPE)


def drawn_again(text, number, rng):
    """The operator `number` of a kind: the so many-th that NumPy draws."""
    for _ in range(number + 1):
        options = parse(text)
        operator = operators.make(options.pop("name"), SHAPE, rng, **options)
    return operator


@functools.cache
def run_of(kinds):
    """The hints of these kinds, compiled once for each number of images."""
    return jax.jit(made(kinds))


@functools.cache
def hints_of(kinds):
    count = 5 * len(kinds)
    return run_of(kinds)(images(count), keys(count))


def test_a_hint_follows_from_its_image_and_key_alone():
    x, of, some = np.array(images(15)), keys(15), np.array([7, 2, 11])
    others = np.roll(x, 5, 0)
    others[:3] = x[some]
    again = run_of(FEW)(others, of[np.concatenate([some, np.arange(12)])])
    np.testing.assert_allclose(hints_of(FEW)[some], again[:3], atol=1e-5)


@pytest.mark.parametrize("kinds", [FEW, pytest.param(tuple(KINDS), marks=slow)], ids=len)
def test_hints_are_what_operators_and_noise_make_of_each_image(kinds):
    """One image after the other, operators drawn anew: no bank, no batch."""
    count = 5 * len(kinds)
    x, every = images(count), jax.vmap(lambda key: jax.random.split(key, 4))(keys(count))
    hints, seen = hints_of(kinds), set()
    assert hints.shape == x.shape
    below = jax.jit(jax.vmap(jax.random.randint, (0, None, None, 0)), static_argnums=1)
    of_kind = below(every[:, 0], (), 0, np.full(count, len(kinds)))
    of_number = below(every[:, 1], (), 0, np.array([KINDS[kinds[i]] for i in of_kind]))
    stds = NOISE * jax.vmap(jax.random.uniform)(every[:, 2])
    for image, kind, number, std, key, hint in zip(
        x, map(int, of_kind), map(int, of_number), stds, every[:, 3], hints
    ):
        text = kinds[kind]
        operator = drawn_again(text, number, np.random.default_rng([*SEED, kind]))
        y = forward(operator, image[None])
        y = y + std * normal(key, y)
        np.testing.assert_allclose(hint, shown(operator, y)[0], atol=1e-4, err_msg=text)
        seen.add((kind, number))
    assert {kind for kind, _ in seen} == set(range(len(kinds)))
    assert {number for _, number in seen} == set(range(BANK))


def test_only_what_is_random_is_drawn_more_than_once():
    assert [bank.count for bank in made(KINDS).banks] == list(KINDS.values())


def test_an_operator_does_not_depend_on_those_before_it():
    alone, second = made(["denoise", "fourier"]).banks[1], made(["mask", "fourier"]).banks[1]
    np.testing.assert_array_equal(alone.stacked.known, second.stacked.known)


@slow
def test_nor_does_it_depend_on_the_size_of_the_batch():
    x, some = images(12), np.array([7, 2, 11])
    run = run_of(FEW)
    np.testing.assert_allclose(run(x, keys(12))[some], run(x[some], keys(12)[some]), atol=1e-5)


def test_kinds_are_as_likely_as_they_are_named():
    """Of three, two hide everything: so does a hint in two of three cases."""
    nothing = "mask:kind=random,share=1.0"
    hints = jax.jit(made([nothing, "denoise", nothing], noise=0.0))(images(900), keys(900))
    hidden = (np.asarray(hints) == 0).all((1, 2, 3)).mean()
    assert abs(hidden - 2 / 3) < 4 * np.sqrt(2 / 9 / 900)


def test_noise_is_uniform_up_to_the_largest():
    x = images(400)
    std = np.sort((jax.jit(made(["denoise"]))(x, keys(400)) - x).std((1, 2, 3)))
    wanted = NOISE * (np.arange(400) + 0.5) / 400
    assert abs(std - wanted).max() < 1.63 / np.sqrt(400) * NOISE + 0.05 * NOISE  # Kolmogorov, 1 %


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (("denoise", "maks"), "'maks': name: there is no operator 'maks', only blur,"),
        (("mask:box",), "'mask:box': 'box' is not written as key=value"),
        (("dps/nothing",), "'dps/nothing': there is no preset 'dps/nothing', only dps/box"),
        (("mask:side=3",), "'mask:side=3': side: a box of 48 pixels, 1 from the border"),
        (("downsample:factor=3",), "'downsample:factor=3': factor: 3 does not divide 16x16"),
        (("blur:size=61",), "'blur:size=61': size: a kernel of 61 pixels does not fit 16x16"),
        (("mask:shares=1",), "'mask:shares=1': mask: make() got an unexpected keyword argument"),
        ((3,), "3 is not a string"),
    ],
)
def test_operators_that_cannot_be_are_refused(texts, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        made(texts)
    assert str(caught.value).startswith(f"operators: {message}")
    assert "\n" not in str(caught.value)


def test_an_operator_that_cannot_be_shown_is_refused(monkeypatch):
    class Halved:
        linear = False

        def forward(self, x):
            return x[:, ::2] ** 2

    monkeypatch.setattr(operators, "make", lambda name, shape, rng: Halved())
    with pytest.raises(ValueError, match="operators: 'halve': Halved is not linear and its"):
        made(["halve"])


# Configs and data sets


def settings(**changes):
    section = dict(operators=SMALL, noise=0.1, bank=4)
    return config_lib.complete(tiny.config(degradation=section, **changes))


def test_any_config_takes_damages_from_the_command_line():
    text = "--config.degradation.operators=('mask:kind=box,side=0.5','downsample:factor=2+mask')"
    config = config_lib.complete(tiny.config(), [text, "--config.degradation.noise=0.2"])
    assert config.degradation.operators == ("mask:kind=box,side=0.5", "downsample:factor=2+mask")
    data = experiment_lib.dataset(config)
    assert data.heldout.example(0)["hint"].shape == data.shape


def test_heldout_examples_have_the_same_hint_always():
    config = settings()
    data, again = experiment_lib.dataset(config), experiment_lib.dataset(config)
    plain = experiment_lib.clean_dataset(config)
    assert data.conditions == {**plain.conditions, "hint": 1}
    assert len(data.heldout) == len(plain.heldout)
    hints = []
    for i in range(12):
        example = data.heldout.example(i)
        hint = example.pop("hint")
        assert hint.dtype == np.float32
        np.testing.assert_array_equal(hint, again.heldout.example(i)["hint"])
        np.testing.assert_equal(example, plain.heldout.example(i))
        hints.append(hint)
    assert len({(hint == 0).tobytes() for hint in hints}) > 2  # masks, and kinds without one


def test_each_seed_has_noise_of_its_own():
    flag = "--config.degradation.operators=('denoise',)"
    one, other = (
        experiment_lib.dataset(config_lib.complete(settings(), [flag, f"--config.seed={seed}"]))
        for seed in (0, 3)
    )
    assert (one.heldout.example(0)["hint"] != other.heldout.example(0)["hint"]).any()


def test_each_split_and_seed_has_operators_of_its_own():
    config = settings()
    other = config_lib.complete(config, ["--config.seed=3"])
    masks = [
        mask.tobytes()
        for config, split in [(config, "train"), (config, "heldout"), (other, "train")]
        for mask in experiment_lib.degradation_of(config, (8, 8, 1), split).banks[0].stacked.known
    ]
    assert len(set(masks)) == len(masks) == 3 * 4


@pytest.mark.parametrize(
    ("variant", "size"),
    [
        ("", 32),
        *(pytest.param(*case, marks=slow) for case in ((":small", 32), (":small", 64), ("", 64))),
    ],
)
def test_the_restorer_of_the_repository_can_be_built(variant, size):
    """Also for photographs of one's own, as its docstring says."""
    own = ["--config.data.name=folder", "--config.data.path=photos", f"--config.data.size={size}"]
    file = f"{tiny.REPOSITORY / 'configs' / 'restorer.py'}{variant}"
    config = config_lib.load(file, own if size == 64 else [])
    degradations = experiment_lib.degradation_of(config, (size, size, 3), "heldout")
    assert len(degradations.banks) == len(config.degradation.operators) == 10
    model = experiment_lib.build(config, (size, size, 3), {"hint": 3})
    kernel = model.param_shapes()["bottleneck_in"]["kernel"]
    assert kernel.shape[-2] == 4 * 4 * (3 + 3)


def test_without_damages_nothing_changes():
    config = config_lib.complete(tiny.config())
    assert experiment_lib.degradation_of(config, (8, 8, 1), "train") is None
    data = experiment_lib.dataset(config)
    assert list(data.conditions) == ["label"]
    assert "hint" not in data.heldout.example(0)


def test_data_with_a_hint_of_their_own_are_refused(monkeypatch):
    own = Dataset(None, None, (8, 8, 1), {"hint": 1})
    monkeypatch.setattr(experiment_lib, "clean_dataset", lambda config: own)
    with pytest.raises(
        ConfigError, match=r"config\.degradation\.operators: the dataset already prov"
    ):
        experiment_lib.dataset(settings())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(operators=("blurr",)), "config.degradation.operators: 'blurr': name: there is no"),
        (
            dict(operators=("dps/blur",)),
            "config.degradation.operators: 'dps/blur': size: a kernel of",
        ),
        (dict(operators="mask"), "config.degradation.operators: 'mask' is not a list of values"),
        (dict(noise=-0.1), "config.degradation.noise: -0.1 is less than 0"),
        (dict(bank=0), "config.degradation.bank: 0 is less than 1"),
        (
            dict(operator=("mask",)),
            "config.degradation.operator: no such key; did you mean config.deg",
        ),
    ],
    ids=str,
)
def test_damages_that_cannot_be_are_one_line_before_anything_is_written(tmp_path, changes, message):
    given = tiny.config(degradation=dict(operators=SMALL) | changes)
    with pytest.raises(ConfigError) as caught:
        loop.train(given, tmp_path / "run")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


# However a step is compiled and cut


def cut(options, accumulate=1):
    part = dict(steps=STEPS, accumulate=accumulate, ema=(0.9,))
    section = dict(operators=("mask:kind=random", "denoise"), noise=0.1, bank=4)
    return tiny.config(model=toy_network.MODEL, degradation=section, train=part, parallel=options)


def batches(dataset):
    return itertools.islice(pipeline.batches(dataset.train, 8, seed=0), STEPS)


def on_one_device(run):
    """The step by plain jit, and hints given to it from outside, as if they came with the batch."""
    options = run.config.optimizer.to_dict()
    rate = step_lib.learning_rate(
        peak=options.pop("learning_rate"), warmup=options.pop("warmup"),
        decay=options.pop("decay"), steps=STEPS,
    )  # fmt: skip
    experiment = run.experiment
    step = jax.jit(step_lib.make_train_step(
        experiment.model, experiment.process, experiment.time_distribution,
        step_lib.adamw(rate, **options), rate, seed=0, batch_size=8,
    ))  # fmt: skip
    of_train = experiment_lib.degradation_of(run.config, (8, 8, 1), "train")
    state = jax.jit(awake(run.init))()

    @jax.jit
    def hint(images, index, number):
        key = jax.random.fold_in(jax.random.key(0), number)
        return of_train(images / 127.5 - 1, step_lib.degradation_keys(key, index))

    for number, batch in enumerate(batches(run.dataset)):
        found = hint(jnp.float32(batch["image"]), batch["index"], number)
        state, _ = step(state, batch | {"hint": found})
    return tiny.arrays(state)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return on_one_device(tiny.run(cut({}), tmp_path_factory.mktemp("one")))


@slow
def test_the_same_hints_on_several_devices():
    cuts = parallel.batch_sharding(parallel.make_mesh(devices=four()))
    x, of = np.asarray(images(20)), jax.random.key_data(keys(20))
    hints = jax.jit(
        lambda x, of: made(FEW)(x, jax.random.wrap_key_data(of)),
        in_shardings=(cuts, cuts), out_shardings=cuts,
    )(x, of)  # fmt: skip
    assert [len(shard.data) for shard in hints.addressable_shards] == [5, 5, 5, 5]
    np.testing.assert_allclose(hints, run_of(FEW)(x, keys(20)), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pmap, accumulated", pytest.param("data parallel", marks=slow)])
def test_the_same_parameters(one, name, tmp_path):
    """The steps of a network that is given its hints from outside, on one device."""
    assert TOLERANCE <= 1e-5
    run = on_four(cut(*VARIANTS[name]), tmp_path)
    run.init = awake(run.init)
    state = run.state()
    for batch in batches(run.dataset):
        state, _ = run.step(state, parallel.put_batch(run.mesh, batch))
    assert_equal(tiny.arrays(state), one, 2 * 5)


# A run


LEARNER = dict(
    model=dict(patch=2, width=32, bottleneck=8, class_tokens=0, class_tokens_from=0),
    optimizer=dict(learning_rate=1e-2, warmup=20),
    train=dict(steps=200, batch=32, ema=(0.9,)),
    checkpoint=dict(every=100),
    log=dict(every=100, sample_every=200, heldout_every=200, heldout_images=64, images=12),
    degradation=dict(operators=("mask:kind=random,share=0.5",), noise=0.0, bank=4),
)


QUICK = dict(model=toy_network.MODEL, train=dict(steps=2), degradation=LEARNER["degradation"])
"""A run of the toy network, which learns nothing in it."""


@pytest.fixture(scope="module")
def learner(tmp_path_factory):
    """(--config flag, workdir)."""
    place = tmp_path_factory.mktemp("learner")
    flag = tiny.write(place / "learner.py", **LEARNER)
    assert tiny.call(flag, f"--workdir={place / 'run'}") == 0
    return flag, place / "run"


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """(--config flag, workdir)."""
    place = tmp_path_factory.mktemp("quick")
    flag = tiny.write(place / "toy.py", **QUICK)
    assert tiny.call(flag, f"--workdir={place / 'run'}") == 0
    return flag, place / "run"


@pytest.fixture(scope="module", params=["quick", pytest.param("learner", marks=slow)])
def restorer(request):
    return request.getfixturevalue(request.param)


@slow
def test_it_learns_to_restore(learner):
    """What the mask left is restored far better with the hint than without, and what it hid too."""
    model = vitdiff_jax.load(learner[1])
    data = experiment_lib.dataset(model.experiment.config)
    found = pipeline.stacked(data.heldout, range(64))
    x, known = found["image"] / 127.5 - 1, found["hint"] != 0
    assert 0.3 < known.mean() <= 0.5
    np.testing.assert_allclose(found["hint"][known], x[known], atol=1e-6)

    def errors(hint):
        denoise = model.experiment.denoiser(model.params, {"label": found["label"], "hint": hint})
        noise = np.random.default_rng(3).standard_normal(x.shape)
        x_t = jnp.asarray(0.1 * x + 0.9 * noise, jnp.float32)
        error = (np.asarray(denoise(x_t, jnp.full(64, 0.9))) - x) ** 2
        return np.sqrt(error[known].mean()), np.sqrt(error[~known].mean())

    (kept, hidden), (without, hidden_without) = errors(found["hint"]), errors(0 * found["hint"])
    assert kept < 0.7 * without
    assert hidden < hidden_without
    clean = pipeline.stacked(
        experiment_lib.clean_dataset(model.experiment.config).heldout, range(4)
    )["image"]
    hint = (clean / 127.5 - 1).astype(np.float32)
    restored, free = (model.sample(n=4, hint=a, steps=4, label=-1) for a in (hint, None))
    true = clean.astype(float)
    assert np.abs(restored - true).mean() < 0.7 * np.abs(free - true).mean()


@slow
def test_a_run_goes_on_to_the_same_end(learner, tmp_path):
    config, workdir = learner
    other = tmp_path / "other"
    shutil.copytree(workdir, other)
    shutil.rmtree(other / "checkpoints" / "200")
    assert tiny.call(config, f"--workdir={other}") == 0
    wanted = config_lib.load(config.partition("=")[2])
    tiny.assert_same(tiny.saved(wanted, other), tiny.saved(wanted, workdir))


@pytest.mark.slow
def test_samples_are_restorations_beside_damaged_and_true_images(restorer):
    """In the run's grids and in --mode=sample: two columns and six rows of three images."""
    flag, workdir = restorer
    assert tiny.call(flag, f"--workdir={workdir}", "--mode=sample", "--n=12", "--npz") == 0
    data = experiment_lib.dataset(config_lib.load(flag.partition("=")[2]))
    hints = np.stack([data.heldout.example(i)["hint"] for i in range(12)])
    truth = np.stack([data.heldout.example(i)["image"] for i in range(12)])
    (path,) = (workdir / "samples").glob("step*-seed0-n12.npz")
    with np.load(path) as file:
        drawn = file["arr_0"]
    grids = dict.fromkeys((workdir / "samples").glob("0000*.png"))
    for sheet, middle in {path.with_suffix(".png"): drawn, **grids}.items():
        with Image.open(sheet) as picture:
            pixels = np.asarray(picture)[2:, 2:]
        height, width = 6 * 8 + 2, 3 * 6 * 8 + 2
        assert pixels.shape == (6 * height, 2 * width)
        rows = pixels.reshape(6, height, 2, width).swapaxes(1, 2).reshape(12, height, width)
        threes = rows[:, :48:6, :144:6].reshape(12, 8, 3, 8).swapaxes(1, 2)
        np.testing.assert_array_equal(threes[:, 0], np.round(127.5 * (hints[..., 0] + 1)))
        np.testing.assert_array_equal(threes[:, 2], truth[..., 0])
        if middle is not None:
            np.testing.assert_array_equal(threes[:, 1], middle[..., 0])


@slow
def test_what_is_asked_for_stands_over_what_heldout_images_have(learner):
    """The same degraded images, drawn as threes and as fives."""
    _, workdir = learner
    drawn = {}
    for label in ("3", "5"):
        flags = ("--mode=sample", "--n=12", "--npz", f"--label={label}")
        assert tiny.call(f"--workdir={workdir}", *flags) == 0
        stem = workdir / "samples" / f"step200-label-{label}-seed0-n12"
        with np.load(stem.with_suffix(".npz")) as file, Image.open(f"{stem}.png") as picture:
            drawn[label] = file["arr_0"], np.asarray(picture)
    assert (drawn["3"][0] != drawn["5"][0]).any()
    with Image.open(workdir / "samples" / "00000200.png") as picture:
        grid = np.asarray(picture)
    for _, sheet in drawn.values():
        np.testing.assert_array_equal(sheet[:, :50], grid[:, :50])


@pytest.mark.slow
def test_a_restorer_from_python(quick):
    """With hints, with none, and with hints of another shape."""
    flag, workdir = quick
    model = vitdiff_jax.load(workdir, config_lib.load(flag.partition("=")[2]))
    found = pipeline.stacked(
        experiment_lib.clean_dataset(model.experiment.config).heldout, range(4)
    )
    hint = (found["image"] / 127.5 - 1).astype(np.float32)
    restored = model.sample(n=4, hint=hint, label=-1)
    free = model.sample(n=4, label=-1)
    assert restored.shape == free.shape == (4, 8, 8, 1)
    assert (free != restored).any()
    guided = model.sample(n=4, hint=hint, label=-1, guidance=1.5)
    assert (guided != restored).any()
    told = model.sample_cond({"label": np.full(4, -1, np.int32), "hint": hint}, 4, 0)
    np.testing.assert_array_equal(told, restored)
    with pytest.raises(ConfigError, match=r"hint: of shape \(4, 8, 8\), not \(4, 8, 8, 1\)"):
        model.sample(n=4, hint=hint[..., 0])
