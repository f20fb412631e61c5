"""PLAID's search over an index in memory: probe, score by centroids, score exactly, rank.
Every step has a fixed shape, so that nothing has to wait for a count: what is no candidate scores -inf."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import paths
from ..ranking import Ranking
from . import documents
from .scoring import approximate

if TYPE_CHECKING:
    from .index import Index

# Devices with an op for everything behind the centroids' similarities, and what it has room for. Those it computes
# itself where centroids have halves of so many features.
_SEARCH_DEVICES = documents.devices_of("search_forward")
_MOST_CENTROIDS, _MOST_RANKED, _MOST_QUERIES, _MULTIPLIED_DIM = 8 * (48 << 10), 2048, 65535, 128


def search(index: Index, queries: Tensor, top_k: int, n_full_scores: int, n_ivf_probe: int) -> tuple[Tensor, Tensor]:
    """Scores and document numbers ``[Nq, k]``; arguments as in :meth:`maxsim.plaid.Index.search`, checked."""
    count, batch = len(index), queries.shape[0]
    kept = min(count, max(1, n_full_scores // 4))
    width = min(top_k, kept)
    if batch == 0 or count == 0 or queries.shape[1] == 0:
        return queries.new_zeros(batch, 0, dtype=torch.float32), queries.new_zeros(batch, 0, dtype=torch.int64)
    queries = queries.detach()
    centroids, dim = index.centroids.shape
    probes = min(n_ivf_probe, centroids)
    one_op = queries.is_cuda and "cuda" in _SEARCH_DEVICES and centroids <= _MOST_CENTROIDS
    if one_op and max(probes, kept) <= _MOST_RANKED and batch <= _MOST_QUERIES:
        stored = index.stored()
        halves = stored.centroids.dtype is torch.float16 and queries.dtype is not torch.float32
        return documents.search_forward(
            None if halves and dim == _MULTIPLIED_DIM else _centroid_scores(stored.centroids, queries),
            queries,
            stored.codes,
            stored.residuals,
            stored.offsets,
            stored.centroids,
            stored.bucket_weights,
            stored.inverse_norms,
            stored.centroid_norm,
            stored.nbits,
            paths.forced,
            probes,
            kept,
            width,
        )
    by_centroid = _centroid_scores(index.centroids, queries)
    probed = _probed(by_centroid, queries, probes)
    coarse = approximate(by_centroid, index.codes, index.offsets, None, probed=probed)
    best, chosen = _best(coarse, kept)
    rows = torch.arange(batch, device=queries.device)[:, None].expand(batch, kept).reshape(-1)
    exact, _ = documents.score(queries, index.stored(), False, True, float("-inf"), pairs=(rows, chosen.reshape(-1)))
    exact = exact.view(batch, kept).masked_fill(best == float("-inf"), float("-inf"))
    scores, places = _best(exact, width)
    ids = chosen.gather(1, places)
    return scores, ids.masked_fill(scores == float("-inf"), -1)


def _best(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """As ``scores.topk(k)``, where among equals the first comes first."""
    ranking = Ranking(k)
    ranking.add(scores, 0)
    return ranking.result()


def _centroid_scores(centroids: Tensor, queries: Tensor) -> Tensor:
    """float32 products of centroids and query tokens, ``[Nq, C, Lq]``."""
    options = {}
    if queries.is_cuda and queries.dtype == centroids.dtype and queries.dtype != torch.float32:
        options["out_dtype"] = torch.float32  # as the tensor cores sum up
    else:
        queries, centroids = queries.float(), centroids.float()
    return torch.bmm(centroids.expand(queries.shape[0], -1, -1), queries.transpose(1, 2), **options)


def _probed(by_centroid: Tensor, queries: Tensor, probes: int) -> Tensor:
    """Which centroids ``[Nq, C]`` are among the best of a query token that is not padding."""
    batch, centroids, _ = by_centroid.shape
    _, best = _best(by_centroid.transpose(1, 2).flatten(0, 1), probes)
    # Those of padding are written behind the others' end.
    best = torch.where((queries != 0).any(-1).flatten()[:, None], best, centroids).view(batch, -1)
    probed = torch.zeros(batch, centroids + 1, dtype=torch.bool, device=by_centroid.device)
    return probed.scatter_(1, best, True)[:, :-1]
