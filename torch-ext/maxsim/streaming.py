"""Top-k over a corpus that is not on the device: pinned memory, ordinary memory or a memory-mapped file.
While one part is being scored the next is on its way, through two sets of buffers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Callable

import torch
from torch import Tensor

from . import checks, ranking, retrieval
from .problem import Problem, dense, scores_shape

_BYTES = 256 << 20  # of document tokens in each of the two buffers
_BAR = 40  # characters
_FIELDS = ("documents", "document_offsets", "document_mask")
_OFFSETS = 1


def retrieve_streamed(
    Q: Tensor,
    D: Tensor,
    top_k: int,
    q_mask: Tensor | None = None,
    d_mask: Tensor | None = None,
    *,
    cu_seqlens_d: Tensor | None = None,
    normalize: bool = True,
    largest: bool = True,
    empty_score: float = 0.0,
    buffer_bytes: int | None = None,
    progress: bool | Callable[[int, int], None] = False,
) -> tuple[Tensor, Tensor]:
    """:func:`maxsim.retrieve` for a corpus in host memory or on disk and queries on any device.

    Args:
        Q, q_mask: queries as for :func:`maxsim.retrieve`, on the device that is to do the work.
        D, d_mask, cu_seqlens_d: the corpus as for :func:`maxsim.retrieve`, on the CPU. Pinned tensors are sent as they
            are. Anything else is first copied to pinned buffers; ``torch.load(path, mmap=True)`` and
            ``torch.from_file`` give tensors that are read from disk on the way.
        buffer_bytes: bytes of document tokens in each of two buffers, 256 MiB unless given; at least one document
            always fits.
        progress: True draws a bar on stderr; a function is called with the documents queued so far and all of them.

    Other options, results and errors are those of :func:`maxsim.retrieve`. On an accelerator the host waits for
    copies, never for scores: results are ready when the current stream is.
    """
    checks.flag("largest", largest)
    if D.device.type != "cpu":
        raise RuntimeError(f"D must be on the CPU, to be streamed from there; got {D.device}")
    queries = dense(Q, Q.new_empty(0, 0, Q.shape[-1]), q_mask, None)
    host = retrieval.shared_documents(torch.empty_like(Q, device="cpu"), D, None, d_mask, cu_seqlens_d, False)
    shape = scores_shape(host)
    k = ranking.clamp_k(top_k, shape[1])
    report = progress if callable(progress) else (_bar if checks.flag("progress", progress) else None)
    rankings = retrieval.start(shape[0], k, largest)
    parts = _parts(host, ranking.step("buffer_bytes", buffer_bytes, _BYTES))
    arriving = _double_buffered if Q.device.type == "cuda" else _one_by_one
    for part, (first, end) in zip(arriving(host, parts, Q.device), parts):
        problem = part._replace(queries=queries.queries, query_mask=queries.query_mask)
        retrieval.extend(rankings, problem, None, normalize, empty_score, first)
        if report is not None:
            report(end, shape[1])
    scores, ids = retrieval.finish(rankings, (shape[0], k), Q.device)
    return (scores.squeeze(0), ids.squeeze(0)) if Q.dim() == 2 else (scores, ids)


def _parts(host: Problem, limit: int) -> list[tuple[int, int]]:
    """The documents from first to end of each part, whose tokens take at most ``limit`` bytes if they are several."""
    documents, offsets = scores_shape(host)[1], host.document_offsets
    token_bytes = host.documents.shape[-1] * host.documents.element_size()
    if offsets is None:
        step = max(1, limit // max(1, host.documents.shape[1] * token_bytes))
        return [(first, min(first + step, documents)) for first in range(0, documents, step)]
    parts, first = [], 0
    while first < documents:
        fitting = int(torch.searchsorted(offsets, int(offsets[first]) + limit // token_bytes, right=True)) - 1
        parts.append((first, min(max(fitting, first + 1), documents)))
        first = parts[-1][1]
    return parts


def _between(host: Problem, first: int, end: int) -> Problem:
    """The documents of one part as a problem of their own: views, but for the offsets, which start at 0 again."""
    part = retrieval.documents_between(host, first, end)
    offsets = part.document_offsets
    if offsets is None:
        return part
    rows = slice(int(offsets[0]), int(offsets[-1]))
    mask = host.document_mask
    return part._replace(
        documents=host.documents[rows],
        document_offsets=offsets - offsets[0],
        document_mask=None if mask is None else mask[rows],
    )


def _one_by_one(host: Problem, parts: list[tuple[int, int]], device: torch.device) -> Iterator[Problem]:
    """Every part on ``device``: as it lies for the CPU, else copied when its turn comes."""
    for first, end in parts:
        yield _sent(_between(host, first, end), lambda _, tensor: tensor.to(device))


def _tensors(part: Problem) -> Iterator[tuple[int, Tensor]]:
    """What a part has of the document side, by the place in ``_FIELDS``."""
    for i, name in enumerate(_FIELDS):
        if getattr(part, name) is not None:
            yield i, getattr(part, name)


def _sent(part: Problem, send: Callable[[int, Tensor], Tensor]) -> Problem:
    """``part`` with the document side as ``send`` makes it of each tensor and its place in ``_FIELDS``."""
    return part._replace(**{_FIELDS[i]: send(i, tensor) for i, tensor in _tensors(part)})


class _Slot:
    """One of two sets of buffers: on the device, and pinned ones for what is not pinned yet."""

    def __init__(self, host: Problem, parts: list[tuple[int, int]], device: torch.device) -> None:
        documents = tokens = max(end - first for first, end in parts)
        if host.document_offsets is not None:
            offsets = host.document_offsets
            tokens = max(int(offsets[end] - offsets[first]) for first, end in parts)
        rows = (tokens, documents + 1, tokens)

        def room(i: int, like: Tensor, **options: object) -> Tensor:
            return torch.empty((rows[i], *like.shape[1:]), dtype=like.dtype, **options)

        self.pinned: dict[int, Tensor] = {}
        self.buffers: dict[int, Tensor] = {}
        for i, tensor in _tensors(host):
            self.buffers[i] = room(i, tensor, device=device)
            if i == _OFFSETS or not tensor.is_pinned():
                self.pinned[i] = room(i, tensor, device="cpu", pin_memory=True)
        self.arrived, self.scored = torch.cuda.Event(), torch.cuda.Event()
        self.scored.record()  # the allocator's memory may still be in use by work queued before

    def fetch(self, part: Problem, copies: torch.cuda.Stream) -> Problem:
        """``part`` on the device once ``arrived`` has happened."""
        self.arrived.synchronize()  # the pinned buffers have been read
        copies.wait_event(self.scored)
        fetched = _sent(part, lambda i, tensor: self._copy(i, tensor, copies))
        self.arrived.record(copies)
        return fetched

    def _copy(self, i: int, tensor: Tensor, copies: torch.cuda.Stream) -> Tensor:
        rows = tensor.shape[0]
        if i in self.pinned:
            tensor = self.pinned[i][:rows].copy_(tensor)
        with torch.cuda.stream(copies):
            return self.buffers[i][:rows].copy_(tensor, non_blocking=True)


def _double_buffered(host: Problem, parts: list[tuple[int, int]], device: torch.device) -> Iterator[Problem]:
    """Every part on the GPU, the next one being copied while the caller scores this one."""
    if not parts:
        return
    with torch.cuda.device(device):
        copies, slots = torch.cuda.Stream(), [_Slot(host, parts, device) for _ in range(2)]
        waiting = slots[0].fetch(_between(host, *parts[0]), copies)
        for number in range(len(parts)):
            here, slot = waiting, slots[number % 2]
            if number + 1 < len(parts):
                waiting = slots[(number + 1) % 2].fetch(_between(host, *parts[number + 1]), copies)
            torch.cuda.current_stream().wait_event(slot.arrived)
            yield here
            slot.scored.record()


def _bar(done: int, total: int) -> None:
    filled = _BAR * done // total
    sys.stderr.write(f"\r[{'#' * filled}{'.' * (_BAR - filled)}] {done}/{total} documents" + "\n" * (done == total))
    sys.stderr.flush()
