"""What the GPU's results look like in README.md and docs/benchmarks.md, and the ladder's in docs/ladder.md."""

from __future__ import annotations

import statistics

from gpu_workloads import FORMS, FORWARD, OVERHEAD, TRAIN
from markup import best_peer, by_workload, figure, table
from results import Row
from workloads import DIM, Workload

# A row's measurements as columns: key, title, how it is written.
COLUMNS = [
    ("ms", "ms", figure),
    ("fwd_ms", "forward, ms", figure),
    ("host_us", "host, µs", figure),
    ("graph_ms", "graph, ms", figure),
    ("graph_host_us", "graph, host µs", figure),
    ("of_floor", "of the floor", "{:.0%}".format),
    ("reading_ms", "reading alone, ms", figure),
    ("of_plain", "× plain", "{:.2f}".format),
    ("err", "error", "{:.0e}".format),
    ("peak_MiB", "peak MiB", figure),
]
TITLES = {
    "forward": "Forward",
    "overhead": "A small call",
    "train": "Training step",
    "loss": "Contrastive loss, a training step",
    "soft": "Soft maximum, a training step",
    "forms": "Forms",
    "paths": "Other paths on this device",
    "plaid": "PLAID residuals",
    "fp8": "fp8",
    "int8": "int8",
    "binary": "Signs",
}
SHAPES = {workload.name: workload for workload in (*FORWARD, *OVERHEAD, *TRAIN, *FORMS)}


def shape(workload: Workload) -> str:
    what = {"cross": "{w.queries} × {w.documents}", "own": "{w.queries} × {w.documents} own"}[workload.layout]
    tokens = f"{workload.query_tokens}/{workload.document_tokens}"
    return what.format(w=workload) + f", {tokens}" + (f", d = {workload.dim}" if workload.dim != DIM else "")


def describe(result: Row) -> str:
    """Where the figures were made, and what their floors are made of."""
    versions = [
        f"{key} {result[key]}"
        for key in ("torch", "triton", "late-interaction-kernels", "flash-maxsim")
        if key in result
    ]
    return (
        f"{result['gpu']}, {', '.join(versions)}. A copy moves {result['copy_TBps']:.2f} TB/s there and "
        f"cuBLAS multiplies 8192³ in bfloat16 at {result['gemm_TFLOPs']:.0f} TFLOP/s."
    )


def of_kind(result: Row, *kinds: str) -> dict[str, dict[str, Row]]:
    return by_workload(row for row in result["rows"] if row["kind"] in kinds)


def speedups(result: Row, kind: str) -> dict[str, float]:
    """How many times faster than the fastest peer, where both have a figure."""
    out = {}
    for name, rows in of_kind(result, kind).items():
        peer = best_peer(rows, "ms")
        if peer is not None and "ms" in rows.get("ours", {}):
            out[name] = rows[peer]["ms"] / rows["ours"]["ms"]
    return out


def summary(result: Row) -> str:
    """One line a workload, the kernel beside whichever peer is fastest there, and the means."""
    lines = []
    for kind in ("forward", "train"):
        for name, rows in of_kind(result, kind).items():
            ours, peer = rows.get("ours", {}), best_peer(rows, "ms")
            lines.append(
                [
                    f"{name}: {shape(SHAPES[name])}",
                    figure(ours["ms"]) if "ms" in ours else "",
                    f"{figure(rows[peer]['ms'])} ({peer})" if peer else "",
                    f"{figure(speedups(result, kind)[name])}×" if peer and "ms" in ours else "",
                    f"{ours['of_floor']:.0%}" if "of_floor" in ours else "",
                ]
            )
    header = ["queries × documents, tokens", "maxsim, ms", "fastest peer, ms", "faster", "of the floor"]
    return f"{describe(result)} {means(result)}\n\n{table(header, lines)}"


def means(result: Row) -> str:
    said = []
    for kind, what in (("forward", "forward"), ("train", "in a training step")):
        factors = speedups(result, kind).values()
        if factors:
            mean = statistics.geometric_mean(factors)
            said.append(f"{figure(mean)}× {what}")
    host = [
        f"{figure(row['host_us'])} µs ({row['impl']})"
        for row in result["rows"]
        if row["kind"] == "overhead" and "host_us" in row
    ]
    return (f"Geometric mean over the fastest peer: {', '.join(said)}. " if said else "") + (
        f"Issuing a small call takes the host {', '.join(host)}." if host else ""
    )


def every_row(result: Row) -> str:
    """A table for each kind, with the columns that it has; rows without figures say why."""
    parts = [describe(result)]
    for kind, title in TITLES.items():
        rows = [row for row in result["rows"] if row["kind"] == kind]
        if not rows:
            continue
        columns = [column for column in COLUMNS if any(column[0] in row for row in rows)]
        header = ["workload: implementation", *(title for _, title, _ in columns)]
        parts += [f"### {title}", table(header, [line(row, columns) for row in rows])]
    return "\n\n".join(parts)


def line(row: Row, columns: list[tuple]) -> list[str]:
    label = f"{row['name']}: {row['impl']}"
    if "error" in row:
        why = row["error"].replace("|", "/").replace("\n", " ")
        return [label, f"({why})", *[""] * (len(columns) - 1)]
    return [label, *(written(row[key]) if key in row else "" for key, _, written in columns)]


def ladder(result: Row) -> str:
    """A line for each rung: what it reaches where arithmetic is the limit and where memory is."""
    rungs: dict[str, dict[str, Row]] = {}
    for row in result["rows"]:
        rungs.setdefault(row["rung"], {})[row["shape"]] = row
    lines = []
    for name, shapes in rungs.items():
        math, memory = shapes.get("math", shapes.get("registers", {})), shapes.get("memory", {})
        lines.append(
            [
                name,
                *(figure(math[key]) if key in math else "" for key in ("ms", "TFLOPs")),
                *(figure(memory[key]) if key in memory else "" for key in ("ms", "TBps")),
            ]
        )
    header = ["rung", "256 × 256, ms", "TFLOP/s", "1 × 10 000, ms", "TB/s"]
    return f"{result['gpu']}; 32 query and 300 document tokens, d = {DIM}, bfloat16.\n\n{table(header, lines)}"
