"""Gradients against float64 autograd: every layout, dtype, option and path."""

from __future__ import annotations

from collections.abc import Sequence

import helpers
import pytest
import torch
from helpers import DTYPES, LAYOUTS, Batch, dtype_id, layout_id, ragged, truth

BACKWARDS = [None, "auto", "unified", "lowmem"]


def assert_gradients(got: Sequence[torch.Tensor], want: Sequence[torch.Tensor]) -> None:
    """Within 1e-5 of float64 before the rounding to the input's dtype, relative to the row's largest."""
    for mine, exact in zip(got, want, strict=True):
        largest = exact.abs().amax(dim=-1, keepdim=True)
        rounding = torch.finfo(mine.dtype).eps / 2 * exact.abs() + torch.finfo(mine.dtype).smallest_normal / 64
        assert ((mine.double() - exact).abs() <= 1e-5 * largest + rounding).all()


def check(laid: helpers.Laid, batch: Batch, backward: str | None = None, **options: object) -> None:
    weights = torch.randn(len(laid.pairs), generator=torch.Generator().manual_seed(2), device="cpu")
    queries, documents = (x.detach().clone().requires_grad_() for x in (laid.queries, laid.documents))
    scores = laid.score(queries, documents, backward=backward, **options)
    (scores.flatten() * weights.to(scores.device)).sum().backward()
    for tensor in (queries, documents):
        assert tensor.grad.dtype is tensor.dtype and tensor.grad.shape == tensor.shape

    exact = Batch(*([x.double().detach().requires_grad_() for x in side] for side in (batch.queries, batch.documents)))
    loss = sum(
        weight * truth(exact.queries[i], exact.documents[j], **options).score
        for (i, j), weight in zip(laid.pairs, weights.double().tolist(), strict=True)
    )
    gradients = torch.autograd.grad(loss, exact.queries + exact.documents, materialize_grads=True)
    count = len(batch.queries)
    for got, want in (
        (laid.query_segments(queries.grad), gradients[:count]),
        (laid.document_segments(documents.grad), gradients[count:]),
    ):
        assert_gradients(got, want[: len(got)])


@pytest.mark.kernels_ci
@pytest.mark.parametrize("dtypes", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("layout", LAYOUTS, ids=layout_id)
@pytest.mark.parametrize("options", [{}, {"normalize": True, "empty_score": -1e9}], ids=["plain", "normalized"])
def test_every_layout(maxsim, path, layout, dtypes, options):
    batch = ragged(layout, 48, dtypes, path.device)
    check(layout(maxsim, batch), batch, **options)


def noise(device: str, amount: int) -> torch.Tensor:
    """Memory that moves what follows elsewhere and, on a GPU, work that runs beside it."""
    if device != "cuda":
        return torch.empty(amount * 4099)
    with torch.cuda.stream(torch.cuda.Stream()):
        matrix = torch.randn(amount * 97 + 1, amount * 97 + 1, device=device)
        for _ in range(amount % 5):
            matrix = matrix @ matrix
    return matrix


@pytest.mark.parametrize("backward", BACKWARDS)
@pytest.mark.parametrize("layout", [helpers.cross, helpers.slab, helpers.listed], ids=layout_id)
def test_every_method(maxsim, path, layout, backward):
    batch = ragged(layout, 31, (torch.bfloat16, torch.bfloat16), path.device)
    check(layout(maxsim, batch), batch, backward)


@pytest.mark.parametrize("dim", [1, 3, 64, 130, 768])
@pytest.mark.parametrize("dtypes", DTYPES[:3], ids=dtype_id)
def test_every_dim(maxsim, path, dim, dtypes):
    batch = Batch.random([17, 4], [50, 2, 33], dim, dtypes, path.device)
    check(helpers.cross(maxsim, batch), batch, normalize=dim > 1)


def test_many_queries_share_a_winner(maxsim, path):
    """Sums of many terms into one token: the accumulation is fp32 whatever the dtype."""
    batch = Batch.random([64] * 6, [1, 2], 16, (torch.bfloat16, torch.bfloat16), path.device)
    check(helpers.cross(maxsim, batch), batch)


@pytest.mark.parametrize("documents", [[3], [40, 2]], ids=["spread", "one-token"])
def test_more_winners_than_fit(maxsim, path, documents):
    """Thousands of query tokens choose among few document tokens, or all the same one."""
    batch = Batch.random([256] * 20, documents, 24, (torch.bfloat16, torch.bfloat16), path.device)
    if len(documents) > 1:
        common = torch.ones(24, device=path.device, dtype=torch.bfloat16)
        batch.queries = [(query * 0.25 + common) for query in batch.queries]
        batch.documents[0][7] = common * 4
    check(helpers.cross(maxsim, batch), batch)


@pytest.mark.parametrize("backward", BACKWARDS)
@pytest.mark.parametrize("layout", [helpers.cross, helpers.slab, helpers.varlen, helpers.listed], ids=layout_id)
def test_the_same_bits_every_time(maxsim, path, layout, backward):
    batch = ragged(layout, 128, (torch.float16, torch.float16), path.device)
    laid = layout(maxsim, batch)
    options = {} if layout is helpers.varlen else {"backward": backward}
    seen = []
    for others in range(20):
        elsewhere = noise(path.device, others)
        queries, documents = (x.detach().nan_to_num().requires_grad_() for x in (laid.queries, laid.documents))
        scores = laid.score(queries, documents, **options)
        scores.backward(torch.linspace(-1, 1, scores.numel(), device=scores.device).view_as(scores))
        seen.append((queries.grad, documents.grad))
        del elsewhere
    assert all(torch.equal(one, other) for again in seen for one, other in zip(seen[0], again, strict=True))


@pytest.mark.parametrize("side", [0, 1], ids=["queries", "documents"])
def test_only_what_needs_a_gradient(maxsim, path, side):
    tensors = [torch.randn(3, 5, 16, device=path.device), torch.randn(4, 6, 16, device=path.device)]
    both = [x.clone().requires_grad_() for x in tensors]
    maxsim.maxsim(*both).sum().backward()
    tensors[side].requires_grad_()
    maxsim.maxsim(*tensors).sum().backward()
    assert torch.equal(tensors[side].grad, both[side].grad)
    assert tensors[1 - side].grad is None


def test_no_graph_without_need(maxsim, path):
    queries, documents = torch.randn(3, 5, 16, device=path.device), torch.randn(4, 6, 16, device=path.device)
    assert maxsim.maxsim(queries, documents).grad_fn is None
    queries.requires_grad_()
    with torch.no_grad():
        assert not maxsim.maxsim(queries, documents).requires_grad
    assert maxsim.maxsim(queries, documents).requires_grad
    scores, argmax = maxsim.maxsim_with_argmax(queries, documents)
    assert scores.requires_grad and not argmax.requires_grad


def test_strided_inputs_and_incoming_gradients(maxsim, path):
    base_q, base_d = torch.randn(16, 3, 5, device=path.device), torch.randn(6, 4, 16, device=path.device)
    weights = torch.randn(4, 3, device=path.device).T
    results = []
    for contiguous in (False, True):
        q, d = base_q.clone().requires_grad_(), base_d.clone().requires_grad_()
        queries, documents = q.permute(1, 2, 0), d.transpose(0, 1)
        if contiguous:
            queries, documents, weights = queries.contiguous(), documents.contiguous(), weights.contiguous()
        maxsim.maxsim(queries, documents).backward(weights)
        results.append((q.grad, d.grad))
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))
    expanded = base_d[:1].expand(4, 6, 4, 16).reshape(4, 6, 4, 16).requires_grad_()
    maxsim.maxsim(torch.randn(4, 5, 16, device=path.device), expanded).sum().backward()  # a stride-0 gradient arrives
    assert expanded.grad.isfinite().all()


