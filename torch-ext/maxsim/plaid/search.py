"""PLAID's search over an index in memory: probe, score by centroids, score exactly, rank.
Every step has a fixed shape, so that nothing has to wait for a count: what is no candidate scores -inf."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import documents
from .scoring import approximate

if TYPE_CHECKING:
    from .index import Index


def search(index: Index, queries: Tensor, top_k: int, n_full_scores: int, n_ivf_probe: int) -> tuple[Tensor, Tensor]:
    """Scores and document numbers ``[Nq, k]``; arguments as in :meth:`maxsim.plaid.Index.search`, checked."""
    count, batch = len(index), queries.shape[0]
    kept = min(count, max(1, n_full_scores // 4))
    width = min(top_k, kept)
    if batch == 0 or count == 0 or queries.shape[1] == 0:
        return queries.new_zeros(batch, 0, dtype=torch.float32), queries.new_zeros(batch, 0, dtype=torch.int64)
    by_centroid = (index.centroids.float() @ queries.float().transpose(1, 2)).contiguous()  # [Nq, C, Lq]
    coarse = approximate(
        by_centroid, index.codes, index.offsets, None, probed=_probed(by_centroid, queries, n_ivf_probe)
    )
    best, chosen = coarse.topk(kept, sorted=False)
    rows = torch.arange(batch, device=queries.device).repeat_interleave(kept)
    exact, _ = documents.score(queries, index.stored(), False, True, float("-inf"), pairs=(rows, chosen.flatten()))
    exact = exact.view(batch, kept).masked_fill(best == float("-inf"), float("-inf"))
    scores, places = exact.topk(width)
    ids = chosen.gather(1, places)
    return scores, ids.masked_fill(scores == float("-inf"), -1)


def _probed(by_centroid: Tensor, queries: Tensor, n_ivf_probe: int) -> Tensor:
    """Which centroids ``[Nq, C]`` are among the best of a query token that is not padding."""
    batch, centroids, _ = by_centroid.shape
    best = by_centroid.topk(min(n_ivf_probe, centroids), dim=1, sorted=False).indices
    real = (queries != 0).any(-1)[:, None].expand_as(best)
    probed = torch.zeros(batch, centroids, dtype=torch.int8, device=by_centroid.device)
    return probed.scatter_reduce_(1, best.flatten(1), real.flatten(1).to(torch.int8), "amax").bool()
