"""Fashion-MNIST's archives put back from copies without their gzip headers."""

import gzip
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tests import tiny
from vitdiff_jax.data import fashion_mnist


def packed(name, time, content, flags=8):
    """A gzip file as the gzip program writes it: with name and time, or with --no-name."""
    press = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = press.compress(content) + press.flush()
    end = struct.pack("<II", zlib.crc32(content), len(content))
    head = struct.pack("<BBBBIBB", 0x1F, 0x8B, 8, flags, time, 0, 3)
    return head + (name.encode() + b"\0" if flags else b"") + body + end


@pytest.fixture
def archives(tmp_path, monkeypatch):
    """(folder of stripped copies, {file name: the original's bytes}), with times of our own."""
    folder, originals = tmp_path / "manual", {}
    folder.mkdir()
    for i, name in enumerate(fashion_mnist.PACKED):
        monkeypatch.setitem(fashion_mnist.PACKED, name, 1_000_000_007 + i)
        content = np.random.default_rng(i).integers(0, 9, 5000, np.uint8).tobytes()
        originals[f"{name}.gz"] = packed(name, 1_000_000_007 + i, content)
        (folder / f"{name}.gz").write_bytes(packed(name, 0, content, flags=0))
        assert gzip.decompress(originals[f"{name}.gz"]) == content
    return folder, originals


def test_stripped_headers_are_put_back(archives, tmp_path):
    folder, originals = archives
    before = tiny.files(folder)
    target = tmp_path / "restored"
    target.mkdir()
    (target / "old").write_text("of a run before")
    assert fashion_mnist.restore_archives(folder, target) == target
    assert tiny.files(target) == originals
    assert tiny.files(folder) == before
    assert fashion_mnist.restore_archives(target, tmp_path / "again") == target  # they are whole


def test_other_files_are_left_as_they_are(archives, tmp_path):
    folder, originals = archives
    first = folder / next(iter(originals))
    stripped = first.read_bytes()
    for content in (originals[first.name], b"", b"<html>quota exceeded</html>", None):
        first.unlink() if content is None else first.write_bytes(content)
        before = tiny.files(folder)
        assert fashion_mnist.restore_archives(folder, tmp_path / "restored") == folder
        assert tiny.files(folder) == before
        assert not (tmp_path / "restored").exists()
    first.write_bytes(stripped)
    assert fashion_mnist.restore_archives(folder, tmp_path / "restored") != folder


@pytest.mark.parametrize("width", [0, 2])
def test_black_pixels_around(width):
    image = Image.fromarray(np.full((28, 28), 200, np.uint8))
    found = fashion_mnist.pad(image, None, width)
    size, inside = 28 + 2 * width, slice(width, 28 + width)
    assert (found.shape, found.dtype) == ((size, size, 1), np.uint8)
    assert (found[inside, inside] == 200).all()
    assert found.astype(int).sum() == 200 * 28 * 28


def test_negative_padding_is_refused():
    with pytest.raises(ValueError, match=r"padding: -1"):
        fashion_mnist.dataset(padding=-1)
