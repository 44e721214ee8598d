"""Weights of strangers: files of every making are read without PyTorch, and nothing runs."""

import contextlib
import io
import json
import os
import pickle
import struct
import sys
import time
import zipfile

import numpy as np
import pytest
from safetensors.numpy import save, save_file

from tests.interop.test_families import DIT, dit_shapes, dit_tensors, filled, same
from tests.interop.torch_writer import Call, Name, tensor, write, write_legacy
from tests.parts import quick
from vitdiff_jax.interop import families, state_dicts, torch_files
from vitdiff_jax.interop.torch_pickle import Unread

A = np.arange(6, dtype=np.float32).reshape(2, 3)
TABLE = "y_embedder.embedding_table.weight"


def arrays(contents):
    return {name: np.asarray(t) for name, t in contents.items() if hasattr(t, "shape")}


def refused(path):
    """The line that says what a file is."""
    start = f"{path}: not a file of tensors: "
    with pytest.raises(ValueError, match=f"^{start}") as caught:
        torch_files.read(path)
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(start)


# --- Tensors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("writer", [write, write_legacy])
def test_tensors_of_both_formats(tmp_path, writer):
    contents = {
        "plain": A, "number": np.float32([[7]])[0, 0:1].reshape(()), "none": np.zeros((0, 3), "f4"),
        "turned": tensor(A, shape=(3, 2), strides=(1, 3)),
        "part": tensor(A, shape=(2, 2), strides=(3, 1), offset=1),
        "parameter": Call(Name("torch._utils._rebuild_parameter"), tensor(A), True, None),
    }  # fmt: skip
    contents |= {k: A.astype(k) for k in ("float64", "float16", "int64", "uint8", "complex64")}
    found = arrays(torch_files.read(writer(tmp_path / "a.pt", contents)))
    wanted = {k: A.astype(k) for k in ("float64", "float16", "int64", "uint8", "complex64")}
    wanted |= {"plain": A, "parameter": A, "turned": A.T, "part": A[:, 1:], "number": np.float32(7)}
    same(found, wanted | {"none": np.zeros((0, 3), "f4")})


NARROW = {  # bytes and what they are, by the formats' definitions
    "float8_e4m3fn": ([0x38, 0xC0, 0x7E, 0x01], [1, -2, 448, 2.0**-9]),
    "float8_e5m2": ([0x3C, 0xC0, 0x7B, 0x01], [1, -2, 57344, 2.0**-16]),
}


@pytest.mark.parametrize("kind", NARROW)
def test_float8(tmp_path, kind):
    data, wanted = np.array(NARROW[kind][0], np.uint8), np.array(NARROW[kind][1], np.float32)
    found = torch_files.read(write(tmp_path / "a.pt", {"a": tensor(data, kind)}))
    np.testing.assert_array_equal(np.asarray(found["a"]), wanted, strict=True)
    header = {"a": {"dtype": {"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"}[kind]}}
    header["a"] |= {"shape": [2, 2], "data_offsets": [0, 4]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + data.tobytes())
    found = np.asarray(torch_files.read(path)["a"])
    np.testing.assert_array_equal(found, wanted.reshape(2, 2), strict=True)


def test_bfloat16_is_the_upper_half_of_float32(tmp_path):
    wanted = np.array([1.5, -(2.0**100), 3.140625], np.float32)
    half = (wanted.view(np.uint32) >> 16).astype(np.uint16)
    found = torch_files.read(write(tmp_path / "a.pt", {"a": tensor(half, "bfloat16")}))
    np.testing.assert_array_equal(np.asarray(found["a"]), wanted, strict=True)


def test_arrays_of_numpy_in_it(tmp_path):
    """Of two versions of NumPy, with bytes as protocol 2 spells them."""
    state = (1, (2, 3), Call(Name("numpy.dtype"), "f4", False, True), False, A.tobytes())
    contents = {
        core: Call(Name(f"numpy.{core}.multiarray._reconstruct"), Name("numpy.ndarray"), (0,), b"b",
                   state=state)
        for core in ("core", "_core")
    }  # fmt: skip
    same(arrays(torch_files.read(write(tmp_path / "a.pt", contents))), {"core": A, "_core": A})


def test_real_arrays_and_what_is_beside_them(tmp_path):
    contents = {"a": A, "rng": np.random.default_rng(0).bit_generator.state, "fid": np.float64(3.2)}
    path = tmp_path / "a.pt"
    write(path, {}, pickled=pickle.dumps(contents, 2))
    found = torch_files.read(path)
    same(arrays(found), {"a": A})
    assert isinstance(found["fid"], Unread)


