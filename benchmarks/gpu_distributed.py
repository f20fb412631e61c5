"""Top-k over documents shared out among 1, 2 and 4 GPUs: `python benchmarks/gpu_distributed.py --output FILE`.

Of a corpus of fixed size, and of one that grows with the number of GPUs. One GPU runs `maxsim.retrieve`, more run
`maxsim.distributed.retrieve`. Times are the slowest rank's: `ms` a call in a row of calls, and `latency_ms` of a call
alone, from the host's request to results on the device."""

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
from pathlib import Path

import torch
from peers import load_kernel
from torch import Tensor, distributed

QUERY_TOKENS, DOCUMENT_TOKENS, DIM, TOP_K = 32, 128, 128, 100
# Name, queries, documents, and whether those are for each GPU.
CORPORA = [("64x10000", 64, 10_000, False), ("64x10000 a GPU", 64, 10_000, True), ("1x1000000", 1, 1_000_000, False)]
CALLS, ROUNDS = 20, 7


def search(queries: int, documents: int, device: torch.device) -> tuple[Callable[[], tuple[Tensor, Tensor]], int]:
    """A call over this rank's share, and how many documents there are."""
    maxsim = load_kernel()
    ranks, rank = (distributed.get_world_size(), distributed.get_rank()) if distributed.is_initialized() else (1, 0)
    bounds = [documents * i // ranks for i in range(ranks + 1)]
    sizes = [b - a for a, b in zip(bounds, bounds[1:], strict=False)]
    dtype = torch.bfloat16
    torch.manual_seed(0)
    Q = torch.randn(queries, QUERY_TOKENS, DIM, device=device, dtype=dtype)
    torch.manual_seed(1 + rank)
    D = torch.randn(sizes[rank], DOCUMENT_TOKENS, DIM, device=device, dtype=dtype)
    k = min(TOP_K, documents)
    if ranks == 1:
        return lambda: maxsim.retrieve(Q, D, k, normalize=False), documents
    return lambda: maxsim.distributed.retrieve(Q, D, k, sizes=sizes, normalize=False), documents


def times(call: Callable[[], object], device: torch.device) -> list[float]:
    """Milliseconds a call, in a row and alone."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    def elapsed(calls: int) -> float:
        if distributed.is_initialized():
            distributed.barrier()
        wait()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        wait()
        return (time.perf_counter() - start) / calls * 1e3

    elapsed(3)
    return [statistics.median(elapsed(calls) for _ in range(ROUNDS)) for calls in (CALLS, 1)]


def work(rank: int, ranks: int, options: argparse.Namespace) -> list[dict[str, object]]:
    """The rows of one number of GPUs, the same on every rank."""
    device = torch.device(options.device, rank) if options.device == "cuda" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if ranks > 1:
        backend = "nccl" if device.type == "cuda" else "gloo"
        meet = f"file://{options.meet}/{ranks}"
        distributed.init_process_group(backend, init_method=meet, rank=rank, world_size=ranks)
    rows = []
    for name, queries, documents, each in CORPORA:
        documents = max(ranks, int(documents * options.scale)) * (ranks if each else 1)
        call, count = search(queries, documents, device)
        slowest = torch.tensor(times(call, device), device=device)
        if ranks > 1:
            distributed.all_reduce(slowest, distributed.ReduceOp.MAX)
        ms, latency = slowest.tolist()
        rows.append({"name": name, "ranks": ranks, "documents": count, "ms": ms, "latency_ms": latency})
        del call  # and its documents
    if ranks > 1:
        distributed.destroy_process_group()
    return rows


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
    print("| corpus | GPUs | ms a call | ms alone | of one GPU |\n|---|---|---|---|---|")
    for row in result["rows"]:
        cells = (row["name"], row["ranks"], f"{row['ms']:.3f}", f"{row['latency_ms']:.3f}", f"{row['speedup']:.2f}x")
        print(f"| {' | '.join(map(str, cells))} |")
    if options.output:
        options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
