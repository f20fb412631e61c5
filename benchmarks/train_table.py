"""What examples/train measured, as docs/tasks/train.md shows it."""

from __future__ import annotations

from markup import figure, table
from results import Row

NAMES = {"maxsim": "`contrastive_loss`", "torch": "torch, all similarities"}


def training(result: Row) -> str:
    machine, (query_tokens, document_tokens) = result["machine"], result["tokens"]
    steps = len(next(iter(result["runs"].values()))["losses"])
    lines = [
        [
            NAMES[name],
            figure(run["losses"][0]),
            figure(sum(run["losses"][-10:]) / 10),
            f"{run['recall_after']:.1%}",
            figure(run["step_ms"]),
            figure(run["loss_ms"]),
        ]
        for name, run in result["runs"].items()
    ]
    header = ["", "first loss", "mean of the last ten", "found first", "ms a step", "of it the loss"]
    told = (
        f"{result['pairs']} pairs, {steps} steps of {result['batch']}, {query_tokens} and {document_tokens} tokens, on "
        f"{machine['device']} with {machine['threads']} threads, torch {machine['torch']}. Before training "
        f"{result['recall_before']:.1%} of {result['held_out']} held-out sentences found their own text first."
    )
    return f"{told}\n\n{table(header, lines)}\n\n{alone(result)}"


def alone(result: Row) -> str:
    lines = [
        [f"{row['batch']}: {NAMES[row['impl']]}", figure(row["ms"]), figure(row["peak_MiB"])]
        for row in result["loss_alone"]
    ]
    return table(["the loss alone, pairs in a batch", "ms, forward and backward", "peak MiB"], lines)
