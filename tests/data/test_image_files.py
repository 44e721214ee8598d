"""Pictures to be measured, from folders, zip files and .npz files: all of them, in order, as is."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from vitdiff_jax.data import image_files
from vitdiff_jax.data.files import Folder
from vitdiff_jax.data.pipeline import DataError

COUNT = 7


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (COUNT, 5, 4, 3), np.uint8)


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, kind, **options)
    return file.getvalue()


def stored(images, kind, home):
    """The images as a folder, a zip file (both written backwards) or an .npz file."""
    if kind == "npz":
        np.savez(home / "images.npz", arr_0=images)
        return home / "images.npz"
    names = {f"{i:03d}.png": encoded(image) for i, image in reversed(list(enumerate(images)))}
    if kind == "folder":
        (home / "images").mkdir()
        for name, data in names.items():
            (home / "images" / name).write_bytes(data)
        return home / "images"
    with zipfile.ZipFile(home / "images.zip", "w") as archive:
        for name, data in names.items():
            archive.writestr(f"inside/{name}", data)
    return home / "images.zip"


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["folder", "zip", "npz"])
def test_every_image_once_in_order_from_any_place_on(images, tmp_path, kind, channels):
    """`first` is where an interrupted measurement goes on; the last batch is smaller."""
    images = images[..., :channels]
    found = image_files.open_images(stored(images, kind, tmp_path), "--samples")
    assert (len(found), found.shape, found.lossy) == (COUNT, (5, 4, channels), False)
    assert f"{COUNT} " in found.origin
    for first in (0, 2, 3, COUNT):
        parts = list(found.read(3, first))
        assert all(len(part) == 3 for part in parts[:-1])
        assert all(part.dtype == np.uint8 for part in parts)
        np.testing.assert_array_equal(np.concatenate([images[:first], *parts]), images, strict=True)


@pytest.mark.parametrize("processes", [2, 3, 5])
@pytest.mark.parametrize("kind", ["folder", "npz"])
def test_processes_share_each_batch(images, tmp_path, kind, processes):
    found = image_files.open_images(stored(images, kind, tmp_path), "--samples")
    shares = [found.read(4, 1, process, processes) for process in range(processes)]
    for batch, *parts in zip(found.read(4, 1), *shares, strict=True):
        side_by_side = np.concatenate(parts)
        assert len(side_by_side) < len(batch) + processes
        np.testing.assert_array_equal(side_by_side[: len(batch)], batch)


def test_what_is_no_picture_or_hidden_is_left_out(images, tmp_path):
    home = stored(images, "folder", tmp_path)
    (home / "about.txt").write_text("?")
    (home / ".hidden.png").write_text("?")
    found = image_files.open_images(home, "--samples")
    assert found.names == [f"{i:03d}.png" for i in range(COUNT)]


@pytest.mark.parametrize("name", ["000.jpg", "999.JPEG", "500.webp"])
def test_one_file_with_loss_is_enough_to_say_so(images, tmp_path, name):
    home = stored(images, "folder", tmp_path)
    kind = "WEBP" if name.endswith("webp") else "JPEG"
    (home / name).write_bytes(encoded(images[0], kind))
    assert image_files.open_images(home, "--samples").lossy


@pytest.mark.parametrize("grey", [0, 3, COUNT - 1])
def test_one_in_colour_is_enough(images, tmp_path, grey):
    """A grey picture among colours, be it the first, is one with three equal channels; said."""
    home = stored(images, "folder", tmp_path)
    (home / f"{grey:03d}.png").write_bytes(encoded(images[grey, :, :, :1]))
    found = image_files.open_images(home, "--samples")
    (part,) = found.read(COUNT)
    images[grey] = images[grey, :, :, :1]
    np.testing.assert_array_equal(part, images)
    assert f"(1 grey ones as colour, {COUNT - 1} in colour)" in found.origin


def test_another_size_is_refused_with_both_names(images, tmp_path):
    home = stored(images, "folder", tmp_path)
    (home / "005.png").write_bytes(encoded(images[5].transpose(1, 0, 2)))
    with pytest.raises(DataError) as caught:
        image_files.open_images(home, "--samples")
    assert str(caught.value).startswith(
        f"{home}: 005.png has 5x4 pixels, but 000.png has 4x5; all must have one size"
    )


@pytest.mark.parametrize("name", ["000.png", "004.png"])
def test_a_broken_picture_is_named(images, tmp_path, name):
    """It is not left out: the samples of a model would seem better or worse than they are."""
    home = stored(images, "folder", tmp_path)
    (home / name).write_bytes((home / name).read_bytes()[:40])
    with pytest.raises(DataError, match=f"{name}: "):
        list(image_files.Files(Folder(home)).read(3))


def test_nothing_there(tmp_path):
    with pytest.raises(DataError, match="contains no images"):
        image_files.open_images(tmp_path, "--samples")
    with pytest.raises(DataError, match="no such folder or zip file"):
        image_files.open_images(tmp_path / "none", "--samples")
    with pytest.raises(DataError, match=r"none\.npz: no such"):
        image_files.open_images(tmp_path / "none.npz", "--samples")


@pytest.mark.parametrize("packed", [False, True])
def test_an_npz_may_be_packed_and_hold_other_arrays(images, tmp_path, packed):
    """ADM's files of samples have their labels in arr_1."""
    path = tmp_path / "images.npz"
    (np.savez_compressed if packed else np.savez)(path, images, np.arange(COUNT))
    (part,) = image_files.Npz(path).read(COUNT)
    np.testing.assert_array_equal(part, images, strict=True)


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a / 255,  # floats: of 0 to 1 or -1 to 1, or of 0 to 255?
        lambda a: np.full(a.shape, np.nan, np.float32),
        lambda a: a.astype(np.int32),
        lambda a: a[0],
        lambda a: a[..., 0],
        lambda a: a.transpose(0, 3, 1, 2),
        lambda a: np.asfortranarray(a),
        lambda a: a.repeat(2, -1),
    ],
    ids=["floats", "NaN", "int32", "one", "flat", "channels first", "by columns", "six channels"],
)
def test_other_arrays_are_refused(images, tmp_path, change):
    np.savez(tmp_path / "images.npz", arr_0=change(images))
    with pytest.raises(DataError, match=r"images\.npz: arr_0 is .*, not uint8 \[N, height, width"):
        image_files.open_images(tmp_path / "images.npz", "--samples")


