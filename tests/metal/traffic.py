"""Counts what the forward moves and multiplies, on a sample of threadgroups that runs access by access.
Run as a script, it writes benchmarks/results/metal_traffic.json and prints the table of docs/metal.md."""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "tests")]

import emulated  # noqa: E402
import torch  # noqa: E402
from selftest import WORKLOADS  # noqa: E402

RESULTS = ROOT / "benchmarks/results/metal_traffic.json"
DIM = 128
SAMPLE = 6  # documents, from the middle of the grid
ROLES = {"queries": 0, "documents": 1, "scores": 8, "argmax": 9, "workspace": 17}


class Report(ctypes.Structure):
    """What the emulator counted, as tests/metal/emulator/dispatch.h lays it out."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("dispatches", "threadgroups", "multiplies", "barriers")),
        *((name, ctypes.c_int64) for name in ("threadgroup_read", "threadgroup_written")),
        ("read", ctypes.c_int64 * 32),
        ("written", ctypes.c_int64 * 32),
    ]


def count(m: ModuleType, shape: tuple[int, int, int, int]) -> dict[str, int]:
    """Bytes and operations of one forward over queries' own documents, padded fp16, scaled up from the sample."""
    queries, each, query_tokens, tokens = shape
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(queries, query_tokens, DIM, generator=generator).half()
    d = torch.randn(SAMPLE, tokens, DIM, generator=generator).half()
    documents = d[torch.arange(queries * each) % SAMPLE].view(queries, each, tokens, DIM)
    library = emulated.library(m)
    library.emulator_report.restype = ctypes.POINTER(Report)
    library.emulator_set(queries * each // 2, SAMPLE, 0)
    try:
        m.maxsim(q, documents)
        report = library.emulator_report().contents
    finally:
        library.emulator_set(0, 0, 0)
    scale = queries * each // SAMPLE if queries * each % SAMPLE == 0 else queries * each / SAMPLE
    counted = {f"{name}_read": report.read[role] for name, role in ROLES.items()}
    counted |= {f"{name}_written": report.written[role] for name, role in ROLES.items()}
    for name in ("multiplies", "barriers", "threadgroup_read", "threadgroup_written"):
        counted[name] = getattr(report, name)
    counted = {name: round(value * scale) for name, value in counted.items()}
    sizes = {"queries": q.nbytes, "documents": documents.nbytes, "scores": 4 * queries * each}
    needed = 2 * queries * each * query_tokens * tokens * DIM
    return {**{f"{name}_bytes": size for name, size in sizes.items()}, "flops_needed": needed, **counted}


def table(results: dict[str, dict[str, int]]) -> list[str]:
    """Rows of Markdown: what has to be moved, and what is."""
    lines = [
        "| workload | documents | read of them | read of queries | written | score tiles written | matrix products "
        "| of those needed | barriers |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, r in results.items():
        done = r["multiplies"] * 2 * 8**3
        lines.append(
            f"| {name} | {r['documents_bytes'] / 1e6:.2f} MB | {r['documents_read'] / 1e6:.2f} MB "
            f"| {r['queries_read'] / 1e6:.2f} MB | {r['scores_written'] / 1e3:.2f} kB "
            f"| {r['argmax_written'] + r['workspace_written']} B | {r['multiplies'] / 1e6:.2f} M "
            f"| {done / r['flops_needed']:.2f} | {r['barriers'] / 1e3:.1f} k |"
        )
    return lines


def main() -> None:
    m = emulated.load(emulated.build(emulated.OBSERVED))
    results = {name: count(m, shape) for name, shape in WORKLOADS.items()}
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    print("\n".join(table(results)))


if __name__ == "__main__":
    main()
