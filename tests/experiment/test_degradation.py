"""Damages drawn at random: what they are, that nothing else decides them, and a model learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import vitdiff_jax
from tests import tiny
from tests.runtime.test_parallel import STEPS, assert_equal, on_four, on_one_device, taken
from vitdiff_jax import operators
from vitdiff_jax.data import pipeline
from vitdiff_jax.data.pipeline import Dataset
from vitdiff_jax.experiment import build as experiment_lib
from vitdiff_jax.experiment import config as config_lib
from vitdiff_jax.experiment import degradation
from vitdiff_jax.experiment.config import ConfigError
from vitdiff_jax.operators.inverse import as_image
from vitdiff_jax.operators.parsing import parse
from vitdiff_jax.training import loop, objective

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
def degraded(operator, image, std, key):
    """What is shown of one image."""
    y = operator.forward(image[None])
    return as_image(operator, y + std * normal(key, y), SHAPE)[0]


@jax.jit
def draws(keys, counts):
    """(kind, number of its operator, std, key of the noise) of each image."""

    def draw(key):
        for_kind, for_number, for_std, for_noise = jax.random.split(key, 4)
        kind = jax.random.randint(for_kind, (), 0, len(counts))
        number = jax.random.randint(for_number, (), 0, counts[kind])
        std = NOISE * jax.random.uniform(for_std)
        return kind, number, std, jax.random.key_data(for_noise)

    return jax.vmap(draw)(keys)


def drawn_again(text, number, rng):
    """The operator `number` of a kind: the so many-th that NumPy draws."""
    for _ in range(number + 1):
        options = parse(text)
        operator = operators.make(options.pop("name"), SHAPE, rng, **options)
    return operator


@pytest.fixture(
    params=[(FEW, 15), pytest.param((tuple(KINDS), 60), marks=slow)], ids=["few", "all"]
)
def hinted(request):
    """(kinds, number of images, their hints)."""
    kinds, count = request.param
    return kinds, count, jax.jit(made(kinds))(images(count), keys(count))


def test_hints_are_what_operators_and_noise_make_of_each_image(hinted):
    """One image after the other, operators drawn anew: no bank, no batch, nothing but its key."""
    kinds, count, hints = hinted
    x, seen = images(count), set()
    assert hints.shape == x.shape
    drawn = map(np.asarray, draws(keys(count), np.array([KINDS[kind] for kind in kinds])))
    for image, kind, number, std, key, hint in zip(np.asarray(x), *drawn, np.asarray(hints)):
        operator = drawn_again(kinds[kind], number, np.random.default_rng([*SEED, kind]))
        wanted = degraded(operator, image, std, jax.random.wrap_key_data(key))
        np.testing.assert_allclose(hint, wanted, atol=1e-4, err_msg=kinds[kind])
        seen.add((kind, number))
    assert {kind for kind, _ in seen} == set(range(len(kinds)))
    assert {number for _, number in seen} == set(range(BANK))


def test_only_what_is_random_is_drawn_more_than_once():
    assert [bank.count for bank in made(KINDS).banks] == list(KINDS.values())


def test_an_operator_does_not_depend_on_those_before_it():
    alone, second = made(["denoise", "fourier"]).banks[1], made(["mask", "fourier"]).banks[1]
    np.testing.assert_array_equal(alone.stacked.known, second.stacked.known)


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
        (("downsample:factor=3",), "'downsample:factor=3': factor: 3 does not divide 16x16"),
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
        (dict(operators="mask"), "config.degradation.operators: 'mask' is not a list of values"),
        (dict(noise=-0.1), "config.degradation.noise: -0.1 is not in [0, 2]"),
        (dict(bank=0), "config.degradation.bank: 0 is less than 1"),
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


def cut(options, accumulate=1):
    part = dict(steps=STEPS, accumulate=accumulate, ema=(0.9,))
    section = dict(operators=("mask:kind=random", "denoise"), noise=0.1, bank=4)
    return tiny.config(model=tiny.WIDE, degradation=section, train=part, parallel=options)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The steps of a network on one device that is given its hints as if they came with a batch."""
    run = tiny.run(cut({}), tmp_path_factory.mktemp("one"))
    of_train = experiment_lib.degradation_of(run.config, (8, 8, 1), "train")

    @jax.jit
    def hint(images, index, number):
        key = jax.random.fold_in(jax.random.key(0), number)
        return of_train(images / 127.5 - 1, objective.degradation_keys(key, index))

    def hinted(number, batch):
        return batch | {"hint": hint(jnp.float32(batch["image"]), batch["index"], number)}

    return on_one_device(run, hinted)


@slow
@pytest.mark.parametrize("name", VARIANTS)
def test_the_same_parameters(one, name, tmp_path):
    run = on_four(cut(*VARIANTS[name]), tmp_path)
    assert_equal(tiny.arrays(taken(run, run.state())[1]), one, 2 * 5)


LEARNER = dict(
    model=dict(patch=2, width=32, bottleneck=8, class_tokens=0, class_tokens_from=0),
    optimizer=dict(learning_rate=1e-2, warmup=20),
    train=dict(steps=200, batch=32, ema=(0.9,)),
    checkpoint=dict(every=100),
    log=dict(every=100, sample_every=200, heldout_every=200, heldout_images=64, images=12),
    degradation=dict(operators=("mask:kind=random,share=0.5",), noise=0.0, bank=4),
)


@pytest.fixture(scope="module")
def learner(tmp_path_factory):
    """(--config flag, workdir)."""
    place = tmp_path_factory.mktemp("learner")
    flag = tiny.write(place / "learner.py", **LEARNER)
    assert tiny.call(flag, f"--workdir={place / 'run'}") == 0
    return flag, place / "run"


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
def test_samples_are_restorations_beside_damaged_and_true_images(learner):
    """In the run's grids and in --mode=sample: two columns and six rows of three images."""
    flag, workdir = learner
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
def test_a_restorer_from_python(learner):
    """With hints, with none, and with hints of another shape."""
    flag, workdir = learner
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
