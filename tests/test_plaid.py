"""Residual documents against float64: every width, layout and dtype, on every path of this machine."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import pytest
import torch
from helpers import Path, load_kernel, truth
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

LIMITS = {torch.float16: 2e-4, torch.bfloat16: 2e-3, torch.float32: 1e-5}


@dataclass
class Index:
    """Random documents of an index, padded and packed, and what they decompress to in float64."""

    queries: Tensor
    lengths: Tensor
    codes: Tensor
    residuals: Tensor
    centroids: Tensor
    weights: Tensor
    nbits: int

    @staticmethod
    def random(
        nbits: int,
        dim: int,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        queries: tuple[int, int] = (2, 21),
        lengths: tuple[int, ...] = (70, 1, 0, 33),
        centroids: int = 40,
        seed: int = 0,
    ) -> Index:
        generator = torch.Generator().manual_seed(seed)
        longest = max(lengths) + 3
        shape = (len(lengths), longest)
        return Index(
            torch.randn(*queries, dim, generator=generator).to(device, dtype),
            torch.tensor(lengths, device=device),
            torch.randint(centroids, shape, generator=generator).to(device),
            torch.randint(256, (*shape, -(-dim * nbits // 8)), generator=generator).byte().to(device),
            (torch.randn(centroids, dim, generator=generator) / dim**0.5).to(device, dtype),
            (torch.randn(2**nbits, generator=generator) * 0.1).to(device),
            nbits,
        )

    @property
    def kept(self) -> Tensor:
        return torch.arange(self.codes.shape[1], device=self.codes.device) < self.lengths[:, None]

    @property
    def padded(self) -> tuple[object, ...]:
        return (self.codes, self.residuals, self.lengths, self.centroids, self.weights, self.nbits)

    @property
    def packed(self) -> tuple[object, ...]:
        offsets = torch.nn.functional.pad(self.lengths.cumsum(0), (1, 0)).int()
        return (self.codes[self.kept], self.residuals[self.kept], offsets, self.centroids, self.weights, self.nbits)

    def documents(self, normalize: bool) -> list[Tensor]:
        """Decompressed bit by bit, by another way than the package's."""
        bits = self.residuals.cpu()[..., None] >> torch.arange(8) & 1
        groups = bits.flatten(-2).unflatten(-1, (-1, self.nbits)).long()
        buckets = (groups << torch.arange(self.nbits)).sum(-1)[..., : self.centroids.shape[1]]
        known = self.codes.cpu().clamp(0, len(self.centroids) - 1)
        tokens = self.centroids.cpu().double()[known] + self.weights.cpu().double()[buckets]
        if normalize:
            tokens = torch.nn.functional.normalize(tokens, dim=-1, eps=1e-12)
        return [row[:n] for row, n in zip(tokens, self.lengths.tolist(), strict=True)]


def assert_close(
    scores: Tensor, index: Index, normalize: bool, limit: float, empty_score: float = 0.0, argmax: Tensor | None = None
) -> None:
    documents = index.documents(normalize)
    queries = index.queries.cpu().double()
    if normalize:
        queries = torch.nn.functional.normalize(queries, dim=-1, eps=1e-12)
    assert scores.dtype is torch.float32 and scores.shape == (len(queries), len(documents))
    for i, query in enumerate(queries):
        for j, document in enumerate(documents):
            want = truth(query, document, empty_score=empty_score)
            error = abs(scores[i, j].item() - want.score.item())
            assert error <= limit * want.scale, f"{i, j}: {error / want.scale:.1e}"
            if argmax is None:
                continue
            if not want.filled:
                assert (argmax[i, j] == -1).all()
                continue
            chosen = want.similarities.gather(1, argmax[i, j, :, None].cpu().long())[:, 0]
            assert ((want.similarities.amax(1) - chosen) <= limit * want.scale).all()


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("nbits", [1, 2, 4, 8])
@pytest.mark.parametrize("dim", [128, 96, 36, 7, 160])
def test_scores_are_those_of_the_decompressed_documents(
    maxsim: ModuleType, path: Path, nbits: int, dim: int, dtype: torch.dtype
) -> None:
    for normalize in (True, False):
        index = Index.random(nbits, dim, dtype, path.device)
        options = {"normalize": normalize, "empty_score": -2.0}
        scores, argmax = maxsim.plaid.maxsim_residual_with_argmax(index.queries, *index.padded, **options)
        assert_close(scores, index, normalize, LIMITS[dtype], -2.0, argmax)
        again = maxsim.plaid.maxsim_residual(index.queries, *index.padded, **options)
        assert torch.equal(scores, again)
        packed = maxsim.plaid.maxsim_residual_varlen_with_argmax(index.queries, *index.packed, **options)
        assert torch.equal(packed[0], scores) and torch.equal(packed[1], argmax)
        varlen = maxsim.plaid.maxsim_residual_varlen(index.queries, *index.packed, **options)
        assert_close(varlen, index, normalize, LIMITS[dtype], -2.0)  # Hopper has a kernel of its own for these


