"""Numbers from Python: what is one is taken, of whatever library; what is none is one line."""

import fractions
import re

import jax.numpy as jnp
import numpy as np
import pytest

from tests.inference.test_sampling import settings, trained
from vitdiff_jax.experiment import rules
from vitdiff_jax.experiment.config import ConfigError
from vitdiff_jax.inference import numbers, prompts

pytestmark = pytest.mark.usefixtures("plain")
IMAGE = np.full((4, 4, 3), 100, np.uint8)
NAN, LAST = float("nan"), 2**32 - 1


@pytest.fixture(scope="module")
def model(plain):
    return trained(settings(sample=dict(sampler=dict(name="euler"), steps=2, batch=4)))


@pytest.mark.parametrize(
    "three", [3, np.int64(3), np.uint8(3), np.array(3), jnp.int32(3), jnp.asarray(3)], ids=repr
)
def test_integers_are_integers(three):
    found = numbers.integer("n", three, rules.ONE)
    assert (found, type(found)) == (3, int)
    assert numbers.seeds("seed", three, 2).tolist() == [3, 4]


@pytest.mark.parametrize(
    "half", [0.5, np.float32(0.5), np.float16(0.5), np.array(0.5), jnp.float32(0.5),
             jnp.bfloat16(0.5), fractions.Fraction(1, 2)], ids=repr,
)  # fmt: skip
def test_numbers_are_numbers(half):
    found = numbers.real("guidance", half)
    assert (found, type(found)) == (0.5, float)
    assert numbers.real("guidance", 2) == 2.0


@pytest.mark.parametrize(
    "wrong",
    [True, np.True_, jnp.bool_(True), 1.0, np.float64(1.0), "1", None, [1], np.ones(1, int), 1j],
)  # fmt: skip
def test_what_is_no_integer(wrong):
    with pytest.raises(ConfigError, match=r"^n: .* is not an integer$"):
        numbers.integer("n", wrong)


@pytest.mark.parametrize(
    "wrong", [True, np.False_, "1", b"1", None, [1.0], np.ones(1), 1j, np.complex64(1), {}, 10**400]
)
def test_what_is_no_number(wrong):
    with pytest.raises(ConfigError, match=r"^strength: .* is not a number$"):
        numbers.real("strength", wrong)


@pytest.mark.parametrize("wrong", [NAN, float("inf"), np.float32("-inf"), jnp.nan])
def test_what_is_not_finite(wrong):
    with pytest.raises(ConfigError, match=r"^guidance: .* is not finite$"):
        numbers.real("guidance", wrong)


def test_the_last_seed_is_one_and_none_comes_after_it():
    """Keys are of 32 bits: beyond them, seeds would silently be those of other images."""
    assert numbers.seeds("seed", LAST, 1).tolist() == [LAST]
    assert numbers.seeds("seed", LAST - 1, 2).tolist() == [LAST - 1, LAST]
    for seed, n in ((LAST, 2), (LAST - 9, 11), (LAST + 1, 1), (2**63, 1), (10**30, 1), (-1, 1)):
        with pytest.raises(ConfigError, match=r"^seed: "):
            numbers.seeds("seed", seed, n)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(steps=0), "steps: 0 is less than 1"),
        (dict(steps=2.0), "steps: 2.0 is not an integer"),
        (dict(steps=True), "steps: True is not an integer"),
        (dict(batch=0), "batch: 0 is less than 1"),
        (dict(n=0), "n: 0 is less than 1"),
        (dict(n=-1), "n: -1 is less than 1"),
        (dict(n=2.5), "n: 2.5 is not an integer"),
        (dict(n="2"), "n: '2' is not an integer"),
        (dict(seed=-1), "seed: -1 is less than 0"),
        (dict(seed=2**32), f"seed: {2**32} is more than {LAST}"),
        (dict(seed=2**63), f"seed: {2**63} is more than {LAST}"),
        (dict(seed=LAST), f"seed: {LAST} and the seeds of 2 images go beyond {LAST}"),
        (dict(seed=1.5), "seed: 1.5 is not an integer"),
        (dict(seed=NAN), "seed: nan is not an integer"),
        (dict(guidance=NAN), "guidance: nan is not finite"),
        (dict(guidance="2"), "guidance: '2' is not a number"),
        (dict(guidance=[1.0, 2.0]), "guidance: [1.0, 2.0] is not a number"),
        (dict(guidance_low=NAN), "guidance_low: nan is not finite"),
        (dict(frames=2.5), "frames: 2.5 is not an integer"),
        (dict(sampler=3), "sampler: 3 is not a name"),
        (dict(threshold=None), "threshold: None is not a name"),
        (dict(grid={"name": "linear"}), "grid: not an option of sampling"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)  # fmt: skip
