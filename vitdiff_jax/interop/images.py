"""Conversion between uint8 and float32 in [-1, 1], image grids, and PNG and .npz files."""

import io
import pathlib
import shutil
import struct
import zipfile
import zlib
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from etils import epath
from PIL import Image, PngImagePlugin

from vitdiff_jax.runtime import paths


def from_uint8(u):
    """uint8 0..255 to float32 in [-1, 1]: x = u / 127.5 - 1."""
    return jnp.asarray(u, jnp.float32) / 127.5 - 1


def as_floats(image):
    """uint8 images by `from_uint8`; float images, which are latents, unchanged."""
    return from_uint8(image) if image.dtype == np.uint8 else image


def to_uint8(x):
    """float in [-1, 1] to uint8, rounded and clipped: u = clip(round(127.5 (x + 1)), 0, 255)."""
    return jnp.clip(jnp.round(127.5 * (x + 1)), 0, 255).astype(jnp.uint8)


def grid(images: np.ndarray, columns: int, gutter: int = 2, min_size: int = 48) -> np.ndarray:
    """Arrange images uint8 [N, H, W, C] in a grid, row by row, with white gutters.

    Images smaller than `min_size` pixels are enlarged by an integer factor without interpolation.
    """
    factor = max(1, -(-min_size // min(images.shape[1:3])))
    images = images.repeat(factor, 1).repeat(factor, 2)
    n, h, w, c = images.shape
    rows = -(-n // columns)
    sheet = np.full(
        (rows * (h + gutter) + gutter, columns * (w + gutter) + gutter, c), 255, np.uint8
    )
    for i, image in enumerate(images):
        top, left = (gutter + k * (s + gutter) for k, s in zip(divmod(i, columns), (h, w)))
        sheet[top : top + h, left : left + w] = image
    return sheet


def cells(sheet: np.ndarray, rows: int, columns: int, gutter: int = 2) -> np.ndarray:
    """Split a full `grid` [H, W, C] into its images [rows, columns, h, w, C], still enlarged.

    Raises ValueError if the size does not match.
    """
    height, width = ((s - gutter) / n - gutter for s, n in zip(sheet.shape, (rows, columns)))
    if min(height, width) < 1 or height % 1 or width % 1:
        raise ValueError(
            f"{sheet.shape[1]}x{sheet.shape[0]} pixels are not a grid of {rows} x {columns} images"
        )
    h, w = int(height), int(width)
    cut = sheet[gutter:, gutter:].reshape(rows, h + gutter, columns, w + gutter, -1)
    return cut[:, :h, :, :w].swapaxes(1, 2)


def save_png(
    path: epath.Path, image: np.ndarray, profile: bytes = b"", text: Mapping[str, str] = {}
) -> None:
    """Write uint8 or uint16 [H, W, C] as PNG, atomically.

    C: 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA. profile: an ICC profile; left out where its colour
    space is not that of the image.
    text: text chunks, by keyword: Latin-1 of 1 to 79 letters.
    """
    if profile[16:20] != (b"GRAY" if image.shape[-1] < 3 else b"RGB "):
        profile = b""
    if image.dtype == np.uint16:
        paths.write(path, _png16(image, profile, text))
        return
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    chunks = PngImagePlugin.PngInfo()
    for keyword, value in text.items():
        chunks.add_itxt(keyword, value, zip=True)
    picture.save(file := io.BytesIO(), format="PNG", icc_profile=profile or None, pnginfo=chunks)
    paths.write(path, file.getvalue())


def _png16(image: np.ndarray, profile: bytes, text: Mapping[str, str]) -> bytes:
    """uint16 [H, W, C] as a PNG file; Pillow writes 16 bits for grey images only.

    Each byte is stored as its difference to the previous pixel's (PNG's filter "Sub").
    """
    height, width, channels = image.shape
    pixels = np.ascontiguousarray(image, ">u2").view(np.uint8).reshape(height, -1, 2 * channels)
    lines = np.diff(pixels, axis=1, prepend=np.uint8(0)).reshape(height, -1)
    lines = np.pad(lines, ((0, 0), (1, 0)), constant_values=1)  # [H, 1 + 2 W C]
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)),
        *([(b"iCCP", b"ICC Profile\0\0" + zlib.compress(profile))] if profile else []),
        *((b"iTXt", _international(*chunk)) for chunk in text.items()),
        (b"IDAT", zlib.compress(lines.tobytes())),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


def _international(keyword: str, text: str) -> bytes:
    """The contents of a compressed text chunk in UTF-8, without a language."""
    return keyword.encode("latin-1") + b"\0\1\0\0\0" + zlib.compress(text.encode())


def save_npz(path: epath.Path, images: np.ndarray) -> None:
    """Write uint8 [N, H, W, C] in the format of ADM's evaluator: one array, arr_0."""
    writer = NpzWriter(path, images.shape)
    writer.write(0, images)
    writer.close(len(images))


def check_npz(workdir: epath.Path) -> None:
    """Refuse a workdir without incremental writes. Raises OSError."""
    if paths.remote(workdir):
        raise OSError(f"--npz: {workdir} does not support incremental writes; use a local folder")


class NpzWriter:
    """Write images uint8 [N, H, W, C] incrementally to an .npz file for ADM's evaluator.

    Until `close` they are in PATH.partial, from which an interrupted run resumes.
    """

    def __init__(self, path: epath.Path, shape: tuple[int, ...]):
        self.path, self.partial = path, pathlib.Path(paths.partial_path(path))
        header = io.BytesIO()
        about = {"descr": "|u1", "fortran_order": False, "shape": tuple(shape)}
        np.lib.format.write_array_header_1_0(header, about)
        self._start, self._size = len(header.getvalue()), int(np.prod(shape[1:]))
        self._file = self.partial.open("r+b" if self.partial.exists() else "wb")
        self._file.write(header.getvalue())

    def write(self, first: int, images: np.ndarray) -> None:
        """Write images at index `first` and the following ones."""
        self._file.seek(self._start + first * self._size)
        self._file.write(np.ascontiguousarray(images).tobytes())
        self._file.flush()

    def close(self, count: int) -> None:
        """Finish the .npz file of `count` images."""
        self._file.truncate(self._start + count * self._size)
        self._file.close()
        packed = self.partial.with_name(self.path.name + ".packing")
        member = zipfile.ZipInfo("arr_0.npy")  # dated 1980, as in NumPy: reproducible bytes
        with (
            zipfile.ZipFile(packed, "w") as archive,
            archive.open(member, "w", force_zip64=True) as target,
            self.partial.open("rb") as source,
        ):
            shutil.copyfileobj(source, target, 2**20)
        packed.replace(self.path)
        self.partial.unlink()
