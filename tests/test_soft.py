"""The soft maximum against float64: scores and gradients in every layout, dtype and option, on every path."""

from __future__ import annotations

import math
import sys

import helpers
import pytest
import torch
from helpers import DTYPES, Batch, dtype_id
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

OPTIONS = [{}, {"tau": 0.02, "normalize": True}, {"tau": 3.0, "empty_score": -1e9}]


def exact_score(query: Tensor, document: Tensor, tau: float = 0.1, normalize: bool = False, empty_score: float = 0.0):
    """One pair in float64, differentiable, by another way than the package's reference."""
    if normalize:
        query, document = (x / x.norm(dim=-1, keepdim=True).clamp_min(1e-12) for x in (query, document))
    if document.shape[0] == 0:
        return (query.sum() + document.sum()) * 0 + empty_score
    return (tau * torch.logsumexp(query @ document.T / tau, dim=1)).sum()


def laid(maxsim, layout, batch: Batch) -> helpers.Laid:
    """One of the padded layouts of helpers, scored softly."""
    found = layout(maxsim, batch)
    masks = {}
    if layout is helpers.candidates:
        count = len(batch.queries)
        lengths = (
            helpers.Padded(batch.queries).length_tensor(torch.int64),
            helpers.Padded(batch.documents).length_tensor().unflatten(0, (count, -1)),
        )
        found.score = lambda q, d, **o: maxsim.soft_maxsim_padded(q, d, *lengths, **o)
        return found
    for name, tensor, segments in (("q_mask", found.queries, batch.queries), ("d_mask", found.documents, None)):
        segments = batch.documents[: math.prod(tensor.shape[:-2])] if segments is None else segments
        segments = segments[: math.prod(tensor.shape[:-2])]
        masks[name] = helpers.Padded(segments).mask().view(tensor.shape[:-1])
    found.score = lambda q, d, **o: maxsim.soft_maxsim(q, d, **masks, **o)
    return found


LAYOUTS = [helpers.cross, helpers.single_query, helpers.single_document, helpers.slab, helpers.candidates]


def check(maxsim, layout, batch: Batch, **options) -> None:
    arranged = laid(maxsim, layout, batch)
    weights = torch.randn(len(arranged.pairs), generator=torch.Generator().manual_seed(2))
    q, d = (x.detach().clone().requires_grad_() for x in (arranged.queries, arranged.documents))
    scores = arranged.score(q, d, **options)
    assert scores.dtype is torch.float32
    with torch.no_grad():
        assert torch.equal(arranged.score(q, d, **options), scores)
    (scores.flatten() * weights.to(scores.device)).sum().backward()

    sides = [[x.double().detach().requires_grad_() for x in side] for side in (batch.queries, batch.documents)]
    want = [exact_score(sides[0][i], sides[1][j], **options) for i, j in arranged.pairs]
    for score, one in zip(scores.flatten().tolist(), want, strict=True):
        assert abs(score - one.item()) <= 2e-6 * max(1.0, abs(one.item())) + 1e-5
    loss = sum(weight * one for weight, one in zip(weights.double().tolist(), want, strict=True))
    gradients = torch.autograd.grad(loss, sides[0] + sides[1], materialize_grads=True)
    count = len(batch.queries)
    limit = max(2e-5, 4e-6 / options.get("tau", 0.1))
    for got, exact in (
        (arranged.query_segments(q.grad), gradients[:count]),
        (arranged.document_segments(d.grad), gradients[count:]),
    ):
        for mine, one in zip(got, exact, strict=False):
            assert mine.dtype is batch.queries[0].dtype or mine.dtype is batch.documents[0].dtype
            largest = one.abs().max() if one.numel() else 1.0
            rounding = torch.finfo(mine.dtype).eps / 2 * one.abs() + torch.finfo(mine.dtype).smallest_normal / 64
            assert ((mine.double() - one).abs() <= limit * largest + rounding + 1e-7).all()


def unit(batch: Batch) -> Batch:
    """Similarities of trained encoders, so that no document token has all of the weight."""
    return Batch(*([x / max(x.shape[1], 1) ** 0.5 for x in side] for side in (batch.queries, batch.documents)))


