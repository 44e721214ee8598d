"""What a user asks for becomes the arrays that mean it, or one line that says what is wrong."""

import types

import numpy as np
import pytest

from vitdiff_jax.data.pipeline import Dataset
from vitdiff_jax.data.text import to_bytes
from vitdiff_jax.experiment.config import ConfigError
from vitdiff_jax.inference import prompts
from vitdiff_jax.inference.model import TrainedModel

NAMES = ["cat", "dog", "7", "Ankle boot"]  # a list, as a checkpoint has it
FACES = ("Smiling", "Male", "Young")
EVERYTHING = {"label": NAMES, "attributes": FACES, "text": 8}


CLASSES = [  # what is wished -> the numbers for two images
    (2, [2, 2]),
    ("2", [2, 2]),  # from the command line
    (np.int64(3), [3, 3]),
    ("dog", [1, 1]),
    ("Ankle boot", [3, 3]),
    ("7", [2, 2]),  # a name before a number
    ("-1", [-1, -1]),
    (["dog", "-1"], [1, -1]),
    (np.array([3, 0]), [3, 0]),
    (None, [0, 1]),  # in turn
]
HAS = [  # it, has it not, or left open
    ("Smiling", [[1, -1, -1]] * 2),
    ("-Male", [[-1, 0, -1]] * 2),
    ("Young,-Male", [[-1, 0, 1]] * 2),
    (" Young , -Smiling ,", [[0, -1, 1]] * 2),
    ("- Male", [[-1, 0, -1]] * 2),
    ("", [[-1, -1, -1]] * 2),
    (None, [[-1, -1, -1]] * 2),
    (["Male", "-Male"], [[-1, 1, -1], [-1, 0, -1]]),
]


@pytest.mark.parametrize(("wish", "wanted"), CLASSES, ids=repr)
@pytest.mark.parametrize("names", [NAMES, tuple(NAMES)], ids=["list", "tuple"])
def test_classes_by_number_or_name(names, wish, wanted):
    found = prompts.encode({"label": names}, 2, label=wish)
    assert found.keys() == {"label"}
    np.testing.assert_array_equal(found["label"], np.array(wanted, np.int32), strict=True)


@pytest.mark.parametrize(("wish", "wanted"), HAS, ids=repr)
def test_attributes_by_name(wish, wanted):
    found = prompts.encode({"attributes": FACES}, 2, attributes=wish)
    assert found.keys() == {"attributes"}
    np.testing.assert_array_equal(found["attributes"], np.array(wanted, np.int8), strict=True)


def test_prompts():
    for wish, texts in (("a cat", ["a cat"] * 2), (["a", "déjà vu"], ["a", "déjà v"])):
        found = prompts.encode({"text": 8}, 2, prompt=wish)["text"]
        assert (found.shape, found.dtype) == ((2, 8), np.int16)
        assert [bytes(row[row >= 0].astype(np.uint8)).decode() for row in found] == texts
    assert (prompts.encode({"text": 8}, 2)["text"] == -1).all()


def test_no_prompt_needs_no_encoder():
    """Whose texts would be embedded: only then it is loaded."""
    about = {"length": 3, "width": 5, "encoder": "/no/such/encoder"}
    found = prompts.encode({"embedding": about}, 2)["embedding"]
    assert found.shape == (2, 3, 5)
    assert not found.any()


def test_everything_at_once():
    found = prompts.encode(EVERYTHING, 2, label="dog", prompt="hi", attributes="Young")
    assert found["label"].tolist() == [1, 1]
    assert found["attributes"].tolist() == [[-1, -1, 1]] * 2
    np.testing.assert_array_equal(found["text"], [to_bytes("hi", 8)] * 2)
    assert prompts.encode({}, 3) == {}


