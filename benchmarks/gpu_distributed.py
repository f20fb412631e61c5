"""Top-k over documents shared out among 1, 2 and 4 GPUs: `python benchmarks/gpu_distributed.py --output FILE`.

Of a corpus of fixed size, and of one that grows with the number of GPUs; the same documents, however many share them.
One GPU runs `maxsim.retrieve`, more run `maxsim.distributed.retrieve`, whose answer is then compared with one GPU's,
bit for bit. Times are the slowest rank's: `ms` a call in a row of calls, `own_ms` the same without what ranks tell each
other, and `latency_ms` of a call alone, from the host's request to results on the device."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import ModuleType

import torch
from peers import load_kernel
from torch import Tensor, distributed

QUERY_TOKENS, DOCUMENT_TOKENS, DIM, TOP_K = 32, 128, 128, 100
# Name, queries, documents, and whether those are for each GPU.
CORPORA = [("64x10000", 64, 10_000, False), ("64x10000 a GPU", 64, 10_000, True), ("1x1000000", 1, 1_000_000, False)]
BLOCK = 500  # documents drawn together
CALLS, ROUNDS = 20, 7


def corpus(first: int, end: int, device: torch.device) -> Tensor:
    """Documents `first` to `end`, the same whoever asks: each block of them is drawn from its own seed."""
    documents = torch.empty(end - first, DOCUMENT_TOKENS, DIM, device=device, dtype=torch.bfloat16)
    for start in range(first - first % BLOCK, end, BLOCK):
        torch.manual_seed(1 + start)
        drawn = torch.randn(BLOCK, DOCUMENT_TOKENS, DIM, device=device, dtype=torch.bfloat16)
        own = slice(max(start, first), min(start + BLOCK, end))
        documents[own.start - first : own.stop - first] = drawn[own.start - start : own.stop - start]
    return documents


def milliseconds(call: Callable[[], object], calls: int, device: torch.device) -> float:
    """A call of `calls` in a row takes, on the slowest rank, which is another one in every round."""

    def elapsed() -> float:
        if distributed.is_initialized():
            distributed.barrier()
        wait(device)
        start = time.perf_counter()
        for _ in range(calls):
            call()
        wait(device)
        return (time.perf_counter() - start) / calls * 1e3

    for _ in range(3):
        elapsed()
    rounds = torch.tensor([elapsed() for _ in range(ROUNDS)], device=device)
    if distributed.is_initialized():
        distributed.all_reduce(rounds, distributed.ReduceOp.MAX)
    return statistics.median(rounds.tolist())


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def work(rank: int, ranks: int, options: argparse.Namespace) -> list[dict[str, object]]:
    """The rows of one number of GPUs, the same on every rank but for the comparison, which the first rank makes."""
    device = torch.device(options.device, rank) if options.device == "cuda" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if ranks > 1:
        backend = "nccl" if device.type == "cuda" else "gloo"
        distributed.init_process_group(
            backend,
            init_method=f"file://{options.meet}/{ranks}",
            rank=rank,
            world_size=ranks,
            timeout=timedelta(minutes=1),  # a rank that fails would keep the others waiting
            device_id=device if device.type == "cuda" else None,
        )
    maxsim = load_kernel()
    return [row(maxsim, rank, ranks, device, options.scale, *one) for one in CORPORA]


def row(
    maxsim: ModuleType, rank: int, ranks: int, device: torch.device, scale: float, name: str, *size: int
) -> dict[str, object]:
    queries, documents, each = size
    documents = max(ranks, int(documents * scale)) * (ranks if each else 1)
    bounds = [documents * i // ranks for i in range(ranks + 1)]
    sizes = [b - a for a, b in zip(bounds, bounds[1:], strict=False)]
    torch.manual_seed(0)
    Q = torch.randn(queries, QUERY_TOKENS, DIM, device=device, dtype=torch.bfloat16)
    D = corpus(bounds[rank], bounds[rank + 1], device)

    def alone(D: Tensor = D) -> tuple[Tensor, Tensor]:
        return maxsim.retrieve(Q, D, TOP_K, normalize=False)

    def together() -> tuple[Tensor, Tensor]:
        return maxsim.distributed.retrieve(Q, D, TOP_K, sizes=sizes, normalize=False)

    search = together if ranks > 1 else alone
    found = {
        "name": name,
        "ranks": ranks,
        "documents": documents,
        "ms": milliseconds(search, CALLS, device),
        "own_ms": milliseconds(alone, CALLS, device),
        "latency_ms": milliseconds(search, 1, device),
    }
    answer = search()
    if ranks > 1 and rank == 0:
        want = alone(corpus(0, documents, device))
        found["same_bits"] = all(torch.equal(a, b) for a, b in zip(answer, want, strict=True))
    return found


def measured(options: argparse.Namespace) -> list[dict[str, object]]:
    """Rows of every number of ranks, each with the documents a second that it has over one GPU."""
    rows = []
    for ranks in options.ranks:
        with tempfile.TemporaryDirectory() as meet:
            command = [sys.executable, __file__, "--device", options.device, "--scale", str(options.scale)]
            command += ["--meet", meet, "--ranks", str(ranks), "--rank"]
            pipe = subprocess.PIPE
            started = [subprocess.Popen([*command, str(r)], stdout=pipe, text=True) for r in range(ranks)]
            said = [process.communicate()[0] for process in started]
            if any(process.returncode for process in started):
                raise SystemExit(f"{ranks} ranks failed")
            rows += json.loads(said[0].splitlines()[-1])
    alone = {row["name"]: row for row in rows if row["ranks"] == 1}
    for row in rows:
        one = alone[row["name"]]
        row["speedup"] = one["ms"] / row["ms"] * row["documents"] / one["documents"]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--ranks", type=lambda text: [int(n) for n in text.split(",")], default=None)
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of documents")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--meet", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank is not None:
        print(json.dumps(work(options.rank, options.ranks[0], options)))
        if distributed.is_initialized():
            distributed.destroy_process_group()
        return
    options.ranks = options.ranks or [n for n in (1, 2, 4) if n <= torch.cuda.device_count()]
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    result = {
        "command": "python benchmarks/gpu_distributed.py",
        "gpu": torch.cuda.get_device_name() if options.device == "cuda" else None,
        "torch": torch.__version__,
        "kernel": load_kernel().__name__,
        "rows": measured(options),
    }
    if options.output:
        options.output.write_text(json.dumps(result, indent=1) + "\n")
    print("| corpus | GPUs | ms a call | ms of it alone | ms of one call | of one GPU |\n|---|---|---|---|---|---|")
    for row in result["rows"]:
        figures = (f"{row[key]:.3f}" for key in ("ms", "own_ms", "latency_ms"))
        print(f"| {' | '.join([row['name'], str(row['ranks']), *figures, format(row['speedup'], '.2f')])}x |")
    if not all(row.get("same_bits", True) for row in result["rows"]):
        raise SystemExit("several GPUs do not find what one finds")


if __name__ == "__main__":
    main()