@pytest.mark.kernels_ci
@pytest.mark.parametrize("dtypes", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("layout", LAYOUTS, ids=helpers.layout_id)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_layout(maxsim, path, layout, dtypes, options):
    check(maxsim, layout, unit(helpers.ragged(layout, 48, dtypes, path.device)), **options)


@pytest.mark.parametrize("dim", [1, 3, 64, 130, 768])
@pytest.mark.parametrize("dtypes", DTYPES[:3], ids=dtype_id)
def test_every_dim(maxsim, path, dim, dtypes):
    batch = unit(Batch.random([37, 4, 16], [350, 2, 33, 64], dim, dtypes, path.device))
    check(maxsim, helpers.cross, batch, normalize=dim > 1)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_properties(maxsim, data):
    """Random shapes, holes in masks and temperatures; between the maximum and the maximum of that many equals."""
    lengths = [data.draw(st.integers(0, 40)) for _ in range(4)]
    count = {name: data.draw(st.integers(1, 4)) for name in "qd"}
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1 << 30)))
    dim, tau = data.draw(st.integers(1, 40)), data.draw(st.sampled_from([0.01, 0.1, 1.0, 10.0]))
    Q = torch.randn(count["q"], lengths[0], dim, generator=generator).requires_grad_()
    D = torch.randn(count["d"], lengths[1], dim, generator=generator).requires_grad_()
    q_mask, d_mask = (torch.rand(x.shape[:2], generator=generator) > 0.3 for x in (Q, D))
    scores = maxsim.soft_maxsim(Q, D, q_mask, d_mask, tau=tau)
    q, d = (x.detach().double().requires_grad_() for x in (Q, D))
    want = maxsim.soft_maxsim_reference(q, d, q_mask, d_mask, tau=tau)
    torch.testing.assert_close(scores.double(), want, rtol=1e-5, atol=1e-4)
    got, exact = torch.autograd.grad(scores.sum(), (Q, D)), torch.autograd.grad(want.sum(), (q, d))
    for mine, one in zip(got, exact, strict=True):
        torch.testing.assert_close(mine.double(), one, rtol=1e-3, atol=1e-3)
    hard = maxsim.maxsim(Q, D, q_mask, d_mask)
    most = q_mask.sum(1)[:, None] * tau * d_mask.sum(1).clamp_min(1).log()
    assert (scores >= hard - 1e-3).all() and (scores <= hard + most + 1e-3).all()


def test_one_pair_has_one_score(maxsim, path):
    """Bitwise the same in every layout, batch and position, holes in masks included."""
    for dtypes in DTYPES[:3]:
        batch = Batch.random([17, 9, 33], [40, 7, 100, 13, 1, 64], 48, dtypes, path.device)
        scores = {}
        for layout in LAYOUTS:
            arranged = laid(maxsim, layout, batch)
            for pair, score in zip(
                arranged.pairs, arranged.score(arranged.queries, arranged.documents).flatten(), strict=True
            ):
                assert torch.equal(scores.setdefault(pair, score), score), (layout.__name__, pair)
    Q, D = torch.randn(9, 32, device=path.device), torch.randn(50, 32, device=path.device)
    keep = torch.rand(50, device=path.device) > 0.4
    holes, none = maxsim.soft_maxsim(Q, D, d_mask=keep), maxsim.soft_maxsim(Q, D[keep])
    torch.testing.assert_close(holes, none, rtol=0 if path.device == "cpu" else 1e-6, atol=0)


def test_bitwise_reproducible_gradients(maxsim, path):
    tensors = [torch.randn(*shape, device=path.device) for shape in ((5, 20, 64), (7, 90, 64))]
    runs = []
    for _ in range(5):
        q, d = (x.clone().requires_grad_() for x in tensors)
        runs.append(torch.autograd.grad(maxsim.soft_maxsim(q, d, normalize=True).square().sum(), (q, d)))
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))


def test_threads_change_nothing(maxsim):
    tensors = [torch.randn(*shape) for shape in ((3, 40, 64), (2, 900, 64))]
    runs, before = [], torch.get_num_threads()
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        q, d = (x.clone().requires_grad_() for x in tensors)
        scores = maxsim.soft_maxsim(q, d)
        runs.append((scores.detach(), *torch.autograd.grad(scores.sum(), (q, d))))
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))


def test_nan_and_infinity(maxsim, path):
    inf, nan = math.inf, math.nan
    Q = torch.ones(1, 1, 1, device=path.device)
    for tokens, want in (
        ([1.0, nan, 2.0], nan),
        ([nan] * 3, nan),
        ([-inf, -inf], -inf),
        ([-inf, 3.0], 3.0),
        ([inf, 3.0], inf),
        ([inf, nan], nan),
        ([-inf, inf, 2.0], inf),
        ([1e38, 1.0], 1e38),
    ):
        # Behind many others too, where a running sum meets them late.
        for before in ([], [0.0] * 37):
            D = torch.tensor([before + tokens], device=path.device).view(1, -1, 1)
            got = maxsim.soft_maxsim(Q, D, tau=0.01 if want == 3.0 else 1.0).item()
            expected = math.log(37) if before and want == -inf else want
            assert got == pytest.approx(expected, nan_ok=True, rel=1e-5), tokens
    masked = torch.tensor([[1.0, nan, 2.0]], device=path.device).view(1, 3, 1)
    keep = torch.tensor([True, False, True], device=path.device)
    assert maxsim.soft_maxsim(Q, masked, d_mask=keep, tau=1.0).item() == pytest.approx(math.log(math.e + math.e**2))


