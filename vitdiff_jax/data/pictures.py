"""Pictures in a folder, a zip file or an .npz file as they are: samples to be measured, say."""

import contextlib
import pathlib
import zipfile
import zlib
from collections.abc import Iterator
from typing import Protocol

import numpy as np
from PIL import Image

from vitdiff_jax.data import transforms
from vitdiff_jax.data.files import Folder, Zip, open_path
from vitdiff_jax.data.pipeline import DataError, share

LOSSY = (".jpg", ".jpeg", ".jfif", ".webp")


class Pictures(Protocol):
    """Images of one shape, (height, width, channels).

    origin: what they are, for a person. lossy: they were compressed with loss.
    """

    shape: tuple[int, int, int]
    origin: str
    lossy: bool

    def __len__(self) -> int: ...

    def read(
        self, batch: int, first: int = 0, process: int = 0, processes: int = 1
    ) -> Iterator[np.ndarray]:
        """uint8 [batch, H, W, C] from image `first` on; the last may be smaller.

        With several processes of each batch this one's part, see `pipeline.share`.
        """
        ...


def open_pictures(path: pathlib.Path, key: str) -> Pictures:
    """The pictures of a folder or zip file by name, or those of an .npz file (ADM's layout).

    key: what named it, for errors.
    """
    return Npz(path) if path.suffix == ".npz" else Files(open_path(path, key))


class Files:
    """Pictures in files, sorted by name, all of the first one's size and colour."""

    def __init__(self, files: Folder | Zip):
        self._files, self._names = files, list(names_of(files))
        self.lossy = any(name.lower().endswith(LOSSY) for name in self._names)
        first = transforms.pixels(self._decode(self._names[0], None))
        self.shape = first.shape
        self.origin = f"{len(self._names):,} files in {files.path}"

    def __len__(self):
        return len(self._names)

    @property
    def names(self) -> list[str]:
        """The files, in the order of the images."""
        return self._names

    def read(self, batch, first=0, process=0, processes=1):
        for start in range(first, len(self), batch):
            mine = share(start, min(start + batch, len(self)), process, processes)
            yield np.stack([self._pixels(self._names[i]) for i in mine])

    def _pixels(self, name: str) -> np.ndarray:
        found = transforms.pixels(self._decode(name, self.shape[2]))
        if found.shape != self.shape:
            raise DataError(
                f"{self._files.path}: {name} has {found.shape[1]}x{found.shape[0]} pixels, but"
                f" {self._names[0]} has {self.shape[1]}x{self.shape[0]}; all must be of one size"
            )
        return found

    def _decode(self, name: str, channels: int | None) -> Image.Image:
        try:
            return transforms.decode(self._files.read(name), channels)
        except (ValueError, OSError) as error:
            raise DataError(f"{self._files.path}: {name}: {error}") from error


class Npz:
    """The array arr_0, uint8 [N, H, W, C], of an .npz file, read piece by piece."""

    def __init__(self, path: pathlib.Path):
        self._path = path
        with self._open() as (_, shape):
            self._count, self.shape = shape[0], (shape[1], shape[2], shape[3])
        self.origin, self.lossy = f"{self._count:,} images in {path}", False

    def __len__(self):
        return self._count

    def read(self, batch, first=0, process=0, processes=1):
        size, place = int(np.prod(self.shape)), 0
        with self._open() as (file, _):
            for start in range(first, self._count, batch):
                mine = share(start, min(start + batch, self._count), process, processes)
                _skip(file, (mine[0] - place) * size)
                place = mine[-1] + 1
                data = file.read((place - mine[0]) * size)
                if len(data) != (place - mine[0]) * size:
                    raise DataError(f"{self._path}: ends in image {mine[0] + len(data) // size}")
                yield np.frombuffer(data, np.uint8).reshape(-1, *self.shape)[mine - mine[0]]

    @contextlib.contextmanager
    def _open(self):
        """(the file after its header, shape)."""
        try:
            with zipfile.ZipFile(self._path) as archive, archive.open("arr_0.npy") as file:
                version = np.lib.format.read_magic(file)
                read_header = {
                    (1, 0): np.lib.format.read_array_header_1_0,
                    (2, 0): np.lib.format.read_array_header_2_0,
                }[version]
                shape, by_columns, dtype = read_header(file)
                if dtype != np.uint8 or len(shape) != 4 or by_columns or shape[3] not in (1, 3):
                    raise DataError(
                        f"{self._path}: arr_0 is {dtype} {shape}, not uint8 [N, height, width,"
                        " channels] with values 0 to 255"
                    )
                if not shape[0]:
                    raise DataError(f"{self._path}: holds no images")
                yield file, shape
        except KeyError as error:
            raise DataError(f"{self._path}: has no array arr_0 of images") from error
        except (zipfile.BadZipFile, ValueError, zlib.error) as error:
            raise DataError(f"{self._path}: not an .npz file that can be read: {error}") from error


def _skip(file, count: int) -> None:
    """Read so many bytes away: to seek would leave the zip file's checksum unchecked."""
    while count > 0 and (data := file.read(min(count, 2**24))):
        count -= len(data)


def names_of(files: Folder | Zip) -> dict[str, list[int]]:
    """What `files.files()` says of those that are called like pictures, sorted by name."""
    known = Image.registered_extensions().items()
    suffixes = {suffix for suffix, kind in known if kind in transforms.formats()}
    found = {
        name: about
        for name, about in sorted(files.files().items())
        if pathlib.PurePosixPath(name).suffix.lower() in suffixes
    }
    if not found:
        raise DataError(f"{files.path}: no images in it")
    return found