@pytest.mark.parametrize("query", LIMITS, ids=str)
@pytest.mark.parametrize("centroid", LIMITS, ids=str)
@pytest.mark.parametrize("weight", LIMITS, ids=str)
def test_any_mix_of_dtypes(
    maxsim: ModuleType, path: Path, query: torch.dtype, centroid: torch.dtype, weight: torch.dtype
) -> None:
    index = Index.random(2, 64, device=path.device)
    index.queries, index.centroids, index.weights = (
        index.queries.to(query),
        index.centroids.to(centroid),
        index.weights.to(weight),
    )
    scores = maxsim.plaid.maxsim_residual(index.queries, *index.padded)
    assert_close(scores, index, True, max(LIMITS[query], LIMITS[centroid]))


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.int64], ids=str
)
def test_codes_of_any_integer_type(maxsim: ModuleType, path: Path, dtype: torch.dtype) -> None:
    index = Index.random(4, 128, torch.float16, path.device)
    expected = maxsim.plaid.maxsim_residual(index.queries, *index.padded)
    index.codes = index.codes.to(dtype)
    assert torch.equal(maxsim.plaid.maxsim_residual(index.queries, *index.padded), expected)
    index.queries.requires_grad_()
    maxsim.plaid.maxsim_residual(index.queries, *index.padded).sum().backward()
    assert index.queries.grad.isfinite().all()


@pytest.mark.parametrize("queries", [(1, 1), (1, 32), (5, 32), (3, 33), (2, 130), (9, 16), (0, 4), (2, 0)], ids=str)
def test_any_number_of_queries(maxsim: ModuleType, path: Path, queries: tuple[int, int]) -> None:
    index = Index.random(2, 128, torch.float16, path.device, queries)
    scores, argmax = maxsim.plaid.maxsim_residual_with_argmax(index.queries, *index.padded)
    assert_close(scores, index, True, LIMITS[torch.float16], argmax=argmax)
    one = [maxsim.plaid.maxsim_residual(query, *index.padded) for query in index.queries]
    assert all(torch.equal(scores[i], row) for i, row in enumerate(one))


def test_long_and_many_documents(maxsim: ModuleType, path: Path) -> None:
    for lengths in ((1500, 3, 700), tuple(range(40)), (17,) * 90):
        index = Index.random(2, 128, torch.float16, path.device, (3, 32), lengths, 300)
        scores, argmax = maxsim.plaid.maxsim_residual_varlen_with_argmax(index.queries, *index.packed)
        assert_close(scores, index, True, LIMITS[torch.float16], argmax=argmax)


def test_no_documents_and_no_tokens(maxsim: ModuleType, path: Path) -> None:
    index = Index.random(2, 128, torch.float16, path.device)
    codes, residuals, lengths, *rest = index.padded
    assert maxsim.plaid.maxsim_residual(index.queries, codes[:0], residuals[:0], lengths[:0], *rest).shape == (2, 0)
    zero = maxsim.plaid.maxsim_residual(index.queries, codes[:, :0], residuals[:, :0], lengths * 0, *rest)
    assert torch.equal(zero, torch.zeros_like(zero)) and zero.shape == (2, 4)


def test_strided_inputs(maxsim: ModuleType, path: Path) -> None:
    index = Index.random(2, 128, torch.float16, path.device)
    expected = maxsim.plaid.maxsim_residual(index.queries, *index.padded)

    def spread(tensor: Tensor) -> Tensor:
        return tensor.repeat_interleave(2, dim=-1)[..., ::2]

    codes, residuals, lengths, centroids, weights, nbits = index.padded
    spread_index = (spread(codes), spread(residuals), spread(lengths), centroids.T.contiguous().T, spread(weights))
    queries = index.queries.transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(maxsim.plaid.maxsim_residual(queries, *spread_index, nbits), expected)
    misaligned = torch.cat([centroids.new_zeros(1), centroids.flatten()])[1:].view_as(centroids)
    odd_bytes = torch.cat([residuals.new_zeros(1), residuals.flatten()])[1:].view_as(residuals)
    got = maxsim.plaid.maxsim_residual(index.queries, codes, odd_bytes, lengths, misaligned, weights, nbits)
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)


