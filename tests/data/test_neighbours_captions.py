"""Captions files as spreadsheets and other trainers write them: nothing is cut or dropped."""

import pytest

from vitdiff_jax.data import text

REFUSED = {
    "a comma without quotes": (b"file_name,text\na.png,a cat, asleep\n", "line 2 has 3 columns"),
    "an open quote": (b'file_name,text\na.png,"a cat\nb.png,a dog\n', "line 3: unexpected end"),
    "quotes within": (b'file_name,text\na.png,"a "big" cat"\n', "line 2: "),
    "two texts": (b"file_name,text,text\na.png,one,two\n", "two columns are called text"),
    "semicolons": (b"file_name;text\na.png;a cat\n", "it has 'file_name;text'"),
    "spaces": (b"file_name, text\na.png, a cat\n", "it has 'file_name', ' text'"),
    "UTF-16": ("file_name,text\na.png,a cat\n".encode("utf-16"), "not encoded as UTF-8; save"),
    "Latin-1": (b"file_name,text\na.png,caf\xe9\n", "not encoded as UTF-8; save"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_spreadsheets_that_would_lose_something(case):
    data, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        text.read_captions(data, is_csv=True)


def test_empty_cells_and_lines_of_a_spreadsheet_are_nothing():
    rows = b"file_name,text,,\r\na.png,a cat,,\r\n\r\nb.png,,,,\r\n"
    assert text.read_captions(rows, is_csv=True) == {"a.png": ["a cat"], "b.png": [""]}


@pytest.mark.parametrize("bad", ["{,}", "[" * 100_000, '{"image": "b.png", "caption": "a dog"}'])
def test_the_line_that_is_wrong_is_named(bad):
    lines = '{"file_name": "a.png", "text": "a cat"}\n\n' + bad
    with pytest.raises(ValueError, match=r"^line 3 ") as caught:
        text.read_captions(lines.encode(), is_csv=False)
    assert len(str(caught.value)) < 300
