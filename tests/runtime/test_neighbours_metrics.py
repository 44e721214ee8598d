"""Damaged lines of metrics.jsonl stop neither a run that goes on nor its report."""

import json

from etils import epath

from vitdiff_jax.modes import report
from vitdiff_jax.runtime import logs

GOOD = b'{"step": 2, "loss": 0.5}\n'
DAMAGED = (
    b'{"step": Infinity, "loss": 1.0}\n', b'{"step": NaN}\n', b'{"step": "x"}\n', b"[1]\n",
    b'{"step": null}\n', b"\xff\xfe\x00\n", b'{"step": 3, "loss": 1' + b"0" * 400 + b"}\n",
)  # fmt: skip


def test_a_resumed_run_keeps_the_good_lines(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b"".join(DAMAGED) + GOOD)
    logs.Metrics(epath.Path(tmp_path), 2, 4, 8, 1.0)
    kept = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in kept] == [json.loads(GOOD)]


def test_the_report_counts_the_others(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b"".join(DAMAGED) + GOOD)
    found, bad = report._metrics(epath.Path(tmp_path))
    assert (found, bad) == ([{"step": 2, "loss": 0.5}], len(DAMAGED))
