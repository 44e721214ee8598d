"""Sets of images of one size in a folder, zip file or .npz file, such as samples to evaluate."""

import contextlib
import pathlib
import zipfile
import zlib
from collections.abc import Iterator
from typing import Protocol

import numpy as np
from PIL import Image

from vitdiff_jax.data import listing, transforms
from vitdiff_jax.data.files import Folder, Zip, open_path
from vitdiff_jax.data.pipeline import DataError, shard

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

    key: the option that names the path, for errors.
    """
    return Npz(path) if path.suffix == ".npz" else Files(open_path(path, key))


class Files:
    """Images in files, sorted by name, all of the size and number of channels of the first."""

    def __init__(self, files: Folder | Zip):
        found = listing.images(files)
        self._files, self._names = files, list(found.found)
        self.lossy = any(name.lower().endswith(LOSSY) for name in self._names)
        first = transforms.pixels(self._decode(self._names[0], None))
        self.shape = first.shape
        left = listing.summary(found.left_out)
        self.origin = f"{len(self._names):,} files in {files.path}"
        self.origin += f" (left out: {left})" if left else ""

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
        found = transforms.pixels(self._decode(name, self.shape[2]))
        if found.shape != self.shape:
            raise DataError(
                f"{self._files.path}: {name} has {found.shape[1]}x{found.shape[0]} pixels, but"
                f" {self._names[0]} has {self.shape[1]}x{self.shape[0]}; all must have one size"
            )
        return found

    def _decode(self, name: str, channels: int | None) -> Image.Image:
        try:
            return transforms.decode(self._files.read(name), channels)
        except (ValueError, OSError) as error:
            raise DataError(f"{self._files.path}: {name}: {error}") from error


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
