"""Documents of every rank of a process group on each of them, with gradients that return to their owners.
Each rank sends its documents once, and receives one gradient for them from every other rank."""

from __future__ import annotations

import torch
from torch import Tensor, distributed
from torch.nn import functional

from . import checks


def gather_documents(
    D: Tensor, d_mask: Tensor | None = None, group: distributed.ProcessGroup | None = None
) -> tuple[Tensor, Tensor | None, int]:
    """The padded documents of all ranks, one rank after another, differentiable.

    Args:
        D, d_mask: this rank's documents ``[Nd, Ld, d]``, which may be none, and their mask as :func:`maxsim.maxsim`
            takes it. Numbers and lengths may differ among ranks; comparing them makes the host wait for the device.
        group: the process group; None is the default one. Any backend that has ``all_gather_into_tensor`` and
            ``all_to_all_single`` for ``D.device`` will do.

    Returns:
        ``[sum of Nd, longest Ld, d]``; their mask, or None where no rank has one and all lengths are equal; and where
        this rank's documents start. In the backward pass a document's gradient is the sum of all ranks' gradients,
        added in float32 and the same on every run.

    Raises:
        RuntimeError: there is no process group.
        ValueError: ranks differ in embedding dim or dtype. Errors in one rank's own arguments are those of
            :func:`maxsim.maxsim`; they are raised before anything is exchanged, on that rank alone.
    """
    checks.tokens("D", D, (3,), "[Nd, Ld, d]")
    if d_mask is not None:
        checks.mask("d_mask", d_mask, D.shape[:-1], D)
    if not (distributed.is_available() and distributed.is_initialized()):
        raise RuntimeError("gathering documents needs torch.distributed.init_process_group first")
    mine = torch.tensor([*D.shape, checks.KERNEL_DTYPES.index(D.dtype), d_mask is not None], device=D.device)
    counts, lengths, dims, dtypes, masked = _all(mine, group).view(-1, mine.shape[0]).T.tolist()
    for rank, kind in enumerate(zip(dims, dtypes)):
        if kind != (dims[0], dtypes[0]):
            first, other = (f"{dim} and {checks.KERNEL_DTYPES[dtype]}" for dim, dtype in ((dims[0], dtypes[0]), kind))
            raise ValueError(
                f"D must have one embedding dim and dtype on all ranks; got {first} on rank 0, {other} on rank {rank}"
            )
    most, longest = max(counts), max(lengths)
    mask = None
    if any(masked) or min(lengths) < longest:
        keep = (
            D.new_ones(D.shape[:2], dtype=torch.uint8)
            if d_mask is None
            else (d_mask != 0).expand(D.shape[:2]).to(torch.uint8)
        )
        keep = functional.pad(keep, (0, longest - D.shape[1], 0, most - D.shape[0]))
        mask = _joined(keep, counts, group).bool()
    padded = functional.pad(D, (0, 0, 0, longest - D.shape[1], 0, most - D.shape[0]))
    return _Gather.apply(padded, counts, group), mask, sum(counts[: distributed.get_rank(group)])


def _all(tensor: Tensor, group: distributed.ProcessGroup | None) -> Tensor:
    """Every rank's ``tensor``, which has one shape everywhere, one below the other."""
    gathered = tensor.new_empty(distributed.get_world_size(group) * tensor.shape[0], *tensor.shape[1:])
    distributed.all_gather_into_tensor(gathered, tensor.contiguous(), group=group)
    return gathered


def _joined(padded: Tensor, counts: list[int], group: distributed.ProcessGroup | None) -> Tensor:
    """The first ``counts`` rows of every rank's ``padded``."""
    gathered = _all(padded, group)
    if min(counts) == max(counts):
        return gathered
    return torch.cat([rows[:count] for rows, count in zip(gathered.split(padded.shape[0]), counts)])


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, padded: Tensor, counts: list[int], group: distributed.ProcessGroup | None) -> Tensor:
        ctx.counts, ctx.group, ctx.most = counts, group, padded.shape[0]
        return _joined(padded, counts, group)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        counts = ctx.counts
        mine = counts[distributed.get_rank(ctx.group)]
        received = grad.new_empty(len(counts) * mine, *grad.shape[1:])
        distributed.all_to_all_single(received, grad.contiguous(), [mine] * len(counts), counts, group=ctx.group)
        total = received.unflatten(0, (len(counts), mine)).sum(dim=0, dtype=torch.float32).to(grad.dtype)
        return functional.pad(total, (0, 0, 0, 0, 0, ctx.most - mine)), None, None
