"""One rank of tests/test_contrastive_distributed.py: its share of some batches, against the documents of all ranks.
Called with a folder, its rank, the number of ranks and the backend, gloo or nccl."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from helpers import load_kernel
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel

SHARED = {"temperature": 0.5, "mean_over_tokens": True}


class Share:
    """What one rank has of batch `number`: documents of its own number and length, and masks only in some batches."""

    def __init__(self, number: int, rank: int) -> None:
        generator = torch.Generator().manual_seed(10 * number + rank)
        queries, documents, length = [(3, 3, 6), (3, 3 + rank, 6 + 2 * rank), (2 + rank, 4 + rank, 5)][number]
        self.Q = torch.randn(queries, 4, 8, generator=generator)
        self.D = torch.randn(documents, length, 8, generator=generator)
        self.d_mask = torch.rand(documents, length, generator=generator) > 0.3 if number == 1 and rank == 1 else None
        self.negatives = torch.randn(queries, 2, 5, 8, generator=generator) if number == 2 else None


BATCHES = 3


def loss_of(maxsim, share: Share, leaves: list[Tensor], **options) -> Tensor:
    negatives = leaves[2] if share.negatives is not None else None
    return maxsim.contrastive_loss(
        leaves[0], leaves[1], d_mask=options.pop("d_mask", None), negatives=negatives, **SHARED, **options
    )


def leaves_of(share: Share, device: str, dtype: torch.dtype) -> list[Tensor]:
    tensors = [share.Q, share.D] + ([] if share.negatives is None else [share.negatives])
    return [x.to(device, dtype).requires_grad_() for x in tensors]


def encoder(device: str) -> torch.nn.Module:
    torch.manual_seed(3)
    return torch.nn.Linear(8, 16).to(device)


def main(folder: Path, rank: int, ranks: int, backend: str) -> None:
    device = f"cuda:{rank}" if backend == "nccl" else "cpu"
    if backend == "nccl":
        torch.cuda.set_device(rank)
    distributed.init_process_group(backend, init_method=f"file://{folder}/meet", rank=rank, world_size=ranks)
    maxsim, group = load_kernel(), distributed.group.WORLD
    results = {}
    for number in range(BATCHES):
        for dtype in (torch.float32, torch.bfloat16):
            for max_bytes in (1, 1 << 30):
                share = Share(number, rank)
                leaves = leaves_of(share, device, dtype)
                mask = None if share.d_mask is None else share.d_mask.to(device)
                loss = loss_of(maxsim, share, leaves, d_mask=mask, max_bytes=max_bytes, group=group)
                gradients = torch.autograd.grad(loss, leaves)
                results[number, dtype, max_bytes] = [x.cpu() for x in (loss.detach(), *gradients)]

    model = DistributedDataParallel(encoder(device))
    share = Share(0, rank)
    encoded = model(torch.cat([share.Q.flatten(0, 1), share.D.flatten(0, 1)]).to(device))
    Q, D = encoded[:12].view(3, 4, 16), encoded[12:].view(3, 6, 16)
    maxsim.contrastive_loss(Q, D, **SHARED, group=group).backward()
    results["weight"] = model.module.weight.grad.cpu()

    try:
        maxsim.gather_documents(D[..., : 16 - rank].half(), group=group)
    except ValueError as error:
        results["error"] = str(error)
    torch.save(results, folder / f"{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
