"""Operators written as text."""

import re
from typing import Any

import numpy as np
import pytest

from vitdiff_jax import operators
from vitdiff_jax.operators import presets
from vitdiff_jax.operators.parsing import parse

SHAPE = (16, 16, 3)


def made(text) -> Any:
    options = parse(text)
    return operators.make(options.pop("name"), SHAPE, np.random.default_rng(0), **options)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("denoise", {"name": "denoise"}),
        ("mask:kind=random,share=0.7", {"name": "mask", "kind": "random", "share": 0.7}),
        ("blur: size = 5 , std=1e-1", {"name": "blur", "size": 5, "std": 0.1}),
        ("mask:kind=file,path=a=b:c.png", {"name": "mask", "kind": "file", "path": "a=b:c.png"}),
        (
            "downsample:factor=2 + colourise+mask:kind=strokes",
            {"name": "compose", "parts": [
                {"name": "downsample", "factor": 2}, {"name": "colourise"},
                {"name": "mask", "kind": "strokes"},
            ]},
        ),
    ],
)  # fmt: skip
def test_what_is_written_is_understood(text, wanted):
    found = parse(text)
    assert found == wanted
    assert list(map(type, found.values())) == list(map(type, wanted.values()))


def test_presets_are_their_operators_and_take_other_options():
    for name, preset in presets.PRESETS.items():
        assert parse(name) == preset.operator
    before = dict(presets.PRESETS["dps/box"].operator)
    assert parse("dps/box:side=0.25") == before | {"side": 0.25}
    assert presets.PRESETS["dps/box"].operator == before
    assert parse("denoise+dps/box")["parts"] == [{"name": "denoise"}, before]


def test_what_was_parsed_can_be_made():
    x = np.ones((1, *SHAPE), np.float32)
    assert made("downsample:factor=2+colourise+mask:kind=strokes").forward(x).shape == (1, 8, 8, 1)
    known = made("mask:kind=random,share=0.25").forward(x)
    assert known.mean() == 0.75


def test_an_option_that_is_a_text_may_look_like_a_number():
    assert made("jpeg:subsampling=444").subsampling == "444"
    with pytest.raises(ValueError, match="subsampling: '445' is not one of"):
        made("jpeg:subsampling=445")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "the name of an operator is missing"),
        ("denoise++denoise", "the name of an operator is missing"),
        (":kind=box", "the name of an operator is missing"),
        ("mask:", "options are missing after 'mask:'"),
        ("mask:box", "'box' is not written as key=value"),
        ("mask:kind=", "'kind=' is not written as key=value"),
        ("mask:kind=box,", "'' is not written as key=value"),
        ("mask:my kind=box", "'my kind=box' is not written as key=value"),
        ("mask:kind=box,kind=random", "kind is given twice"),
        ("mask:name=blur", "name is given twice"),
        ("dps/boxes", "no preset 'dps/boxes', only dps/box, "),
    ],
)
def test_what_is_not_is_refused_in_one_line(text, why):
    with pytest.raises(ValueError, match=re.escape(why)) as caught:
        parse(text)
    assert "\n" not in str(caught.value)
