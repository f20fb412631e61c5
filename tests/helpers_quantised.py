"""Quantised batches in every layout, the float64 tensors that they stand for, and what scores and winners have to be.
Tokens are quantised once, one after another, and laid out as they are stored; padding is poison."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch
from helpers import Batch, truth
from torch import Tensor

POISON = 0x7F  # NaN in e4m3 and in e5m2, a large number in an integer


@dataclass
class Side:
    """Tokens of all segments, one after another, as they are stored: `tokens` is a tensor of floats or a Quantised."""

    tokens: object
    lengths: list[int]

    @property
    def parts(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        if isinstance(self.tokens, Tensor):
            return self.tokens, None, None
        return self.tokens.values, self.tokens.scale, self.tokens.minimum

    def segments(self, dim: int) -> list[Tensor]:
        """What they stand for, in float64."""
        plain = isinstance(self.tokens, Tensor)
        wide = self.tokens.double() if plain else self.tokens.dequantise(dim, torch.float64)
        return list(wide.split(self.lengths))

    def laid(self, place: Callable[[Tensor, int | float], Tensor]) -> object:
        """The same kind of side with each of its tensors laid out by `place(tensor, what padding holds)`."""
        values, scale, minimum = self.parts
        size = values.element_size()
        raw = place(values.view(torch.uint8) if size == 1 else values, POISON if size == 1 else float("nan"))
        if isinstance(self.tokens, Tensor):
            return raw
        factors = [
            None if x is None else x if x.dim() == 0 else place(x[:, None], float("nan")).squeeze(-1)
            for x in (scale, minimum)
        ]
        return self.tokens._replace(values=raw.view(values.dtype), scale=factors[0], minimum=factors[1])

    def padded(self, extra: int = 2) -> object:
        def place(tensor: Tensor, filler: float) -> Tensor:
            out = tensor.new_full((len(self.lengths), max(self.lengths) + extra, tensor.shape[1]), filler)
            for row, segment in zip(out, tensor.split(self.lengths), strict=True):
                row[: len(segment)] = segment
            return out

        return self.laid(place)

    def packed(self, extra: int = 3) -> object:
        return self.laid(lambda tensor, filler: torch.cat([tensor, tensor.new_full((extra, tensor.shape[1]), filler)]))

    def offsets(self, dtype: torch.dtype, device: str) -> Tensor:
        return torch.tensor([0, *self.lengths], device=device).cumsum(0).to(dtype)

    def length_tensor(self, dtype: torch.dtype, device: str) -> Tensor:
        return torch.tensor(self.lengths, dtype=dtype, device=device)


def mapped(side: object, change: Callable[[Tensor], Tensor]) -> object:
    """`change` applied to the tensors of a side that have an axis of segments."""
    if isinstance(side, Tensor):
        return change(side)
    factors = {name: getattr(side, name) for name in ("scale", "minimum")}
    return side._replace(
        values=change(side.values), **{k: x if x is None or x.dim() == 0 else change(x) for k, x in factors.items()}
    )


@dataclass
class Sides:
    """A quantised batch: both sides, what they stand for, and the largest relative error that a score may have."""

    queries: Side
    documents: Side
    truth: Batch


Format = Callable[[ModuleType, Tensor, Tensor], tuple[object, object]]


def _fp8(dtype: torch.dtype, per_token: bool) -> Format:
    def make(m: ModuleType, q: Tensor, d: Tensor) -> tuple[object, object]:
        quantise = m.fp8.quantize_fp8_per_token if per_token else m.fp8.quantize_fp8_per_tensor
        return tuple(m.quantised.Quantised(*quantise(x, dtype=dtype)) for x in (q, d))

    return make


def _fp8_documents(dtype: torch.dtype, of_queries: torch.dtype, per_token: bool) -> Format:
    def make(m: ModuleType, q: Tensor, d: Tensor) -> tuple[object, object]:
        return q.to(of_queries), _fp8(dtype, per_token)(m, q, d)[1]

    return make


def _affine(dtype: torch.dtype) -> Format:
    def make(m: ModuleType, q: Tensor, d: Tensor) -> tuple[object, object]:
        values, scales, minima = m.int8.quantize_int8(d)
        return q.to(dtype), m.quantised.Quantised(values, scales.squeeze(-1), minima.squeeze(-1))

    return make


def _symmetric(dtype: torch.dtype) -> Format:
    def make(m: ModuleType, q: Tensor, d: Tensor) -> tuple[object, object]:
        values, scales = m.int8.quantize_int8_symmetric(d)
        return q.to(dtype), m.quantised.Quantised(values, scales.squeeze(-1).float())

    return make


def _one_scale(dtype: torch.dtype) -> Format:
    def make(m: ModuleType, q: Tensor, d: Tensor) -> tuple[object, object]:
        scale = (d.abs().amax() if d.numel() else d.new_ones(())) / 127
        return q.to(dtype), m.quantised.Quantised((d / scale).round().to(torch.int8), scale)

    return make


def _integers(m: ModuleType, q: Tensor, d: Tensor) -> tuple[object, object]:
    sides = (m.int8.quantize_query_int8(x) for x in (q, d))
    return tuple(m.quantised.Quantised(*side) for side in sides)


def _binary(dtype: torch.dtype) -> Format:
    def make(m: ModuleType, q: Tensor, d: Tensor) -> tuple[object, object]:
        scale = d.abs().mean(-1)
        return q.to(dtype), m.quantised.Quantised(m.binary.pack_bits(d), scale, bits=1)

    return make


def _hamming(m: ModuleType, q: Tensor, d: Tensor) -> tuple[object, object]:
    signs = m.binary.unpack_bits(m.binary.pack_bits(q), q.shape[-1])
    return m.quantised.Quantised(signs), m.quantised.Quantised(m.binary.pack_bits(d), bits=1)


FORMATS: dict[str, Format] = {
    "e4m3_token": _fp8(torch.float8_e4m3fn, True),
    "e4m3_tensor": _fp8(torch.float8_e4m3fn, False),
    "e5m2_token": _fp8(torch.float8_e5m2, True),
    "e4m3_under_f16": _fp8_documents(torch.float8_e4m3fn, torch.float16, True),
    "e4m3_under_bf16": _fp8_documents(torch.float8_e4m3fn, torch.bfloat16, False),
    "e5m2_under_f16": _fp8_documents(torch.float8_e5m2, torch.float16, False),
    "e5m2_under_bf16": _fp8_documents(torch.float8_e5m2, torch.bfloat16, True),
    "affine_f16": _affine(torch.float16),
    "affine_bf16": _affine(torch.bfloat16),
    "affine_f32": _affine(torch.float32),
    "symmetric_f16": _symmetric(torch.float16),
    "symmetric_bf16": _symmetric(torch.bfloat16),
    "symmetric_f32": _symmetric(torch.float32),
    "one_scale_f16": _one_scale(torch.float16),
    "one_scale_bf16": _one_scale(torch.bfloat16),
    "int8x8": _integers,
    "binary_f16": _binary(torch.float16),
    "binary_bf16": _binary(torch.bfloat16),
    "binary_f32": _binary(torch.float32),
    "hamming": _hamming,
}
FP8 = {"e4m3_token", "e4m3_tensor", "e5m2_token"}


def tolerance(name: str, path: str = "") -> float:
    """Largest relative error of a score: of fp8 on Hopper's tensor cores what docs/quantised.md allows them."""
    if name in FP8 and path == "sm90":
        return 2e-3
    return 2e-6 if name.endswith("f32") else 1e-6