def test_an_npz_without_images(tmp_path):
    np.savez(tmp_path / "images.npz", mu=np.zeros(3))
    with pytest.raises(DataError, match="has no array arr_0 of images"):
        image_files.open_images(tmp_path / "images.npz", "--samples")


def refused(path):
    """The message about an .npz file that is opened and read to its end."""
    with pytest.raises(DataError) as caught:
        list(image_files.Npz(path).read(2))
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.95])
def test_a_file_that_was_cut_off(images, tmp_path, kept):
    path = stored(images, "npz", tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[: kept if isinstance(kept, int) else int(kept * len(data))])
    refused(path)


@pytest.mark.parametrize("packed", [False, True])
def test_a_file_with_changed_bytes(images, tmp_path, packed):
    """Pixels are covered by the zip file's checksums."""
    path = tmp_path / "images.npz"
    (np.savez_compressed if packed else np.savez)(path, arr_0=images)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    refused(path)


def test_fewer_pixels_than_the_header_says(images, tmp_path):
    path = tmp_path / "images.npz"
    header = io.BytesIO()
    about = {"descr": "|u1", "fortran_order": False, "shape": (COUNT + 1, *images.shape[1:])}
    np.lib.format.write_array_header_1_0(header, about)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("arr_0.npy", header.getvalue() + images.tobytes())
    with pytest.raises(DataError, match=f"ends in image {COUNT}"):
        list(image_files.Npz(path).read(3))


def test_a_folder_called_npz_is_a_folder(images, tmp_path):
    stored(images, "folder", tmp_path).rename(tmp_path / "images.npz")
    assert len(image_files.open_images(tmp_path / "images.npz", "--samples")) == COUNT


@pytest.mark.parametrize(
    ("name", "words"),
    [("a.npy", r"a \.npy file.*np\.savez\(PATH, arr_0=images\)"), ("a.png", "one picture"),
     ("a.PNG", "one picture"), ("a.tar", r"a \.tar file"), ("a", "a plain file"),
     ("a.zip", "not a readable zip file")],
)  # fmt: skip
def test_what_is_no_set_says_what_is_wanted(tmp_path, name, words):
    (tmp_path / name).write_bytes(b"?")
    with pytest.raises(DataError, match=words) as caught:
        image_files.open_images(tmp_path / name, "--truth")
    if name != "a.zip":
        assert "--truth takes a folder or zip file of pictures, or an .npz" in str(caught.value)


def test_a_zip_file_of_any_name(images, tmp_path):
    path = stored(images, "zip", tmp_path).rename(tmp_path / "images.cbz")
    assert len(image_files.open_images(path, "--samples")) == COUNT
