"""torch.compile, torch.export, opcheck and autocast: whole graphs, dynamic shapes, the bits of eager calls."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import helpers
import pytest
import torch
from helpers import LAYOUTS, layout_id, ragged
from torch.export import Dim, export

FLOAT = (torch.float32, torch.float32)
# A compiled graph cannot look for the longest query, so it has to be told.
WIDTHS = {helpers.varlen: {"max_seqlen_q": 17}, helpers.listed: {"max_q_len": 17}}


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Counter:
    """A compiler that runs the graph as it is and counts how often it was asked."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> torch.fx.GraphModule:
        self.graphs += 1
        return graph


@pytest.mark.parametrize("layout", LAYOUTS, ids=layout_id)
def test_ops_keep_torchs_contract(maxsim, monkeypatch, layout):
    """opcheck, on the arguments that each layout really sends."""
    kernels = sys.modules[f"{maxsim.__name__}._kernels"]
    sent = []
    for name in ("forward", "forward_argmax", "backward"):
        op = getattr(kernels, name)
        monkeypatch.setattr(kernels, name, lambda *arguments, op=op: sent.append((op, arguments)) or op(*arguments))
    laid = layout(maxsim, ragged(layout, 8, FLOAT, "cpu"))
    laid.score(laid.queries.nan_to_num(), laid.documents.nan_to_num())
    queries = laid.queries.nan_to_num().requires_grad_()
    laid.score(queries, laid.documents.nan_to_num(), normalize=True).sum().backward()
    assert len(sent) == 3
    monkeypatch.undo()  # opcheck calls the ops too
    for op, arguments in sent:
        if op is sent[-1][0]:  # the gradient refuses to be differentiated again
            arguments = tuple(x.detach() if isinstance(x, torch.Tensor) else x for x in arguments)
        torch.library.opcheck(op, arguments)


@pytest.mark.parametrize("documents", [(3, 5, 8), (2, 3, 5, 8)], ids=["cross", "slab"])
def test_the_plain_op_keeps_torchs_contract(maxsim, documents):
    op = sys.modules[f"{maxsim.__name__}._kernels"].forward_plain
    torch.library.opcheck(op, (torch.randn(2, 4, 8), torch.randn(*documents)))


@pytest.mark.parametrize("layout", LAYOUTS, ids=layout_id)
def test_whole_graphs(maxsim, path, layout):
    """fullgraph=True, forward and backward, the bits of eager."""
    laid = layout(maxsim, ragged(layout, 8, FLOAT, path.device))
    options = {"normalize": True, "empty_score": -2.0, **WIDTHS.get(layout, {})}
    compiled = torch.compile(lambda q, d: laid.score(q, d, **options), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(laid.queries, laid.documents), laid.score(laid.queries, laid.documents, **options))
    results = []
    for call in (compiled, lambda q, d: laid.score(q, d, **options)):
        q, d = laid.queries.detach().requires_grad_(), laid.documents.detach().requires_grad_()
        scores = call(q, d)
        results.append((scores, *torch.autograd.grad(scores.square().sum(), (q, d))))
    assert all(torch.equal(mine, eager) for mine, eager in zip(*results, strict=True))


def test_inductor(maxsim):
    """The default compiler, with fused work around the op, forward and backward."""

    def loss(q, d):
        scores, argmax = maxsim.maxsim_with_argmax(q * 2, d, normalize=True)
        return (scores * 20).logsumexp(-1).sum() + 0 * argmax.sum()

    q, d = torch.randn(3, 5, 8, requires_grad=True), torch.randn(4, 7, 8, requires_grad=True)
    mine = torch.autograd.grad(torch.compile(loss, fullgraph=True)(q, d), (q, d))
    torch.testing.assert_close(mine, torch.autograd.grad(loss(q, d), (q, d)))


def _dense(i: int) -> tuple[torch.Tensor, ...]:
    return torch.randn(i + 2, i + 3, 8), torch.randn(i + 4, i + 5, 8)


def _slabs(i: int) -> tuple[torch.Tensor, ...]:
    return torch.randn(i + 2, i + 3, 8), torch.randn(i + 2, i + 4, i + 5, 8)


def _packed(i: int) -> tuple[torch.Tensor, ...]:
    offsets = torch.arange(0, 4 * i + 8, 2)
    return torch.randn(4 * i + 9, 8), torch.randn(4 * i + 7, 8), offsets, offsets[: i + 3]


