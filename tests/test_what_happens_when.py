"""docs/what_happens_when.md names a test in every row, and that test exists."""

import ast
import re

import pytest

from tests import tiny

PAGE = (tiny.REPOSITORY / "docs" / "what_happens_when.md").read_text()
ROWS = [line for line in PAGE.splitlines() if re.match(r"\| (?!\.\.\.|---)", line)]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip())
def test_the_test_of_each_row_exists(row):
    assert row.count("|") == 5
    named = re.fullmatch(r" `(tests/[\w/]+\.py)::(test_\w+)` ", row.split("|")[4])
    assert named is not None
    tree = ast.parse((tiny.REPOSITORY / named[1]).read_text())
    assert named[2] in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_there_are_rows():
    assert len(ROWS) > 20
