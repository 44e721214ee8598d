"""Which files of a folder or zip file are images: by suffix, or by content where none says it.

What is left out is listed by reason, for the data card.
"""

import dataclasses
import functools
import io
import posixpath
import re
import struct

from PIL import Image

from vitdiff_jax.data.files import Folder, Zip
from vitdiff_jax.data.pipeline import DataError
from vitdiff_jax.runtime import pillow

HEAD = 32
"""Bytes that tell a format."""
MAGIC = {
    b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG", b"GIF8": "GIF", b"BM": "BMP",
    b"II*\0": "TIFF", b"MM\0*": "TIFF", b"\0\0\0\x0cjP  ": "JPEG2000",
}  # fmt: skip
UNREAD = {
    ".heic", ".heif", ".avif", ".jxl", ".cr2", ".cr3", ".nef", ".arw", ".dng", ".raf", ".orf",
    ".rw2", ".svg", ".exr", ".hdr", ".eps", ".wmf",
}  # fmt: skip
"""Suffixes of images in formats that may not be read."""
BY_CONTENT = "without a suffix that says what they are"
NAMED = re.compile(r"(\.[a-z][a-z0-9]{0,7}|\.7z|\.3gp|)$")
"""Suffixes that say what a file is; others, such as ".jpg?width=400", say nothing."""


@dataclasses.dataclass(frozen=True)
class Listing:
    """The images of a folder or zip file.

    found: {name: stamps} as in `Folder.files`, sorted by name. by_content: those of them whose
    suffix does not say that they are images. left_out: the names of all other files by reason,
    which is a suffix, or words.
    """

    found: dict[str, list[int]]
    by_content: list[str]
    left_out: dict[str, list[str]]

    @property
    def unread(self) -> dict[str, list[str]]:
        """Images left out since their format is not read, by suffix."""
        return {reason: names for reason, names in self.left_out.items() if reason in UNREAD}


def images(files: Folder | Zip) -> Listing:
    """The images among the files. Raises DataError where there are none."""
    found, by_content, others = {}, [], {}
    for name, about in sorted(files.files().items()):
        suffix = posixpath.splitext(name)[1].lower()
        if suffix in suffixes():
            found[name] = about
        elif suffix and NAMED.match(suffix):
            others.setdefault(suffix, []).append(name)
        elif (kind := _kind(files, name)) in pillow.formats():
            found[name] = about
            by_content.append(name)
        else:
            others.setdefault(kind or BY_CONTENT, []).append(name)
    listing = Listing(found, by_content, files.left_out | others)
    if not found:
        reasons = summary(listing.left_out)
        reasons += "; convert them to JPEG or PNG" if listing.unread else ""
        raise DataError(f"{files.path}: contains no images{reasons and f'; left out: {reasons}'}")
    return listing


@functools.cache
def suffixes() -> frozenset[str]:
    """The suffixes of images that are read."""
    known = Image.registered_extensions().items()
    read = (*pillow.formats(), "MPO")  # which is opened as JPEG
    return frozenset(suffix for suffix, kind in known if kind in read)


def _kind(files: Folder | Zip, name: str) -> str | None:
    """The format of a file by its content: Pillow's name, or a suffix; None if it is no image."""
    try:
        return kind_of(files.head(name, HEAD))
    except (OSError, ValueError):
        return None


def kind_of(head: bytes) -> str | None:
    """The format of an image by its first bytes: Pillow's name, or a suffix; None: no image."""
    for start, kind in MAGIC.items():
        if head.startswith(start):
            return kind
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp":
        brand = head[8:12]
        if brand in (b"avif", b"avis"):
            return "AVIF" if "AVIF" in pillow.formats() else ".avif"
        return ".heic" if brand in (b"heic", b"heix", b"mif1", b"msf1", b"hevc") else None
    if re.match(rb"P[1-6]\s", head):
        return "PPM"
    return None


def why(data: bytes, reason: str) -> str:
    """Why a file is no image: what it is instead, or else the decoder's reason."""
    head = data[:512].lstrip().lower()
    if not data:
        return "an empty file"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer instead of the image (git lfs pull)"
    if head.startswith((b"<!doctype html", b"<html")):
        return "a web page instead of an image"
    if not data.strip(b"\0"):
        return "nothing but zeros, as after an interrupted copy"
    kind = kind_of(data[:HEAD]) or ""
    return f"in the format {kind}, which is not read" if kind.startswith(".") else reason


def size_of(data: bytes) -> tuple[int, int, bool, bool] | None:
    """Width and height in pixels, whether an image is stored in grey, in CMYK; None if unknown.

    Of PNG and JPEG by their bytes, 20 times as fast as Pillow opens them.
    """
    try:
        if data.startswith(b"\x89PNG"):
            width, height, _, kind = struct.unpack_from(">IIBB", data, 16)
            return width, height, kind in (0, 4), False
        if data.startswith(b"\xff\xd8"):
            return _size_of_jpeg(data)
        with Image.open(io.BytesIO(data), formats=pillow.formats()) as image:
            return *image.size, image.mode in pillow.GREY, image.mode == "CMYK"
    except Exception:  # damaged: decoding says how
        return None


def _size_of_jpeg(data: bytes) -> tuple[int, int, bool, bool] | None:
    at = 2
    while data[at] == 0xFF:
        kind, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4])
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):  # a start of frame
            height, width, channels = struct.unpack_from(">HHB", data, at + 5)
            return width, height, channels == 1, channels == 4
        at += 1 if kind == 0xFF else 2 + length
    return None


def summary(left_out: dict[str, list[str]], most: int = 3) -> str:
    """What was left out in a line, with up to `most` names for each reason."""
    return "; ".join(
        f"{len(names):,} {reason} ({some(names, most)})" for reason, names in left_out.items()
    )


def some(names: list[str], most: int = 3) -> str:
    """A few names for a line: "a.png, b.png, ..."."""
    return ", ".join([*map(shown, names[:most]), *["..."] * (len(names) > most)])


def shown(name: str) -> str:
    """A file's name on one line: what cannot be printed is escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)
