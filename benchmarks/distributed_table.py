"""What gpu_distributed.py measured, what follows for a billion documents, and what the whole build took."""

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


# A corpus on paper, what of a GPU's memory documents may fill, and how many documents a first stage proposes.
DOCUMENTS, DOCUMENT_TOKENS, GPU_BYTES, CANDIDATES = 1e9, 128, 127e9, 4096
# How documents are stored, in how many bytes a token of 128 features, and the row that says how fast they are scored.
STORED = [
    ("bfloat16", 256, "forward", "corpus-10k", 3_000_000),
    ("e4m3 and a scale a token", 132, "fp8", "corpus-10k", 3_000_000),
    ("two bits and a centroid", 36, "plaid", "plaid-10k-300-2bit", None),
]


def plan(result: Row) -> str:
    """Bytes, GPUs and times for a billion documents, at the rates of rows in results/h200.json."""
    lines = []
    for stored, token_bytes, kind, name, tokens in STORED:
        rows = [row for row in result["rows"] if (row["kind"], row["name"], row["impl"]) == (kind, name, "ours")]
        if not rows or "ms" not in rows[0]:
            continue
        per_ms = (tokens or rows[0]["tokens"]) / rows[0]["ms"]
        corpus = DOCUMENTS * DOCUMENT_TOKENS * token_bytes
        gpus = -(-corpus // GPU_BYTES)
        pass_ms = DOCUMENTS * DOCUMENT_TOKENS / gpus / per_ms
        proposed_us = CANDIDATES * DOCUMENT_TOKENS / per_ms * 1e3
        lines.append(
            [stored, str(token_bytes), f"{corpus / 1e12:.1f}", f"{gpus:.0f}"]
            + [f"{per_ms / 1e6:.1f}", f"{pass_ms:.0f}", f"{proposed_us:.0f}"]
        )
    header = ["documents kept as", "bytes a token", "TB", "GPUs", "tokens a ns", "ms a pass"]
    return table([*header, f"us for {CANDIDATES} candidates"], lines)


def streamed(result: Row) -> str:
    """How long a pass over a corpus in host memory takes, at the rate of a row in results/integrations.json."""
    rates = [row["GB_s"] for row in result["rows"] if row["section"] == "stream" and row["what"] == "1 queries, pinned"]
    if not rates:
        return "Not measured yet."
    seconds = GPU_BYTES / 1e9 / rates[0]
    return (
        f"A stream of {rates[0]:.1f} GB/s brings as many bytes as documents may fill on the GPU, {GPU_BYTES / 1e9:.0f} "
        f"GB, in {seconds:.1f} s: that is for batches, where a thousand queries at once take {seconds:.1f} ms each."
    )


def build(result: Row) -> str:
    seconds, megabytes = result["user_s"] + result["sys_s"], result["module_bytes"] / 1e6
    return (
        f"The module for {', '.join(result['archs'])} has {megabytes:.1f} MB and takes {seconds:.0f} s of one core, so "
        f"{seconds / 120:.0f} minutes of two: `{result['command']}` in a fresh clone, with nvcc {result['nvcc']}."
    )