def test_the_first_of_equal_tokens_wins(maxsim: ModuleType, path: Path) -> None:
    index = Index.random(2, 128, torch.float16, path.device, lengths=(90, 61))
    index.codes[:] = 3
    index.residuals[:] = 77
    argmax = maxsim.plaid.maxsim_residual_with_argmax(index.queries, *index.padded)[1]
    assert not argmax.any()


def test_special_values_spoil_their_scores_only(maxsim: ModuleType, path: Path) -> None:
    index = Index.random(2, 128, torch.float16, path.device)
    index.codes[3, :33][index.codes[3, :33] == 7] = 8
    index.codes[0, 69] = 7
    clean = maxsim.plaid.maxsim_residual(index.queries, *index.padded)
    index.centroids[7, 5] = torch.nan
    got = maxsim.plaid.maxsim_residual(index.queries, *index.padded)
    assert got[:, 0].isnan().all() and torch.equal(got[:, 3], clean[:, 3])
    index.centroids[7, 5] = 0
    index.queries[1, 4, 0] = torch.nan
    got = maxsim.plaid.maxsim_residual(index.queries, *index.padded)
    assert got[1, [0, 1, 3]].isnan().all() and torch.equal(got[0, 1:], clean[0, 1:]) and got[1, 2] == 0


def test_gradient_of_the_queries(maxsim: ModuleType, path: Path) -> None:
    for normalize in (True, False):
        index = Index.random(4, 64, torch.float32, path.device)
        queries = index.queries.requires_grad_()
        weights = torch.randn(2, 4, generator=torch.Generator().manual_seed(1))
        scores = maxsim.plaid.maxsim_residual(queries, *index.padded, normalize=normalize)
        (scores * weights.to(scores)).sum().backward()
        wide = queries.detach().cpu().double().requires_grad_()
        unit = torch.nn.functional.normalize(wide, dim=-1) if normalize else wide
        documents = index.documents(normalize)
        want = sum(
            weights[i, j] * truth(unit[i], documents[j]).score for i in range(2) for j in range(4) if len(documents[j])
        )
        want.backward()
        torch.testing.assert_close(queries.grad.cpu().double(), wide.grad, rtol=1e-5, atol=1e-6)


def test_a_gradient_of_packed_documents_and_half_queries(maxsim: ModuleType, path: Path) -> None:
    index = Index.random(2, 128, torch.float16, path.device)
    grads = []
    for function, documents in (("maxsim_residual", index.padded), ("maxsim_residual_varlen", index.packed)):
        queries = index.queries.detach().requires_grad_()
        getattr(maxsim.plaid, function)(queries, *documents).square().sum().backward()
        grads.append(queries.grad)
    assert grads[0].dtype is torch.float16 and torch.equal(*grads)


def test_approximate_scores(maxsim: ModuleType, path: Path) -> None:
    index = Index.random(2, 16, torch.float32, path.device)
    for width in (1, 7, 32, 50):
        table = torch.randn(40, width, device=path.device)
        got = maxsim.plaid.plaid_approx_score(table, index.codes.int(), index.lengths)
        for score, codes, length in zip(got.tolist(), index.codes, index.lengths.tolist(), strict=True):
            want = table.double()[codes[:length]].amax(0).sum().item() if length else 0.0
            assert abs(score - want) <= 2e-6 * max(1, width)
    codes = index.codes.clone()
    codes[0, 0], codes[1, 0] = -5, 40
    zeros = codes.clone()
    zeros[0, 0] = zeros[1, 0] = 0
    same = [maxsim.plaid.plaid_approx_score(table, c, index.lengths) for c in (codes, zeros)]
    assert torch.equal(*same)
    narrow = maxsim.plaid.plaid_approx_score(table, zeros.to(torch.uint16), index.lengths)
    assert torch.equal(narrow, same[0])


def test_references(maxsim: ModuleType) -> None:
    """LIK's names for them, and float64 where it is asked for."""
    index = Index.random(4, 24)
    reference = maxsim.reference
    got = reference.maxsim_residual_reference(index.queries, *index.padded)
    assert_close(got, index, True, 1e-6)
    wide = reference.maxsim_residual_reference(
        index.queries.double(), index.codes, index.residuals, index.lengths, index.centroids.double(), index.weights, 4
    )
    assert wide.dtype is torch.float64
    buckets = maxsim.plaid.unpack_residuals(torch.tensor([[0b11100100, 0b00011011]], dtype=torch.uint8), 2, 7)
    assert buckets.tolist() == [[0, 1, 2, 3, 3, 2, 1]] and buckets.dtype is torch.int32
    table = torch.randn(40, 6)
    ours = maxsim.plaid.plaid_approx_score(table, index.codes, index.lengths)
    torch.testing.assert_close(ours, reference.plaid_approx_score_reference(table, index.codes, index.lengths))


