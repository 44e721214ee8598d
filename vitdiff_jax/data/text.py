"""Text conditions: bytes for the text encoder in `models/conditions.py`, and caption files."""

import collections
import csv
import dataclasses
import io
import json
import posixpath
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np


def to_bytes(text: str, length: int) -> np.ndarray:
    """UTF-8 bytes as int16 [length], padded with -1; a long text is truncated between characters.

    The empty text is the null text, as in condition dropout.
    """
    full = text.encode(errors="replace")  # a lone surrogate, which JSON allows, becomes "?"
    data = full[:length].decode(errors="ignore").encode()
    tokens = np.full(length, -1, np.int16)
    tokens[: len(data)] = np.frombuffer(data, np.uint8)
    return tokens


def read_captions(data: bytes, is_csv: bool) -> dict[str, list[str]]:
    """{file_name: captions, in order} from JSON lines or CSV.

    Raises ValueError for other data, with the line, and for CSV with more columns than its
    header, since a comma in a text that is not quoted would cut it there.
    """
    try:
        content = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError("it is not encoded as UTF-8; save it as such") from error
    texts: dict[str, list[str]] = {}
    for place, row in (_csv_rows if is_csv else _json_rows)(content):
        name, text = map(row.get, ("file_name", "text")) if isinstance(row, dict) else (0, 0)
        if not isinstance(name, str) or not isinstance(text, str):
            fields = ", ".join(map(repr, row)) if isinstance(row, dict) else type(row).__name__
            raise ValueError(f"{place} lacks file_name or text as text; it has {fields:.200}")
        texts.setdefault(name, []).append(text)
    return texts


def _json_rows(content: str) -> Iterator[tuple[str, Any]]:
    """("line 3", its JSON value) of each line that is not empty."""
    for number, line in enumerate(content.split("\n"), 1):
        if line.strip():
            try:
                yield f"line {number}", json.loads(line)
            except (ValueError, RecursionError) as error:
                reason = error.msg if isinstance(error, json.JSONDecodeError) else error
                raise ValueError(f"line {number} is not JSON: {reason}") from error


def _csv_rows(content: str) -> Iterator[tuple[str, dict[str, str]]]:
    """("line 3", {column: value}) of each row; the line is that on which the row ends."""
    rows = csv.reader(io.StringIO(content, newline=""), strict=True)
    try:
        header = next(rows, [])
        for name in ("file_name", "text"):
            if header.count(name) > 1:
                raise ValueError(f"two columns are called {name}")
        for row in filter(None, rows):
            place = f"line {rows.line_num}"
            if any(row[len(header) :]):
                raise ValueError(
                    f"{place} has {len(row)} columns, the header {len(header)}; a text with a comma"
                    ' needs quotes: "..."'
                )
            yield place, dict(zip(header, row))
    except csv.Error as error:
        raise ValueError(f"line {rows.line_num}: {error}") from error


@dataclasses.dataclass(frozen=True)
class Matched:
    """Captions by image.

    texts: {image: captions}. lost: names in the captions file that no image has. loosely: images
    whose names in it differ in more than how a path is written: without folder or suffix, or in
    upper and lower case.
    """

    texts: dict[str, list[str]]
    lost: list[str]
    loosely: list[str]


def match(captions: dict[str, list[str]], names: Iterable[str], folders: Iterable[str]) -> Matched:
    """Assign captions to the images that their file names mean.

    A name may have backslashes, a leading "./", another Unicode form, or begin with, or lack, one
    of the folders, such as the data's own. What is still not found is compared without case, suffix
    and folder, where that leaves one image only.
    """
    exact = {composed(name): name for name in names}
    loose = [collections.defaultdict(list) for _ in LOOSE]
    for key, name in exact.items():
        for found, loosen in zip(loose, LOOSE):
            found[loosen(key).casefold()].append(name)
    matched = Matched({}, [], [])
    for given, texts in captions.items():
        if not (texts := [text for text in texts if text.strip()]):
            continue  # a line without a text is no caption
        name = next((exact[key] for key in _spellings(given, folders) if key in exact), None)
        if name is None:
            tries = [
                images
                for key in _spellings(given, folders)
                for found, loosen in list(zip(loose, LOOSE))[: 2 if "/" in key else None]
                for images in (found.get(key.casefold(), ()), found.get(loosen(key).casefold(), ()))
            ]
            name = next((images[0] for images in tries if len(images) == 1), None)
            if name is None:
                matched.lost.append(given)
                continue
            matched.loosely.append(name)
        matched.texts.setdefault(name, []).extend(texts)
    return matched


def _stem(name: str) -> str:
    return posixpath.splitext(name)[0]


LOOSE = (str, _stem, posixpath.basename, lambda name: _stem(posixpath.basename(name)))
"""Ever looser forms of a name: without case, suffix, folder, folder and suffix."""


def composed(name: str) -> str:
    """NFC form: macOS decomposes accents in file names, but typed captions are composed."""
    return unicodedata.normalize("NFC", name)


def _spellings(given: str, folders: Iterable[str]) -> Iterable[str]:
    """A name as it is written, and as it is below, or above, each of the folders."""
    path = posixpath.normpath(composed(given).replace("\\", "/")).lstrip("/")
    yield path
    for folder in filter(None, map(composed, folders)):
        _, inside, rest = f"/{path}".rpartition(f"/{folder}/")
        if inside:
            yield rest
        yield f"{folder}/{path}"
