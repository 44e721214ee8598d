"""Images in and out: uint8 at the edges, float32 in [-1, 1] inside; grids and photos as PNG."""

import io
import pathlib
import shutil
import struct
import zipfile
import zlib

import jax.numpy as jnp
import numpy as np
from etils import epath
from PIL import Image

from vitdiff_jax.runtime import paths


def from_uint8(u):
    """uint8 0..255 to float32 in [-1, 1]: x = u / 127.5 - 1."""
    return jnp.asarray(u, jnp.float32) / 127.5 - 1


def as_floats(image):
    """uint8 images as `from_uint8` has them; floats, which are latents, as they are."""
    return from_uint8(image) if image.dtype == np.uint8 else image


def to_uint8(x):
    """float in [-1, 1] to uint8, rounded and clipped: u = clip(round(127.5 (x + 1)), 0, 255)."""
    return jnp.clip(jnp.round(127.5 * (x + 1)), 0, 255).astype(jnp.uint8)


def grid(images: np.ndarray, columns: int, gutter: int = 2, least: int = 48) -> np.ndarray:
    """Put images uint8 [N, H, W, C] into one, row by row, with white gutters.

    Images smaller than `least` pixels are enlarged by a whole factor, so that a person can see
    them and no pixel is invented.
    """
    factor = max(1, -(-least // min(images.shape[1:3])))
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
    """The images of a `grid` of whole rows, [rows, columns, h, w, C], as large as they are there.

    ValueError if the sheet [H, W, C] cannot be such a grid.
    """
    height, width = ((s - gutter) / n - gutter for s, n in zip(sheet.shape, (rows, columns)))
    if min(height, width) < 1 or height % 1 or width % 1:
        raise ValueError(
            f"{sheet.shape[1]}x{sheet.shape[0]} pixels are no {rows} x {columns} images"
        )
    h, w = int(height), int(width)
    cut = sheet[gutter:, gutter:].reshape(rows, h + gutter, columns, w + gutter, -1)
    return cut[:, :h, :, :w].swapaxes(1, 2)


def save_png(path: epath.Path, image: np.ndarray, profile: bytes = b"") -> None:
    """Write uint8 or uint16 [H, W, C] as PNG, whole or not at all.

    C: 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA. profile: an ICC profile, to say which colours the
    numbers are; left out where it is of another kind than the image (CMYK, or grey of colours).
    """
    if profile[16:20] != (b"GRAY" if image.shape[-1] < 3 else b"RGB "):
        profile = b""
    if image.dtype == np.uint16:
        paths.write(path, _png16(image, profile))
        return
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    picture.save(file := io.BytesIO(), format="PNG", icc_profile=profile or None)
    paths.write(path, file.getvalue())


def _png16(image: np.ndarray, profile: bytes) -> bytes:
    """uint16 [H, W, C] as a PNG file; Pillow writes 16 bits for grey alone.

    Each byte is stored as its difference to the same byte of the pixel before (PNG's filter "Sub").
    """
    height, width, channels = image.shape
    pixels = np.ascontiguousarray(image, ">u2").view(np.uint8).reshape(height, -1, 2 * channels)
    lines = np.diff(pixels, axis=1, prepend=np.uint8(0)).reshape(height, -1)
    lines = np.pad(lines, ((0, 0), (1, 0)), constant_values=1)  # [H, 1 + 2 W C]
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)),
        *([(b"iCCP", b"ICC Profile\0\0" + zlib.compress(profile))] if profile else []),
        (b"IDAT", zlib.compress(lines.tobytes())),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


def save_npz(path: epath.Path, images: np.ndarray) -> None:
    """Write uint8 [N, H, W, C] as ADM's evaluators read it: one array, arr_0."""
    writer = NpzWriter(path, images.shape)
    writer.write(0, images)
    writer.close(len(images))


def check_npz(workdir: epath.Path) -> None:
    """Refuse a place in which nothing can be written piece by piece. Raises OSError."""
    if paths.remote(workdir):
        raise OSError(f"--npz: is written piece by piece, which {workdir} cannot; use a folder")


class NpzWriter:
    """Images uint8 [N, H, W, C] into an .npz file as ADM's evaluators read it, piece by piece.

    Until `close` they are in PATH.partial, where one that was interrupted goes on.
    """

    def __init__(self, path: epath.Path, shape: tuple[int, ...]):
        self.path, self.partial = path, pathlib.Path(paths.partial_of(path))
        header = io.BytesIO()
        about = {"descr": "|u1", "fortran_order": False, "shape": tuple(shape)}
        np.lib.format.write_array_header_1_0(header, about)
        self._start, self._size = len(header.getvalue()), int(np.prod(shape[1:]))
        self._file = self.partial.open("r+b" if self.partial.exists() else "wb")
        self._file.write(header.getvalue())

    def write(self, first: int, images: np.ndarray) -> None:
        """Put images where number `first` and the next ones belong."""
        self._file.seek(self._start + first * self._size)
        self._file.write(np.ascontiguousarray(images).tobytes())
        self._file.flush()

    def close(self, count: int) -> None:
        """Make the .npz file of all `count` images."""
        self._file.truncate(self._start + count * self._size)
        self._file.close()
        packed = self.partial.with_name(self.path.name + ".packing")
        member = zipfile.ZipInfo("arr_0.npy")  # dated 1980, as NumPy does: same images, same bytes
        with (
            zipfile.ZipFile(packed, "w") as archive,
            archive.open(member, "w", force_zip64=True) as target,
            self.partial.open("rb") as source,
        ):
            shutil.copyfileobj(source, target, 2**20)
        packed.replace(self.path)
        self.partial.unlink()
