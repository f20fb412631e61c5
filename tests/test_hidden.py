"""The kernels that project hidden states themselves, on the GPUs that have them: values, winners and gradients."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from helpers_heads import NEEDED, assert_axes_and_nothing, assert_only_needed_gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

DTYPES = [torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True, params=["sm90"])
def device(request, maxsim: ModuleType) -> str:
    if request.param not in maxsim.paths.available():
        pytest.skip("needs a GPU of compute capability 9.0")
    return "cuda"


def inputs(
    dtype: torch.dtype = torch.bfloat16, queries: tuple = (3, 5), documents: tuple = (7, 11), d_out=16, d_model=24
) -> list[Tensor]:
    Q = functional.normalize(torch.randn(*queries, d_out), dim=-1)
    shapes = [(*documents, d_model), (d_out, d_model), (d_out,)]
    H, W, b = (torch.randn(shape) for shape in shapes)
    return [x.to("cuda", dtype).requires_grad_() for x in (Q, H, W / d_model**0.5, b * 0.3)]


def projected(H: Tensor, W: Tensor, b: Tensor | None, normalize: bool, dtype: torch.dtype | None) -> Tensor:
    """In float64, rounded once to `dtype` unless None."""
    D = functional.linear(H.double(), W.double(), None if b is None else b.double())
    if normalize:
        D = functional.normalize(D, dim=-1, eps=1e-12)
    return D if dtype is None else D.to(dtype).double()


def scored(Q: Tensor, D: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Scores, and the largest similarity of each query token and pair."""
    similarities = torch.einsum("qik,dtk->qdit", Q.double(), D)
    if mask is not None:
        similarities = similarities.masked_fill(~mask[None, :, None], -torch.inf)
    best = similarities.amax(-1) if D.shape[1] else similarities.new_full(similarities.shape[:3], -torch.inf)
    best = best.masked_fill(best == -torch.inf, 0)
    return best.sum(-1), best


def takes(maxsim: ModuleType, H: Tensor, W: Tensor) -> bool:
    return sys.modules[f"{maxsim.__name__}.hidden"].takes(H, W)


