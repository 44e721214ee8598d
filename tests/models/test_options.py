"""Options of every denoiser: sizes as published, and what cannot be is named before it compiles."""

import dataclasses

import pytest

from tests.models.tiny_models import DENOISERS, SHAPE, count, denoiser, shape_of
from tests.parts import only

SIZES = [  # (denoiser, images, options, parameters of each size), of 1000 classes if not said
    ("vit", (256, 256, 3), {}, dict(B=131e6, L=459e6, H=953e6)),  # arXiv:2511.13720, table 4
    ("dit", (32, 32, 4), dict(learned_sigma=True),  # arXiv:2212.09748, table 4
     dict(S=33e6, B=130e6, L=458e6, XL=675e6)),
    ("uvit", (64, 64, 3), {}, dict(M=131e6, L=287e6, H=501e6)),  # arXiv:2209.12152, table 1
    ("uvit", (64, 64, 3), dict(conditions={}), {"S": 44e6, "S-deep": 58e6}),
]  # fmt: skip
REFUSED = [  # (option, value, message, images): where a denoiser has the option
    ("patch", 4, "4 does not divide the 6x8 images", (6, 8, 3)),
    ("patch", 4, "4 does not divide the 8x6 images", (8, 6, 3)),
    ("patch", 0, "0 is less than 1", None),
    ("width", 0, "0 is less than 1", None),
    ("heads", 0, "0 is less than 1", None),
    ("mlp_ratio", 0.0, "0.0", None),
    ("remat", "some", "'some' is not one of none, full, dots", None),
    ("dtype", "float16", "'float16' is not one of float32, bfloat16", None),
    ("conditions", {"text": (18,)}, "texts of 18 bytes are not a multiple of 4", None),
    ("text_width", 0, "0 is less than 1", None),
    ("text_width", 5, "5 is neither even up to 64 nor a multiple of 64", None),
    ("text_width", 130, "130 is neither even up to 64 nor a multiple of 64", None),
]
OWN = {  # (option, value, message, images if others than SHAPE)
    "vit": [
        ("heads", 3, "3 does not divide the width 16"),
        ("heads", 8, ".* = 2 is not a multiple of 4"),
        ("depth", 0, "0"),
        ("bottleneck", -1, "-1"),
        ("class_tokens", -1, "-1"),
        ("class_tokens_from", -1, "-1"),
        ("mlp_ratio", -4.0, "-4.0"),
        ("size", "XL", "'XL' is not one of S, B, L, H"),
        ("dropout", 1.0, "1.0"),
        ("dropout", -0.1, "-0.1"),
    ],
    "dit": [
        ("heads", 3, "3 does not divide the width 16"),
        ("width", 18, "18 is not a multiple of 4"),
        ("depth", 0, "0"),
        ("mlp_ratio", 0.05, "0.05"),
        ("size", "H", "'H' is not one of S, B, L, XL"),
        ("text_depth", 0, "0"),
    ],
    "uvit": [
        ("heads", 3, "3 does not divide the width 16"),
        ("depth", -2, "-2"),
        ("depth", 3, "3 is odd"),
        ("size", "XL", "'XL' is not one of S, S-deep, M, L, H"),
    ],
    "unet": [
        ("multipliers", (1, 2), "2 levels downsample by 2, which does not divide", (5, 6, 3)),
        ("multipliers", (1, 2, 2), "3 levels downsample by 4, which"),
        ("multipliers", (), "0 is less than 1"),
        ("multipliers", (1, 0), "0 is less than 1"),
        ("attention", (2,), "there is no level 2, only 0 to 1"),
        ("attention", (-1,), "-1"),
        ("blocks", 0, "0"),
        ("head_width", 5, "5 does not divide 16 channels"),
        ("head_width", 0, "0"),
    ],
}


@pytest.mark.parametrize(
    ("name", "shape", "options", "size", "published"),
    only(
        [(*case, *next(iter(sizes.items()))) for *case, sizes in SIZES],
        [(*case, size, found) for *case, sizes in SIZES for size, found in sizes.items()],
    ),
)
def test_sizes_are_the_published_ones(name, shape, options, size, published):
    """The number of parameters, to 1 %."""
    known = dict(conditions={"label": (1000,)}, size=size, scan=True) | options
    assert abs(count(DENOISERS[name](**known), shape) / published - 1) < 0.01


def refused():
    """(denoiser, option, value, message, images) of both tables."""
    for name, model in DENOISERS.items():
        fields = [field.name for field in dataclasses.fields(model)]
        for *case, shape in (case for case in REFUSED if case[0] in fields):
            yield name, *case, shape or shape_of(denoiser(name))
        for option, value, message, *shape in OWN.get(name, []):
            yield name, option, value, message, *(shape or [SHAPE])


@pytest.mark.parametrize(("name", "option", "value", "message", "shape"), [*refused()])
def test_check_names_the_option(name, option, value, message, shape):
    """One line that starts with the key: else the error comes from deep inside JAX."""
    with pytest.raises(ValueError, match=f"^{option}: {message}"):
        denoiser(name, **{option: value}).check(shape)


def test_an_odd_width_of_uvit_is_named():
    with pytest.raises(ValueError, match=r"^width: 5 is odd"):
        denoiser("uvit", width=5, heads=1).check(SHAPE)