def test_samples_of_what_cannot_be_are_one_line(model, options, message):
    with pytest.raises(ConfigError) as caught:
        model.sample(**(dict(n=2) | options))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(n=0), "n: 0 is less than 1"),
        (dict(n=1.5), "n: 1.5 is not an integer"),
        (dict(seed=-1), "seed: -1 is less than 0"),
        (dict(seed=LAST, n=2), f"seed: {LAST} and the seeds of 2 images"),
        (dict(task="edit", strength=NAN), "strength: nan is not finite"),
        (dict(task="edit", strength="0.5"), "strength: '0.5' is not a number"),
        (dict(task="edit", strength=1.0), "strength: 1.0 is not between 0 and 1"),
        (dict(label=2), "label: 2 is not in -1 (null class) to 1"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)  # fmt: skip
def test_restoring_what_cannot_be_is_one_line(model, options, message):
    with pytest.raises(ConfigError) as caught:
        model.restore(IMAGE, **options)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_numbers_of_numpy_and_jax_give_the_same_samples(model):
    wanted = model.sample(label=1, n=2, seed=7, steps=1, guidance=1.5)
    for integer, real in ((np.int64, np.float32), (jnp.int32, jnp.float32)):
        found = model.sample(
            label=integer(1), n=integer(2), seed=integer(7), steps=integer(1), guidance=real(1.5)
        )
        np.testing.assert_array_equal(found, wanted)
    assert len(model._programs) == 1  # and are not compiled again


def test_conditions_of_another_number_of_images(model):
    with pytest.raises(ConfigError, match=r"^label: 3 conditions for 2 images$"):
        model.sample_cond({"label": np.zeros(3, np.int32)}, 2, 0)


@pytest.mark.parametrize(("wish", "wanted"), [(" cat ", 0), ("cat\n", 0), (" 1", 1), ("01", 1)])
def test_classes_with_spaces(wish, wanted):
    assert prompts.encode({"label": ("cat", "dog")}, 1, label=wish)["label"].tolist() == [wanted]
    names = (" cat ", "cat")  # two that differ in nothing else
    assert prompts.encode({"label": names}, 1, label=" cat ")["label"].tolist() == [0]


@pytest.mark.parametrize("wish", ["3.0", "1_0", "\u0661", "", " ", True, 1.0, "1e0"])
def test_what_is_no_class_names_those_that_are(wish):
    with pytest.raises(ConfigError, match=r"^label: unknown class .*available: cat, dog$"):
        prompts.encode({"label": ("cat", "dog")}, 1, label=wish)


def test_of_many_classes_the_nearest_are_named():
    names = [f"breed {i}" for i in range(1000)]
    with pytest.raises(ConfigError) as caught:
        prompts.encode({"label": names}, 1, label="bred 77")
    assert re.search(
        r"did you mean breed 77\?; available: breed 77, .* and 988 more$", str(caught.value)
    )
    with pytest.raises(ConfigError, match=r"available: breed 0, breed 1, .* and 988 more$"):
        prompts.encode({"attributes": names}, 1, attributes="-zzz")