def quantise(m: ModuleType, name: str, batch: Batch) -> Sides:
    q_lengths, d_lengths = ([len(x) for x in side] for side in (batch.queries, batch.documents))
    tokens = (torch.cat(batch.queries), torch.cat(batch.documents))
    queries, documents = FORMATS[name](m, *tokens)
    sides = Side(queries, q_lengths), Side(documents, d_lengths)
    dim = tokens[0].shape[-1]
    return Sides(*sides, Batch(*(side.segments(dim) for side in sides)))


@dataclass
class Laid:
    """One call: `score(with_argmax)` and the pair that every score belongs to."""

    pairs: list[tuple[int, int]]
    sides: tuple[object, object]
    options: dict[str, object]


def _every_pair(s: Sides) -> list[tuple[int, int]]:
    return [(i, j) for i in range(len(s.queries.lengths)) for j in range(len(s.documents.lengths))]


def _mask(side: Side, extent: int, device: str) -> Tensor:
    return torch.arange(extent, device=device) < side.length_tensor(torch.int64, device)[:, None]


def cross_masked(s: Sides, device: str) -> Laid:
    q, d = s.queries.padded(), s.documents.padded()
    masks = [_mask(side, max(side.lengths) + 2, device) for side in (s.queries, s.documents)]
    return Laid(_every_pair(s), (q, d), {"q_mask": masks[0], "d_mask": masks[1]})


