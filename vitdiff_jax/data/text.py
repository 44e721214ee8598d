"""Text conditions: bytes for the text encoder in `models/conditions.py`, and caption files."""

import csv
import io
import json

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
    """{file_name: captions, in order} from JSON lines or CSV. Raises ValueError for other data."""
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
