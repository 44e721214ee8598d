"""Sets of images of one size in a folder, zip file or .npz file, such as samples to evaluate."""

import contextlib
import itertools
import pathlib
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

import numpy as np

from vitdiff_jax.data import listing
from vitdiff_jax.data.files import Folder, Zip, open_path
from vitdiff_jax.data.pipeline import DataError, shard
from vitdiff_jax.runtime import pictures

T = TypeVar("T")
LOSSY = (".jpg", ".jpeg", ".jfif", ".webp")


class ImageSet(Protocol):
    """Images of one shape, (height, width, channels).

    origin: a description for the log. lossy: whether the files use lossy compression.
    """

    shape: tuple[int, int, int]
    origin: str
    lossy: bool

    def __len__(self) -> int: ...

    def read(
        self, batch: int, first: int = 0, process: int = 0, processes: int = 1
    ) -> Iterator[np.ndarray]:
        """Batches uint8 [batch, H, W, C] from image `first` on; the last may be smaller.

        With several processes, this one's part of each batch, see `pipeline.shard`.
        """
        ...


def open_images(path: pathlib.Path, key: str) -> ImageSet:
    """The images of a folder or zip file, sorted by name, or of an .npz file in ADM's layout.

    key: the option that names the path, for errors. Raises DataError for anything else.
    """
    if not path.exists():
        raise DataError(f"{path}: no such folder or zip file ({key})")
    kind = path.suffix.lower()
    if kind == ".npz" and not path.is_dir():
        return Npz(path)
    if path.is_dir() or kind == ".zip" or zipfile.is_zipfile(path):
        return Files(open_path(path, key))
    what = "one picture" if kind in listing.suffixes() else f"a {kind or 'plain'} file"
    hint = "; from Python: np.savez(PATH, arr_0=images)" if kind == ".npy" else ""
    raise DataError(
        f"{path}: {what}, but {key} takes a folder or zip file of pictures, or an .npz file with"
        f" the array arr_0, uint8 [N, height, width, 1 or 3]{hint}"
    )


class Files:
    """Images in files, sorted by name, all of one size; in colour if any of them is.

    Raises DataError if their sizes differ.
    """

    def __init__(self, files: Folder | Zip):
        found = listing.images(files)
        self._files, self._names = files, list(found.found)
        self.lossy = any(name.lower().endswith(LOSSY) for name in self._names)
        heads = [self._read(name, _head) for name in self._names]
        shapes, counts, inks = zip(*heads)
        for name, shape in zip(self._names, shapes):
            if shape[:2] != shapes[0][:2]:
                raise DataError(
                    f"{files.path}: {name} has {shape[1]}x{shape[0]} pixels, but {self._names[0]}"
                    f" has {shapes[0][1]}x{shapes[0][0]}; all must have one size"
                )
        grey = sum(shape[2] == 1 for shape in shapes)
        channels = 1 if grey == len(shapes) else 3
        self.shape = (shapes[0][0], shapes[0][1], int(channels))
        self.origin = f"{len(self._names):,} files in {files.path}"
        several = [name for name, count in zip(self._names, counts) if count > 1]
        left = listing.summary(found.left_out)
        self.origin += f" (left out: {left})" if left else ""
        if several:
            self.origin += f" (of several frames or pages the first: {listing.some(several)})"
        if cmyk := list(itertools.compress(self._names, inks)):
            self.origin += f" (CMYK as RGB: {listing.some(cmyk)})"
        if 0 < grey < len(shapes):
            self.origin += f" ({grey:,} grey ones as colour, {len(shapes) - grey:,} in colour)"

    def __len__(self):
        return len(self._names)

    @property
    def names(self) -> list[str]:
        """The file names, in the order of the images."""
        return self._names

    def read(self, batch, first=0, process=0, processes=1):
        for start in range(first, len(self), batch):
            mine = shard(start, min(start + batch, len(self)), process, processes)
            yield np.stack([self._pixels(self._names[i]) for i in mine])

    def _pixels(self, name: str) -> np.ndarray:
        return self._read(name, pictures.read).on_white(self.shape[2])

    def _read(self, name: str, how: Callable[[bytes], T]) -> T:
        data = None
        try:
            data = self._files.read(name)
            return how(data)
        except (ValueError, OSError) as error:
            why = str(error) if data is None else listing.why(data, str(error))
            raise DataError(f"{self._files.path}: {name}: {why}") from error


def _head(data: bytes) -> tuple[tuple[int, int, int], int, bool]:
    """The shape of a picture, how many the file holds, and whether it is CMYK."""
    size = listing.size_of(data)
    return pictures.shape(data), pictures.count(data), size is not None and size[3]


class Npz:
    """The array arr_0, uint8 [N, H, W, C], of an .npz file, read incrementally."""

    def __init__(self, path: pathlib.Path):
        self._path = path
        with self._open() as (_, shape):
            self._count, self.shape = shape[0], (shape[1], shape[2], shape[3])
        self.origin, self.lossy = f"{self._count:,} images in {path}", False

    def __len__(self):
        return self._count

    def read(self, batch, first=0, process=0, processes=1):
        size, position = int(np.prod(self.shape)), 0
        with self._open() as (file, _):
            for start in range(first, self._count, batch):
                mine = shard(start, min(start + batch, self._count), process, processes)
                _skip(file, (mine[0] - position) * size)
                position = mine[-1] + 1
                data = file.read((position - mine[0]) * size)
                if len(data) != (position - mine[0]) * size:
                    raise DataError(f"{self._path}: ends in image {mine[0] + len(data) // size}")
                yield np.frombuffer(data, np.uint8).reshape(-1, *self.shape)[mine - mine[0]]

    @contextlib.contextmanager
    def _open(self):
        """(file positioned after the header, shape)."""
        try:
            with zipfile.ZipFile(self._path) as archive, archive.open("arr_0.npy") as file:
                version = np.lib.format.read_magic(file)
                read_header = {
                    (1, 0): np.lib.format.read_array_header_1_0,
                    (2, 0): np.lib.format.read_array_header_2_0,
                }[version]
                shape, fortran_order, dtype = read_header(file)
                if dtype != np.uint8 or len(shape) != 4 or fortran_order or shape[3] not in (1, 3):
                    raise DataError(
                        f"{self._path}: arr_0 is {dtype} {shape}, not uint8 [N, height, width,"
                        " channels] with values 0 to 255"
                    )
                if not shape[0]:
                    raise DataError(f"{self._path}: contains no images")
                yield file, shape
        except KeyError as error:
            raise DataError(f"{self._path}: has no array arr_0 of images") from error
        except (zipfile.BadZipFile, ValueError, zlib.error) as error:
            raise DataError(f"{self._path}: not a readable .npz file: {error}") from error


def _skip(file, count: int) -> None:
    """Read and discard bytes: seeking would bypass the checksum of the zip file."""
    while count > 0 and (data := file.read(min(count, 2**24))):
        count -= len(data)


def image_names(files: Folder | Zip) -> dict[str, list[int]]:
    """`files.files()` restricted to images, see `listing`, sorted by name."""
    return listing.images(files).found