# --- Nothing runs ---------------------------------------------------------------------------------


def evil():
    """Objects that make a folder `made` when they are unpickled, in many ways."""
    made = Call(os.mkdir, "made")
    system = Call(Name("os.system"), "mkdir made")
    getattr_ = Call(Name("builtins.getattr"), Name("os.path"), "os")
    return {
        "mkdir": made,
        "system": system,
        "exec": Call(Name("builtins.exec"), "import os; os.mkdir('made')"),
        "getattr": Call(Call(Name("builtins.getattr"), getattr_, "mkdir"), "made"),
        "partial": Call(Call(Name("functools.partial"), Name("os.mkdir"), "made")),
        "copyreg": Call(Name("copyreg._reconstructor"), Name("os.mkdir"), Name("os.mkdir"), "made"),
        "map": Call(Name("builtins.list"), Call(Name("builtins.map"), Name("os.mkdir"), ["made"])),
        "import": Call(Name("builtins.__import__"), "antigravity"),
        "module": Call(Name("antigravity.fly")),
        "type": Call(
            Name("torch._tensor._rebuild_from_type_v2"), Name("os.mkdir"), Name("torch.Tensor"),
            ("made",), {},
        ),
        "parameter": Call(Name("torch._utils._rebuild_parameter"), system, True, made),
        "hooks": Call(Name("torch._utils._rebuild_parameter_with_state"), made, True, made, made),
        "array": Call(Name("numpy._core.multiarray._reconstruct"), Name("os.mkdir"), made, b"b"),
        "codec": Call(Name("numpy.dtype"), system),
        "default": Call(Name("collections.defaultdict"), Name("os.mkdir")),
        "ordered": Call(Name("collections.OrderedDict"), state={"items": Name("os.mkdir")}),
        "state": Call(Name("codecs.Codec"), state={"__class__": made}),
        "ours": Call(Name("torch._utils._rebuild_tensor_v2"), made),
    }  # fmt: skip


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("case", evil())
def test_nothing_of_a_file_runs(tmp_path, monkeypatch, case, protocol):
    """What a pickle calls is left unread, or the file refused; the rest is as it was."""
    monkeypatch.chdir(tmp_path)
    for writer in (write, lambda *args, **_: write_legacy(*args)):
        path = writer(tmp_path / "a.pt", {"a": A, "evil": evil()[case], "b": A}, protocol=protocol)
        if case == "ours":
            refused(path)
        else:
            found = torch_files.read(path)
            same({name: np.asarray(found[name]) for name in "ab"}, {"a": A, "b": A})
        assert not (tmp_path / "made").exists()
    assert "antigravity" not in sys.modules


def test_these_calls_would_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(evil()["mkdir"], 2))
    assert (tmp_path / "made").exists()


OPCODES = {
    "INST": b"(S'mkdir made'\nios\nsystem\n.",
    "OBJ": b"(cos\nsystem\nS'mkdir made'\no.",
    "NEWOBJ": b"cos\nsystem\n(S'mkdir made'\nt\x81.",
    "STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\nmkdir made\x85R.",
    "change a function of ours": (
        b"ctorch._utils\n_rebuild_parameter\n}S'_function'\ncos\nsystem\nsb0"
        b"ctorch._utils\n_rebuild_parameter\n(S'mkdir made'\ntR."
    ),
    "change a class of ours": b"ca\nb\n}S'__setitem__'\ncos\nsystem\nsb.",
    "persistent": b"cos\nsystem\nS'mkdir made'\n\x85RQ.",
    "append": b"ccollections\ndeque\n)R(S'a'\ncos\nsystem\ne.",
    "add": b"cbuiltins\nset\n)R(S'a'\n\x90.",
}


@pytest.mark.parametrize("case", OPCODES)
def test_no_opcode_runs_anything(tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "a.pt", {}, pickled=OPCODES[case])
    with contextlib.suppress(ValueError):
        torch_files.read(path)
    assert not (tmp_path / "made").exists()


def laughs():
    """A dictionary of ten of a dictionary of ten ..., thirty deep, in a few hundred bytes."""
    found = {"a": 1}
    for _ in range(30):
        found = {str(i): found for i in range(10)}
    return found


