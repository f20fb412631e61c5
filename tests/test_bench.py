"""The benchmark harness: the documents show what benchmarks/results/ holds, and nothing unverified gets a time.
One CPU workload is measured for real, as `make bench` would; the GPU's run on the CPU, shrunk, by a clock of no use."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import ROOT

sys.path.append(str(ROOT / "benchmarks"))

import climb  # noqa: E402
import cpu  # noqa: E402
import gpu  # noqa: E402
import gpu_table  # noqa: E402
import gpu_workloads  # noqa: E402
import plot  # noqa: E402
import table  # noqa: E402
import verify  # noqa: E402
from peers import IMPLEMENTATIONS  # noqa: E402
from project import BuildError  # noqa: E402
from toolchain import find_cuda  # noqa: E402
from workloads import WORKLOADS, Workload, make_inputs, reference  # noqa: E402

TINY = Workload("forward", "tiny", "cross", 2, 3, 4, 5)


@pytest.mark.parametrize(
    "document, marker, results, make, pictures", table.TABLES, ids=[row[1] for row in table.TABLES]
)
def test_documents_show_the_results(document, marker, results, make, pictures):
    text = document.read_text()
    expected = table.filled(text, marker, table.content(results, make, pictures))
    assert text == expected, "python benchmarks/table.py"


@pytest.mark.parametrize("name", table.PICTURES)
def test_pictures_are_of_the_results(name):
    results, _ = table.PICTURES[name]
    picture = table.picture_path(name)
    assert picture.exists() == results.exists(), "python benchmarks/table.py"
    assert not results.exists() or plot.digest(results) in picture.read_text(), "python benchmarks/table.py"


def test_a_table_needs_its_place():
    with pytest.raises(ValueError, match="0 places are marked cpu-rows"):
        table.filled("text", "cpu-rows", "table")


def test_the_results_are_whole():
    rows = {(row["name"], row["impl"]): row for row in json.loads(table.CPU_RESULTS.read_text())["rows"]}
    assert set(rows) == {(workload.name, name) for workload in WORKLOADS for name in IMPLEMENTATIONS}
    for workload in WORKLOADS:
        assert rows[workload.name, "ours"]["err"] <= verify.allowed_error("ours", workload)


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


@pytest.mark.parametrize("workload", [*gpu_workloads.FORWARD, *gpu_workloads.FORMS], ids=lambda workload: workload.name)
def test_the_floor_counts_what_there_is(workload):
    inputs = make_inputs(shrunk(workload))
    w, packed = inputs.workload, inputs.documents if inputs.lengths is None else inputs.documents[inputs.mask]
    d = inputs.documents.shape[-1]
    outputs = sum(out.numel() * 4 for out in reference(inputs))
    extra = sum(ids.nbytes for ids in inputs.pairs or ()) + (inputs.mask.numel() if w.form == "masked" else 0)
    assert inputs.nbytes == inputs.queries.nbytes + packed.nbytes + outputs + extra
    met = packed[..., 0].numel() * (w.queries if w.layout in ("cross", "varlen") else 1)
    if w.layout == "listed":
        met = w.pairs * w.document_tokens
    assert inputs.flops == 2 * met * w.query_tokens * d


def shrunk(workload: Workload) -> Workload:
    small = {"queries": 3, "documents": 4, "query_tokens": 5, "document_tokens": 9}
    return replace(workload, **small, pairs=workload.pairs and 6)


@pytest.fixture
def gpu_on_cpu(monkeypatch: pytest.MonkeyPatch) -> list:
    """Every GPU workload, shrunk, on the CPU; returns the list of calls that were timed."""
    timed = []

    def device_ms(call, repeat_ms=0):
        timed.append(call)
        call()
        return 2.0

    class Graph:
        def __init__(self, call, out):
            self.replay = lambda: out.copy_(call())

    def graphed(call):
        out = call()
        return Graph(call, out), out

    for name in ("FORWARD", "OVERHEAD", "TRAIN", "FORMS"):
        monkeypatch.setattr(gpu, name, [shrunk(workload) for workload in getattr(gpu_workloads, name)])
    monkeypatch.setattr(gpu, "DEVICE", "cpu")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "no GPU")
    monkeypatch.setattr(gpu.clock, "device_ms", device_ms)
    monkeypatch.setattr(gpu.clock, "graphed", graphed)
    monkeypatch.setattr(gpu.clock, "host_us", lambda call: 3.0)
    monkeypatch.setattr(gpu.clock, "peak_mib", lambda call, inputs: 0.5)
    monkeypatch.setattr(gpu.clock, "copy_tbps", lambda: 4.0)
    monkeypatch.setattr(gpu.clock, "gemm_tflops", lambda: 700.0)
    monkeypatch.setitem(sys.modules, "gpu_reading", SimpleNamespace(reading_ms=lambda documents: 1.0))  # needs triton
    return timed


PHASES = ["forward", "overhead", "train", "forms"]


def test_gpu_rows(gpu_on_cpu: list, tmp_path: Path) -> None:
    result = gpu.measure(PHASES, [], tmp_path / "h200.json")
    assert json.loads((tmp_path / "h200.json").read_text()) == result
    assert (result["gpu"], result["copy_TBps"], result["gemm_TFLOPs"]) == ("no GPU", 4.0, 700.0)
    rows = {(row["kind"], row["name"], row["impl"]): row for row in result["rows"]}
    keys = {
        "forward": ["ms", "floor_ms", "of_floor", "err", "peak_MiB"],
        "overhead": ["err", "host_us", "ms", "graph_ms", "graph_host_us"],
        "train": ["ms", "fwd_ms", "err", "peak_MiB", "turns_ms"],
        "forms": ["ms", "floor_ms", "of_floor", "err", "peak_MiB", "plain_ms", "of_plain"],
    }
    expected = set()
    for kind, workloads in zip(PHASES, (gpu.FORWARD, gpu.OVERHEAD, gpu.TRAIN, gpu.FORMS), strict=True):
        for workload in workloads:
            impls = ["ours"] if kind == "forms" else ["ours", "lik", "flash", "eager"]
            expected |= {(kind, workload.name, impl) for impl in impls}
            beside = ["reading_ms"] if kind == "forward" else []
            assert list(rows[kind, workload.name, "ours"]) == ["kind", "name", "impl", *keys[kind], *beside]
            assert kind == "forms" or list(rows[kind, workload.name, "eager"])[3:] == keys[kind]
    assert set(rows) == expected
    scaled = rows["forms", "text-long-d256", "ours"]
    assert scaled["plain_ms"] == 2 * 2.0 and rows["forms", "rerank-400-listed", "ours"]["plain_ms"] == 2.0 * 6 / 12
    assert gpu_table.summary(result) and gpu_table.every_row(result).count("\n| ") == len(rows) + 2 * len(PHASES)
    assert plot.forward(result) and plot.train(result) and plot.stored(result)


def test_a_gpu_run_goes_on_where_it_stopped(gpu_on_cpu: list, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    output = tmp_path / "h200.json"
    gpu.measure(["forward"], ["inbatch"], output)
    once = len(gpu_on_cpu)
    result = gpu.measure(["forward"], ["inbatch"], output)
    assert once == len(gpu_on_cpu) == 2 * 2  # the kernel and eager torch on two workloads
    assert [row["error"] for row in result["rows"] if row["impl"] == "lik"] == ["not installed"] * 2
    gpu.measure(["forward", "plaid"], ["inbatch", "text-short"], output)
    assert len(gpu_on_cpu) == once + 2
    output.write_text(output.read_text().replace("no GPU", "another GPU"))
    with pytest.raises(SystemExit, match="move it away"):
        gpu.measure(["forward"], [], output)


def test_a_wrong_gpu_result_gets_no_time(gpu_on_cpu: list, monkeypatch: pytest.MonkeyPatch) -> None:
    right = gpu.IMPLEMENTATIONS["ours"]

    def off(inputs):
        call = right(inputs)
        return lambda: call() * (1 + 1e-5)

    monkeypatch.setitem(gpu.IMPLEMENTATIONS, "ours", off)
    rows = gpu.measure(["forward", "overhead"], ["text", "1x100"], None)["rows"]
    ours = [row for row in rows if row["impl"] == "ours"]
    assert len(ours) == 3 and all(set(row) == {"kind", "name", "impl", "error"} for row in ours)
    assert all("off float64" in row["error"] for row in ours)


def test_plaid_reference_unpacks_what_was_packed():
    shape = replace(gpu_workloads.PLAID[-1], documents=3, document_tokens=6, centroids=5)
    index = gpu_workloads.plaid_index(shape, "cpu")
    scores = gpu_workloads.plaid_reference(shape, index)
    for document, (first, last) in enumerate(zip(index.offsets, index.offsets[1:], strict=False)):
        tokens = []
        for code, residual in zip(index.codes[first:last], index.residuals[first:last], strict=True):
            buckets = [byte >> shift & 15 for byte in residual.tolist() for shift in (0, 4)]
            tokens.append(index.centroids[code].double() + index.weights.double()[buckets])
        unit = (torch.nn.functional.normalize(x, dim=-1) for x in (index.query[0].double(), torch.stack(tokens)))
        torch.testing.assert_close(scores[0, document], torch.mm(next(unit), next(unit).T).amax(-1).sum())


def test_the_ladder_compiles(tmp_path: Path) -> None:
    """And its products overlap with what they should overlap with."""
    try:
        find_cuda()
    except BuildError as missing:
        pytest.skip(str(missing))
    said = climb.build(tmp_path / "ladder", "-Xptxas=-v")
    assert said.count("Compiling entry function") == 8, "the assembler no longer reports what it does"
    assert "Potential Performance Loss" not in said
    assert "spill stores" in said and said.count(" 0 bytes spill stores") == said.count("spill stores")
