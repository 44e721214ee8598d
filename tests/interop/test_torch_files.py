"""What PyTorch itself writes comes in as arrays; hand-made files: `test_strangers`."""

import os
import pickle
import zipfile

import numpy as np
import pytest
from safetensors.numpy import save_file

from vitdiff_jax.interop import torch_files

pytestmark = pytest.mark.extra

torch = pytest.importorskip("torch", reason='needs PyTorch: pip install -e ".[torch]"')


class Call:
    def __reduce__(self):
        return os.mkdir, ("made",)


def test_tensors_come_back(tmp_path):
    """Of every type that NumPy knows, also not contiguous ones, and parameters."""
    kinds = ["float64", "float32", "float16", "int64", "int32", "uint8", "bool"]
    given = {kind: torch.arange(6).reshape(2, 3).to(getattr(torch, kind)) for kind in kinds}
    given |= {"turned": given["float32"].T, "weight": torch.nn.Parameter(torch.ones(2))}
    torch.save(given, tmp_path / "a.pth")
    found = torch_files.read(tmp_path / "a.pth")
    assert found.keys() == given.keys()
    for kind in kinds:
        assert found[kind].dtype == kind
        np.testing.assert_array_equal(found[kind], np.arange(6).reshape(2, 3).astype(kind))
    np.testing.assert_array_equal(found["turned"], np.arange(6).reshape(2, 3).T)
    np.testing.assert_array_equal(found["weight"], [1, 1])


def test_bfloat16_becomes_float32(tmp_path):
    """Of numbers that it holds exactly, beyond what float16 could."""
    torch.save({"a": torch.tensor([1.5, -(2.0**100)]).bfloat16()}, tmp_path / "a.pt")
    found = torch_files.read(tmp_path / "a.pt")["a"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, [1.5, -(2.0**100)])


def test_numpy_arrays_that_torch_saved_with_numpy_1(tmp_path):
    """Whose module was called otherwise: most files of statistics are older than NumPy 2."""
    torch.save({"mu": np.arange(3.0)}, tmp_path / "new.pt")
    with (
        zipfile.ZipFile(tmp_path / "new.pt") as new,
        zipfile.ZipFile(tmp_path / "old.pt", "w") as old,
    ):
        for name in new.namelist():
            data = new.read(name)
            old.writestr(name, data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    np.testing.assert_array_equal(torch_files.read(tmp_path / "old.pt")["mu"], np.arange(3.0))


@pytest.mark.parametrize("zipped", [True, False])
def test_code_does_not_run(tmp_path, monkeypatch, zipped):
    """In PyTorch's file, from which all else is read, and as a plain pickle, which is refused."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.pt"
    if zipped:
        torch.save({"a": torch.ones(2), "b": Call()}, path)
        found = torch_files.read(path)
        np.testing.assert_array_equal(found["a"], [1, 1])
        assert found["b"].name.endswith(".mkdir")
    else:
        path.write_bytes(pickle.dumps({"b": Call()}, 2))
        with pytest.raises(ValueError, match=r"a\.pt: not a file of tensors: a pickle of some"):
            torch_files.read(path)
    assert not (tmp_path / "made").exists()
    torch.load(path, weights_only=False) if zipped else pickle.loads(path.read_bytes())
    assert (tmp_path / "made").exists()  # so it was code


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_damaged_files_are_named_in_one_line(tmp_path, suffix):
    whole = tmp_path / f"whole{suffix}"
    if suffix == ".safetensors":
        save_file({"a": np.ones(1000)}, whole)
    else:
        torch.save({"a": torch.ones(1000)}, whole)
    path = tmp_path / f"a{suffix}"
    for data in (b"", whole.read_bytes()[:1500], b"no tensors\n" * 9):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=f"^{path}: not a") as caught:
            torch_files.read(path)
        assert "\n" not in str(caught.value)


def test_safetensors_come_back(tmp_path):
    given = {"a": np.arange(6, dtype=np.float16).reshape(2, 3), "b": np.ones((), np.int64)}
    save_file(given, tmp_path / "a.safetensors")
    found = torch_files.read(tmp_path / "a.safetensors")
    assert found.keys() == given.keys()
    for name in given:
        assert found[name].dtype == given[name].dtype
        np.testing.assert_array_equal(found[name], given[name])


def test_bfloat16_safetensors_become_float32(tmp_path):
    from safetensors.torch import save_file as save_tensors

    save_tensors({"a": torch.tensor([1.5, -2]).bfloat16()}, tmp_path / "a.safetensors")
    found = torch_files.read(tmp_path / "a.safetensors")["a"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, [1.5, -2])


def test_a_missing_file_is_missing(tmp_path):
    for name in ("a.pt", "a.safetensors"):
        with pytest.raises(FileNotFoundError):
            torch_files.read(tmp_path / name)
