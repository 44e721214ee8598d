"""Weights of strangers: what a file may hold, and what would be read wrongly if it were guessed."""

import json
import pickle
import struct

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.modes import test_import
from vitdiff_jax.interop import exported, families, rules, torch_files, torch_pickle
from vitdiff_jax.interop.tensors import Tensor

KNOWN = dict(heads=2, null_row=True)
PROJ = "blocks.0.attn.proj"


def imported(**changes):
    return families.from_torch("dit", {**test_import.tensors_of("dit"), **changes}, **KNOWN)[1]


def refused(match, **changes):
    with pytest.raises(ValueError, match=match):
        imported(**changes)


def shards(folder, homes, **files):
    for name, tensors in files.items():
        save_file(tensors, folder / name)
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": homes}), "utf-8-sig")
    return path


def test_a_tensor_comes_from_the_shard_that_the_index_names(tmp_path):
    new, stale = np.ones(2, np.float32), np.zeros(2, np.float32)
    path = shards(tmp_path, {"a": "one", "b": "two"}, one={"a": new}, two={"a": stale, "b": new})
    assert np.asarray(torch_files.read(path)["a"]).tolist() == [1, 1]


@pytest.mark.parametrize("home", ["model.safetensors.index.json", "list.pt", 3, None])
def test_a_shard_that_holds_no_names_is_refused(tmp_path, home):
    path = shards(tmp_path, {"a": home})
    parts = [torch_files.LEGACY, 1001, {}, [1], []]  # PyTorch's older format, with a list
    (tmp_path / "list.pt").write_bytes(b"".join(pickle.dumps(part, 2) for part in parts))
    with pytest.raises(ValueError, match=r"has no named tensors|no index of shards"):
        torch_files.read(path)


@pytest.mark.parametrize("scale", [np.ones((1, 16), "f4"), np.ones(16, "c8"), np.ones(16, "i8")])
def test_a_scale_that_is_not_one_for_each_output_is_refused(scale):
    weight = np.ones((16, 16), np.int8)
    refused(f"{PROJ}.weight: ", **{f"{PROJ}.weight": weight, f"{PROJ}.weight_scale": scale})


@pytest.mark.parametrize("shape", [(48,), (48, 1), (1, 48)])
def test_scales_of_the_outputs_may_lie_along_either_axis(shape):
    """Of a weight [48, 16], of which no axis can be taken for the other."""
    stored, name = np.arange(48 * 16).reshape(48, 16) % 127, "blocks.0.attn.qkv"
    scale = np.linspace(0.1, 0.3, 48, dtype="f4")
    found, plain = (
        imported(**{f"{name}.weight": weight} | beside)["block_0"]["attention"]
        for weight, beside in (
            (stored.astype("i1"), {f"{name}.weight_scale": scale.reshape(shape)}),
            (stored * scale[:, None], {}),
        )
    )
    for part, wanted in plain.items():
        np.testing.assert_allclose(found[part], wanted, rtol=1e-6)


def test_two_scales_of_a_weight_are_refused():
    both = {f"{PROJ}.{name}": np.ones(1, "f4") for name in ("scale_weight", "weight_scale")}
    refused(f"{PROJ}.weight: has both", **both)


@pytest.mark.parametrize("kind", ["float8_e4m3fn", "float8_e5m2", "bfloat16", "float16"])
def test_a_constant_is_compared_in_the_precision_of_its_type(kind):
    positions = test_import.tensors_of("dit")["pos_embed"].astype(getattr(ml_dtypes, kind, kind))
    imported(pos_embed=Tensor(positions.shape, kind, lambda: positions.astype("f4")))


def test_positions_that_are_learnt_are_refused():
    refused("pos_embed differs", pos_embed=test_import.tensors_of("dit")["pos_embed"] * 0.7)


@pytest.mark.parametrize("mark", ["neg", "conj"])
def test_a_view_with_a_sign_that_is_not_in_its_numbers_is_refused(mark):
    storage = torch_files.Storage("float32", lambda: np.ones(2, "f4").tobytes())
    plain = torch_pickle.view(storage, 0, (2,), (1,), False, None, {mark: False})
    assert np.asarray(plain).tolist() == [1, 1]
    with pytest.raises(ValueError, match="negated or conjugated"):
        np.asarray(torch_pickle.view(storage, 0, (2,), (1,), False, None, {mark: True}))


def test_blocks_with_a_gap_are_refused_at_once():
    with pytest.raises(ValueError, match=r"^missing: blocks\.1\.\*, though there is blocks\.10{9}"):
        rules.count({"blocks.0.a": (1,), "blocks.1000000000.a": (1,)}, "blocks.")


@pytest.mark.parametrize("shape", [(16, 4, 0, 0), (0, 4, 2, 2)])
def test_a_tensor_without_numbers_is_named(shape):
    refused("x_embedder.proj.weight: .* has no numbers",
            **{"x_embedder.proj.weight": np.zeros(shape, "f4")})  # fmt: skip


@pytest.mark.parametrize(("key", "value"), [
    ("config", {}), ("config", {"train": 1, "sample": {}}), ("shape", None), ("shape", [4, 4]),
    ("shape", [0, 4, 4]), ("conditions", []), ("family", 3), ("ema", ""), ("licence", None),
])  # fmt: skip
def test_metadata_of_other_types_are_damaged(tmp_path, key, value):
    good = dict(config={"train": {}, "sample": {}}, shape=[4, 4, 4], conditions={}, family=None,
                ema="0.99", step=0, licence="")  # fmt: skip
    path = tmp_path / "a.safetensors"
    for about in (good, good | {key: value}):
        save_file({"a": np.zeros(1)}, path, {exported.KIND: json.dumps(about)})
        if about is good:
            assert exported.about(path) == good
    with pytest.raises(ValueError, match=f"damaged: its metadata has the {key}"):
        exported.about(path)


def test_a_page_may_begin_with_a_mark_of_its_encoding(tmp_path):
    path = tmp_path / "model.pt"
    path.write_text("<!DOCTYPE html>", "utf-8-sig")
    with pytest.raises(ValueError, match="web page"):
        torch_files.read(path)


def test_an_error_without_words_has_a_name(tmp_path):
    path = tmp_path / "model.pt"  # announces more bytes than there is memory
    path.write_bytes(b"\x80\x04\x8d" + struct.pack("<Q", 2**60) + b"abc.")
    with pytest.raises(ValueError, match=r"damaged: \w+"):
        torch_files.read(path)
