"""What gpu_distributed.py measured, and what the whole build took, as the documents show them."""

from __future__ import annotations

from markup import figure, table
from results import Row


def every_row(result: Row) -> str:
    lines = [
        [
            f"{row['name']} on {row['ranks']}",
            figure(row["ms"]),
            figure(row["own_ms"]) if row["ranks"] > 1 else "–",
            figure(row["latency_ms"]),
            f"{row['speedup']:.2f}x",
        ]
        for row in sorted(result["rows"], key=lambda row: (row["name"], row["ranks"]))
    ]
    header = [
        "queries x documents, on GPUs",
        "ms a call in a row of calls",
        "without the exchange",
        "ms of one call",
        "throughput of one GPU",
    ]
    told = f"{result['gpu']}, torch {result['torch']}; 32 and 128 tokens of 128 features in bfloat16, the best 100."
    compared = [row["same_bits"] for row in result["rows"] if "same_bits" in row]
    if compared:
        told += f" {sum(compared)} of {len(compared)} answers of several GPUs are one GPU's, bit for bit."
    return f"{told}\n\n{table(header, lines)}"


def build(result: Row) -> str:
    seconds, megabytes = result["user_s"] + result["sys_s"], result["module_bytes"] / 1e6
    return (
        f"The module for {', '.join(result['archs'])} has {megabytes:.1f} MB and takes {seconds:.0f} s of one core, so "
        f"{seconds / 120:.0f} minutes of two: `{result['command']}` in a fresh clone, with nvcc {result['nvcc']}."
    )