def test_nan_stays_with_its_own(maxsim, path):
    Q, D = torch.randn(3, 5, 16, device=path.device), torch.randn(4, 6, 16, device=path.device)
    Q[1, 2, 3] = math.nan
    Q.requires_grad_()
    D.requires_grad_()
    scores = maxsim.soft_maxsim(Q, D)
    assert scores.isnan().any(1).tolist() == [False, True, False]
    queries, documents = torch.autograd.grad(scores[[0, 2]].sum() + 0 * scores[1].nan_to_num().sum(), (Q, D))
    assert queries[[0, 2]].isfinite().all()
    (queries,) = torch.autograd.grad(maxsim.soft_maxsim(Q, D).sum(), Q)
    assert queries.isnan().all(-1).nonzero().tolist() == [[1, 2]]


def test_empty_documents_have_no_gradient(maxsim, path):
    queries = torch.randn(2, 5, 16, device=path.device, requires_grad=True)
    documents = torch.randn(3, 6, 16, device=path.device, requires_grad=True)
    mask = torch.zeros(3, 6, dtype=torch.bool, device=path.device)
    scores = maxsim.soft_maxsim(queries, documents, d_mask=mask, empty_score=7.0, normalize=True)
    assert (scores == 7).all()
    scores.sum().backward()
    assert not queries.grad.any() and not documents.grad.any()
    for shapes in (((2, 0, 4), (3, 5, 4)), ((0, 3, 4), (3, 5, 4)), ((2, 3, 4), (0, 5, 4)), ((2, 3, 4), (3, 0, 4))):
        q, d = (torch.randn(shape, device=path.device, requires_grad=True) for shape in shapes)
        scores = maxsim.soft_maxsim(q, d)
        assert scores.shape == (shapes[0][0], shapes[1][0]) and not scores.any()
        scores.sum().backward()
        assert not q.grad.any() and not d.grad.any()


def test_strided_inputs(maxsim, path):
    base_q, base_d = torch.randn(16, 3, 5, device=path.device), torch.randn(6, 4, 16, device=path.device)
    results = []
    for contiguous in (False, True):
        q, d = base_q.clone().requires_grad_(), base_d.clone().requires_grad_()
        queries, documents = q.permute(1, 2, 0), d.transpose(0, 1)
        if contiguous:
            queries, documents = queries.contiguous(), documents.contiguous()
        scores = maxsim.soft_maxsim(queries, documents)
        results.append((scores, *torch.autograd.grad(scores.sum(), (q, d))))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    leaf = torch.randn(4, 6, 16, device=path.device, requires_grad=True)
    queries = torch.randn(3, 5, 16, device=path.device)
    maxsim.soft_maxsim(queries, leaf.expand(3, 4, 6, 16)).sum().backward()
    shared, leaf.grad = leaf.grad, None
    maxsim.soft_maxsim(queries, leaf).sum().backward()
    torch.testing.assert_close(shared, leaf.grad)


@pytest.mark.parametrize("side", [0, 1], ids=["queries", "documents"])
def test_only_what_needs_a_gradient(maxsim, path, side):
    tensors = [torch.randn(3, 5, 16, device=path.device), torch.randn(4, 6, 16, device=path.device)]
    both = [x.clone().requires_grad_() for x in tensors]
    maxsim.soft_maxsim(*both).sum().backward()
    tensors[side].requires_grad_()
    maxsim.soft_maxsim(*tensors).sum().backward()
    assert torch.equal(tensors[side].grad, both[side].grad)
    assert tensors[1 - side].grad is None


def test_reference_passes_gradcheck(maxsim):
    Q, D = (torch.randn(2, n, 3, dtype=torch.float64, requires_grad=True) for n in (3, 4))
    q_mask, d_mask = torch.tensor([[1, 0, 1], [1, 1, 1]]), torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0]])
    for normalize in (False, True):
        call = lambda q, d, n=normalize: maxsim.soft_maxsim_reference(q, d, q_mask, d_mask, tau=0.5, normalize=n)  # noqa: E731
        assert torch.autograd.gradcheck(call, (Q, D)) and torch.autograd.gradgradcheck(call, (Q, D))


