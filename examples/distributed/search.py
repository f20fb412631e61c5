"""A corpus shared out among processes, searched as one: torchrun --nproc-per-node 2 examples/distributed/search.py
Each process keeps its documents on a GPU of its own, or all in memory where there are too few, and all get the same
answer."""

from __future__ import annotations

import argparse
import os
import time
import tomllib
from pathlib import Path

import torch
from kernels import get_kernel
from torch import distributed

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=20_000, help="documents in all")
    parser.add_argument("--queries", type=int, default=16)
    parser.add_argument("--top-k", type=int, default=10)
    parser.add_argument("--check", action="store_true", help="search the whole corpus on one process too, and compare")
    options = parser.parse_args()

    gpu = torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"])
    distributed.init_process_group("nccl" if gpu else "gloo")
    rank, ranks = distributed.get_rank(), distributed.get_world_size()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
    repo_id = tomllib.loads((ROOT / "build.toml").read_text())["general"]["hub"]["repo-id"]
    os.environ.setdefault("LOCAL_KERNELS", f"{repo_id}={ROOT}")
    maxsim = get_kernel(repo_id, version=1, trust_remote_code=True)

    # Every process knows the lengths and makes the tokens of its own documents alone, as it would read its own file.
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(20, 180, (options.documents,), generator=generator)
    cu_seqlens_d = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    bounds = maxsim.distributed.shard_bounds(cu_seqlens_d, ranks)
    sizes = [end - first for first, end in zip(bounds, bounds[1:], strict=False)]

    def tokens(shard: int) -> torch.Tensor:
        count = int(cu_seqlens_d[bounds[shard + 1]] - cu_seqlens_d[bounds[shard]])
        drawn = torch.randn(count, 128, generator=torch.Generator().manual_seed(1 + shard))
        return drawn.bfloat16().to(device)

    queries = torch.randn(options.queries, 32, 128, generator=generator).bfloat16().to(device)
    own = tokens(rank)
    own_offsets = (cu_seqlens_d[bounds[rank] : bounds[rank + 1] + 1] - cu_seqlens_d[bounds[rank]]).to(device)

    for _ in range(2):  # the first call also sets up the communication
        distributed.barrier()
        start = time.perf_counter()
        scores, ids = maxsim.distributed.retrieve(queries, own, options.top_k, cu_seqlens_d=own_offsets, sizes=sizes)
        best = ids[:, 0].tolist()  # waits for the device
        elapsed = time.perf_counter() - start

    if rank == 0:
        print(f"{options.documents} documents on {ranks} x {device.type}: {options.queries} queries in {elapsed:.4f} s")
        print(f"the first query's best: document {best[0]}, score {scores[0, 0].item():.4f}")
    if options.check and rank == 0:
        whole = torch.cat([tokens(shard) for shard in range(ranks)])
        want = maxsim.retrieve(queries, whole, options.top_k, cu_seqlens_d=cu_seqlens_d.to(device))
        assert torch.equal(ids, want[1]) and torch.equal(scores, want[0])
        print("bit for bit what one process finds")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
