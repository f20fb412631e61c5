"""One rank of tests/test_distributed.py: its shares of some corpora, searched together with the other ranks.
Called with a folder, its rank, the number of ranks and the backend, gloo or nccl."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from helpers import load_kernel
from torch import Tensor, distributed

# Documents of up to four ranks; the last of fewer has what is left.
SIZES = [(3, 9, 0, 0), (0, 0, 12, 3), (4, 4, 4, 4), (1, 30, 2, 0)]


def corpus(number: int, ranks: int, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor, tuple[int, ...]]:
    """Queries, padded documents of small integers, so that many scores are equal, their masks, and who has how many."""
    generator = torch.Generator().manual_seed(number)
    sizes = (*SIZES[number][: ranks - 1], sum(SIZES[number][ranks - 1 :]))
    queries = torch.randint(-2, 3, (5, 3, 4), generator=generator).float()
    documents = torch.randint(-2, 3, (sum(sizes), 6, 4), generator=generator).float()
    masks = (torch.rand(5, 3, generator=generator) > 0.2, torch.rand(sum(sizes), 6, generator=generator) > 0.5)
    return *(x.to(device) for x in (queries, documents, *masks)), sizes


def searches(maxsim, search, queries: Tensor, documents: Tensor, q_mask: Tensor, d_mask: Tensor, **sizes) -> list:
    """The same searches for one process and for many."""
    lengths = d_mask.sum(1)
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    found = [
        search(queries, documents, k, q_mask, d_mask, normalize=False, largest=largest, **sizes)
        for k in (1, 5, 100)
        for largest in (True, False)
    ]
    found.append(search(queries, documents[d_mask], 7, cu_seqlens_d=offsets, chunk=2, **sizes))
    found.append(search(queries[0], documents, 4, **sizes))
    return [*found, search(queries[:0], documents, 4, **sizes)]


def main(folder: Path, rank: int, ranks: int, backend: str) -> None:
    device = f"cuda:{rank}" if backend == "nccl" else "cpu"
    if backend == "nccl":
        torch.cuda.set_device(rank)
    distributed.init_process_group(backend, init_method=f"file://{folder}/meet", rank=rank, world_size=ranks)
    maxsim = load_kernel()
    results = []
    for number in range(len(SIZES)):
        queries, documents, q_mask, d_mask, sizes = corpus(number, ranks, device)
        own = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
        for known in ({}, {"sizes": sizes}):
            share = (queries, documents[own], q_mask, d_mask[own])
            results.append(searches(maxsim, maxsim.distributed.retrieve, *share, **known))
    errors = []
    for wrong in ({"sizes": [1]}, {"sizes": [99] * ranks}):
        try:
            maxsim.distributed.retrieve(*(torch.randn(n, 2, 4, device=device) for n in (1, rank)), 1, **wrong)
        except ValueError as error:
            errors.append(str(error))
    results = [[[x.cpu() for x in found] for found in one] for one in results]
    torch.save({"results": results, "errors": errors}, folder / f"{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