@pytest.mark.parametrize(
    "pickled",
    [
        b"Nr\xff\xff\xff\x7f.",  # memory for two thousand million memos
        b"\x96" + struct.pack("<Q", 2**40) + b".",  # a byte array of a terabyte
        b"\x8e" + struct.pack("<Q", 2**62) + b".",
        b"\x82\x01.",  # the extension registry
        b"(" * 100, b"", b".", b"\x80\x09N.", b"N",
    ],
)  # fmt: skip
def test_bombs_and_rubbish_are_refused(tmp_path, pickled):
    assert refused(write(tmp_path / "a.pt", {}, pickled=pickled)).startswith("damaged: ")


WIDE = b"N" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(60))
"""A tuple of twice a tuple of twice ...: 2^60 items together."""
DEEP = b"N" + b"\x85" * 300_000
"""A tuple of a tuple of ..., which ends a process that hashes it: its stack is too short."""
PLACES = {
    "the contents": b"%s.",
    "a storage": b"%sQ.",
    "a storage's key": b"(X\x07\0\0\0storagectorch\nFloatStorage\n%sX\x03\0\0\0cpuK\x01tQ.",
    "bytes": b"c_codecs\nencode\n%s\x85R.",
    "a key": b"}%sNs.",
    "two keys": b"}%sNs%sNs.",
    "a key inside": b"}X\x01\0\0\0a}%sNss.",
    "in a set": b"\x8f(%s\x90.",
    "in a frozen set": b"(%s\x91.",
    "a key in order": b"ccollections\nOrderedDict\n](%sN\x86e\x85R.",
    "a type": b"cnumpy\ndtype\n%s\x85R.",
    "a state": b"cfoo\nBar\n)R%sb.",
    "a shape": b"ctorch._utils\n_rebuild_tensor_v2\n(NK\0%s)\x89NtR.",
    "a value": b"}X\x01\0\0\0a%ss.",
}


@pytest.mark.parametrize("place", quick(["the contents", "in a set", "a type"], PLACES))
@pytest.mark.parametrize("tuples", [WIDE, DEEP], ids=["wide", "deep"])
def test_tuples_in_tuples_end_in_one_line_and_soon(tmp_path, tuples, place):
    pickled = PLACES[place].replace(b"%s", tuples)
    path, began = write(tmp_path / "a.pt", {}, pickled=pickled), time.monotonic()
    with pytest.raises(ValueError, match=r"damaged: |tensors expected, but") as caught:
        families.state_dicts("dit", torch_files.read(path))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
    assert time.monotonic() - began < 5


def towers(first):
    """A frozen set of one and of the frozen set of that one, forty high; first: of its memos."""
    floors = (b"q%c0(h%c(h%c\x91\x91" % (i, i, i) for i in range(first, first + 40))
    return b"(\x91" + b"".join(floors)


def test_frozen_sets_in_frozen_sets_are_not_compared(tmp_path):
    """Of two that are equal and not the same, that takes 2^40 steps."""
    pickled = b"}" + towers(0) + b"Ns" + towers(100) + b"Ns."
    path = write(tmp_path / "a.pt", {}, pickled=pickled)
    with pytest.raises(ValueError, match="tensors expected, but the file has"):
        families.state_dicts("dit", torch_files.read(path))


def test_tuples_as_keys_are_left_unread(tmp_path):
    path = write(tmp_path / "a.pt", {"a": A, "options": {(1, 2): {(3, (4, 5)): "x"}}})
    same(arrays(torch_files.read(path)), {"a": A})


def test_a_file_that_names_itself_is_walked_once(tmp_path):
    path = write(tmp_path / "a.pt", laughs() | {"model": dit_tensors()})
    (found,) = families.state_dicts("dit", torch_files.read(path))
    assert found.entry == "model"


@pytest.mark.parametrize(
    "wrong",
    [
        tensor(A, shape=(10**6, 10**6), strides=(0, 0)),
        tensor(A, shape=(7,)),
        tensor(A, shape=(2, 3), offset=1),
        tensor(A, shape=(2,), strides=(-1,)),
        tensor(A, shape=(2, 3), strides=(1,)),
        tensor(A, shape=(2,), strides=(1,), offset=-4),
        tensor(A, shape=(2**40, 2**40)),
    ],
)
def test_tensors_outside_of_their_storage(tmp_path, wrong):
    found = torch_files.read(write(tmp_path / "a.pt", {"a": wrong}))
    with pytest.raises(ValueError, match=r"damaged: shape|expanded from 6 numbers"):
        np.asarray(found["a"])


# --- What else is taken for weights ---------------------------------------------------------------


