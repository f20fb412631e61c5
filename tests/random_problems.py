"""Random problems for tests/test_random_problems.py: pairs of tokens laid out in two ways, at times with metadata that
points out of its tensors. A problem follows from its path and number alone; its metadata stays on the host too."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor

QUERY_LENGTHS = [1, 3, 16, 31, 32, 33, 64, 70, 130, 300, 600]
DOCUMENT_LENGTHS = [1, 2, 7, 8, 30, 31, 32, 33, 63, 64, 65, 100, 104, 128, 129, 152, 191, 192, 193, 300, 305, 700]
DIMS = [1, 8, 31, 40, 48, 64, 65, 96, 100, 126, 127, 128, 128, 128, 129, 200, 320, 768]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Multiplications of a problem, and elements that its reference gathers.
WORK = {"cuda": (1 << 30, 1 << 24), "cpu": (1 << 23, 1 << 20)}


@dataclass
class Content:
    """Tokens ``[N, L, d]`` of which each segment has a number, and which of them count."""

    values: Tensor
    lengths: list[int]
    holes: Tensor | None

    @staticmethod
    def random(rng: random.Random, like: Tensor, count: int, length: int, exact: bool, generator) -> Content:
        shape, device = (count, length, like.shape[-1]), like.device
        if exact:  # every product and sum is exact, so that ties are ties
            values = torch.randint(-2, 3, shape, generator=generator, device=device)
        else:
            values = torch.randn(shape, generator=generator, device=device)
        values = values.to(like.dtype)
        lengths = [length] * count
        if rng.random() < 0.5:
            lengths = [rng.choice([0, 1, length, rng.randint(0, length)]) for _ in lengths]
        holes = None
        if rng.random() < 0.5:
            holes = torch.rand(shape[:2], generator=generator, device=device) < rng.choice([0.9, 0.6, 0.1])
        content = Content(values, lengths, holes)
        if rng.random() < 0.3:  # nobody may look at what does not count
            values.masked_fill_(~content.kept()[..., None], float("nan"))
        return content

    def kept(self) -> Tensor:
        inside = torch.arange(self.values.shape[1]) < torch.tensor(self.lengths)[:, None]
        inside = inside.to(self.values.device)
        return inside if self.holes is None else inside & self.holes


@dataclass
class Side:
    """One side as the ops take it. ``count`` segments of at most ``extent`` tokens."""

    tensor: Tensor
    mask: Tensor | None
    count: int
    extent: int
    offsets: list[int] | None = None
    lengths: list[int] | None = None

    def spoil(self, rng: random.Random) -> None:
        """One number out of range, which takes a segment or two with it and leaves the others alone."""
        numbers, end = (self.offsets, len(self.tensor)) if self.offsets else (self.lengths, self.extent)
        if numbers:
            numbers[rng.randrange(len(numbers))] = rng.choice([-1, end + 1, 1 << 30, -(1 << 31)])

    def spans(self) -> list[tuple[int, int] | None]:
        """First row and number of rows of each segment; None where they are not inside the tensor."""
        if self.offsets:
            ends = zip(self.offsets, self.offsets[1:], strict=False)
            return [(a, b - a) if 0 <= a <= b <= len(self.tensor) else None for a, b in ends]
        lengths = self.lengths or [self.extent] * self.count
        return [(i * self.extent, n) if 0 <= n <= self.extent else None for i, n in enumerate(lengths)]

    def numbers(self, rng: random.Random, numbers: list[int] | None) -> Tensor | None:
        if numbers is None:
            return None
        dtype = rng.choice([torch.int32, torch.int64])
        return torch.tensor(numbers, dtype=dtype, device=self.tensor.device)


def strided(tensor: Tensor, between: int, first: int, behind: int) -> Tensor:
    """The same values, with other memory before rows, between features and behind rows."""
    end = first + tensor.shape[-1] * between
    view = tensor.new_zeros(*tensor.shape[:-1], end + behind)[..., first:end:between]
    view.copy_(tensor)
    return view


def padded(content: Content, rng: random.Random) -> Side:
    """[N, L, d] with lengths and a mask, or with lengths inside the mask."""
    count, extent = content.values.shape[:2]
    tensor = content.values
    if rng.random() < 0.3:
        tensor = strided(tensor, rng.choice([1, 1, 2]), first=rng.randint(0, 4), behind=rng.choice([0, 1, 3, 28, 200]))
    whole = all(n == extent for n in content.lengths)
    if whole and rng.random() < 0.7:
        return Side(tensor, content.holes, count, extent)
    if rng.random() < 0.3:
        return Side(tensor, content.kept(), count, extent)
    return Side(tensor, content.holes, count, extent, lengths=list(content.lengths))


def packed(content: Content, rng: random.Random) -> Side:
    """[T, d] and offsets, with some rows behind the last segment that belong to none."""
    count, extent, dim = content.values.shape
    inside = [i * extent + t for i, n in enumerate(content.lengths) for t in range(n)]
    rows = torch.tensor(inside + [0] * rng.randint(0, 3), dtype=torch.int64, device=content.values.device)
    offsets = [0]
    for n in content.lengths:
        offsets.append(offsets[-1] + n)
    mask = None if content.holes is None else content.holes.flatten()[rows]
    return Side(content.values.view(-1, dim)[rows], mask, count, max([1, *content.lengths]), offsets=offsets)


def slab(side: Side, queries: int, every: bool) -> Side:
    """Padded documents as [Nq, K, L, d]: the same for every query, or each its own."""
    parts = [side.tensor, side.mask]
    if every:
        parts = [x if x is None else x.expand(queries, *x.shape) for x in parts]
        lengths, count = side.lengths and side.lengths * queries, queries * side.count
    else:
        parts = [x if x is None else x.unflatten(0, (queries, -1)) for x in parts]
        lengths, count = side.lengths, side.count
    return Side(*parts, count, side.extent, lengths=lengths)


@dataclass
class Layout:
    """Arguments of the ops, and what they are about, for the host."""

    arguments: tuple
    queries: Side
    documents: Side
    pairs: list[tuple[int, int]]  # segments of each score
    numbers: list[int]  # of its pair in the problem

    @property
    def width(self) -> int:
        return self.queries.extent


class Problem:
    """Pairs of random tokens. ``first`` may have metadata out of range, ``second`` has the same pairs and is sound."""

    def __init__(self, path: str, number: int, device: str, generator: torch.Generator) -> None:
        self.name = f"{path}, problem {number}"
        self.rng = rng = random.Random(self.name)
        generator.manual_seed(rng.getrandbits(40))
        self.generator, self.device = generator, device
        self.exact, self.normalize = rng.random() < 0.25, rng.random() < 0.4
        self.empty_score = rng.choice([0.0, -7.0])
        self.every = rng.random() < 0.6
        dtype = rng.choice(DTYPES)
        dtypes = (dtype, rng.choice([dtype, dtype, dtype, rng.choice(DTYPES)]))
        big, dim = rng.random() < 0.15, rng.choice(DIMS)
        counts = (rng.randint(1, 40), rng.randint(1, 60)) if big else (rng.randint(1, 9), rng.randint(1, 12))
        lengths = [rng.choice(QUERY_LENGTHS[: 8 if big else None]), rng.choice(DOCUMENT_LENGTHS)]
        counts, lengths = self._affordable(counts, lengths, dim)
        own = 1 if self.every else counts[0]
        self.queries, self.documents = (
            Content.random(rng, torch.empty(0, dim, dtype=t, device=device), n, length, self.exact, generator)
            for t, n, length in zip(dtypes, (counts[0], counts[1] * own), lengths, strict=True)
        )
        ids = range(counts[0])
        self.pairs = [(i, j) for i in ids for j in (range(counts[1]) if self.every else self._own(i, counts[1]))]
        self.first = self._laid(spoiled=device == "cuda" and rng.random() < 0.25)
        self.second = self._laid(spoiled=False)

    @staticmethod
    def _own(query: int, documents: int) -> range:
        return range(query * documents, (query + 1) * documents)

    def _affordable(self, counts: tuple[int, int], lengths: list[int], dim: int) -> tuple[tuple[int, int], list[int]]:
        work, gathered = WORK[self.device]
        queries, documents = counts
        while queries * documents * lengths[1] * dim > min(gathered, work // lengths[0]) and queries + documents > 2:
            queries, documents = max(1, queries // 2), max(1, documents // 2)
        return (queries, documents), lengths

    def _laid(self, spoiled: bool) -> Layout:
        rng = self.rng
        kind = rng.choice(["cross", "cross", "slab", "list"] if self.every else ["slab", "slab", "list"])
        queries = (padded if kind == "slab" else rng.choice([padded, packed]))(self.queries, rng)
        documents = (padded if kind == "slab" else rng.choice([padded, packed]))(self.documents, rng)
        pairs, numbers = list(self.pairs), list(range(len(self.pairs)))
        if kind == "slab":
            documents = slab(documents, queries.count, self.every)
            pairs = [(i, k) for k, (i, _) in enumerate(pairs)]
        if kind == "list":
            rng.shuffle(numbers)
            numbers += numbers[: rng.randint(0, 2)]
            pairs = [pairs[n] for n in numbers]
        if spoiled:
            rng.choice([queries, documents]).spoil(rng)
            if kind == "list":
                place, wrong = rng.randrange(len(pairs)), rng.choice([-1, queries.count + documents.count, 1 << 30])
                pairs[place] = rng.choice([(wrong, pairs[place][1]), (pairs[place][0], wrong)])
        ids = [queries.numbers(rng, [p[side] for p in pairs]) if kind == "list" else None for side in (0, 1)]
        lengths = documents.numbers(rng, documents.lengths)
        arguments = (
            queries.tensor,
            documents.tensor,
            queries.numbers(rng, queries.offsets),
            documents.numbers(rng, documents.offsets),
            queries.numbers(rng, queries.lengths),
            lengths if lengths is None else lengths.view(documents.tensor.shape[:-2]),
            queries.mask,
            documents.mask,
            *ids,
        )
        return Layout(arguments, queries, documents, pairs, numbers)

    def __str__(self) -> str:
        def layout(x: Layout) -> str:
            names = ("query_offsets", "document_offsets", "query_lengths", "document_lengths", "query_mask")
            given = [
                n for n, a in zip((*names, "document_mask", "ids"), x.arguments[2:9], strict=True) if a is not None
            ]
            shapes = [f"{tuple(t.shape)} {t.dtype} strides {t.stride()}" for t in x.arguments[:2]]
            return f"{' x '.join(shapes)} with {', '.join(given) or 'nothing else'}"

        options = f"normalize={self.normalize} exact={self.exact} empty_score={self.empty_score}"
        return f"{self.name}: {layout(self.first)}; {options}; and {layout(self.second)}"


class Truth:
    """What float64 says of a layout: scores, similarities, and gradients by given winners."""

    def __init__(self, problem: Problem, layout: Layout) -> None:
        self.layout, self.normalize = layout, problem.normalize
        device = layout.queries.tensor.device
        spans = [side.spans() for side in (layout.queries, layout.documents)]
        sound = [
            all(0 <= i < len(known) and known[i] is not None for i, known in zip(pair, spans, strict=True))
            for pair in layout.pairs
        ]
        ids = [pair if good else (0, 0) for pair, good in zip(layout.pairs, sound, strict=True)]
        self.sound = torch.tensor(sound, device=device)
        q, d = torch.tensor(ids, device=device).unbind(1)
        self.flat = [self._flat(side) for side in (layout.queries, layout.documents)]
        (q_rows, q_kept), (d_rows, d_kept) = (
            self._rows(side, known) for side, known in zip((layout.queries, layout.documents), spans, strict=True)
        )
        self.rows = (q_rows[q], d_rows[d])  # [P, Lq] and [P, Ld]
        queries, documents = self.flat[0][q_rows][q], self.flat[1][d_rows][d]
        sims = queries @ documents.transpose(1, 2)
        self.similarities = sims.masked_fill_(~d_kept[d][:, None], -torch.inf)
        best = self.similarities.amax(-1)
        self.best = best
        kept = q_kept[q]
        self.filled = d_kept.any(-1)[d]
        self.counts = kept & (self.filled & self.sound)[:, None]
        scores = best.masked_fill(~kept, 0.0).sum(-1)
        self.scores = scores.masked_fill(~self.filled, problem.empty_score).masked_fill(~self.sound, torch.nan)
        self.terms = (queries.norm(dim=-1) * kept).sum(-1) * documents.norm(dim=-1).amax(-1)

    def _flat(self, side: Side) -> Tensor:
        rows = side.tensor.reshape(-1, side.tensor.shape[-1]).double().nan_to_num(0.0)
        if len(rows) == 0:
            rows = rows.new_zeros(1, rows.shape[1])
        return rows / rows.norm(dim=-1, keepdim=True).clamp_min(1e-12) if self.normalize else rows

    @staticmethod
    def _rows(side: Side, spans: list[tuple[int, int] | None]) -> tuple[Tensor, Tensor]:
        begins, lengths = torch.tensor([span or (0, 0) for span in spans], device=side.tensor.device).unbind(1)
        places = torch.arange(side.extent, device=side.tensor.device)
        kept = places < lengths[:, None]
        rows = torch.where(kept, begins[:, None] + places, 0)
        if side.mask is not None and side.mask.numel():
            kept &= side.mask.reshape(-1)[rows]
        return rows, kept

    def gradients(self, winners: Tensor, weights: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Of both sides' rows, and the size of the sums behind each row, given the winners."""
        w = weights.flatten().double()[:, None] * (winners >= 0)
        rows = (self.rows[0], self.rows[1].gather(1, winners.clamp(min=0).long()))
        results = []
        for side, tensor in enumerate((self.layout.queries.tensor, self.layout.documents.tensor)):
            own, other = rows[side].flatten(), self.flat[1 - side][rows[1 - side]]
            gradient = torch.zeros_like(self.flat[side])
            gradient.index_add_(0, own, (w[..., None] * other).flatten(0, 1))
            size = gradient.new_zeros(len(gradient), 1)
            size.index_add_(0, own, (w.abs() * other.norm(dim=-1)).view(-1, 1))
            if self.normalize:
                raw = tensor.reshape(-1, tensor.shape[-1]).double().nan_to_num(0.0)
                norms = raw.norm(dim=-1, keepdim=True) if len(raw) else gradient.new_zeros(len(gradient), 1)
                unit = self.flat[side] * (norms > 1e-12)
                norms = norms.clamp_min(1e-12)
                gradient = (gradient - unit * (unit * gradient).sum(-1, keepdim=True)) / norms
                size = size / norms
            count = tensor.shape[:-1].numel()
            results.append((gradient[:count], size[:count]))
        return results
