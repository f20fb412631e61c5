"""Ragged batches, the layouts that carry them to the kernel, and what float64 says of every pair.
A layout is checked by its pairs alone, so that one truth serves all of them."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path as FilePath
from types import ModuleType

import torch
from kernels import get_kernel
from torch import Tensor

ROOT = FilePath(__file__).resolve().parents[1]

DTYPES = [
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float16),
    (torch.float16, torch.bfloat16),
    (torch.bfloat16, torch.float32),
    (torch.float32, torch.float16),
]

dtype_id = str  # pytest shows torch.float16 as it is


@cache
def load_kernel() -> ModuleType:
    """The kernel out of this checkout's build/, or of wherever LOCAL_KERNELS already points."""
    repo_id = tomllib.loads((ROOT / "build.toml").read_text())["general"]["hub"]["repo-id"]
    os.environ.setdefault("LOCAL_KERNELS", f"{repo_id}={ROOT}")
    return get_kernel(repo_id, version=1)


@dataclass(frozen=True)
class Path:
    """A compiled path, and the device whose tensors take it."""

    name: str

    @property
    def device(self) -> str:
        return "cuda" if self.name.startswith("sm") else "cpu"


def tolerance(*dtypes: torch.dtype) -> float:
    """Largest relative error of a score."""
    return 2e-6 if torch.float32 in dtypes else 1e-6


@dataclass
class Batch:
    """Queries and documents of any lengths, ``[L, d]`` each."""

    queries: list[Tensor]
    documents: list[Tensor]

    @staticmethod
    def random(
        query_lengths: Sequence[int],
        document_lengths: Sequence[int],
        dim: int,
        dtypes: tuple[torch.dtype, torch.dtype] = (torch.float32, torch.float32),
        device: str = "cpu",
        seed: int = 0,
    ) -> Batch:
        generator = torch.Generator().manual_seed(seed)

        def side(lengths: Sequence[int], dtype: torch.dtype) -> list[Tensor]:
            return [torch.randn(n, dim, generator=generator).to(device, dtype) for n in lengths]

        return Batch(side(query_lengths, dtypes[0]), side(document_lengths, dtypes[1]))


@dataclass
class Truth:
    """What float64 says of one pair, and how large the sums behind it are."""

    score: Tensor
    scale: float
    similarities: Tensor  # [Lq, Ld]
    filled: bool


def truth(query: Tensor, document: Tensor, normalize: bool = False, empty_score: float = 0.0) -> Truth:
    """The score of one pair in float64, differentiable, by another way than the package's reference."""
    query, document = query.double(), document.double()
    if normalize:
        query, document = (x / x.norm(dim=-1, keepdim=True).clamp_min(1e-12) for x in (query, document))
    similarities = query @ document.T
    if document.shape[0] == 0:
        return Truth(similarities.sum() + empty_score, abs(empty_score), similarities, False)
    best, winners = similarities.max(dim=-1)
    # A dot product of d terms errs with the size of its terms, not with what is left after they cancel.
    terms = query.norm(dim=-1) * document[winners].norm(dim=-1) / query.shape[-1] ** 0.5
    return Truth(best.sum(), (best.abs() + terms).sum().item(), similarities, True)


@dataclass
class Laid:
    """A batch in one layout: its tensors, the call, and which pair every score belongs to."""

    queries: Tensor
    documents: Tensor
    pairs: list[tuple[int, int]]
    score: Callable[..., Tensor]
    score_with_argmax: Callable[..., tuple[Tensor, Tensor]] | None
    query_segments: Callable[[Tensor], list[Tensor]]
    document_segments: Callable[[Tensor], list[Tensor]]