@pytest.mark.parametrize("gradient", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize(
    "function, options, shapes",
    [
        ("maxsim", {}, _dense),
        ("maxsim", {}, _slabs),
        ("maxsim_with_argmax", {}, _dense),
        ("maxsim_varlen", {"max_seqlen_q": 2}, _packed),
    ],
    ids=["cross", "slab", "argmax", "packed"],
)
def test_one_graph_for_every_shape(maxsim, function, options, shapes, gradient):
    """mark_dynamic on every size but the embedding dim: one compilation serves them all."""
    counter = Counter()
    call = getattr(maxsim, function)
    compiled = torch.compile(lambda *a: call(*a, **options), fullgraph=True, backend=counter)
    for i in range(1, 6):
        arguments = shapes(i)
        for tensor in arguments:
            for axis in range(max(1, tensor.dim() - 1)):
                torch._dynamo.mark_dynamic(tensor, axis)
        if gradient:
            arguments = (arguments[0].requires_grad_(), *arguments[1:])
        torch.testing.assert_close(compiled(*arguments), call(*arguments), rtol=0, atol=0)
    assert counter.graphs == 1


def test_two_graphs_without_a_hint(maxsim):
    """Dynamo compiles for the first shape, then once for all others."""
    counter = Counter()
    compiled = torch.compile(maxsim.maxsim, fullgraph=True, backend=counter)
    for i in range(1, 6):
        compiled(*_dense(i))
    assert counter.graphs == 2


@pytest.mark.parametrize("strict", [False, True], ids=["traced", "strict"])
def test_export(maxsim, strict):
    class Scorer(torch.nn.Module):
        def forward(self, q: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
            return maxsim.maxsim(q, d, normalize=True)

    sizes = {0: Dim.AUTO, 1: Dim.AUTO}
    program = export(Scorer(), _dense(1), dynamic_shapes=(sizes, sizes), strict=strict)
    for i in (1, 4):
        q, d = _dense(i)
        assert torch.equal(program.module()(q, d), maxsim.maxsim(q, d, normalize=True))


def test_the_width_must_be_given(maxsim):
    q, d, q_offsets, d_offsets = _packed(1)
    compiled = torch.compile(maxsim.maxsim_varlen, fullgraph=True, backend="eager")
    assert torch.equal(compiled(q, d, q_offsets, d_offsets), maxsim.maxsim_varlen(q, d, q_offsets, d_offsets))
    with pytest.raises(Exception, match="max_seqlen_q must be given under torch.compile"):
        compiled(q.requires_grad_(), d, q_offsets, d_offsets)


def test_errors_name_the_argument(maxsim):
    compiled = torch.compile(maxsim.maxsim, fullgraph=True, backend="eager")
    q, d = _dense(1)
    with pytest.raises(Exception, match="Q and D must share the embedding dim"):
        compiled(q, d[..., :3])
    offsets = torch.tensor([0, 99])
    compiled = torch.compile(maxsim.score_contrastive, fullgraph=True, backend="eager")
    with pytest.raises(RuntimeError, match="document_offsets"):  # the op checks what tracing cannot read
        compiled(q, d[0], offsets)


@pytest.mark.parametrize("dtypes", [FLOAT, (torch.float32, torch.float16)], ids=helpers.dtype_id)
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_autocast(maxsim, path, dtypes, compiled):
    """Both sides are cast as torch.matmul would cast them; scores stay float32, gradients keep the inputs' dtypes."""
    q = torch.randn(3, 5, 16, device=path.device).to(dtypes[0]).requires_grad_()
    d = torch.randn(4, 6, 16, device=path.device).to(dtypes[1]).requires_grad_()
    call = torch.compile(maxsim.maxsim, fullgraph=True, backend="aot_eager") if compiled else maxsim.maxsim
    with torch.autocast(path.device, torch.bfloat16):
        assert (q[0] @ d[0].T.float()).dtype is torch.bfloat16
        scores = call(q, d)
        with torch.autocast(path.device, enabled=False):
            plain = maxsim.maxsim(q, d)
    assert scores.dtype is torch.float32
    assert torch.equal(scores, maxsim.maxsim(q.bfloat16(), d.bfloat16()))
    assert not torch.equal(scores, plain)
    for grad, side in zip(torch.autograd.grad(scores.sum(), (q, d)), (q, d), strict=True):
        assert grad.dtype is side.dtype and grad.any()


def test_checkpoint(maxsim):
    q, d = torch.randn(3, 5, 8, requires_grad=True), torch.randn(4, 6, 8, requires_grad=True)
    again = torch.utils.checkpoint.checkpoint(maxsim.maxsim, q, d, use_reentrant=False)
    want = torch.autograd.grad(maxsim.maxsim(q, d).sum(), (q, d))
    assert all(torch.equal(*pair) for pair in zip(torch.autograd.grad(again.sum(), (q, d)), want, strict=True))