@pytest.mark.parametrize(
    ("conditions", "wish", "message"),
    [
        (EVERYTHING, dict(label=4), "label: 4 is not in -1 (null class) to 3"),
        (EVERYTHING, dict(label="-2"), "label: -2 is not in -1 (null class) to 3"),
        (EVERYTHING, dict(label=[0, 9]), "label: 9 is not in -1 (null class) to 3"),
        (EVERYTHING, dict(label="dg"), "label: unknown class 'dg'; did you mean dog?"),
        (EVERYTHING, dict(label="zebra\n"), r"label: unknown class 'zebra\n'"),
        (EVERYTHING, dict(label=[1, 2, 3]), "label: 3 values for 2 images"),
        (EVERYTHING, dict(label=2.7), "label: unknown class 2.7"),
        (EVERYTHING, dict(label=[None, 1]), "label: unknown class None"),
        (EVERYTHING, dict(prompt=[]), "prompt: 0 values for 2 images"),
        (
            EVERYTHING,
            dict(attributes="Young,-Smilling"),
            "attributes: unknown attribute 'Smilling'; did you mean Smiling?; available: Smiling, "
            "Male, Young",
        ),
        (EVERYTHING, dict(attributes="x" * 9), f"attributes: unknown attribute '{'x' * 9}'; a"),
        (EVERYTHING, dict(attributes=["Male"]), "attributes: 1 values for 2 images"),
        (EVERYTHING, dict(prompt=["a", "b", "c"]), "prompt: 3 values for 2 images"),
        (
            {"label": NAMES},
            dict(prompt="a cat"),
            "--prompt: the model is conditioned on label only",
        ),
        ({"label": NAMES, "text": 8}, dict(attributes="Male"), "--attributes: the model is condi"),
        ({}, dict(label=0), "--label: the model is unconditional: it was trained"),
    ],
    ids=str,
)
def test_what_cannot_be_is_one_line(conditions, wish, message):
    with pytest.raises(ConfigError) as caught:
        prompts.encode(conditions, 2, **wish)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


class Captioned:
    """Three examples, each with its number as caption, label and only attribute's value."""

    def __len__(self):
        return 3

    def example(self, index, rng=None):
        assert rng is None
        return {
            "image": np.zeros((2, 2, 1), np.uint8),
            "label": np.array(index, np.int32),
            "attributes": np.array([index % 2], np.int8),
            "text": to_bytes(str(index), 4),
        }


def test_examples_in_turn():
    """What belongs together stays together: a caption comes with its own label and attributes."""
    conditions = {"attributes": ("odd",), "text": 4, "label": NAMES}
    dataset = Dataset(Captioned(), Captioned(), (2, 2, 1), conditions)
    found = prompts.of_examples(dataset, 5)
    assert list(found) == list(conditions)  # no images
    assert found["text"][:, 0].tolist() == [ord(digit) for digit in "01201"]
    assert found["attributes"].tolist() == [[0], [1], [0], [0], [1]]
    assert found["label"].tolist() == [0, 1, 2, 0, 1]
    assert prompts.of_examples(dataset, 2)["text"][:, 0].tolist() == [ord("0"), ord("1")]
    for name, values in prompts.of_examples(dataset, 2, first=3).items():  # a later batch of these
        np.testing.assert_array_equal(values, found[name][3:], strict=True)


@pytest.mark.parametrize("conditions", [{}, {"label": NAMES}], ids=["none", "label"])
def test_classes_alone_need_no_example(conditions):
    found = prompts.of_examples(Dataset(None, None, (2, 2, 1), conditions), 6, first=1)
    wanted = {"label": [1, 2, 3, 0, 1, 2]} if conditions else {}
    assert {name: a.tolist() for name, a in found.items()} == wanted


def test_examples_in_a_random_order_that_is_always_the_same():
    """`prior`: each example once before any comes again, with all that belongs to it."""
    conditions = {"attributes": ("odd",), "text": 4, "label": NAMES}
    dataset = Dataset(Captioned(), Captioned(), (2, 2, 1), conditions)
    found = prompts.of_examples(dataset, 6, prior=True)
    labels = found["label"].tolist()
    assert sorted(labels[:3]) == [0, 1, 2]
    assert labels[3:] == labels[:3]
    assert found["text"][:, 0].tolist() == [ord(str(label)) for label in labels]
    for first in range(6):
        for name, values in prompts.of_examples(dataset, 1, first, prior=True).items():
            np.testing.assert_array_equal(values[0], found[name][first], strict=True)
    assert prompts.of_examples(Dataset(None, None, (2, 2, 1), {}), 3, prior=True) == {}


def test_a_picture_to_restore_is_of_no_class_unless_one_is_given():
    """A sample is of the classes in turn; a picture that someone brings is of none of them."""
    model = object.__new__(TrainedModel)  # without parameters
    trained = types.SimpleNamespace(diffusion=types.SimpleNamespace(label_dropout=0.1))
    model.experiment = types.SimpleNamespace(conditions=EVERYTHING, config=trained)
    found = model.cond(2)
    assert found["label"].tolist() == [-1, -1]
    assert (found["attributes"] == -1).all()
    assert (found["text"] == -1).all()
    assert model.cond(2, label="dog")["label"].tolist() == [1, 1]