@dataclass
class Padded:
    """Segments in rows of equal length. What is behind them is NaN, which must not be read."""

    lengths: list[int]
    tensor: Tensor = field(init=False)

    def __init__(self, segments: list[Tensor], extra: int = 2) -> None:
        self.lengths = [len(s) for s in segments]
        first = segments[0]
        self.tensor = first.new_full((len(segments), max(self.lengths) + extra, first.shape[1]), float("nan"))
        for row, segment in zip(self.tensor, segments, strict=True):
            row[: len(segment)] = segment

    def mask(self) -> Tensor:
        places = torch.arange(self.tensor.shape[1], device=self.tensor.device)
        return places < torch.tensor(self.lengths, device=self.tensor.device)[:, None]

    def length_tensor(self, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.tensor(self.lengths, dtype=dtype, device=self.tensor.device)

    def segments(self, tensor: Tensor) -> list[Tensor]:
        """Back to segments; a gradient behind them must be exactly zero."""
        rows = tensor.reshape(-1, *tensor.shape[-2:])
        for row, n in zip(rows, self.lengths, strict=True):
            assert not row[n:].any(), "a padding token received a gradient"
        return [row[:n] for row, n in zip(rows, self.lengths, strict=True)]


@dataclass
class Packed:
    """Segments one after another, and rows behind the last one that belong to none."""

    lengths: list[int]
    tensor: Tensor = field(init=False)

    def __init__(self, segments: list[Tensor], extra: int = 3) -> None:
        self.lengths = [len(s) for s in segments]
        tail = segments[0].new_full((extra, segments[0].shape[1]), float("nan"))
        self.tensor = torch.cat([*segments, tail])

    def offsets(self, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.tensor([0, *self.lengths], device=self.tensor.device).cumsum(0).to(dtype)

    def segments(self, tensor: Tensor) -> list[Tensor]:
        *segments, tail = tensor.split([*self.lengths, len(tensor) - sum(self.lengths)])
        assert not tail.any(), "a token of no segment received a gradient"
        return list(segments)


def _every_pair(batch: Batch) -> list[tuple[int, int]]:
    return [(i, j) for i in range(len(batch.queries)) for j in range(len(batch.documents))]


def _dense(m: ModuleType, q: Padded, d: Padded, shapes: tuple[tuple, tuple], pairs: list[tuple[int, int]]) -> Laid:
    """maxsim on both sides behind masks, with their leading axes as ``shapes`` has them."""
    queries, documents = (
        x.tensor.reshape(*shape, *x.tensor.shape[1:]) for x, shape in zip((q, d), shapes, strict=True)
    )
    masks = [x.mask().reshape(*shape, -1) for x, shape in zip((q, d), shapes, strict=True)]
    return Laid(
        queries,
        documents,
        pairs,
        lambda q, d, **o: m.maxsim(q, d, *masks, **o),
        lambda q, d, **o: m.maxsim_with_argmax(q, d, *masks, **o),
        q.segments,
        d.segments,
    )


def cross(m: ModuleType, batch: Batch) -> Laid:
    """maxsim, [Nq, Lq, d] x [Nd, Ld, d]."""
    shapes = ((len(batch.queries),), (len(batch.documents),))
    return _dense(m, Padded(batch.queries), Padded(batch.documents), shapes, _every_pair(batch))


def single_query(m: ModuleType, batch: Batch) -> Laid:
    """maxsim, [Lq, d] x [Nd, Ld, d]."""
    pairs = [(0, j) for j in range(len(batch.documents))]
    return _dense(m, Padded(batch.queries[:1]), Padded(batch.documents), ((), (len(batch.documents),)), pairs)


def single_document(m: ModuleType, batch: Batch) -> Laid:
    """maxsim, [Nq, Lq, d] x [Ld, d]."""
    pairs = [(i, 0) for i in range(len(batch.queries))]
    return _dense(m, Padded(batch.queries), Padded(batch.documents[:1]), ((len(batch.queries),), ()), pairs)


def slab(m: ModuleType, batch: Batch) -> Laid:
    """maxsim, [Nq, Lq, d] x [Nq, K, Ld, d]: query i has documents i*K to i*K + K."""
    count = len(batch.queries)
    per_query = len(batch.documents) // count
    pairs = [(i, i * per_query + k) for i in range(count) for k in range(per_query)]
    shapes = ((count,), (count, per_query))
    return _dense(m, Padded(batch.queries), Padded(batch.documents), shapes, pairs)


def matched(m: ModuleType, batch: Batch) -> Laid:
    """maxsim_pairs, [B, Lq, d] x [B, Ld, d] behind masks."""
    q, d = Padded(batch.queries), Padded(batch.documents[: len(batch.queries)])
    masks = (q.mask(), d.mask())
    return Laid(
        q.tensor,
        d.tensor,
        [(i, i) for i in range(len(batch.queries))],
        lambda q, d, **o: m.maxsim_pairs(q, d, *masks, **o),
        None,
        q.segments,
        d.segments,
    )


def candidates(m: ModuleType, batch: Batch) -> Laid:
    """score_candidates_padded, [B, Lq, d] x [B, C, Ld, d] behind lengths."""
    laid = slab(m, batch)
    count = len(batch.queries)
    lengths = (
        Padded(batch.queries).length_tensor(torch.int64),
        Padded(batch.documents).length_tensor().unflatten(0, (count, -1)),
    )
    laid.score = lambda q, d, **o: m.score_candidates_padded(q, d, *lengths, **o)
    laid.score_with_argmax = lambda q, d, **o: m.score_candidates_padded_with_argmax(q, d, *lengths, **o)
    return laid


def contrastive(m: ModuleType, batch: Batch) -> Laid:
    """score_contrastive, [Nq, Lq, d] of one length x packed documents."""
    q, d = Padded(batch.queries, extra=0), Packed(batch.documents)
    assert len(set(q.lengths)) == 1, "this layout has neither lengths nor a mask for its queries"
    offsets = d.offsets()
    return Laid(
        q.tensor,
        d.tensor,
        _every_pair(batch),
        lambda q, d, **o: m.score_contrastive(q, d, offsets, **o),
        lambda q, d, **o: m.score_contrastive_with_argmax(q, d, offsets, **o),
        q.segments,
        d.segments,
    )


def varlen(m: ModuleType, batch: Batch) -> Laid:
    """maxsim_varlen, packed x packed."""
    q, d = Packed(batch.queries), Packed(batch.documents)
    offsets = (q.offsets(torch.int64), d.offsets())
    return Laid(
        q.tensor,
        d.tensor,
        _every_pair(batch),
        lambda q, d, **o: m.maxsim_varlen(q, d, *offsets, **o),
        None,
        q.segments,
        d.segments,
    )


def listed(m: ModuleType, batch: Batch) -> Laid:
    """score_pairs_packed: every pair, shuffled, and some of them twice."""
    q, d = Packed(batch.queries), Packed(batch.documents)
    pairs = _every_pair(batch)
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(1)).tolist()
    pairs = [pairs[k] for k in order + order[:2]]
    query_ids, document_ids = (torch.tensor(ids, device=q.tensor.device) for ids in zip(*pairs, strict=True))
    query_offsets, document_offsets = q.offsets(), d.offsets(torch.int64)
    ids = (query_ids, document_ids.int())
    return Laid(
        q.tensor,
        d.tensor,
        pairs,
        lambda q, d, **o: m.score_pairs_packed(q, query_offsets, d, document_offsets, *ids, **o),
        lambda q, d, **o: m.score_pairs_packed_with_argmax(q, query_offsets, d, document_offsets, *ids, **o),
        q.segments,
        d.segments,
    )


LAYOUTS = [cross, single_query, single_document, slab, matched, candidates, contrastive, varlen, listed]


def layout_id(layout: Callable) -> str:
    return layout.__name__


def ragged(layout: Callable, dim: int, dtypes: tuple[torch.dtype, torch.dtype], device: str, seed: int = 0) -> Batch:
    """Three queries and six documents, among them an empty one of each and one of a single token."""
    query_lengths = [9, 9, 9] if layout is contrastive else [9, 0, 17]
    return Batch.random(query_lengths, [21, 1, 0, 40, 5, 33], dim, dtypes, device, seed)


def assert_scores(scores: Tensor, laid: Laid, batch: Batch, limit: float, **options: object) -> None:
    """Every score is within ``limit`` of float64, relative to the size of what was summed."""
    assert scores.dtype is torch.float32
    assert scores.numel() == len(laid.pairs)
    for (i, j), score in zip(laid.pairs, scores.flatten().tolist(), strict=True):
        want = truth(batch.queries[i], batch.documents[j], **options)
        error = abs(score - want.score.item())
        assert error <= limit * want.scale, f"pair {i, j}: {score} is {error / want.scale:.1e} off {want.score.item()}"