def check_values(maxsim: ModuleType, leaves: list[Tensor], mask: Tensor | None, normalize: bool) -> None:
    Q, H, W, b = (x if x is None else x.detach() for x in leaves)
    assert takes(maxsim, H, W)
    want, best = scored(Q, projected(H, W, b, normalize, H.dtype), mask)
    got = maxsim.fused_head.maxsim_from_hidden(Q, H, W, b, mask, normalize)
    # A projection whose last bit falls the other way moves a similarity by what it is rounded to.
    scale = best.abs().sum(-1) + Q.shape[1] * 0.05
    assert got.dtype is torch.float32 and got.shape == want.shape
    assert ((got - want).abs() <= 2e-3 * scale).all(), ((got - want).abs() / scale).max()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(
    ("queries", "documents", "d_out", "d_model"),
    [
        ((1, 32), (50, 300), 128, 768),
        ((4, 32), (9, 257), 128, 768),  # as many query tokens as stay resident
        ((1, 129), (9, 257), 128, 768),  # and one more
        ((8, 31), (40, 77), 96, 384),
        ((3, 5), (7, 11), 16, 24),
        ((2, 3), (1000, 1), 64, 40),
        ((1, 1), (1, 4097), 72, 200),
        ((2, 33), (3, 15), 8, 8),
        ((5, 32), (3, 1030), 128, 1536),
    ],
)
@pytest.mark.parametrize("masked", [False, True])
def test_values(maxsim, dtype, normalize, queries, documents, d_out, d_model, masked):
    mask = None
    if masked:
        mask = torch.rand(documents, device="cuda") > 0.3
        mask[documents[0] // 2] = False
    leaves = inputs(dtype, queries, documents, d_out, d_model)
    check_values(maxsim, leaves, mask, normalize)
    check_values(maxsim, [*leaves[:3], None], mask, normalize)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_shape(maxsim, data):
    size = lambda most: data.draw(st.integers(1, most))  # noqa: E731
    queries, documents = (size(5), size(70)), (size(40), size(300))
    d_out, d_model = 8 * size(16), 8 * size(40)
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    mask = torch.rand(documents, device="cuda") > data.draw(st.sampled_from([-1.0, 0.5, 0.95]))
    dtype = data.draw(st.sampled_from(DTYPES))
    check_values(maxsim, inputs(dtype, queries, documents, d_out, d_model), mask, data.draw(st.booleans()))


@pytest.mark.parametrize("queries", [(2, 32), (9, 32)], ids=["resident", "parts"])
def test_winners_do_not_depend_on_the_part(maxsim, monkeypatch, queries):
    """And are those of the projections that the kernel writes."""
    ops = sys.modules[f"{maxsim.__name__}._kernels"]
    Q, H, W, b = (x.detach() for x in inputs(torch.bfloat16, queries, (20, 130), 128, 768))
    H[:, 100] = H[:, 3]  # ties: the first wins
    mask = torch.rand(20, 130, device="cuda") > 0.2
    mask[4] = False
    D, factors = ops.hidden_project(H, W, b, True)
    assert torch.equal(ops.hidden_forward(Q, H, W, b, mask, True, True, 1)[1], maxsim_argmax(maxsim, Q, D, mask))
    whole = ops.hidden_forward(Q, H, W, b, mask, True, True, 1 << 30)
    for budget in (1, 130 * 256 * 3):
        part = ops.hidden_forward(Q, H, W, b, mask, True, True, budget)
        assert all(torch.equal(x, y) for x, y in zip(part, whole, strict=True))
    exact = projected(H, W, b, True, None)
    assert (D.double() - exact).abs().max() <= 2**-8
    norm = functional.linear(H.double(), W.double(), b.double()).norm(dim=-1)
    torch.testing.assert_close(factors.double(), 1 / norm, rtol=1e-5, atol=0)


def maxsim_argmax(maxsim, Q: Tensor, D: Tensor, mask: Tensor) -> Tensor:
    ops = sys.modules[f"{maxsim.__name__}._kernels"]
    none = (None,) * 5
    return ops.forward_argmax(Q, D, *none, mask, None, None, False, 0.0, 0, False, Q.shape[1], 0)[1]


def exact_gradients(leaves: list[Tensor], argmax: Tensor, normalize: bool, weight: Tensor) -> list[Tensor]:
    """In float64, of the winners that the kernel found: rounded projections have others now and then."""
    exact = [x.detach().double().requires_grad_() for x in leaves]
    Q, *rest = exact
    D = projected(*rest, normalize, None)
    places = argmax.clamp_min(0).long()
    won = torch.stack([D[torch.arange(len(D), device=D.device)[:, None], place] for place in places])
    best = torch.einsum("qik,qdik->qdi", Q, won).masked_fill(argmax < 0, 0)
    return torch.autograd.grad((best.sum(-1) * weight).sum(), exact)


@pytest.fixture(params=["winners", "documents"])
def way(request, maxsim, monkeypatch) -> str:
    """Gradients of gathered winners, or of every token; the first only where winners are few."""
    monkeypatch.setattr(
        sys.modules[f"{maxsim.__name__}.hidden"], "_MANY_TOKENS", 0 if request.param == "winners" else 1 << 40
    )
    return request.param


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(
    ("queries", "documents"),
    [((2, 5), (30, 60)), ((1, 32), (40, 300)), ((6, 32), (20, 50)), ((1, 9), (5, 15))],
)
@pytest.mark.parametrize("budget", [None, 1, 30000])
def test_gradients(maxsim, monkeypatch, way, dtype, normalize, queries, documents, budget):
    if budget is not None:
        monkeypatch.setattr(sys.modules[f"{maxsim.__name__}.fused_head"], "_BYTES", budget)
    leaves = inputs(dtype, queries, documents, 64, 96)
    with torch.no_grad():
        leaves[1][:, 7] = leaves[1][:, 1]
    mask = torch.rand(documents, device="cuda") > 0.3
    mask[2] = False
    weight = torch.randn(queries[0], documents[0], device="cuda")
    ops = sys.modules[f"{maxsim.__name__}._kernels"]
    argmax = ops.hidden_forward(*(x.detach() for x in leaves), mask, normalize, True, 1 << 20)[1]
    want = exact_gradients(leaves, argmax, normalize, weight)
    found = [maxsim.fused_head.maxsim_from_hidden(*leaves, mask, normalize) for _ in range(2)]
    gradients, again = (torch.autograd.grad((x * weight).sum(), leaves) for x in found)
    for mine, theirs, leaf, other in zip(gradients, want, leaves, again, strict=True):
        assert mine.dtype is leaf.dtype and mine.shape == leaf.shape
        assert (mine.double() - theirs).norm() < 0.02 * theirs.norm()
        assert torch.equal(mine, other)
    assert not gradients[1][2].any()


@pytest.mark.parametrize("needed", NEEDED)
def test_only_what_is_needed(maxsim, way, needed):
    assert_only_needed_gradients(maxsim, inputs(documents=(7, 100)), needed)


def test_axes_and_nothing(maxsim):
    assert_axes_and_nothing(maxsim, inputs())


def test_nan_and_infinity(maxsim):
    head = maxsim.fused_head.maxsim_from_hidden
    Q, H, W, b = (x.detach() for x in inputs(documents=(7, 40)))
    clean = head(Q, H, W, b)
    H[3, 17, 2] = torch.nan
    H[5, 0, 1] = torch.inf
    got = head(Q, H, W, b)
    assert got[:, [3, 5]].isnan().all()
    others = [0, 1, 2, 4, 6]
    assert torch.equal(got[:, others], clean[:, others])
    mask = torch.ones(7, 40, dtype=torch.bool, device="cuda")
    mask[3, 17] = mask[5, 0] = False
    assert head(Q, H, W, b, mask).isfinite().all()
    assert head(Q * torch.nan, H, W, b).isnan().all()


def test_zero_vectors(maxsim):
    """Their norm is taken for 1e-12, in the gradient too."""
    Q, H, W, _ = inputs(torch.float16, documents=(3, 40))
    with torch.no_grad():
        H[1] = 0
    got = maxsim.fused_head.maxsim_from_hidden(Q, H, W)
    assert not got[:, 1].any()
    got[:, 0].sum().backward()
    assert H.grad.isfinite().all()


def test_what_the_kernels_do_not_take_is_composed(maxsim):
    head = maxsim.fused_head.maxsim_from_hidden
    Q, H, W, b = (x.detach() for x in inputs())
    strided = torch.empty(7, 13, 24, device="cuda", dtype=H.dtype)[:, 1:12].copy_(H)
    odd = [x.detach() for x in inputs(d_out=12, d_model=20)]
    assert not takes(maxsim, strided, W) and not takes(maxsim, odd[1], odd[2]) and not takes(maxsim, H, W.float())
    torch.testing.assert_close(head(Q, strided, W, b), head(Q, H, W, b), rtol=2e-2, atol=2e-2)
    for arguments in (odd, [x.float() for x in (Q, H, W, b)]):
        want = scored(arguments[0], projected(*arguments[1:], True, None))[0]
        torch.testing.assert_close(head(*arguments).double(), want, rtol=2e-2, atol=2e-2)


def test_autocast_converts_a_part_at_a_time(maxsim, monkeypatch, way):
    head = maxsim.fused_head.maxsim_from_hidden
    leaves = [x.detach().float().requires_grad_() for x in inputs(documents=(7, 100))]
    with torch.autocast("cuda", torch.bfloat16):
        whole = head(*leaves)
        monkeypatch.setattr(sys.modules[f"{maxsim.__name__}.fused_head"], "_BYTES", 3 * 100 * 48)
        parts = head(*leaves)
    want, _ = scored(leaves[0].bfloat16(), projected(*(x.bfloat16() for x in leaves[1:]), True, torch.bfloat16))
    torch.testing.assert_close(whole.double(), want, rtol=2e-3, atol=2e-3)
    assert torch.equal(whole, parts)
    gradients = [torch.autograd.grad(x.sum(), leaves) for x in (whole, parts)]
    for a, b, leaf in zip(*gradients, leaves, strict=True):
        assert a.dtype is leaf.dtype
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2)  # a part's own rounding


