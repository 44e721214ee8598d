"""Text as a condition: bytes, for the text encoder in `models/conditions.py`, and caption files."""

import csv
import io
import json

import numpy as np


def to_bytes(text: str, length: int) -> np.ndarray:
    """UTF-8 bytes as int16 [length], -1 after the end; a text too long is cut between characters.

    The empty text is "no text", as a dropped condition is.
    """
    whole = text.encode(errors="replace")  # half a surrogate pair, as JSON may hold, is a "?"
    data = whole[:length].decode(errors="ignore").encode()
    tokens = np.full(length, -1, np.int16)
    tokens[: len(data)] = np.frombuffer(data, np.uint8)
    return tokens


def read_captions(data: bytes, is_csv: bool) -> dict[str, list[str]]:
    """{file_name: its captions, in order} of JSON lines or CSV; ValueError if it is neither."""
    content = data.decode("utf-8-sig")
    if is_csv:
        rows = csv.DictReader(io.StringIO(content, newline=""))
    else:
        rows = (json.loads(line) for line in content.split("\n") if line.strip())
    texts: dict[str, list[str]] = {}
    try:
        for number, row in enumerate(rows, 1):
            name, text = map(row.get, ("file_name", "text")) if isinstance(row, dict) else (0, 0)
            if not isinstance(name, str) or not isinstance(text, str):
                raise ValueError(f"entry {number} lacks file_name or text")
            texts.setdefault(name, []).append(text)
    except csv.Error as error:
        raise ValueError(str(error)) from error
    return texts
