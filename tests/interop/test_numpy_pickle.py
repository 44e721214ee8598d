"""Pickles give arrays or an error; what they name otherwise is never called."""

import collections
import os
import pickle

import numpy as np
import pytest

from vitdiff_jax.interop import numpy_pickle

TREE = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "columns first": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "inside": {"of": [np.array(3, np.int8), (np.array(["x", "yz"]), np.zeros((0, 2)))]},
    "plain": [1, 2.5, "text", None, True],
}


class Call:
    """Pickles to a call of `function` with these arguments."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def same(found, wanted):
    """Equal in types and values, all the way down."""
    assert type(found) is type(wanted)
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        return all(same(found[name], wanted[name]) for name in wanted)
    if isinstance(wanted, list | tuple):
        return len(found) == len(wanted) and all(map(same, found, wanted))
    if isinstance(wanted, np.ndarray):
        return found.dtype == wanted.dtype and np.array_equal(found, wanted)
    return found == wanted


@pytest.mark.parametrize("protocol", [3, 4])
def test_arrays_come_back(tmp_path, protocol):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(TREE, protocol))
    assert same(numpy_pickle.read(tmp_path / "a.pkl"), TREE)


def test_files_of_numpy_1_are_read(tmp_path):
    """Their arrays name a module that was called otherwise."""
    data = pickle.dumps(TREE["a"], 3)
    old = data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert old != data
    (tmp_path / "a.pkl").write_bytes(old)
    assert same(numpy_pickle.read(tmp_path / "a.pkl"), TREE["a"])


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_call_is_refused_and_nothing_runs(tmp_path, monkeypatch, protocol):
    """At any depth, also inside an array of objects, and before what comes behind it."""
    monkeypatch.chdir(tmp_path)
    call, objects = Call(os.mkdir, "made"), np.empty(2, object)
    objects[1] = call
    for tree in (call, {"a": TREE["a"], "b": [call]}, objects):
        (tmp_path / "a.pkl").write_bytes(pickle.dumps(tree, protocol))
        with pytest.raises(
            ValueError, match=r"a\.pkl: not a pickle of NumPy arrays: .* is not a Nu"
        ):
            numpy_pickle.read(tmp_path / "a.pkl")
        assert not (tmp_path / "made").exists()
    pickle.loads(pickle.dumps(call))
    assert (tmp_path / "made").exists()  # so it was a call


@pytest.mark.parametrize(
    ("thing", "name"),
    [
        (os.system, f"{os.system.__module__}.system"),
        (collections.OrderedDict(a=1), "collections.OrderedDict"),
        (Call, "tests.interop.test_numpy_pickle.Call"),
        (np.load, "numpy.load"),
        (np.random.default_rng(0), "numpy.random._pickle.__generator_ctor"),
        (eval, "builtins.eval"),
    ],
)
def test_what_is_refused_is_named(tmp_path, thing, name):
    """Classes and functions too, which would only be used later; NumPy's own as well."""
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"a": thing}))
    with pytest.raises(ValueError, match=f"{name} is not a NumPy array"):
        numpy_pickle.read(tmp_path / "a.pkl")


def test_an_array_of_objects_holds_what_the_rest_may_hold(tmp_path):
    objects = np.empty(3, object)
    objects[:] = [1, "text", None]
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(objects, 4))
    assert same(numpy_pickle.read(tmp_path / "a.pkl"), objects)


def test_a_damaged_file_says_so(tmp_path):
    whole = pickle.dumps(TREE, 4)
    path = tmp_path / "a.pkl"
    for data in (*(whole[:end] for end in range(0, len(whole), 7)), b"no pickle\n"):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"a\.pkl: not a pickle of NumPy arrays") as caught:
            numpy_pickle.read(path)
        assert "\n" not in str(caught.value)


def test_a_missing_file_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        numpy_pickle.read(tmp_path / "a.pkl")
