"""One block of query tokens over documents of eight-bit integers, which has kernels of its own on Hopper: every layout
against float64, and the bits of the same pairs beside other queries, where other kernels run."""

from __future__ import annotations

import helpers_quantised as hq
import pytest
import torch
from helpers import Batch
from helpers_quantised import assert_scores, assert_winners
from torch import Tensor

FORMS = [f"{kind}_{dtype}" for kind in ("affine", "symmetric", "one_scale") for dtype in ("f16", "bf16")]
LENGTHS = [1, 7, 8, 63, 64, 65, 0, 128, 129, 300, 5, 33]


@pytest.mark.parametrize("layout", hq.LAYOUTS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("dim", [1, 16, 48, 64, 96, 100, 128])
def test_every_layout(maxsim, path, dim, name, layout):
    queries = [30, 0, 17] if layout in (hq.slab, hq.listed) else [30]
    sides = hq.quantise(maxsim, name, Batch.random(queries, LENGTHS, dim, device=path.device))
    laid = layout(sides, path.device)
    limit = hq.tolerance(name, path.name)
    scores = maxsim.quantised.score(*laid.sides, **laid.options, empty_score=-3.0)
    assert_scores(scores, laid.pairs, sides.truth, limit, -3.0)
    again, argmax = maxsim.quantised.score_with_argmax(*laid.sides, **laid.options, empty_score=-3.0)
    assert torch.equal(again, scores)
    assert_winners(argmax, laid.pairs, sides.truth, limit)


def queries_of_every_kind(dim: int, dtype: torch.dtype) -> Tensor:
    """Plain ones, a feature that dwarfs others, small ones (subnormal in float16), halves that cancel, inf, NaN."""
    Q = torch.randn(9, 32, dim, generator=torch.Generator().manual_seed(3))
    Q[1, :, dim // 2] *= 1e4
    Q[2] *= 1e-7 if dtype is torch.float16 else 1e-30
    Q[3, :, dim // 2 :] = -Q[3, :, : dim // 2]
    Q[4, 3, 5], Q[5, 30, 0], Q[6, 0, 9] = torch.inf, -torch.inf, torch.nan
    Q[7, 8, 1], Q[7, 8, 2] = torch.inf, -torch.inf
    return Q.to(dtype)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("dim", [48, 128])
@pytest.mark.parametrize("documents", [(40, 300), (3, 40), (2, 5000), (500, 64)], ids=str)
def test_the_bits_of_a_batch(maxsim, path, documents, dim, name):
    """Alone, in pairs, and beside eight other queries; few long documents are cut into pieces."""
    if path.device == "cpu":
        documents = min(documents[0], 5), min(documents[1], 300)
    Q = queries_of_every_kind(dim, torch.float16 if name.endswith("_f16") else torch.bfloat16).to(path.device)
    D = torch.randn(documents[0] * documents[1], dim, generator=torch.Generator().manual_seed(4)).to(path.device)
    _, side = hq.FORMATS[name](maxsim, Q, D)
    side = hq.mapped(side, lambda x: x.unflatten(0, documents))
    wide = side.dequantise(dim, torch.float64)
    together, winners = maxsim.quantised.score_with_argmax(Q, side)
    want = maxsim.maxsim_reference(Q.double(), wide)
    for i, query in enumerate(Q):
        alone, argmax = maxsim.quantised.score_with_argmax(query[None], side)
        same = torch.equal(alone[0].nan_to_num(7.0), together[i].nan_to_num(7.0))
        assert same and torch.equal(argmax[0], winners[i]), i
        assert torch.equal(maxsim.quantised.score(query[None], side).nan_to_num(7.0), alone.nan_to_num(7.0))
        if path.name != "metal":
            assert torch.equal(alone[0].isnan(), want[i].isnan()) and torch.equal(alone[0].isinf(), want[i].isinf())
        if i < 4 or i == 8:
            norms = query.double().norm(dim=-1).sum() * wide.norm(dim=-1).amax(-1)
            assert ((alone[0] - want[i]).abs() <= hq.tolerance(name, path.name) * norms).all(), i
