"""The data card in the report: what data.json says beside the number of images."""

import json

from vitdiff_jax.data import card
from vitdiff_jax.data.listing import Listing
from vitdiff_jax.reporting import data
from vitdiff_jax.reporting.page import Facts, Table


def test_the_card_is_shown(tmp_path):
    found = Listing({}, [], {".heic": ["a.heic"], "hidden": [".x"] * 7})
    about = card.of_folder(found, {}, {"cut.jpg": "an empty file"}) | {
        "class_counts": {"cat": [1200, 60], "dog": [30, 2]}, "sizes": [[8, 9], [64, 48]],
        "colour": 1290, "grey": 2, "warnings": ["no class: bird"],
        "captions": {"with": 5, "without": 5},
    }  # fmt: skip
    (tmp_path / "data.json").write_text(json.dumps(about))
    facts, classes, look = data.data(tmp_path)
    assert isinstance(facts, Facts)
    assert dict(facts.pairs) == {
        "sizes in pixels": "8x9 to 64x48", "in colour, in grey": "1,290, 2", "with captions": "5",
        "without captions": "5", "left out: .heic": "1 (a.heic)",
        "left out: hidden": "7 (.x, .x, .x, ...)",
    }  # fmt: skip
    assert isinstance(classes, Table)
    assert classes.rows == [["cat", "1,200", "60"], ["dog", "30", "2"]]
    assert isinstance(look, Table)
    assert look.rows == [["warning", "no class: bird"], ["broken: cut.jpg", "an empty file"]]


def test_many_classes_are_cut(tmp_path):
    counts = {str(i): [i, 0] for i in range(1000)}
    (tmp_path / "data.json").write_text(json.dumps({"class_counts": counts}))
    (table,) = data.data(tmp_path)
    assert isinstance(table, Table)
    assert table.caption == "The largest 50 of 1,000 classes"
    assert table.rows[0] == ["999", "999", "0"]
    assert len(table.rows) == 50


def test_nothing_to_show(tmp_path):
    assert list(data.data(tmp_path)) == []
    (tmp_path / "data.json").write_text('{"images": 3, "mark": "0"}')
    assert list(data.data(tmp_path)) == []