@pytest.mark.parametrize("queries", [(2, 32), (9, 32)], ids=["resident", "parts"])
def test_cuda_graph(maxsim, queries):
    head = maxsim.fused_head.maxsim_from_hidden
    leaves = [x.detach() for x in inputs(torch.bfloat16, queries, (20, 130), 128, 768)]
    want = head(*leaves)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = head(*leaves)
    out.zero_()
    graph.replay()
    assert torch.equal(out, want)


def test_ops(maxsim):
    ops = sys.modules[f"{maxsim.__name__}._kernels"]
    Q, H, W, b = (x.detach() for x in inputs())
    mask = torch.rand(7, 11, device="cuda") > 0.3
    utils = ("test_schema", "test_faketensor")
    for with_argmax in (True, False):
        torch.library.opcheck(ops.hidden_forward, (Q, H, W, b, mask, True, with_argmax, 1000), test_utils=utils)
    projected, factors = ops.hidden_project(H, W, b, True)
    for normalize in (True, False):
        torch.library.opcheck(ops.hidden_project, (H, W, None, normalize), test_utils=utils)
    for known in ((projected, factors), (None, None)):
        for with_sum in (True, False):
            torch.library.opcheck(ops.hidden_chain, (torch.randn_like(projected), *known, with_sum), test_utils=utils)
    strided, one = projected.transpose(0, 1), projected[0, 0]
    for wrong in (
        (strided, projected, factors),
        (projected, projected, None),
        (one.float(), None, None),
        (one[1:], None, None),
    ):
        with pytest.raises(RuntimeError):
            ops.hidden_chain(*wrong, True)
    for wrong in ((Q, H, W.float(), b), (Q, H[..., :20], W[:, :20], b), (Q[..., :8], H, W, b), (Q, H, W, b[:3])):
        with pytest.raises(RuntimeError):
            ops.hidden_forward(*wrong, mask, True, True, 1000)
    with pytest.raises(RuntimeError):
        ops.hidden_forward(Q, H, W, b, mask[:, :5], True, True, 1000)