def test_one_query_token(maxsim: ModuleType, path: Path) -> None:
    """Roundings of documents average out over query tokens; of one token they would be seen."""
    if path.device == "cuda":
        pytest.skip("multiplies halves, whatever the query")
    for seed in range(20):
        index = Index.random(1, 32, torch.float16, path.device, (1, 1), (1,), seed=seed)
        for normalize in (True, False):
            scores = maxsim.plaid.maxsim_residual_varlen(index.queries, *index.packed, normalize=normalize)
            assert_close(scores, index, normalize, LIMITS[torch.float16])


@settings(max_examples=40, deadline=None)
@given(
    nbits=st.sampled_from([1, 2, 4, 8]),
    dim=st.integers(1, 140),
    queries=st.tuples(st.integers(1, 4), st.integers(1, 40)),
    lengths=st.lists(st.integers(0, 50), min_size=1, max_size=6),
    dtype=st.sampled_from(list(LIMITS)),
    normalize=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_shape(
    nbits: int,
    dim: int,
    queries: tuple[int, int],
    lengths: list[int],
    dtype: torch.dtype,
    normalize: bool,
    seed: int,
) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    index = Index.random(nbits, dim, dtype, device, queries, tuple(lengths), seed=seed)
    scores = load_kernel().plaid.maxsim_residual_varlen(index.queries, *index.packed, normalize=normalize)
    assert_close(scores, index, normalize, LIMITS[dtype])


def test_opcheck(maxsim: ModuleType) -> None:
    ops = getattr(torch.ops, maxsim.__name__)
    for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
        index = Index.random(2, 64, device=device)
        codes, residuals, lengths, centroids, weights, nbits = index.padded
        for argmax in (True, False):
            arguments = (index.queries, codes, residuals, None, lengths, None, None, None, None, centroids, weights)
            torch.library.opcheck(
                ops.residual_forward.default, (*arguments, None, 0.0, nbits, True, True, 0.0, 0, argmax)
            )
        table = torch.randn(2, 40, 5, device=device)
        torch.library.opcheck(ops.approx_forward.default, (table, codes, None, lengths, None))
        if device == "cuda":
            stored = maxsim.plaid.prepare_index(*index.packed).stored()
            similarities = index.centroids @ index.queries.transpose(1, 2)
            arguments = (similarities, index.queries, *stored[:3])
            arguments += (centroids, weights, stored.inverse_norms, stored.centroid_norm, nbits)
            torch.library.opcheck(ops.search_forward.default, (*arguments, 0, 3, 4, 2))


@pytest.mark.parametrize("grad", [False, True])
def test_compiles_without_a_graph_break(maxsim: ModuleType, grad: bool) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    index = Index.random(2, 64, device=device)
    queries = index.queries.requires_grad_(grad)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def score(queries: Tensor, *documents: object) -> Tensor:
        return maxsim.plaid.maxsim_residual(queries, *documents) * 2

    got = score(queries, *index.padded)
    torch.testing.assert_close(got, maxsim.plaid.maxsim_residual(queries, *index.padded) * 2)
    assert got.requires_grad is grad


def test_a_device_without_kernels_takes_the_reference(maxsim: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    modules = __import__("sys").modules
    index = Index.random(2, 24)
    expected = maxsim.plaid.maxsim_residual_with_argmax(index.queries, *index.padded)
    table = torch.randn(40, 6)
    approximate = maxsim.plaid.plaid_approx_score(table, index.codes, index.lengths)
    monkeypatch.setattr(modules[f"{maxsim.__name__}.plaid.documents"], "_RESIDUAL_DEVICES", frozenset())
    monkeypatch.setattr(modules[f"{maxsim.__name__}.plaid.scoring"], "_APPROX_DEVICES", frozenset())
    got = maxsim.plaid.maxsim_residual_with_argmax(index.queries, *index.padded)
    torch.testing.assert_close(got[0], expected[0])
    assert torch.equal(got[1], expected[1])
    torch.testing.assert_close(maxsim.plaid.plaid_approx_score(table, index.codes, index.lengths), approximate)