def test_compiled_and_opcheck(maxsim, path, monkeypatch):
    torch._dynamo.reset()
    Q, D = torch.randn(3, 5, 16, device=path.device), torch.randn(4, 6, 16, device=path.device)
    for dynamic in (False, True):
        compiled = torch.compile(
            lambda q, d: maxsim.soft_maxsim(q, d, normalize=True), fullgraph=True, backend="aot_eager", dynamic=dynamic
        )
        assert torch.equal(compiled(Q, D), maxsim.soft_maxsim(Q, D, normalize=True))
        results = []
        for call in (compiled, lambda q, d: maxsim.soft_maxsim(q, d, normalize=True)):
            q, d = Q.clone().requires_grad_(), D.clone().requires_grad_()
            results.append(torch.autograd.grad(call(q, d).square().sum(), (q, d)))
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    module, sent = sys.modules[f"{maxsim.__name__}._kernels"], []
    for name in ("soft_forward", "soft_forward_parts", "soft_backward"):
        op = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *arguments, op=op: sent.append((op, arguments)) or op(*arguments))
    maxsim.soft_maxsim(Q, D)
    maxsim.soft_maxsim(Q.requires_grad_(), D, d_mask=torch.ones(4, 6, device=D.device)).sum().backward()
    assert len(sent) == 3
    for op, arguments in sent:
        torch.library.opcheck(op, tuple(x.detach() if isinstance(x, Tensor) else x for x in arguments))


def test_transforms(maxsim, path):
    Q, D = torch.randn(3, 5, 16, device=path.device), torch.randn(4, 6, 16, device=path.device)
    loss = lambda q, d: maxsim.soft_maxsim(q, d).square().sum()  # noqa: E731
    got = torch.func.grad(loss, argnums=(0, 1))(Q, D)
    q, d = Q.clone().requires_grad_(), D.clone().requires_grad_()
    torch.testing.assert_close(got, torch.autograd.grad(loss(q, d), (q, d)))
    rows = torch.func.vmap(torch.func.grad(loss), in_dims=(0, None))(Q, D)
    torch.testing.assert_close(rows, got[0])
    with pytest.raises(RuntimeError, match="first derivatives in reverse mode only"):
        torch.autograd.grad(torch.autograd.grad(loss(q, d), q, create_graph=True)[0].sum(), q)
    with pytest.raises(RuntimeError, match="first derivatives in reverse mode only"):
        torch.func.jvp(lambda q: maxsim.soft_maxsim(q, D), (Q,), (Q,))


def test_autocast(maxsim, path):
    Q, D = torch.randn(3, 5, 16, device=path.device), torch.randn(4, 6, 16, device=path.device)
    with torch.autocast(path.device, torch.bfloat16):
        scores = maxsim.soft_maxsim(Q, D)
    assert torch.equal(scores, maxsim.soft_maxsim(Q.bfloat16(), D.bfloat16()))


def test_errors_name_the_argument(maxsim):
    Q, D = torch.randn(3, 5, 16), torch.randn(4, 6, 16)
    for tau in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="tau must be positive and finite; got"):
            maxsim.soft_maxsim(Q, D, tau=tau)
    with pytest.raises(TypeError, match="tau must be a number; got str"):
        maxsim.soft_maxsim(Q, D, tau="0.1")
    with pytest.raises(TypeError, match="Q must be .*; maxsim.reference takes float64"):
        maxsim.soft_maxsim(Q.double(), D)
    with pytest.raises(ValueError, match="share the embedding dim"):
        maxsim.soft_maxsim(Q[..., :3], D)
    ops = sys.modules[f"{maxsim.__name__}._kernels"]
    problem = (Q, D, *[None] * 8)
    with pytest.raises(RuntimeError, match="tau must be positive and finite"):
        ops.soft_forward(*problem, 0.0, False, 0.0, 0)
    scores, parts = ops.soft_forward_parts(*problem, 0.1, False, 0.0, 0, 5)
    with pytest.raises(RuntimeError, match="parts must be float32 with 60 elements; got 40"):
        ops.soft_backward(scores, parts[:2], *problem, 0.1, False, True, True, 0)
    with pytest.raises(RuntimeError, match="grad_scores must be float32 with 12 elements; got 8"):
        ops.soft_backward(scores[:2], parts, *problem, 0.1, False, True, True, 0)
