"""What gpu_search.py measured, as docs/tasks/compressed.md shows it."""

from __future__ import annotations

from markup import by_workload, figure, table
from results import Row


def every_row(result: Row) -> str:
    """A line for each number of queries, fast-plaid beside the kernel, and one for the kernel's CUDA graph."""
    lines = []
    for name, rows in by_workload(result["rows"]).items():
        peer = rows["fast-plaid"]
        for impl in ("ours", "ours, graph"):
            if impl not in rows:
                continue
            queries, documents = map(int, name.split("x"))
            told = "query" if queries == 1 else "queries"
            line = [f"{queries} {told}, {documents} documents{impl.removeprefix('ours')}", figure(rows[impl]["ms"])]
            line += [figure(peer["ms"]), f"{peer['ms'] / rows[impl]['ms']:.1f}x"]
            line += [f"{row['recall@10']:.3f}" if "recall@10" in row else "–" for row in (rows[impl], peer)]
            lines.append(line)
    told = f"{result['gpu']}, torch {result['torch']}, fast-plaid {result['fast-plaid']}; four bits, until results are "
    header = ["search", "ms", "fast-plaid", "speed", "recall@10", "fast-plaid"]
    return f"{told}on the host.\n\n{table(header, lines)}"
