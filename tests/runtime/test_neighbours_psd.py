"""Photoshop's files: the composite picture, and nothing that is not it."""

import struct

import numpy as np
import pytest

from vitdiff_jax.runtime import pictures

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 8, 4), np.uint8)
GREY, RGB, CMYK, MULTICHANNEL = 1, 3, 4, 7


def psd(channels, mode=RGB, layers=None, merged=None):
    """Uncompressed. layers: their number, negative with transparency. merged: a composite is in."""
    height, width, _ = PIXELS.shape
    head = b"8BPS" + struct.pack(">H6xHIIHH", 1, channels, height, width, 8, mode)
    version = struct.pack(">4sHHIIB13x", b"8BIM", 1057, 0, 18, 1, bool(merged))
    resources = b"" if merged is None else version
    about = b"" if layers is None else struct.pack(">Ihxx", 4, layers)
    planes = b"".join(PIXELS[..., min(i, 3)].tobytes() for i in range(channels))
    parts = (struct.pack(">I", len(part)) + part for part in (b"", resources, about))
    return head + b"".join(parts) + b"\0\0" + planes


@pytest.mark.parametrize("merged", [None, True])
@pytest.mark.parametrize("layers", [None, 2, -1])
def test_the_composite_is_read(layers, merged):
    found = pictures.read(psd(3, layers=layers, merged=merged))
    np.testing.assert_array_equal(found.samples, PIXELS[..., :3])
    np.testing.assert_array_equal(pictures.read(psd(1, GREY)).samples, PIXELS[..., :1])
    assert pictures.read(psd(4, CMYK)).samples.shape == (5, 8, 3)


def test_transparency_is_alpha():
    found = pictures.read(psd(4, layers=-1))
    np.testing.assert_array_equal(found.samples, PIXELS)


@pytest.mark.parametrize(
    ("channels", "options"),
    [
        (4, {}),  # a saved selection, which is no alpha
        (4, {"layers": 1}),
        (5, {"layers": -1}),  # the transparency, and a selection
        (2, {"mode": GREY}),
        (5, {"mode": CMYK}),
        (3, {"mode": MULTICHANNEL}),
    ],
)
def test_other_channels_are_refused(channels, options):
    with pytest.raises(ValueError, match=f"PSD file of {channels} channels, of which"):
        pictures.read(psd(channels, **options))


def test_layers_without_a_composite_are_refused():
    with pytest.raises(ValueError, match="layers alone"):
        pictures.read(psd(3, layers=2, merged=False))