def zipped(**members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            archive.writestr(name.replace("__", "/").replace("_", "."), data)
    return file.getvalue()


OTHERS = {
    "it is empty": b"",
    "it is a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    "it is a web page": b"<!DOCTYPE html><html>Quota exceeded</html>",
    "it is a web page: ": b"\n <html>",
    "it is a zip archive of other things (a.png, b.png); unpack it": zipped(a_png=b"", b_png=b""),
    "it is a TorchScript program": zipped(m__data_pkl=b"N.", m__constants_pkl=b"N."),
    "its numbers are big-endian": zipped(m__data_pkl=b"N.", m__byteorder=b"big"),
    "it is an HDF5 file": b"\x89HDF\r\n\x1a\n" + bytes(99),
    "it is all zeros": bytes(999),
    "it is neither of PyTorch nor safetensors": b"what is this\n",
    "it is a tar archive": bytes(257).replace(b"\0", b"a") + b"ustar" + bytes(400),
    "it is JSON": b'{"a": 1}',
    "a pickle of something else": pickle.dumps({"a": A}, 2),
    "it is a damaged or cut safetensors file": save({"a": A})[:-3],
    "it is a damaged or cut safetensors file (": save({"a": A})[:20],
}


@pytest.mark.parametrize("what", OTHERS)
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_it_says_what_a_file_is(tmp_path, what, suffix):
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(OTHERS[what])
    assert refused(path).startswith(what)


@pytest.mark.parametrize("writer", [write, write_legacy])
def test_cut_anywhere(tmp_path, writer):
    """Refused when it is opened, whatever is missing."""
    whole = writer(tmp_path / "whole.pt", {"a": A, "b": np.ones(99, "f4")}).read_bytes()
    for end in range(0, len(whole) - 1, 61):
        (tmp_path / "a.pt").write_bytes(whole[:end])
        refused(tmp_path / "a.pt")


def test_a_changed_bit_is_found(tmp_path):
    path = write(tmp_path / "a.pt", {"a": np.full(99, 3.0, "f4")})
    data = path.read_bytes()
    path.write_bytes(data.replace(np.full(9, 3.0, "f4").tobytes(), np.full(9, 3.5, "f4").tobytes()))
    with pytest.raises(ValueError, match="damaged: Bad CRC-32"):
        np.asarray(torch_files.read(path)["a"])


def test_the_suffix_does_not_matter(tmp_path):
    write(tmp_path / "a.safetensors", {"a": A})
    save_file({"a": A}, tmp_path / "a.pt")
    for name in ("a.pt", "a.safetensors"):
        same(arrays(torch_files.read(tmp_path / name)), {"a": A})


def test_shards_by_their_index(tmp_path):
    for name, part in (("1.safetensors", {"a": A}), ("2.safetensors", {"b": A.T.copy()})):
        save_file(part, tmp_path / name)
    index = tmp_path / f"model.safetensors{torch_files.INDEX}"
    index.write_text(json.dumps({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}))
    same(arrays(torch_files.read(index)), {"a": A, "b": A.T})
    assert [p.name for p in torch_files.files(index)][1:] == ["1.safetensors", "2.safetensors"]
    for wrong in ({"a": "3.safetensors"}, {"a": "../1.safetensors"}):
        index.write_text(json.dumps({"weight_map": wrong}))
        assert "is not beside it" in refused(index)
    for text in ("", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 1}}'):
        index.write_text(text)
        assert "no index of shards" in refused(index)


# --- Where the network is in it -------------------------------------------------------------------

BASE = dit_tensors()


def blocks(inner):
    """Each block in a wrapper of its own."""
    return {f"{n[:9]}{inner}.{n[9:]}" if n.startswith("blocks") else n: t for n, t in BASE.items()}


def under(prefix, tensors=BASE):
    return {prefix + name: tensor for name, tensor in tensors.items()}