def cross_lengths(s: Sides, device: str) -> Laid:
    options = {
        "query_lengths": s.queries.length_tensor(torch.int32, device),
        "document_lengths": s.documents.length_tensor(torch.int64, device),
    }
    return Laid(_every_pair(s), (s.queries.padded(), s.documents.padded()), options)


def slab(s: Sides, device: str) -> Laid:
    count = len(s.queries.lengths)
    each = len(s.documents.lengths) // count
    documents = mapped(s.documents.padded(), lambda x: x.unflatten(0, (count, each)))
    mask = _mask(s.documents, max(s.documents.lengths) + 2, device).unflatten(0, (count, each))
    pairs = [(i, i * each + k) for i in range(count) for k in range(each)]
    options = {"query_lengths": s.queries.length_tensor(torch.int64, device), "d_mask": mask}
    return Laid(pairs, (s.queries.padded(), documents), options)


def varlen(s: Sides, device: str) -> Laid:
    options = {
        "cu_seqlens_q": s.queries.offsets(torch.int32, device),
        "cu_seqlens_d": s.documents.offsets(torch.int64, device),
    }
    return Laid(_every_pair(s), (s.queries.packed(), s.documents.packed()), options)


def mixed(s: Sides, device: str) -> Laid:
    """Padded queries behind a mask, packed documents."""
    mask = _mask(s.queries, max(s.queries.lengths) + 2, device)
    options = {"q_mask": mask, "cu_seqlens_d": s.documents.offsets(torch.int32, device)}
    return Laid(_every_pair(s), (s.queries.padded(), s.documents.packed()), options)


def listed(s: Sides, device: str) -> Laid:
    laid = varlen(s, device)
    order = torch.randperm(len(laid.pairs), generator=torch.Generator().manual_seed(1)).tolist()
    pairs = [laid.pairs[k] for k in order + order[:2]]
    q, d = (torch.tensor(ids, device=device) for ids in zip(*pairs, strict=True))
    return Laid(pairs, laid.sides, {**laid.options, "pair_q_idx": q, "pair_d_idx": d.int()})


LAYOUTS = [cross_masked, cross_lengths, slab, varlen, mixed, listed]


def assert_scores(scores: Tensor, pairs: list, batch: Batch, limit: float, empty_score: float = 0.0) -> None:
    assert scores.dtype is torch.float32 and scores.numel() == len(pairs)
    for (i, j), score in zip(pairs, scores.flatten().tolist(), strict=True):
        want = truth(batch.queries[i], batch.documents[j], empty_score=empty_score)
        error = abs(score - want.score.item())
        assert error <= limit * want.scale, f"pair {i, j}: {score} is {error / want.scale:.1e} off {want.score.item()}"


def assert_winners(argmax: Tensor, pairs: list, batch: Batch, limit: float) -> None:
    """Each winner's similarity is the greatest there is, as far as `limit` can tell."""
    for (i, j), row in zip(pairs, argmax.flatten(0, -2).cpu(), strict=True):
        query, document = batch.queries[i].cpu(), batch.documents[j].cpu()
        assert (row[len(query) :] == -1).all()
        if len(document) == 0 or len(query) == 0:
            assert (row == -1).all()
            continue
        winners = row[: len(query)].long()
        assert ((winners >= 0) & (winners < len(document))).all()
        similarities = query @ document.T
        short = similarities.amax(-1) - similarities.gather(1, winners[:, None])[:, 0]
        size = query.norm(dim=-1) * document.norm(dim=-1).max()
        assert (short <= 2 * limit * size).all()
