"""Writes the tables of README.md and docs/benchmarks.md from benchmarks/results/, between their markers.
No figure is typed by hand; `python benchmarks/table.py` rewrites them all."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CPU_RESULTS = ROOT / "benchmarks" / "results" / "cpu.json"

Row = dict[str, Any]


def milliseconds(row: Row) -> float:
    return row["ms"] if "ms" in row else row["host_us"] / 1e3


def quartiles(row: Row) -> list[float]:
    return row["quartiles_ms"] if "ms" in row else [us / 1e3 for us in row["quartiles_us"]]


def figure(value: float) -> str:
    """Three digits, and no fraction from 100 on."""
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}".rstrip(".")


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A table whose first column is text and the others are figures."""
    lines = [header, ["---", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def pairs(workload: Row) -> str:
    what = {
        "cross": "{queries} × {documents}",
        "own": "{queries} × {documents} of its own",
        "varlen": "{queries} × {documents} ragged",
    }[workload["layout"]]
    tokens = f"{workload['query_tokens']}/{workload['document_tokens']} tokens"
    return f"{what.format(**workload)}, {tokens}, {workload['dtype']}"


def describe(result: Row) -> str:
    """Where and how the figures were made."""
    machine = result["machine"]
    rates = [f"{rate:.0f} GFLOP/s in {dtype}" for dtype, rate in result["gemm_GFLOPs"].items()]
    paths = sorted(set(machine["paths"].values()))
    return (
        f"{machine['cpu']} with {', '.join(paths)}, {machine['threads']} threads, torch {machine['torch']}, "
        f"d = {result['dim']}; medians of {result['turns']} turns. The machine's matrix product "
        f"runs at {' and '.join(rates)}."
    )


def by_workload(result: Row) -> dict[str, dict[str, Row]]:
    out: dict[str, dict[str, Row]] = {}
    for row in result["rows"]:
        out.setdefault(row["name"], {})[row["impl"]] = row
    return out


def best_peer(rows: dict[str, Row]) -> str:
    peers = [name for name, row in rows.items() if name != "ours" and "error" not in row]
    return min(peers, key=lambda name: milliseconds(rows[name]))


def cpu_summary(result: Row) -> str:
    """One line a workload: the kernel beside whichever peer is fastest there."""
    lines = []
    for name, rows in by_workload(result).items():
        ours, peer = rows["ours"], best_peer(rows)
        workload = result["workloads"][name]
        what = {"train": "training step, ", "overhead": "a tiny call, "}.get(workload["kind"], "")
        lines.append(
            [
                what + pairs(workload),
                figure(milliseconds(ours)),
                f"{figure(milliseconds(rows[peer]))} ({peer})",
                f"{figure(milliseconds(rows[peer]) / milliseconds(ours))}×",
                f"{ours['of_floor']:.0%}" if "of_floor" in ours else "",
                f"{figure(ours['peak_MiB'])} / {figure(rows[peer]['peak_MiB'])}",
            ]
        )
    header = ["pairs", "maxsim, ms", "fastest peer, ms", "faster", "of the GEMM rate", "peak MiB, maxsim / peer"]
    return f"{describe(result)}\n\n{markdown(header, lines)}"


def cpu_rows(result: Row) -> str:
    """Every row, those included that have no figure."""
    lines = []
    for name, rows in by_workload(result).items():
        for implementation, row in rows.items():
            label = f"{name}: {implementation}"
            if "error" in row:
                lines.append([label, f"({row['error']})", "", "", "", ""])
                continue
            low, high = quartiles(row)
            lines.append(
                [
                    label,
                    figure(milliseconds(row)),
                    f"{figure(low)}–{figure(high)}",
                    f"{row['of_floor']:.0%}" if "of_floor" in row else "",
                    f"{row['err']:.0e}",
                    figure(row["peak_MiB"]),
                ]
            )
    header = ["workload: implementation", "ms", "quartiles", "of the GEMM rate", "error", "peak MiB"]
    return f"{describe(result)}\n\n{markdown(header, lines)}"


# Document, name of the markers in it, results, and what makes the text between the markers.
TABLES: list[tuple[Path, str, Path, Callable[[Row], str]]] = [
    (ROOT / "README.md", "cpu-summary", CPU_RESULTS, cpu_summary),
    (ROOT / "docs" / "benchmarks.md", "cpu-rows", CPU_RESULTS, cpu_rows),
]


def filled(text: str, marker: str, table: str) -> str:
    """`text` with `table` between the two comments that name `marker`."""
    between = re.compile(rf"(<!-- {marker} -->\n).*?(<!-- end of {marker} -->)", re.DOTALL)
    out, found = between.subn(lambda match: f"{match[1]}\n{table}\n\n{match[2]}", text)
    if found != 1:
        raise ValueError(f"{found} places are marked {marker}")
    return out


def update() -> None:
    for document, marker, results, make in TABLES:
        text = document.read_text()
        document.write_text(filled(text, marker, make(json.loads(results.read_text()))))


if __name__ == "__main__":
    update()