OTHER = filled(dit_shapes(), seed=1)
NAMED = Call(Name("argparse.Namespace"), state={"lr": 1})
WRAPPED = {  # contents -> (entry, prefix, what is left)
    "plain": (BASE, "", "", []),
    "compiled": (blocks("_orig_mod"), "", "", []),
    "rematerialised": (blocks("_checkpoint_wrapped_module"), "", "", []),
    "averaged": (under("module.") | {"n_averaged": A[0, 0:1]}, "", "module.", ["n_averaged"]),
    "lightning": ({"state_dict": under("model."), "epoch": 1}, "state_dict", "model.", ["epoch"]),
    "an int": (BASE | {"epoch": 3}, "", "", ["epoch"]),
    "projectors": (BASE | {"projectors.0.0.weight": A}, "", "", ["projectors"]),
    "ema": (
        {"model": OTHER, "ema": BASE, "opt": {"state": {0: A}}, "args": NAMED},
        "ema", "", ["model", "opt", "args (argparse.Namespace)"],
    ),
    "ema is the model": ({"model": BASE, "ema": BASE}, "ema", "", ["model"]),
    "ema inside": (under("model.", OTHER) | under("ema."), "", "ema.", ["model"]),
    "model_ema": (
        {"state_dict": under("net.", OTHER) | under("net_ema.module.")},
        "state_dict", "net_ema.module.", ["state_dict/net"],
    ),
    "deep": (
        {"state": {"model": under("module._orig_mod.net.")}}, "state/model",
        "module._orig_mod.net.", [],
    ),
    "other networks": (
        under("denoiser.") | under("vae.", {"encoder.a": A, "decoder.b": A}), "", "denoiser.",
        ["vae"],
    ),
    "beside a tensor": ({"model": BASE, "step": A[0, :1], "rng": A}, "model", "", ["step", "rng"]),
    "quantised": (BASE | {"scaled_fp8": A[:0], "blocks.0.attn.qkv.scale_input": A[0, :1]}, "", "",
                  ["scaled_fp8", "*.scale_input"]),
}  # fmt: skip


@pytest.mark.parametrize("case", WRAPPED)
def test_networks_are_found_wherever_they_are(tmp_path, case):
    contents, entry, prefix, left = WRAPPED[case]
    found = torch_files.read(write(tmp_path / "a.pt", contents))
    state = families.state_dicts("dit", found)[0]
    assert (state.entry, state.prefix) == (entry, prefix)
    assert state_dicts.left_unread(found, [state]) == left
    spec, params = families.from_torch("dit", state, **DIT)
    assert spec.prefix == prefix
    same(families.to_torch("dit", spec, params), under(prefix))


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (Call(Name("models.DiT"), state={}), "an object of models.DiT; save its state_dict()"),
        ({"model": Call(Name("models.DiT"))}, "the file has model (models.DiT)"),
        (A, "one tensor without a name"),
        ([A], "no names"),
        ({}, "the file has nothing"),
        (BASE | {"cap_embedder.weight": A}, "unknown: cap_embedder.weight"),
        (blocks("_orig_mod") | BASE, "there twice, with wrappers and without"),
        ({"transformer_blocks.0.a": A}, "names of diffusers"),
        ({"a": A}, "missing: x_embedder.proj.weight; is this another family's file? It has a"),
    ],
)
def test_what_is_not_the_network_is_one_line(tmp_path, contents, message):
    found = torch_files.read(write(tmp_path / "a.pt", contents))
    with pytest.raises(ValueError, match=r"^dit: ") as caught:
        families.from_torch("dit", found, **DIT)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


# --- Numbers that are none ------------------------------------------------------------------------

QKV, BIAS = "blocks.0.attn.qkv.weight", "t_embedder.mlp.0.bias"
INT8 = np.arange(24 * 8).reshape(24, 8).astype(np.int8)
SPARSE = Call(Name("torch._utils._rebuild_sparse_tensor"), Name("torch.sparse_coo"), (A, A, (2,)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({QKV: BASE[QKV] * np.nan}, f"{QKV}: 192 of 192 numbers are not finite"),
        ({BIAS: np.append(BASE[BIAS][1:], np.float32(np.inf))}, f"{BIAS}: 1 of 8 numbers are not"),
        ({BIAS: np.full(8, 1e300)}, f"{BIAS}: 8 of 8 numbers are not finite in float32"),
        ({BIAS: np.arange(8)}, f"{BIAS}: int64 without a scale"),
        ({QKV: INT8}, f"{QKV}: int8 without a scale"),
        ({BIAS: np.ones(8, "c8")}, f"{BIAS}: complex64"),
        ({BIAS: SPARSE}, f"{BIAS}: a sparse tensor"),
        ({QKV: INT8, QKV[:-6] + "weight_scale": A}, f"{QKV}: scales of shape (2, 3) are neither"),
        ({QKV: INT8, QKV[:-6] + "weight_scale_inv": A}, "unknown: blocks.0.attn.qkv.weight_scale"),
        ({BIAS: tensor(A, shape=(8,))}, f"{BIAS}: damaged: shape (8,)"),
        ({BIAS: Call(Name("torch._utils._rebuild_qtensor"))}, f"{BIAS}: a quantised tensor"),
    ],
)
def test_unusable_numbers_are_refused_by_name(tmp_path, changes, message):
    found = torch_files.read(write(tmp_path / "a.pt", BASE | changes))
    with pytest.raises(ValueError, match=r"^dit: ") as caught:
        families.from_torch("dit", found, **DIT)
    assert message in str(caught.value)