def test_gradient_reaches_an_expanded_leaf(maxsim, path):
    queries = torch.randn(3, 5, 16, device=path.device)
    leaf = torch.randn(4, 6, 16, device=path.device, requires_grad=True)
    maxsim.maxsim(queries, leaf.expand(3, 4, 6, 16)).sum().backward()
    shared, leaf.grad = leaf.grad, None
    maxsim.maxsim(queries, leaf).sum().backward()
    torch.testing.assert_close(shared, leaf.grad)


def test_tiny_vectors_have_the_gradient_of_normalize(maxsim, path):
    """Below a norm of 1e-12, x / max(|x|, 1e-12) is x * 1e12, at zero and elsewhere."""
    queries = torch.randn(1, 3, 8, device=path.device)
    queries[0, 1] = 0
    queries[0, 2] *= 2e-13
    documents = torch.randn(2, 4, 8, device=path.device)
    grads = []
    for dtype, call in ((torch.float32, maxsim.maxsim), (torch.float64, maxsim.maxsim_reference)):
        q = queries.to(dtype, copy=True).requires_grad_()
        call(q, documents.to(dtype), normalize=True).sum().backward()
        grads.append(q.grad)
    assert queries[0, 2].norm() < 1e-12
    for token in range(3):
        torch.testing.assert_close(grads[0][0, token].double(), grads[1][0, token], rtol=1e-5, atol=1e-6)


def test_scores_of_empty_documents_have_no_gradient(maxsim, path):
    queries = torch.randn(2, 5, 16, device=path.device, requires_grad=True)
    documents = torch.randn(3, 6, 16, device=path.device, requires_grad=True)
    mask = torch.zeros(3, 6, dtype=torch.bool, device=path.device)
    maxsim.maxsim(queries, documents, d_mask=mask, empty_score=7.0, normalize=True).sum().backward()
    assert not queries.grad.any() and not documents.grad.any()


def test_training_lowers_a_contrastive_loss(maxsim, path):
    generator = torch.Generator().manual_seed(5)
    queries = torch.randn(6, 8, 32, generator=generator).to(path.device).requires_grad_()
    documents = torch.randn(6, 12, 32, generator=generator).to(path.device).requires_grad_()
    optimizer = torch.optim.Adam([queries, documents], lr=0.05)
    labels = torch.arange(6, device=path.device)
    losses = []
    for _ in range(20):
        scores = maxsim.maxsim(queries, documents, normalize=True)
        loss = torch.nn.functional.cross_entropy(scores, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
