"""torch.func and other ways to differentiate: what works gives the eager result, what cannot work says so."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

REFUSED = "maxsim has first derivatives in reverse mode only"


@pytest.fixture
def q() -> torch.Tensor:
    return torch.randn(3, 5, 8)


@pytest.fixture
def d() -> torch.Tensor:
    return torch.randn(4, 6, 8)


@pytest.fixture
def slabs() -> torch.Tensor:
    return torch.randn(3, 4, 6, 8)


def _eager(call, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    leaves = [x.clone().requires_grad_() for x in tensors]
    return torch.autograd.grad(call(*leaves), leaves)


def test_grad_and_vjp(maxsim, q, d):
    def loss(q, d):
        return maxsim.maxsim(q, d, normalize=True).square().sum()

    mine, want = grad(loss, argnums=(0, 1))(q, d), _eager(loss, q, d)
    assert all(torch.equal(*pair) for pair in zip(mine, want, strict=True))
    scores, pullback = vjp(lambda q: maxsim.maxsim(q, d), q)
    assert torch.equal(scores, maxsim.maxsim(q, d))
    weights = torch.randn(3, 4)
    assert torch.equal(pullback(weights)[0], _eager(lambda q: (maxsim.maxsim(q, d) * weights).sum(), q)[0])


def test_jacrev(maxsim, q, d):
    mine = jacrev(lambda q: maxsim.maxsim(q, d))(q)
    want = jacrev(lambda q: maxsim.maxsim_reference(q, d))(q)
    torch.testing.assert_close(mine, want)


def _stacked(call, size: int) -> torch.Tensor:
    return torch.stack([call(i) for i in range(size)])


def test_vmap_folds_the_batch_into_one_call(maxsim, q, d, slabs):
    """Every combination that is one larger problem, with masks that are and are not part of the batch."""
    m = maxsim.maxsim
    q_mask, d_mask, slab_mask = torch.rand(3, 5) < 0.7, torch.rand(4, 6) < 0.7, torch.rand(3, 4, 6) < 0.7
    # documents shared, queries shared, each query its own documents
    assert torch.equal(vmap(m, in_dims=(0, None))(q, d), m(q, d))
    assert torch.equal(vmap(m, in_dims=(None, 0))(q, d), m(q, d).T)
    assert torch.equal(vmap(m)(q, slabs), m(q, slabs))
    assert torch.equal(vmap(m)(q, slabs[:, 0]), maxsim.maxsim_pairs(q, slabs[:, 0]))
    assert torch.equal(vmap(m, in_dims=(0, None, 0, None))(q, d, q_mask, d_mask), m(q, d, q_mask, d_mask))
    assert torch.equal(vmap(m, in_dims=(0, None, None, None))(q, d, q_mask[0], d_mask), m(q, d, q_mask[0], d_mask))
    assert torch.equal(vmap(m)(q, slabs, q_mask, slab_mask), m(q, slabs, q_mask, slab_mask))
    only_masks = vmap(m, in_dims=(None, None, None, 0))(q, d[0], None, d_mask)
    assert torch.equal(only_masks, _stacked(lambda i: m(q, d[0], d_mask=d_mask[i]), 4))
    # a batch of batches, along other axes, and of KD problems
    many_q, many_d = torch.randn(5, 2, 3, 8), torch.randn(2, 4, 6, 8)
    mine = vmap(m, in_dims=(1, None))(many_q, d)
    assert torch.equal(mine, _stacked(lambda i: m(many_q[:, i], d), 2))
    mine = vmap(m, in_dims=(None, 2), out_dims=1)(q, torch.randn(4, 6, 2, 8).copy_(many_d.permute(1, 2, 0, 3)))
    assert torch.equal(mine.movedim(1, 0), _stacked(lambda i: m(q, many_d[i]), 2))
    own = torch.randn(2, 3, 4, 6, 8)
    assert torch.equal(vmap(m, in_dims=(None, 0))(q, own), _stacked(lambda i: m(q, own[i]), 2))
    scores, argmax = vmap(maxsim.maxsim_with_argmax)(q, slabs)
    want_scores, want_argmax = maxsim.maxsim_with_argmax(q, slabs)
    assert torch.equal(scores, want_scores) and torch.equal(argmax, want_argmax)


def test_vmap_over_what_cannot_be_folded(maxsim, q, d):
    many_q, many_d = torch.randn(2, 3, 5, 8), torch.randn(2, 4, 6, 8)
    mine = vmap(maxsim.maxsim)(many_q, many_d)
    assert torch.equal(mine, _stacked(lambda i: maxsim.maxsim(many_q[i], many_d[i]), 2))
    offsets = torch.tensor([0, 2, 6])
    packed = torch.randn(3, 6, 8)
    mine = vmap(maxsim.score_contrastive, in_dims=(None, 0, None))(q, packed, offsets)
    assert torch.equal(mine, _stacked(lambda i: maxsim.score_contrastive(q, packed[i], offsets), 3))
    lengths = torch.tensor([[5, 2, 0], [1, 3, 4]])
    padded = (torch.randn(3, 2, 6, 8), torch.full((3, 2), 6))
    mine = vmap(lambda n: maxsim.maxsim_padded(q, padded[0], n, padded[1]))(lengths)
    assert torch.equal(mine, _stacked(lambda i: maxsim.maxsim_padded(q, padded[0], lengths[i], padded[1]), 2))


@pytest.mark.parametrize("axis", [0, 1], ids=["queries", "documents"])
def test_gradients_through_vmap(maxsim, q, slabs, axis):
    """Per-sample gradients, and the gradient of a batched loss: inside vmap requires_grad does not show."""

    def loss(q, d):
        return maxsim.maxsim(q, d).square().sum()

    per_sample = vmap(grad(loss, argnums=axis))(q, slabs)
    want = _eager(lambda q, d: maxsim.maxsim(q, d).square().sum(), q, slabs)[axis]
    assert torch.equal(per_sample, want)
    batched = grad(lambda q, d: vmap(loss)(q, d).sum(), argnums=axis)(q, slabs)
    assert torch.equal(batched, want)
    leaves = [q.clone().requires_grad_(), slabs.clone().requires_grad_()]
    vmap(loss)(*leaves).sum().backward()
    assert torch.equal(leaves[axis].grad, want)
    shared = vmap(grad(loss, argnums=1), in_dims=(0, None))(q, slabs[0])
    assert torch.equal(shared, _stacked(lambda i: _eager(loss, q[i], slabs[0])[1], 3))


def test_forward_mode_is_refused(maxsim, q, d):
    with pytest.raises(RuntimeError, match=REFUSED):
        jvp(lambda q: maxsim.maxsim(q, d), (q,), (q,))
    with pytest.raises(RuntimeError, match=REFUSED):
        jacfwd(lambda d: maxsim.maxsim_pairs(q, d[:3]))(d)
    with forward_ad.dual_level():
        assert torch.equal(maxsim.maxsim(q, d), maxsim.maxsim(q, d))
        with pytest.raises(RuntimeError, match=REFUSED):
            maxsim.maxsim(q, forward_ad.make_dual(d, d))


def test_second_derivatives_are_refused(maxsim, q, d):
    leaf = q.clone().requires_grad_()
    (first,) = torch.autograd.grad(maxsim.maxsim(leaf, d).sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match=REFUSED):
        first.sum().backward()
    with pytest.raises(RuntimeError, match=REFUSED):
        grad(lambda q: grad(lambda q: maxsim.maxsim(q, d).square().sum())(q).sum())(q)
    with pytest.raises(RuntimeError, match=REFUSED):
        hessian(lambda q: maxsim.maxsim(q, d).square().sum())(q)


def test_a_gradient_penalty_works_on_the_reference(maxsim, q, d):
    leaf = q.double().requires_grad_()
    (first,) = torch.autograd.grad(maxsim.maxsim_reference(leaf, d.double()).square().sum(), leaf, create_graph=True)
    first.square().sum().backward()
    assert leaf.grad.isfinite().all() and leaf.grad.any()
