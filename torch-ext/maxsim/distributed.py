"""Top-k over a corpus whose documents are shared out among processes, each with a device of its own.
Ranks exchange the keys of their best documents, 8 bytes each; scores and embeddings stay where they are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, distributed

from . import checks, ranking, retrieval
from .problem import scores_shape
from .ranking import Ranking

_NONE = torch.iinfo(torch.int64).min  # the key of no document


def retrieve(
    Q: Tensor,
    D: Tensor,
    top_k: int,
    q_mask: Tensor | None = None,
    d_mask: Tensor | None = None,
    *,
    sizes: Sequence[int] | None = None,
    group: distributed.ProcessGroup | None = None,
    normalize: bool = True,
    chunk: int | None = None,
    largest: bool = True,
    sorted: bool = True,
    cu_seqlens_d: Tensor | None = None,
    empty_score: float = 0.0,
    validate: bool = False,
) -> tuple[Tensor, Tensor]:
    """:func:`maxsim.retrieve` over all ranks' documents: bit for bit what one process with all of them returns.

    Every rank of ``group`` calls it, with the same queries and options.

    Args:
        Q, q_mask: the queries, the same on every rank.
        D, d_mask, cu_seqlens_d: this rank's documents, as for :func:`maxsim.retrieve`; there may be none.
        sizes: how many documents each rank has. None asks them all, which makes the host wait for the device.
        group: the process group; None is the default one. Any backend that gathers tensors of ``Q.device`` will do.

    Returns:
        On every rank the same float32 scores and int64 ids ``[Nq, min(top_k, all documents)]``. Ids count through the
        documents of rank 0, then those of rank 1, and so on.

    Raises:
        RuntimeError: there is no process group. Other errors are those of :func:`maxsim.retrieve`; they are raised
            before anything is exchanged, on the ranks that have the bad argument.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        raise RuntimeError("maxsim.distributed.retrieve needs torch.distributed.init_process_group first")
    ranking.options(largest, sorted)
    problem = retrieval.shared_documents(Q, D, q_mask, d_mask, cu_seqlens_d, validate)
    queries, documents = scores_shape(problem)
    rank = distributed.get_rank(group)
    sizes = _sizes(documents, group, Q.device) if sizes is None else _checked(sizes, documents, rank, group)
    k = ranking.clamp_k(top_k, sum(sizes))
    rankings = retrieval.start(queries, k, largest)
    retrieval.extend(rankings, problem, chunk, normalize, empty_score, first_id=sum(sizes[:rank]))
    if 0 in (queries, k):
        scores, ids = retrieval.finish([], (queries, k), Q.device)
    else:
        scores, ids = ranking.merged(_gathered(_keys(rankings, queries, k, Q.device), group), k, largest)
    return (scores.squeeze(0), ids.squeeze(0)) if Q.dim() == 2 else (scores, ids)


def shard_bounds(cu_seqlens_d: Tensor, shards: int) -> list[int]:
    """Where to cut a packed corpus: shard i is documents ``bounds[i]`` up to ``bounds[i + 1]``.

    Neighbouring documents stay together and tokens are shared out as evenly as documents allow. ``cu_seqlens_d`` is
    ``[Nd + 1]`` on the CPU.
    """
    if isinstance(shards, bool) or not isinstance(shards, int) or shards < 1:
        raise ValueError(f"shards must be an int of at least 1; got {shards!r}")
    checks.offsets("cu_seqlens_d", cu_seqlens_d, "the corpus", cu_seqlens_d.new_empty(int(cu_seqlens_d[-1]), 0), True)
    cuts = [int(cu_seqlens_d[-1]) * i // shards for i in range(1, shards)]
    inner = torch.searchsorted(cu_seqlens_d, torch.tensor(cuts, dtype=cu_seqlens_d.dtype)).tolist()
    return [0, *inner, cu_seqlens_d.shape[0] - 1]


def _sizes(documents: int, group: distributed.ProcessGroup | None, device: torch.device) -> list[int]:
    return _gathered(torch.tensor([documents], device=device), group).flatten().tolist()


def _checked(sizes: Sequence[int], documents: int, rank: int, group: distributed.ProcessGroup | None) -> list[int]:
    world = distributed.get_world_size(group)
    if len(sizes) != world:
        raise ValueError(f"sizes must be one number for each of {world} ranks; got {len(sizes)}")
    if sizes[rank] != documents:
        raise ValueError(f"sizes[{rank}] must be {documents}, the documents of rank {rank}; got {sizes[rank]}")
    return list(sizes)


def _keys(rankings: list[Ranking], queries: int, k: int, device: torch.device) -> Tensor:
    """``[Nq, k]``, filled up where this rank has fewer than ``k`` documents."""
    found = [best.keys for best in rankings if best.keys is not None]
    if len(found) == 1 and found[0].shape == (queries, k):
        return found[0]
    keys = torch.full((queries, k), _NONE, device=device)
    first = 0
    for best in found:
        rows, columns = best.shape
        keys[first : first + rows, :columns] = best
        first += rows
    return keys


def _gathered(tensor: Tensor, group: distributed.ProcessGroup | None) -> Tensor:
    """Every rank's ``tensor``, along a new first axis."""
    gathered = tensor.new_empty((distributed.get_world_size(group), *tensor.shape))
    if tensor.is_cuda:  # NCCL would gather into memory of its own first, and then copy
        distributed.all_gather_into_tensor(gathered, tensor, group=group)
    else:  # which not every other backend has
        distributed.all_gather(list(gathered.unbind()), tensor, group=group)
    return gathered