def test_what_is_not_used_may_be_anything(tmp_path):
    optimiser = {"a": tensor(np.zeros(3, np.uint8), "float8_e4m3fn"), "b": SPARSE, "c": A * np.nan}
    path = write(tmp_path / "a.pt", {"ema": BASE, "opt": optimiser})
    spec, params = families.from_torch("dit", torch_files.read(path), **DIT)
    same(families.to_torch("dit", spec, params), BASE)


@pytest.mark.parametrize("ending", ["weight_scale", "scale_weight"])
@pytest.mark.parametrize("shape", [(), (1,), (24,), (24, 1)])
@pytest.mark.parametrize("kind", ["int8", "float8_e4m3fn"])
def test_scales_are_applied(tmp_path, ending, shape, kind):
    """A number of the file times the scale of its output."""
    scale = np.linspace(0.1, 0.3, int(np.prod(shape)), dtype="f4").reshape(shape)
    stored, numbers = INT8, INT8.astype("f4")
    if kind != "int8":  # 0x30 to 0x37: 0.5 + k / 16
        eighths = np.arange(24 * 8).reshape(24, 8) % 8
        stored, numbers = tensor((0x30 + eighths).astype(np.uint8), kind), 0.5 + eighths / 16
    changes = {QKV: stored, f"{QKV[:-6]}{ending}": scale}
    found = torch_files.read(write(tmp_path / "a.pt", BASE | changes))
    spec, params = families.from_torch("dit", found, **DIT)
    wanted = numbers * (scale.reshape(-1, 1) if scale.size > 1 else scale.item())
    back = families.to_torch("dit", spec, params)[QKV]
    np.testing.assert_allclose(back, wanted, rtol=1e-6)


# --- The null class -------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["dit", "sit"])
def test_a_table_without_a_null_row(family):
    """All rows are classes; the table comes back as it was."""
    tensors = {**BASE, TABLE: BASE[TABLE][:3]}
    spec, params = families.from_torch(family, tensors, heads=2, null_row=False)
    assert spec.conditions == {"label": ("0", "1", "2")}
    assert spec.config["diffusion"]["label_dropout"] == 0
    assert "guidance" not in spec.config["sample"]
    table = params["conditions"]["label"]["table"]["embedding"]
    np.testing.assert_array_equal(table, np.append(tensors[TABLE], np.zeros((1, 8), "f4"), 0))
    same(families.to_torch(family, spec, params), tensors)


@pytest.mark.parametrize("family", ["dit", "sit", "uvit"])
def test_what_shapes_do_not_show_is_asked(family):
    shapes = {TABLE: (11, 8)} | {"label_emb.weight": (11, 8)}
    shapes = {name: np.zeros(shape) for name, shape in shapes.items()}
    if family == "uvit":
        shapes |= {
            "patch_embed.proj.weight": np.zeros((8, 3, 2, 2)),
            "pos_embed": np.zeros((1, 18, 8)),
        }
        shapes |= {"in_blocks.0.a": A, "mid_block.mlp.fc1.weight": np.zeros((32, 8))}
    else:
        shapes = {**BASE, TABLE: shapes[TABLE]}
    with pytest.raises(ValueError, match=r"null_row=True \(10 classes.* null_row=False \(11 cla"):
        families.from_torch(family, shapes, heads=2)


def test_the_published_number_of_rows_is_not_asked():
    shapes = dit_shapes(classes=1000)
    spec = families.find("dit").read(shapes, heads=2)
    assert len(spec.conditions["label"]) == 1000
    assert spec.config["sample"]["guidance"] == 1.5


def test_one_row_alone_is_no_null_class():
    tensors = {**BASE, TABLE: BASE[TABLE][:1]}
    with pytest.raises(ValueError, match=r"^dit: null_row: 1 rows .* leave no class; give False$"):
        families.from_torch("dit", tensors, **DIT)
    spec, _ = families.from_torch("dit", tensors, heads=2, null_row=False)
    assert spec.conditions == {"label": ("0",)}
