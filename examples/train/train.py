"""Fine-tunes a small late-interaction encoder on Python's documentation, with the kernel's loss and with torch's.

Both start from the same weights, see the same batches in the same order and take turns, so that what differs is the
loss. `python examples/train/train.py` takes some minutes on two cores; `--output` keeps what was measured.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from encoder import DOCUMENT_TOKENS, QUERY_TOKENS, Encoder, weights
from losses import Loss, composed, fused
from measure import peak_mib, seconds
from pairs import Pair, Pairs, load
from torch import Tensor
from tqdm import tqdm

sys.path.append(str(Path(__file__).resolve().parents[1] / "search"))

from kernel import load_kernel  # noqa: E402  it is in the folder above

# Embeddings of that many pairs at once, to show how the loss alone grows.
BATCHES = (32, 64, 128)


class Run:
    """One encoder in training, and what its steps cost."""

    def __init__(self, loss: Loss, arguments: argparse.Namespace, device: torch.device) -> None:
        self.loss, self.device = loss, device
        self.encoder = Encoder(arguments.weights or weights(), arguments.seed).to(device)
        groups = [
            {"params": self.encoder.transformer.parameters(), "lr": 3e-5},
            {"params": self.encoder.head.parameters(), "lr": 1e-3},
        ]
        self.optimizer = torch.optim.AdamW(groups)
        self.losses: list[float] = []
        self.step_seconds: list[float] = []
        self.loss_seconds: list[float] = []

    def encode(self, pairs: list[Pair]) -> tuple[Tensor, ...]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            Q, q_mask = self.encoder([pair.query for pair in pairs], QUERY_TOKENS)
            D, d_mask = self.encoder([pair.document for pair in pairs], DOCUMENT_TOKENS)
        return Q, D, q_mask, d_mask

    def step(self, pairs: list[Pair]) -> None:
        def whole() -> None:
            Q, D, *masks = self.encode(pairs)
            # The gradient of the embeddings first, and then the encoder's: the loss can be timed by itself.
            leaves = [x.detach().requires_grad_() for x in (Q, D)]
            self.loss_seconds.append(
                seconds(lambda: self.losses.append(differentiated(self.loss, leaves, masks)), self.device)
            )
            torch.autograd.backward([Q, D], [leaf.grad for leaf in leaves])
            self.optimizer.step()
            self.optimizer.zero_grad()

        self.step_seconds.append(seconds(whole, self.device))


def differentiated(loss: Loss, leaves: list[Tensor], masks: list[Tensor]) -> float:
    value = loss(*leaves, *masks)
    value.backward()
    return value.item()


@torch.no_grad()
def recall(kernel: Any, run: Run, pairs: list[Pair]) -> float:
    """How often a query's own document comes first among all of them."""
    chunks = [run.encode(pairs[first : first + 50]) for first in range(0, len(pairs), 50)]
    Q, D, q_mask, d_mask = (torch.cat(parts) for parts in zip(*chunks, strict=True))
    scores = kernel.maxsim(Q, D, q_mask, d_mask, normalize=True)
    return (scores.argmax(1) == torch.arange(len(pairs), device=scores.device)).float().mean().item()


def loss_alone(run: Run, losses: dict[str, Loss], pairs: list[Pair]) -> list[dict[str, Any]]:
    """Time and memory of each loss, forward and backward, on more and more of the encoder's embeddings."""
    rows = []
    with torch.no_grad():
        chunks = [run.encode(pairs[first : first + 32]) for first in range(0, max(BATCHES), 32)]
    everything = [torch.cat(parts) for parts in zip(*chunks, strict=True)]
    for batch in BATCHES:
        Q, D, *masks = (x[:batch] for x in everything)
        for name, loss in losses.items():

            def call(loss: Loss = loss, Q: Tensor = Q, D: Tensor = D, masks: list[Tensor] = masks) -> None:
                differentiated(loss, [x.detach().clone().requires_grad_() for x in (Q, D)], masks)

            call()
            peak = peak_mib(call, run.device)
            times = [seconds(call, run.device) for _ in range(7)]
            rows.append({"batch": batch, "impl": name, "ms": statistics.median(times) * 1e3, "peak_MiB": peak})
    return rows


def measured(arguments: argparse.Namespace) -> dict[str, Any]:
    device = torch.device(arguments.device)
    torch.manual_seed(arguments.seed)
    kernel, pairs = load_kernel(), load(arguments.seed)
    losses = {"maxsim": fused(kernel), "torch": composed}
    runs = {name: Run(loss, arguments, device) for name, loss in losses.items()}
    before = recall(kernel, runs["maxsim"], pairs.held_out)
    print(f"{len(pairs.train)} pairs; {before:.1%} of {len(pairs.held_out)} held out found first", flush=True)
    alone = loss_alone(runs["maxsim"], losses, pairs.train)
    for number in tqdm(range(arguments.steps), desc="steps"):
        batch = batch_of(pairs, number, arguments.batch)
        for run in runs.values():
            run.step(batch)
    return {
        "command": "python examples/train/train.py " + " ".join(sys.argv[1:]),
        "machine": {
            "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.machine(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "kernel": kernel.__name__,
        },
        "pairs": len(pairs.train),
        "held_out": len(pairs.held_out),
        "batch": arguments.batch,
        "tokens": [QUERY_TOKENS, DOCUMENT_TOKENS],
        "recall_before": before,
        "runs": {
            name: {
                "losses": run.losses,
                "step_ms": statistics.median(run.step_seconds) * 1e3,
                "loss_ms": statistics.median(run.loss_seconds) * 1e3,
                "recall_after": recall(kernel, run, pairs.held_out),
            }
            for name, run in runs.items()
        },
        "loss_alone": alone,
    }


def batch_of(pairs: Pairs, number: int, size: int) -> list[Pair]:
    first = number * size % (len(pairs.train) - size)
    return pairs.train[first : first + size]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--weights", type=Path, help="a folder with the encoder, where its package is not installed")
    parser.add_argument("--output", type=Path, help="write what was measured there")
    arguments = parser.parse_args()
    result = measured(arguments)
    for name, run in result["runs"].items():
        first, last = run["losses"][0], statistics.mean(run["losses"][-10:])
        print(
            f"{name:>6}: loss {first:.3f} to {last:.3f}, {run['recall_after']:.1%} found first, "
            f"{run['step_ms']:.0f} ms a step, {run['loss_ms']:.1f} ms of it the loss"
        )
    for row in result["loss_alone"]:
        print(f"loss alone, batch {row['batch']:>3}: {row['impl']:>6} {row['ms']:.1f} ms, {row['peak_MiB']:.0f} MiB")
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
