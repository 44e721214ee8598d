"""Parameters alone in a file that says what they are."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from vitdiff_jax.interop import exported

PARAMS = {"head": {"kernel": np.arange(6, dtype="f4").reshape(2, 3).T, "bias": np.ones(2, "f4")}}
ABOUT = dict(
    config={"model": {"name": "vit"}, "train": {}, "sample": {}}, shape=[8, 8, 1],
    conditions={"label": ["a", "ü"]}, family=None, ema="0.5", step=3, licence="Mine\n",
)  # fmt: skip


def test_parameters_and_facts_come_back(tmp_path):
    """Arrays that are not contiguous too, whose bits would else be read in another order."""
    path = tmp_path / "a.safetensors"
    exported.save(path, PARAMS, ABOUT)
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
    assert exported.about(path) == ABOUT
    found = exported.load(path)
    assert found.keys() == PARAMS.keys()
    assert found["head"].keys() == PARAMS["head"].keys()
    for name, array in PARAMS["head"].items():
        np.testing.assert_array_equal(found["head"][name], array, strict=True)
    assert load_file(path).keys() == {"head/kernel", "head/bias"}


def test_other_files_are_not_ours(tmp_path):
    """Nobody's facts, or another format."""
    path = tmp_path / "a.safetensors"
    save_file({"a": np.ones(2)}, path, {"format": "pt"})
    assert exported.about(path) is None
    save_file({"a": np.ones(2)}, path)
    assert exported.about(path) is None
    (tmp_path / "a.pt").write_bytes(b"PK\3\4")
    assert exported.about(tmp_path / "a.pt") is None


@pytest.mark.parametrize("text", ["", "{", "[]", "null", json.dumps({**ABOUT, "more": 1}), "{}"])
def test_wrong_facts_are_one_line(tmp_path, text):
    path = tmp_path / "a.safetensors"
    save_file({"a": np.ones(2)}, path, {exported.KIND: text})
    with pytest.raises(ValueError, match=f"^{path}: damaged: ") as caught:
        exported.about(path)
    assert "\n" not in str(caught.value)


def test_a_damaged_file_is_one_line(tmp_path):
    path = tmp_path / "a.safetensors"
    exported.save(path, PARAMS, ABOUT)
    path.write_bytes(path.read_bytes()[:-4])
    for read in (exported.about, exported.load):
        with pytest.raises(ValueError, match=f"^{path}: damaged: ") as caught:
            read(path)
        assert "\n" not in str(caught.value)
