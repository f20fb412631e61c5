"""What the CPU's results look like in README.md and docs/benchmarks.md."""

from __future__ import annotations

from markup import best_peer, by_workload, figure, table
from results import Row


def milliseconds(row: Row) -> float:
    return row["ms"] if "ms" in row else row["host_us"] / 1e3


def quartiles(row: Row) -> list[float]:
    return row["quartiles_ms"] if "ms" in row else [us / 1e3 for us in row["quartiles_us"]]


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


def summary(result: Row) -> str:
    """One line a workload: the kernel beside whichever peer is fastest there."""
    lines = []
    for name, rows in by_workload(result["rows"]).items():
        ours, peer = rows["ours"], best_peer(rows, "host_us" if "host_us" in rows["ours"] else "ms")
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
    return f"{describe(result)}\n\n{table(header, lines)}"


def every_row(result: Row) -> str:
    """Every row, those included that have no figure."""
    lines = []
    for name, rows in by_workload(result["rows"]).items():
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
    return f"{describe(result)}\n\n{table(header, lines)}"
