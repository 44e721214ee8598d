"""Text as bytes: Python's own UTF-8, cut between characters."""

import numpy as np
import pytest

from vitdiff_jax.data import text

TEXTS = ["", "a dog", "größe", "狗在跑", "🐶🐕", "e\u0301", "\0 a\n", "x" * 50]


def back(tokens):
    return bytes(tokens[tokens >= 0].astype(np.uint8))


@pytest.mark.parametrize("given", TEXTS)
def test_texts_come_back(given):
    data = given.encode("utf-8")
    for length in (len(data), len(data) + 7):
        tokens = text.to_bytes(given, length)
        assert tokens.dtype == np.int16
        assert tokens.shape == (length,)
        assert back(tokens) == data
        assert (tokens[len(data) :] == -1).all()


@pytest.mark.parametrize("given", TEXTS)
def test_a_text_too_long_is_cut_between_characters(given):
    for length in range(len(given.encode()) + 1):
        fits = next(
            given[:n] for n in range(len(given), -1, -1) if len(given[:n].encode()) <= length
        )
        assert back(text.to_bytes(given, length)) == fits.encode()


def test_half_a_surrogate_pair_is_no_end_of_training():
    r"""JSON may hold "\ud83d" alone, which has no UTF-8."""
    captions = text.read_captions(rb'{"file_name": "a.png", "text": "a \ud83d dog"}', False)
    assert back(text.to_bytes(captions["a.png"][0], 20)) == b"a ? dog"


def test_captions_with_line_breaks_of_all_kinds():
    r"""JSON's lines end in \n alone; CSV's may hold line breaks within quotes."""
    lines = '{"file_name": "a", "text": "1\u20282\x853"}\r\n\n{"text": "4\\n5", "file_name": "a"}\n'
    assert text.read_captions(lines.encode(), False) == {"a": ["1\u20282\x853", "4\n5"]}
    rows = 'text,file_name\r\n"1\r\n2, ""3""",a\r\n4\u20285,b\r\n'
    assert text.read_captions(rows.encode(), True) == {"a": ['1\r\n2, "3"'], "b": ["4\u20285"]}
