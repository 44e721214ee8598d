"""Images written piece by piece: NumPy reads the file, and an interruption loses nothing."""

import zipfile

import numpy as np
import pytest

from vitdiff_jax.interop import images
from vitdiff_jax.interop.images import NpzWriter

GIVEN = np.random.default_rng(0).integers(0, 256, (7, 3, 5, 3), np.uint8)


def assert_written(path, wanted=GIVEN):
    """One array, arr_0, byte for byte as np.save writes it, and nothing beside the file."""
    with np.load(path, allow_pickle=False) as file:
        assert file.files == ["arr_0"]
        np.testing.assert_array_equal(file["arr_0"], wanted)
    assert [other.name for other in path.parent.iterdir()] == [path.name]
    with zipfile.ZipFile(path) as archive, (path.parent / "saved.npy").open("w+b") as saved:
        np.save(saved, np.ascontiguousarray(wanted))
        saved.seek(0)
        assert archive.read("arr_0.npy") == saved.read()
        assert archive.getinfo("arr_0.npy").compress_type == zipfile.ZIP_STORED


@pytest.mark.parametrize("order", ["0123456", "6543210", "0135246"])
def test_numpy_reads_it_whatever_came_first(tmp_path, order):
    writer = NpzWriter(tmp_path / "a.npz", GIVEN.shape)
    for i in map(int, order):
        writer.write(i, GIVEN[i : i + 1])
    assert not (tmp_path / "a.npz").exists()
    writer.close(7)
    assert_written(tmp_path / "a.npz")


def test_images_that_lie_otherwise_in_memory(tmp_path):
    for i, turned in enumerate((np.asfortranarray(GIVEN), GIVEN[:, ::-1])):
        (tmp_path / str(i)).mkdir()
        images.save_npz(tmp_path / str(i) / "a.npz", turned)
        assert_written(tmp_path / str(i) / "a.npz", turned)


@pytest.mark.parametrize("done", [0, 1, 4, 5])
def test_goes_on_after_a_cut(tmp_path, done):
    """The first `done` stay; what lies behind them, half images too, is written over or cut off."""
    wrong = np.concatenate([GIVEN[:done], 255 - GIVEN[done:]])
    NpzWriter(tmp_path / "a.npz", GIVEN.shape).write(0, wrong[:5])
    with (tmp_path / "a.npz.partial").open("ab") as partial:
        partial.write(b"half an image, or more than there will be" * 99)
    writer = NpzWriter(tmp_path / "a.npz", GIVEN.shape)
    writer.write(done, GIVEN[done:])
    writer.close(7)
    assert_written(tmp_path / "a.npz")


def test_an_interruption_while_packing_leaves_no_npz(tmp_path, monkeypatch):
    def cut(*_, **__):
        raise KeyboardInterrupt

    writer = NpzWriter(tmp_path / "a.npz", GIVEN.shape)
    writer.write(0, GIVEN)
    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "open", cut)
        with pytest.raises(KeyboardInterrupt):
            writer.close(7)
    assert not (tmp_path / "a.npz").exists()
    NpzWriter(tmp_path / "a.npz", GIVEN.shape).close(7)
    assert_written(tmp_path / "a.npz")


def test_a_file_of_an_earlier_run_is_kept_until_the_new_one_is_whole(tmp_path):
    images.save_npz(tmp_path / "a.npz", GIVEN[:2])
    writer = NpzWriter(tmp_path / "a.npz", GIVEN.shape)
    writer.write(0, GIVEN)
    with np.load(tmp_path / "a.npz") as file:
        np.testing.assert_array_equal(file["arr_0"], GIVEN[:2])
    writer.close(7)
    assert_written(tmp_path / "a.npz")