def test_compiled(maxsim):
    head = maxsim.fused_head.maxsim_from_hidden
    leaves = inputs(documents=(7, 100))
    compiled = torch.compile(head, backend="aot_eager")
    assert torch.equal(compiled(*leaves), head(*leaves))


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(("rows", "d_out"), [(0, 8), (1, 8), (17, 96), (40_000, 128), (100_003, 72)])
def test_chain(maxsim, rows, d_out, normalize):
    """In place, as torch's gradient of the normalisation, and the sum of what was written."""
    ops = sys.modules[f"{maxsim.__name__}._kernels"]
    D = torch.randn(1, rows, d_out, device="cuda").double().requires_grad_()
    unit = functional.normalize(D, dim=-1, eps=1e-12)
    grad = torch.randn(1, rows, d_out, device="cuda").bfloat16()
    want = torch.autograd.grad(unit, D, grad.double())[0] if normalize else grad.double()
    factors = 1 / D.detach().norm(dim=-1).clamp_min(1e-12)
    known = (unit.detach().bfloat16(), factors.float()) if normalize else (None, None)
    total = ops.hidden_chain(grad, *known, True)
    assert ((grad - want).abs() <= 3e-2 * (want.abs() + factors[..., None])).all()
    torch.testing.assert_close(total.double(), grad.double().sum((0, 1)), rtol=1e-4, atol=1e-2)
    assert ops.hidden_chain(grad, *known, False).shape == (0,)


def test_memory(maxsim):
    """Beside 64 MB of hidden states: no projection where queries stay resident, and half of them else. A step holds
    projections and their gradients or the hidden states of winners, beyond the gradients that it returns."""
    head = maxsim.fused_head.maxsim_from_hidden
    projections = 128 * 326 * 128 * 2
    for queries, most, step in (((1, 32), 1 << 20, 2.3), ((16, 32), 6 << 20, 2.3)):
        leaves = inputs(torch.bfloat16, queries, (128, 326), 128, 768)
        for call, allowed in (
            (lambda leaves=leaves: head(*[x.detach() for x in leaves]), most),
            (lambda leaves=leaves: head(*leaves).sum().backward(), step * projections),
        ):
            call()  # cuBLAS keeps memory of its own from the first product on
            for leaf in leaves:
                leaf.grad = None
            torch.cuda.empty_cache()  # a block that is at hand may be larger than what is asked for
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            call()
            held = torch.cuda.max_memory_allocated() - before
            held -= sum(x.grad.nbytes for x in leaves if x.grad is not None)
            assert held <= allowed, (queries, held / projections)
