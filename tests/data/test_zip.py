"""Zip files of pictures that mean harm, or are damaged: one line each, and nothing is unpacked."""

import io
import os
import shutil
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from PIL import Image

from vitdiff_jax.data import files, folder
from vitdiff_jax.data.pipeline import DataError


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def refused(path, **options):
    """The one line that says why."""
    with pytest.raises(DataError) as caught:
        folder.dataset(str(path), size=8, **options)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value).removeprefix(f"{path}: ")


def make(path, members, patch=lambda data: data):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    path.write_bytes(patch(path.read_bytes()))
    return path


def png(seed=0):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 9, 3), np.uint8)).save(
        file, "PNG"
    )
    return file.getvalue()


@pytest.mark.parametrize(
    "name", ["../x.png", "a/../../x.png", "/etc/x.png", "..\\x.png", "\\x.png"]
)
def test_a_zip_file_that_reaches_outside(tmp_path, name):
    path = make(tmp_path / "a.zip", {"a.png": png(), name: png()})
    assert refused(path) == (
        f"contains a file named {name!r}, which lies outside of the archive; do not use this zip"
        " file"
    )
    assert {item.name for item in tmp_path.iterdir()} == {"a.zip"}


def central(data, offset, value):
    """A zip file's bytes with another value in each entry of its directory."""
    data, at = bytearray(data), -1
    while (at := data.find(b"PK\x01\x02", at + 1)) >= 0:
        data[at + offset : at + offset + len(value)] = value
    return bytes(data)


def test_an_encrypted_zip_file(tmp_path):
    def encrypted(data):
        local = data.replace(b"PK\x03\x04\x14\0\0\0", b"PK\x03\x04\x14\0\x01\0")
        return central(local, 8, b"\x01\0")

    path = make(tmp_path / "a.zip", {"a.png": png(), "m.csv": "file_name,text"}, encrypted)
    message = refused(path)
    assert message.startswith("1 of 1 images cannot be decoded, first a.png: File 'a.png'")
    assert "password required" in message
    message = refused(path, captions="m.csv")
    assert message.startswith("cannot read the captions m.csv: File 'm.csv' is encrypted")


def test_a_damaged_zip_file(tmp_path):
    whole = make(tmp_path / "a.zip", {"a.png": b"x" * 500 + os.urandom(500)})
    data = bytearray(whole.read_bytes())
    data[40:400] = bytes(range(180)) * 2  # of what is packed
    whole.write_bytes(data)
    assert refused(whole).startswith("1 of 1 images cannot be decoded, first a.png: ")
    whole.write_bytes(data[:-30])
    assert refused(whole) == "not a readable zip file: File is not a zip file"


def test_a_zip_file_packed_in_an_unknown_way(tmp_path):
    path = make(tmp_path / "a.zip", {"a.png": png()}, lambda data: central(data, 10, b"\x63\0"))
    assert "compression method is not supported" in refused(path)


def test_a_member_that_says_it_is_a_bomb(tmp_path):
    size = struct.pack("<I", files.MAX_BYTES + 1)
    path = make(tmp_path / "a.zip", {"a.png": png()}, lambda data: central(data, 24, size))
    assert "a.png: larger than 1,073,741,824 bytes" in refused(path)


def test_a_member_that_hides_that_it_is_a_bomb(tmp_path):
    """It says 1000 bytes and has 64 million: not more than that is unpacked."""
    path = make(
        tmp_path / "a.zip", {"a.png": bytes(2**26)}, lambda data: central(data, 24, b"\xe8\3\0\0")
    )
    refused(path)  # whatever else is made once
    shutil.rmtree(tmp_path / "cache")
    tracemalloc.start()
    try:
        message = refused(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert message.startswith("1 of 1 images cannot be decoded, first a.png: ")
    assert peak < 2**23
