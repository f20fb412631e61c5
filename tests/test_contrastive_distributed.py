"""contrastive_loss with the documents of all ranks, against one process that has them all.
Over gloo, and over NCCL where there are two GPUs or four."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from contrastive_worker import BATCHES, SHARED, Share, encoder, leaves_of
from helpers import ROOT
from torch.nn import functional

GROUPS = [("gloo", 2)] + [("nccl", n) for n in (2, 4) if torch.cuda.device_count() >= n]


@pytest.fixture(scope="module", params=GROUPS, ids=str)
def ranks(request, maxsim, tmp_path_factory) -> list[dict]:
    """What every rank computed."""
    backend, count = request.param
    folder = tmp_path_factory.mktemp(backend)
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    worker = [sys.executable, str(ROOT / "tests/contrastive_worker.py"), str(folder)]
    processes = [subprocess.Popen([*worker, str(r), str(count), backend], env=environment) for r in range(count)]
    assert [process.wait(timeout=120) for process in processes] == [0] * count
    return [torch.load(folder / f"{rank}.pt") for rank in range(count)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("number", range(BATCHES))
def test_equals_one_process_with_all_documents(maxsim, ranks, number, dtype):
    """Losses and gradients of every rank; a document's is the sum over the losses of all ranks."""
    shares = [Share(number, rank) for rank in range(len(ranks))]
    leaves = [leaves_of(share, "cpu", dtype) for share in shares]
    longest = max(share.D.shape[1] for share in shares)
    masks = [torch.ones(share.D.shape[:2]).bool() if share.d_mask is None else share.d_mask for share in shares]
    D = torch.cat([functional.pad(own[1], (0, 0, 0, longest - own[1].shape[1])) for own in leaves])
    mask = torch.cat([functional.pad(own, (0, longest - own.shape[1])) for own in masks])
    losses, first = [], 0
    for share, own in zip(shares, leaves, strict=True):
        labels = torch.arange(len(own[0])) + first
        negatives = own[2] if share.negatives is not None else None
        losses.append(maxsim.contrastive_loss(own[0], D, d_mask=mask, labels=labels, negatives=negatives, **SHARED))
        first += len(own[1])
    gradients = torch.autograd.grad(sum(losses), [leaf for own in leaves for leaf in own])
    wanted = iter(gradients)
    for rank in range(len(ranks)):
        want = [losses[rank].detach(), *(next(wanted) for _ in leaves[rank])]
        for max_bytes in (1, 1 << 30):
            got = ranks[rank][number, dtype, max_bytes]
            rounding = 1e-5 if dtype is torch.float32 else 1e-2
            for mine, one in zip(got, want, strict=True):
                assert mine.dtype is one.dtype
                torch.testing.assert_close(mine, one, rtol=rounding, atol=rounding / 10)


def test_distributed_data_parallel_has_the_gradient_of_the_mean(maxsim, ranks):
    shares = [Share(0, rank) for rank in range(len(ranks))]
    model = encoder("cpu")
    Q, D = model(torch.cat([share.Q for share in shares])), model(torch.cat([share.D for share in shares]))
    maxsim.contrastive_loss(Q, D, **SHARED).backward()
    for rank in ranks:
        torch.testing.assert_close(rank["weight"], model.weight.grad, rtol=1e-4, atol=1e-6)


def test_errors_name_the_rank(ranks):
    """Raised on every rank, so that none waits for another."""
    assert {rank["error"] for rank in ranks} == {
        "D must have one embedding dim and dtype on all ranks; got 16 and torch.float16 on rank 0, "
        "15 and torch.float16 on rank 1"
    }
