"""The benchmark harness: the documents show what benchmarks/results/ holds, and nothing unverified gets a time.
One workload is measured for real, as `make bench` would, with whichever peers are installed here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import ROOT

sys.path.append(str(ROOT / "benchmarks"))

import cpu  # noqa: E402
import table  # noqa: E402
from peers import IMPLEMENTATIONS  # noqa: E402
from workloads import WORKLOADS, Workload, make_inputs  # noqa: E402

TINY = Workload("forward", "tiny", "cross", 2, 3, 4, 5)


@pytest.mark.parametrize("document, marker, results, make", table.TABLES, ids=[row[1] for row in table.TABLES])
def test_documents_show_the_results(document, marker, results, make):
    text = document.read_text()
    assert text == table.filled(text, marker, make(json.loads(results.read_text()))), "python benchmarks/table.py"


def test_a_table_needs_its_place():
    with pytest.raises(ValueError, match="0 places are marked cpu-rows"):
        table.filled("text", "cpu-rows", "table")


def test_the_results_are_whole():
    rows = {(row["name"], row["impl"]): row for row in json.loads(table.CPU_RESULTS.read_text())["rows"]}
    assert set(rows) == {(workload.name, name) for workload in WORKLOADS for name in IMPLEMENTATIONS}
    for workload in WORKLOADS:
        assert rows[workload.name, "ours"]["err"] <= cpu.allowed_error("ours", workload.dtype)


def test_a_workload_is_measured(tmp_path: Path) -> None:
    output = tmp_path / "cpu.json"
    command = [sys.executable, "benchmarks/run.py", "--only", "train-32x180", "--turns", "2", "--output", output]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = {row["impl"]: row for row in json.loads(output.read_text())["rows"]}
    assert set(rows) == set(IMPLEMENTATIONS)
    assert rows["maxsim-cpu"]["error"] in ("not installed", "no gradient")
    similarities = 32 * 32 * 32 * 180 * 4 / 2**20
    for name in ("einsum", "batched matmul", "one matmul"):
        assert rows[name]["ms"] > 0 and rows[name]["peak_MiB"] > similarities
    assert rows["ours"]["ms"] > 0 and rows["ours"]["err"] <= 1e-6
    assert 0 < rows["ours"]["peak_MiB"] < similarities / 20


def test_a_wrong_result_gets_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(inputs):
        return lambda: torch.zeros(inputs.workload.queries, inputs.workload.documents)

    monkeypatch.setattr(cpu, "peak_mib", lambda workload, implementation: 0.0)
    monkeypatch.setitem(IMPLEMENTATIONS, "einsum", wrong)
    calls, rows = cpu.prepare(TINY, make_inputs(TINY))
    assert "einsum" not in calls and rows["einsum"] == {"error": "1.0e+00 off float64"}
    assert {"ours", "one matmul"} <= set(calls)
    monkeypatch.setitem(IMPLEMENTATIONS, "ours", wrong)
    with pytest.raises(RuntimeError, match="tiny: ours is 1.0e\\+00 off float64"):
        cpu.prepare(TINY, make_inputs(TINY))
