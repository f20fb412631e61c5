"""Quantised documents against float64 of what they stand for: every format, layout, path and option."""

from __future__ import annotations

import helpers_quantised as hq
import pytest
import torch
from helpers import Batch, truth
from helpers_quantised import assert_scores, assert_winners
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

DIMS = [1, 16, 32, 48, 64, 100, 128, 129, 320]


def ragged(dim: int, device: str) -> Batch:
    return Batch.random([9, 0, 33], [21, 1, 0, 140, 5, 33], dim, device=device)


@pytest.mark.kernels_ci
@pytest.mark.parametrize("layout", hq.LAYOUTS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", hq.FORMATS)
def test_every_layout(maxsim, path, name, layout):
    sides = hq.quantise(maxsim, name, ragged(48, path.device))
    laid = layout(sides, path.device)
    limit = hq.tolerance(name, path.name)
    scores = maxsim.quantised.score(*laid.sides, **laid.options, empty_score=-3.0)
    assert_scores(scores, laid.pairs, sides.truth, limit, -3.0)
    again, argmax = maxsim.quantised.score_with_argmax(*laid.sides, **laid.options, empty_score=-3.0)
    assert_scores(again, laid.pairs, sides.truth, limit, -3.0)
    assert_winners(argmax, laid.pairs, sides.truth, limit)


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("name", hq.FORMATS)
def test_every_dim(maxsim, path, name, dim):
    sides = hq.quantise(maxsim, name, Batch.random([32, 7], [70, 160, 1], dim, device=path.device))
    laid = hq.varlen(sides, path.device)
    scores = maxsim.quantised.score(*laid.sides, **laid.options)
    assert_scores(scores, laid.pairs, sides.truth, hq.tolerance(name, path.name))


@pytest.mark.parametrize(
    "queries, documents", [([1], [1, 3000]), ([300], [5, 130]), ([32] * 9, [300, 300]), ([65], [257])]
)
@pytest.mark.parametrize("name", hq.FORMATS)
def test_every_length(maxsim, path, name, queries, documents):
    sides = hq.quantise(maxsim, name, Batch.random(queries, documents, 128, device=path.device))
    laid = hq.cross_lengths(sides, path.device)
    scores = maxsim.quantised.score(*laid.sides, **laid.options)
    assert_scores(scores, laid.pairs, sides.truth, hq.tolerance(name, path.name))
    again, argmax = maxsim.quantised.score_with_argmax(*laid.sides, **laid.options)
    assert_scores(again, laid.pairs, sides.truth, hq.tolerance(name, path.name))
    assert_winners(argmax, laid.pairs, sides.truth, hq.tolerance(name, path.name))


@pytest.mark.parametrize("dim", [16, 32, 48, 56, 64])
@pytest.mark.parametrize("name", ["e4m3_token", "e4m3_tensor", "e5m2_token", "int8x8"])
def test_short_rows(maxsim, path, name, dim):
    """Tokens of a few bytes come into Hopper's tiles in other ways; the lengths are below, at and beyond a tile's."""
    lengths = [1, 7, 8, 9, 104, 105, 112, 127, 128, 129, 260, 3000]
    sides = hq.quantise(maxsim, name, Batch.random([40], lengths, dim, device=path.device))
    limit = hq.tolerance(name, path.name)
    for layout in (hq.cross_lengths, hq.varlen):
        laid = layout(sides, path.device)
        scores = maxsim.quantised.score(*laid.sides, **laid.options)
        assert_scores(scores, laid.pairs, sides.truth, limit)
        again, argmax = maxsim.quantised.score_with_argmax(*laid.sides, **laid.options)
        assert torch.equal(again, scores)
        assert_winners(argmax, laid.pairs, sides.truth, limit)


@pytest.mark.parametrize("dim", [1, 13, 40, 48, 64, 100, 128])
def test_signs_of_any_size(maxsim, path, dim):
    """A token is a few bytes, or a part of one, that begin and end anywhere among those that Hopper copies at once."""
    m = maxsim.quantised
    lengths = [1, 7, 8, 9, 63, 64, 65, 104, 3, 260, 0, 5]
    D = torch.randn(sum(lengths), dim, device=path.device)
    Q = torch.randn(3, 40, dim, device=path.device).half()
    bits, scale = maxsim.binary.pack_bits(D), D.abs().mean(-1)
    signs = maxsim.binary.unpack_bits(bits, dim).double()
    offsets = torch.tensor([0, *lengths], device=path.device).cumsum(0)
    spread = bits.new_zeros(len(lengths), 260 + 3, bits.shape[-1])
    kept = torch.zeros(len(lengths), 263, dtype=torch.bool, device=path.device)
    factors = scale.new_zeros(kept.shape)
    for i, (begin, n) in enumerate(zip(offsets.tolist(), lengths, strict=False)):
        spread[i, 2 : n + 2], factors[i, 2 : n + 2] = bits[begin : begin + n], scale[begin : begin + n]
        kept[i, 2 : n + 2 : 3] = True
    for tokens in (scale, None):
        limit = hq.tolerance("binary_f16", path.name)
        wide = signs if tokens is None else signs * tokens.double()[:, None]
        documents = wide.split(lengths)
        batch = Batch(list(Q.double()), list(documents))
        pairs = [(i, j) for i in range(3) for j in range(len(lengths))]
        packed = m.Quantised(bits, tokens, bits=1)
        assert_scores(m.score(Q, packed, cu_seqlens_d=offsets), pairs, batch, limit)
        # Documents that begin two tokens into their memory, of which every third token counts.
        view = m.Quantised(spread[:, 2:], None if tokens is None else factors[:, 2:], bits=1)
        batch = Batch(list(Q.double()), [x[::3] for x in documents])
        assert_scores(m.score(Q, view, d_mask=kept[:, 2:]), pairs, batch, limit)


@pytest.mark.parametrize("name", ["e4m3_token", "e4m3_tensor", "e5m2_token", "int8x8"])
@pytest.mark.parametrize("dim", [48, 64, 128])
def test_plain_batches(maxsim, path, name, dim):
    """All tokens count, which has a producer of its own; on a GPU with more tiles than there are places for them."""
    many = 1 if path.device == "cpu" else 100
    for queries, documents in [
        ((1, 20), (7 * many, 300)),
        ((1, 20), (7 * many, 40)),
        ((3, 32), (3 * many, 260)),
        ((9, 32), (3 * many, 104)),
    ]:
        Q, D = (torch.randn(*shape, dim, device=path.device) for shape in (queries, documents))
        q, d = hq.FORMATS[name](maxsim, Q.flatten(0, 1), D.flatten(0, 1))
        q = hq.mapped(q, lambda x, shape=queries[:2]: x.unflatten(0, shape))
        d = hq.mapped(d, lambda x, shape=documents[:2]: x.unflatten(0, shape))
        scores = maxsim.quantised.score(q, d)
        want = maxsim.maxsim_reference(*(x.dequantise(dtype=torch.float64) for x in (q, d)))
        assert ((scores - want).abs() / want.abs()).max() < hq.tolerance(name, path.name)


@pytest.mark.parametrize("name", hq.FORMATS)
def test_one_pair_one_score(maxsim, path, name):
    """A pair has the same bits in every layout."""
    sides = hq.quantise(maxsim, name, ragged(64, path.device))
    seen = {}
    for layout in hq.LAYOUTS:
        laid = layout(sides, path.device)
        scores = maxsim.quantised.score(*laid.sides, **laid.options).flatten().tolist()
        for pair, score in zip(laid.pairs, scores, strict=True):
            assert seen.setdefault(pair, score) == score, (layout.__name__, pair)


@pytest.mark.parametrize("block", [1, 7, 32, 1000])
@pytest.mark.parametrize("packed", [False, True])
def test_scales_of_blocks(maxsim, path, packed, block):
    D = torch.randn(5, 70, 64, device=path.device) * torch.rand(5, 70, 1, device=path.device)
    Q = torch.randn(3, 9, 64, device=path.device)
    m = maxsim.quantised
    tokens = D.flatten(0, 1) if packed else D
    documents = m.Quantised(*maxsim.fp8.quantize_fp8_per_block(tokens, block), block=block)
    queries = m.Quantised(*maxsim.fp8.quantize_fp8_per_block(Q, block), block=block)
    wide = documents.dequantise(dtype=torch.float64)
    back = maxsim.fp8.dequantize_fp8_per_block(documents.values, documents.scale, block)
    assert torch.equal(back, wide.float())
    assert ((back - tokens).norm(dim=-1) <= 0.08 * tokens.abs().amax() * 8).all()
    offsets = torch.arange(0, 351, 70, device=path.device) if packed else None
    scores = m.score(queries, documents, cu_seqlens_d=offsets)
    want = maxsim.maxsim_reference(queries.dequantise(dtype=torch.float64), wide.view(5, 70, 64))
    assert ((scores - want).abs() / want.abs()).max() < 2 * hq.tolerance("e4m3_token", path.name)


def test_holes_in_masks(maxsim, path):
    """What a masked token holds and how it is scaled reaches no score; a kept NaN does."""
    generator = torch.Generator().manual_seed(5)
    Q, D = torch.randn(3, 40, 64, generator=generator), torch.randn(4, 150, 64, generator=generator)
    q_mask, d_mask = torch.rand(3, 40, generator=generator) > 0.3, torch.rand(4, 150, generator=generator) > 0.5
    d_mask[2] = False
    Q, D, q_mask, d_mask = (x.to(path.device) for x in (Q, D, q_mask, d_mask))
    for name in ("e4m3_token", "int8x8", "affine_f16", "binary_f16"):
        queries, documents = hq.FORMATS[name](maxsim, Q.flatten(0, 1), D.flatten(0, 1))
        queries = hq.mapped(queries, lambda x: x.unflatten(0, (3, 40)))
        documents = hq.mapped(documents, lambda x: x.unflatten(0, (4, 150)))
        wide = documents.dequantise(64, torch.float64)
        plain = queries.double() if isinstance(queries, Tensor) else queries.dequantise(dtype=torch.float64)
        want, winners = maxsim.maxsim_reference_with_argmax(plain, wide, q_mask, d_mask, empty_score=7.0)
        documents = documents._replace(scale=documents.scale.float().masked_fill(~d_mask, float("nan")))
        scores, argmax = maxsim.quantised.score_with_argmax(queries, documents, q_mask, d_mask, empty_score=7.0)
        assert ((scores - want).abs() / want.abs()).max() < hq.tolerance(name, path.name)
        if name != "e4m3_token":
            assert torch.equal(argmax, winners)
        bad = documents._replace(scale=documents.scale.clone().masked_fill(d_mask, float("nan")))
        scores = maxsim.quantised.score(queries, bad, q_mask, d_mask)
        assert scores[:, [0, 1, 3]].isnan().all() and (scores[:, 2] == 0).all()


def test_every_fp8_value(maxsim, path):
    """All 256 bytes, one a document: NaN and infinities come out as they are."""
    codes = torch.arange(256, dtype=torch.uint8, device=path.device)
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        documents = codes[:, None, None].expand(-1, 1, 16).contiguous().view(dtype)
        query = torch.ones(1, 16, device=path.device).to(dtype)
        scores = maxsim.quantised.score(maxsim.quantised.Quantised(query), maxsim.quantised.Quantised(documents))
        want = 16 * codes.view(dtype).float()
        assert torch.equal(scores.isnan(), want.isnan())
        assert torch.equal(scores.nan_to_num(0), want.nan_to_num(0))


@pytest.mark.parametrize("name", ["affine_f16", "affine_bf16", "symmetric_bf16", "e5m2_under_f16", "binary_f16"])
def test_queries_that_are_not_finite(maxsim, path, name):
    """Infinities follow IEEE through the dequantised values, and NaN stays."""
    generator = torch.Generator().manual_seed(2)
    Q, D = torch.randn(6, 5, 64, generator=generator), torch.randn(3, 150, 64, generator=generator)
    for query, value in enumerate((torch.inf, -torch.inf, torch.nan)):
        Q[query, 2, 7] = value
    Q[3, 1, 5], Q[3, 1, 40] = torch.inf, -torch.inf
    queries, documents = hq.FORMATS[name](maxsim, Q.flatten(0, 1).to(path.device), D.flatten(0, 1).to(path.device))
    queries = queries.unflatten(0, (6, 5))
    documents = hq.mapped(documents, lambda x: x.unflatten(0, (3, 150)))
    want = maxsim.maxsim_reference(queries.double(), documents.dequantise(64, torch.float64))
    scores = maxsim.quantised.score(queries, documents)
    if path.name == "metal" and name.startswith("affine"):  # adds minima as products with a row's sum
        assert not scores[:2].isfinite().any()
        want, scores = want[2:], scores[2:]
    assert torch.equal(scores.isnan(), want.isnan()) and torch.equal(scores.isinf(), want.isinf())
    assert torch.equal(scores[scores.isinf()], want[want.isinf()].float())
    finite = want.isfinite()
    assert finite[-2:].all()
    assert ((scores - want).abs() / want.abs())[finite].max() < hq.tolerance(name, path.name)


def test_ties_go_to_the_first(maxsim, path):
    for name in hq.FORMATS:
        sides = hq.quantise(
            maxsim, name, Batch([torch.ones(3, 16, device=path.device)], [torch.ones(140, 16, device=path.device)])
        )
        laid = hq.cross_lengths(sides, path.device)
        _, argmax = maxsim.quantised.score_with_argmax(*laid.sides, **laid.options)
        assert (argmax[..., :3] == 0).all()


@pytest.mark.parametrize("name", ["e4m3_token", "affine_f16", "int8x8", "binary_f16"])
def test_by_id(maxsim, path, name):
    sides = hq.quantise(maxsim, name, ragged(64, path.device))
    laid = hq.mixed(sides, path.device)
    together = maxsim.quantised.score(*laid.sides, **laid.options, empty_score=-1.0)
    ids = torch.tensor([[0, 3, -1], [5, 5, 2], [-1, -1, 1]], device=path.device)
    got = maxsim.quantised.score_ids(*laid.sides, ids, **laid.options, empty_score=-1.0, missing_score=-9.0)
    want = together.gather(1, ids.clamp_min(0)).masked_fill(ids < 0, -9.0)
    assert torch.equal(got, want)


def test_strided_inputs(maxsim, path):
    """Transposed, spread and expanded tensors are read where they are."""
    sides = hq.quantise(maxsim, "e4m3_token", Batch.random([9, 9], [40, 40, 40], 64, device=path.device))
    laid = hq.cross_lengths(sides, path.device)
    want = maxsim.quantised.score(*laid.sides, **laid.options)

    def transposed(x: Tensor) -> Tensor:
        return x.transpose(0, 1).contiguous().transpose(0, 1)

    def spread(x: Tensor) -> Tensor:
        wide = x.new_zeros((*x.shape, 3)).view(torch.uint8) if x.element_size() == 1 else x.new_zeros((*x.shape, 3))
        wide[..., 1] = x.view(torch.uint8) if x.element_size() == 1 else x
        return wide[..., 1].view(x.dtype) if x.element_size() == 1 else wide[..., 1]

    for change in (transposed, spread):
        got = maxsim.quantised.score(*(hq.mapped(side, change) for side in laid.sides), **laid.options)
        assert torch.equal(got, want)


@pytest.mark.parametrize("dim", [51, 131])
@pytest.mark.parametrize("width", [4, 16])
@pytest.mark.parametrize("name", ["e4m3_token", "symmetric_f16", "affine_f32"])
def test_rows_of_wider_tensors(maxsim, path, name, width, dim):
    """Rows of an odd number of bytes that begin where several can be copied at once."""
    sides = hq.quantise(maxsim, name, Batch.random([9, 9], [40, 40, 40], dim, device=path.device))
    laid = hq.cross_lengths(sides, path.device)

    def wider(x: Tensor) -> Tensor:
        if x.shape[-1] != dim or x.element_size() != 1:
            return x
        wide = torch.full((*x.shape[:-1], dim + -dim % width), 0x7F, dtype=torch.uint8, device=x.device)
        wide[..., :dim] = x.view(torch.uint8)
        return wide[..., :dim].view(x.dtype)

    got = maxsim.quantised.score(*(hq.mapped(side, wider) for side in laid.sides), **laid.options)
    assert torch.equal(got, maxsim.quantised.score(*laid.sides, **laid.options))


def test_what_peers_call(maxsim, path):
    """LIK's and flash-maxsim's functions, with the shapes that theirs return."""
    m, device = maxsim, path.device
    Q, D = torch.randn(9, 64, device=device), torch.randn(6, 33, 64, device=device)
    lengths = torch.tensor([33, 0, 5, 1, 30, 33], device=device)
    wide_q = Q.double()

    def want(documents: Tensor, queries: Tensor = wide_q) -> Tensor:
        rows = [documents[i, :n] for i, n in enumerate(lengths.tolist())]
        return torch.stack([truth(queries, row).score for row in rows])

    values, scales, minima = m.int8.quantize_int8(D)
    assert values.dtype is torch.uint8 and scales.shape == minima.shape == (6, 33, 1)
    wide = values.double() * scales.double() + minima.double()
    assert (wide - D).abs().max() <= 0.51 * scales.max()
    got = m.int8.flash_maxsim_int8(Q, values, scales, minima, doc_lengths=lengths)
    torch.testing.assert_close(got.double(), want(wide), rtol=3e-6, atol=1e-5)
    torch.testing.assert_close(m.int8.dequantize_int8(values, scales, minima).double(), wide, rtol=1e-6, atol=1e-6)

    values, scales = m.int8.quantize_int8_symmetric(D)
    wide = values.double() * scales.double()
    assert values.dtype is torch.int8 and scales.shape == (6, 33, 1) and values.min() >= -127
    got = m.int8.flash_maxsim_int8_symmetric(Q, values, scales, lengths)
    torch.testing.assert_close(got.double(), want(wide), rtol=3e-6, atol=1e-5)
    q8, q_scales = m.int8.quantize_query_int8(Q)
    assert q_scales.shape == (9,)
    both = m.int8.flash_maxsim_int8x8(None, values, scales, q8, q_scales, lengths)
    torch.testing.assert_close(
        both.double(), want(wide, q8.double() * q_scales.double()[:, None]), rtol=1e-6, atol=1e-6
    )
    assert torch.equal(both, m.int8.flash_maxsim_int8x8(Q, values, scales, doc_lengths=lengths))

    (q, sq), (d, sd) = (m.fp8.quantize_fp8_per_tensor(x) for x in (Q, D))
    assert sq.shape == sd.shape == () and d.dtype is torch.float8_e4m3fn
    scores, argmax = m.fp8.maxsim_inference_fp8_with_argmax(q, d, scale_Q=sq, scale_D=sd)
    assert scores.shape == (6,) and argmax.shape == (6, 9)
    assert torch.equal(scores, m.fp8.maxsim_inference_fp8(q, d, scale_Q=sq, scale_D=sd))
    wide = m.maxsim_reference(
        m.fp8.dequantize_fp8_per_tensor(q, sq).double(), m.fp8.dequantize_fp8_per_tensor(d, sd).double()
    )
    torch.testing.assert_close(scores.double(), wide, rtol=2e-3, atol=0)


def test_bits_and_back(maxsim):
    X = torch.randn(3, 5, 13)
    packed = maxsim.binary.pack_bits(X)
    assert packed.shape == (3, 5, 2) and packed.dtype is torch.uint8
    assert torch.equal(maxsim.binary.unpack_bits(packed, 13) > 0, X > 0)
    assert maxsim.binary.pack_bits(torch.tensor([1.0, -1, -1, -1, -1, -1, -1, -1, -1, 1])).tolist() == [1, 2]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_batch(data):
    from helpers import load_kernel

    m = load_kernel()
    lengths = st.lists(st.integers(0, 40), min_size=1, max_size=4)
    name = data.draw(st.sampled_from(sorted(hq.FORMATS)))
    batch = Batch.random(
        data.draw(lengths), data.draw(lengths), data.draw(st.integers(1, 70)), seed=data.draw(st.integers(0, 99))
    )
    layout = data.draw(st.sampled_from([x for x in hq.LAYOUTS if x is not hq.slab]))
    sides = hq.quantise(m, name, batch)
    laid = layout(sides, "cpu")
    scores = m.quantised.score(*laid.sides, **laid.options)
    assert_scores(scores, laid.pairs, sides.truth, hq.tolerance(name))


@pytest.mark.parametrize("name", ["int8x8", "affine_f16", "binary_f32"])  # opcheck itself cannot handle fp8
def test_the_op_is_a_good_citizen(maxsim, name):
    sides = hq.quantise(maxsim, name, Batch.random([5, 5], [9, 9, 9], 16))
    laid = hq.cross_lengths(sides, "cpu")
    q, d = laid.sides
    plain = isinstance(q, Tensor)
    lengths = (laid.options["query_lengths"], laid.options["document_lengths"])
    op = getattr(torch.ops, maxsim.__name__).quantised_forward.default
    head = (q if plain else q.values, d.values, None, None, *lengths, *[None] * 4)
    factors = [x if x is None else x.float() for x in (None if plain else q.scale, d.scale, d.minimum)]
    for width in (-1, 7):
        torch.library.opcheck(op, (*head, *factors, 1, 1, d.bits, -1.0, 0, width))
    compiled = torch.compile(
        lambda q, d: maxsim.quantised.score(q, d, **laid.options), fullgraph=True, backend="aot_eager"
    )
    assert torch.equal(compiled(q, d), maxsim.quantised.score(q, d, **laid.options))


def errors() -> list:
    e4m3, i8, u8 = torch.float8_e4m3fn, torch.int8, torch.uint8
    Q, D = torch.ones(2, 3, 8), torch.ones(4, 5, 8)
    bits = torch.ones(4, 5, 1, dtype=u8)

    def fp8(**changes: object):
        ones = {"Q": Q.to(e4m3), "D": D.to(e4m3), "scale_Q": torch.ones(()), "scale_D": torch.ones(4, 5), **changes}
        return lambda m: m.fp8.maxsim_inference_fp8(ones.pop("Q"), ones.pop("D"), **ones)

    def score(query: object, make, **options: object):
        return lambda m: m.quantised.score(query, make(m.quantised.Quantised), **options)

    return [
        (fp8(Q=Q), TypeError, "Q must be float8_e4m3fn or float8_e5m2; got torch.float32"),
        (fp8(Q=Q.to(torch.float8_e5m2)), TypeError, "Q and D must have the same dtype"),
        (fp8(scale_D=torch.ones(4, 6)), ValueError, r"D.scale must be \[\] or \(4, 5\), one for each token of D"),
        (
            fp8(scale_D=torch.ones(4, 2), block_D=2),
            ValueError,
            r"D.scale must be \[\] or \(4, 3\), one for each 2 tokens",
        ),
        (fp8(scale_D=torch.ones(4, 5), block_D=0), ValueError, "D.block must be an int of at least 1; got 0"),
        (fp8(scale_Q=1.0), TypeError, "Q.scale must be a torch.Tensor; got float"),
        (fp8(scale_Q=torch.ones((), dtype=torch.int32)), TypeError, "Q.scale must be float16, bfloat16 or float32"),
        (fp8(d_mask=torch.ones(3)), ValueError, "d_mask must broadcast"),
        (lambda m: m.quantised.score(Q, D), TypeError, "D must be a maxsim.quantised.Quantised; got Tensor"),
        (score(Q, lambda x: x(D)), TypeError, "D must be float8_e4m3fn, float8_e5m2, int8 or uint8; got torch.float32"),
        (score(Q, lambda x: x(bits)), ValueError, "must share the embedding dim"),
        (score(Q, lambda x: x(bits, bits=2)), ValueError, "D.bits must be 1 or 8; got 2"),
        (score(Q, lambda x: x(D.to(i8), bits=1)), TypeError, "D must be uint8; got torch.int8"),
        (score(Q, lambda x: x(D.to(u8), bits=1)), ValueError, r"D must have ceil\(d / 8\) bytes a token"),
        (
            score(torch.ones(2, 3, 8, requires_grad=True), lambda x: x(D.to(i8))),
            ValueError,
            "Q must not require a gradient",
        ),
        (
            score(Q.detach(), lambda x: x(D.to(i8)), document_lengths=torch.ones(3, dtype=torch.int64)),
            ValueError,
            "document_lengths must have shape",
        ),
        (
            score(Q.detach(), lambda x: x(D.to(i8)), document_lengths=torch.tensor([1, 2, 3, 6])),
            ValueError,
            r"document_lengths\[3\]=6",
        ),
        (
            score(Q.detach(), lambda x: x(D.to(i8)[0]), cu_seqlens_d=torch.tensor([0, 9])),
            ValueError,
            r"cu_seqlens_d\[-1\] must be at most 5",
        ),
        (score(Q.detach(), lambda x: x(D.to(i8)), pair_q_idx=torch.tensor([0])), ValueError, "go together"),
        (score(Q.detach(), lambda x: x(D.to(i8)), empty_score="0"), TypeError, "empty_score must be a number"),
        (lambda m: m.fp8.quantize_fp8_per_token(Q, dtype=i8), TypeError, "dtype must be torch.float8_e4m3fn"),
        (lambda m: m.fp8.quantize_fp8_per_block(Q, 0), ValueError, "block must be an int of at least 1; got 0"),
        (lambda m: m.int8.quantize_int8(D.to(i8)), TypeError, "D must be a tensor of floats; got torch.int8"),
        (lambda m: m.int8.flash_maxsim_int8x8(Q, D.to(i8), torch.ones(4, 5), Q.to(i8)), ValueError, "go together"),
        (lambda m: m.binary.unpack_bits(bits, 9), ValueError, "dim must fit 1 bytes a token; got 9"),
        (lambda m: m.binary.pack_bits(torch.tensor(1.0)), ValueError, "X must be"),
    ]


@pytest.mark.parametrize("call, kind, message", errors())
def test_bad_input(maxsim, call, kind, message):
    with pytest.raises(kind, match=message):
        call(maxsim)


def test_the_op_itself_refuses(maxsim):
    """Called from anywhere: shapes that do not fit never reach memory."""
    op = getattr(torch.ops, maxsim.__name__).quantised_forward
    q, d = torch.ones(2, 3, 8), torch.ones(4, 5, 8, dtype=torch.int8)

    def call(query=q, document=d, scale=None, block=1, bits=8, width=-1):
        return op(query, document, *[None] * 8, None, scale, None, 1, block, bits, 0.0, 0, width)

    for changes in (
        {"scale": torch.ones(4, 4)},
        {"scale": torch.ones(4, 5).half()},
        {"scale": torch.ones(20)},
        {"scale": torch.ones(4, 5), "block": 0},
        {"bits": 2},
        {"bits": 1},
        {"document": d.view(torch.uint8)[..., ::8], "bits": 1, "query": q[..., :7].expand(2, 3, 7), "width": 2},
        {"document": d.view(torch.uint8)[..., :2], "bits": 1},
        {"document": d.short()},
    ):
        with pytest.raises(RuntimeError):
            call(**changes)
    with pytest.raises(RuntimeError, match="documents must be float16"):
        getattr(torch.ops, maxsim.__name__).forward_plain(q, d)
