"""The public surface: names, the peers' signatures, the dispatch on ranks, the forms of a mask, the paths."""

from __future__ import annotations

import inspect
import sys

import pytest
import torch

# What LIK 0.4.5 and Erik v2 take by position, in their order.
POSITIONAL = {
    "maxsim": ["Q", "D", "q_mask", "d_mask"],
    "maxsim_with_argmax": ["Q", "D", "q_mask", "d_mask"],
    "maxsim_pairs": ["Q", "D", "q_mask", "d_mask"],
    "maxsim_varlen": ["Q_packed", "D_packed", "cu_seqlens_q", "cu_seqlens_d", "max_seqlen_q", "max_seqlen_d"],
    "maxsim_padded": ["queries", "documents", "query_lengths", "doc_lengths"],
    "score_candidates_padded": ["queries", "documents", "query_lengths", "doc_lengths"],
    "score_contrastive": ["queries", "documents", "document_offsets"],
    "score_pairs_packed": [
        "queries",
        "query_offsets",
        "documents",
        "document_offsets",
        "pair_query_ids",
        "pair_document_ids",
    ],
    "reference.maxsim_reference": ["Q", "D", "q_mask", "d_mask"],
    "reference.maxsim_reference_varlen": ["Q_packed", "D_packed", "cu_seqlens_q", "cu_seqlens_d"],
    "reference.maxsim_reference_scatter": [
        "Q_packed",
        "D_packed",
        "cu_seqlens_q",
        "cu_seqlens_d",
        "pair_q_idx",
        "pair_d_idx",
    ],
    "reference.maxsim_padded_reference": ["queries", "documents", "query_lengths", "doc_lengths"],
}
KEYWORDS = {
    "maxsim": {"normalize", "backward"},
    "maxsim_pairs": {"normalize", "backward"},
    "maxsim_padded": {"validate"},
    "score_pairs_packed": {"max_q_len"},
    "score_pairs_packed_with_argmax": {"max_q_len"},
    "reference.maxsim_reference": {"normalize"},
}


def _parameters(maxsim, name: str) -> dict[str, inspect.Parameter]:
    target = maxsim
    for part in name.split("."):
        target = getattr(target, part)
    return dict(inspect.signature(target).parameters)


@pytest.mark.parametrize("name", POSITIONAL)
def test_positional_order_is_the_peers(maxsim, name):
    parameters = _parameters(maxsim, name)
    positional = [p.name for p in parameters.values() if p.kind is not p.KEYWORD_ONLY]
    assert positional == POSITIONAL[name]
    for form in ("_with_argmax", "_train", "_reference", "_with_argmax_reference"):
        if name.startswith("score_"):
            same = _parameters(maxsim, name + form)
            assert [p.name for p in same.values() if p.kind is not p.KEYWORD_ONLY][: len(positional)] == positional


@pytest.mark.parametrize("name", KEYWORDS)
def test_keywords_are_the_peers_and_more(maxsim, name):
    keywords = {p.name for p in _parameters(maxsim, name).values() if p.kind is p.KEYWORD_ONLY}
    assert KEYWORDS[name] <= keywords


def test_everything_public_is_listed(maxsim):
    assert sorted(maxsim.__all__) == maxsim.__all__
    functions = {name for name, value in vars(maxsim).items() if inspect.isfunction(value)}
    modules = {"binary", "distributed", "fp8", "fused_head", "int8", "integrations", "layers", "paths", "plaid"}
    modules |= {"quantised", "reference"}
    assert functions | {"Explanation", "MaxSimScorer"} | modules == set(maxsim.__all__)
    assert all(getattr(maxsim, name).__doc__ for name in maxsim.__all__)


def test_ranks_choose_the_layout(maxsim):
    q, d, slabs = torch.randn(3, 5, 8), torch.randn(4, 6, 8), torch.randn(3, 2, 6, 8)
    cross = maxsim.maxsim(q, d)
    assert cross.shape == (3, 4)
    assert torch.equal(maxsim.maxsim(q[0], d), cross[0])
    assert torch.equal(maxsim.maxsim(q, d[1]), cross[:, 1])
    assert torch.equal(maxsim.maxsim(q[2], d[3]), cross[2, 3])
    own = maxsim.maxsim(q, slabs)
    assert own.shape == (3, 2)
    assert torch.equal(own[1], maxsim.maxsim(q[1], slabs[1]))
    assert torch.equal(maxsim.maxsim_pairs(q, slabs[:, 0]), own[:, 0])
    for documents in (d, d[1], slabs):
        scores, argmax = maxsim.maxsim_with_argmax(q, documents)
        assert argmax.shape == (*scores.shape, 5)
    assert maxsim.maxsim_with_argmax(q[0], d[0])[1].shape == (5,)
    assert maxsim.maxsim_with_argmax(q[0], d)[1].shape == (4, 5)


def test_axes_of_one_are_kept(maxsim):
    q, d = torch.randn(1, 5, 8), torch.randn(1, 6, 8)
    assert maxsim.maxsim(q, d).shape == (1, 1)
    assert maxsim.maxsim(q[0], d).shape == (1,)
    assert maxsim.maxsim(q, d[0]).shape == (1,)


def test_training_entries_are_the_differentiable_functions(maxsim):
    for name in ("score_candidates_padded", "score_contrastive", "score_pairs_packed"):
        assert getattr(maxsim, f"{name}_train") is getattr(maxsim, name)
    assert maxsim.maxsim_padded is maxsim.score_candidates_padded


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.uint8, torch.float32])
def test_masks_of_any_dtype(maxsim, dtype):
    q, d = torch.randn(3, 5, 8), torch.randn(4, 6, 8)
    q_mask, d_mask = torch.rand(3, 5) < 0.6, torch.rand(4, 6) < 0.6
    want = maxsim.maxsim(q, d, q_mask, d_mask)
    assert torch.equal(maxsim.maxsim(q, d, q_mask.to(dtype) * 3, d_mask.to(dtype) * 3), want)


def test_masks_broadcast(maxsim):
    q, d, slabs = torch.randn(3, 5, 8), torch.randn(4, 6, 8), torch.randn(3, 2, 6, 8)
    q_mask, d_mask = torch.rand(5) < 0.6, torch.rand(6) < 0.6
    want = maxsim.maxsim(q, d, q_mask.expand(3, 5), d_mask.expand(4, 6))
    assert torch.equal(maxsim.maxsim(q, d, q_mask, d_mask), want)
    assert torch.equal(maxsim.maxsim(q, d, q_mask[None], d_mask[None]), want)
    assert torch.equal(maxsim.maxsim(q[0], d[0], q_mask, d_mask), want[0, 0])
    assert torch.equal(maxsim.maxsim(q[0], d[0], q_mask[None], d_mask[None]), want[0, 0])
    own = maxsim.maxsim(q, slabs, q_mask.expand(3, 5), d_mask.expand(3, 2, 6))
    assert torch.equal(maxsim.maxsim(q, slabs, q_mask, d_mask), own)
    pairs = maxsim.maxsim_pairs(q, slabs[:, 0], q_mask, d_mask)
    assert torch.equal(pairs, own[:, 0])


def test_meta_tensors_give_shapes(maxsim):
    q, d = torch.empty(3, 5, 8, device="meta"), torch.empty(4, 6, 8, device="meta", dtype=torch.bfloat16)
    scores, argmax = maxsim.maxsim_with_argmax(q, d)
    assert scores.shape == (3, 4) and scores.dtype is torch.float32 and scores.is_meta
    assert argmax.shape == (3, 4, 5) and argmax.dtype is torch.int32
    offsets = torch.empty(4, dtype=torch.int32, device="meta")
    assert maxsim.maxsim_varlen(q[0], d[0], offsets, offsets).shape == (3, 3)


def test_validate_changes_nothing_on_good_input(maxsim):
    q, d = torch.randn(3, 5, 8), torch.randn(3, 2, 6, 8)
    lengths = torch.tensor([5, 0, 3]), torch.tensor([[6, 0], [1, 2], [3, 4]])
    assert torch.equal(maxsim.maxsim_padded(q, d, *lengths), maxsim.maxsim_padded(q, d, *lengths, validate=True))


def test_paths(maxsim):
    available = maxsim.paths.available()
    assert "portable" in available
    assert maxsim.paths.default(torch.zeros(1)) in available
    assert maxsim.paths.default(torch.zeros(1, device="meta")) == "reference"


def test_forced_paths_reach_the_op(maxsim, monkeypatch):
    kernels = sys.modules[f"{maxsim.__name__}._kernels"]
    taken = []

    def forward(queries, documents, *rest):
        taken.append(rest[10] if rest else 0)  # a path that is not passed is left to the device
        return torch.zeros(1, 1)

    for op in ("forward", "forward_plain"):
        monkeypatch.setattr(kernels, op, forward)
    q, d = torch.randn(1, 2, 8), torch.randn(1, 3, 8)
    with maxsim.paths.force("portable"):
        maxsim.maxsim(q, d)
        with pytest.raises(KeyError), maxsim.paths.force(maxsim.paths.available()[-1]):
            maxsim.maxsim(q, d)
            raise KeyError
        maxsim.maxsim(q, d)
    maxsim.maxsim(q, d)
    assert taken[0] == taken[2] == 1 and taken[3] == 0
    with pytest.raises(ValueError, match="name must be one of 'portable'.*got 'sm123'"), maxsim.paths.force("sm123"):
        pass


@pytest.fixture
def walks(maxsim, path, monkeypatch) -> list:
    """The calls that walk the whole corridor, with no path forced."""
    made = []
    scoring = sys.modules[f"{maxsim.__name__}.scoring"]
    run = scoring.run
    monkeypatch.setattr(maxsim.paths, "forced", 0)
    monkeypatch.setattr(scoring, "run", lambda *arguments: made.append(arguments) or run(*arguments))
    return made


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("documents", [(5, 9, 16), (3, 2, 9, 16)], ids=["cross", "slab"])
def test_the_commonest_call_goes_straight_to_the_op(maxsim, path, walks, documents, dtype):
    Q, D = (torch.randn(*shape, device=path.device).to(dtype) for shape in ((3, 4, 16), documents))
    scores = maxsim.maxsim(Q, D)
    assert not walks and not scores.requires_grad
    assert torch.equal(maxsim.maxsim(Q, D, empty_score=0), scores) and len(walks) == 1


@pytest.mark.parametrize("odd", ["option", "mask", "gradient", "autocast", "vmap", "dtype", "2-D"])
def test_all_other_calls_walk(maxsim, path, walks, odd):
    Q, D = (torch.randn(3, 4, 16, device=path.device).half() for _ in range(2))
    want = maxsim.maxsim_reference(Q, D)
    if odd == "option":
        got = maxsim.maxsim(Q, D, empty_score=2.0)
    elif odd == "mask":
        got = maxsim.maxsim(Q, D, q_mask=torch.ones(3, 4, device=path.device, dtype=torch.bool))
    elif odd == "gradient":
        got = maxsim.maxsim(Q.requires_grad_(), D)
        assert got.requires_grad
    elif odd == "autocast":
        with torch.autocast(path.device, torch.bfloat16):
            got = maxsim.maxsim(Q, D)
    elif odd == "vmap":
        got = torch.vmap(maxsim.maxsim, (None, 0))(Q, D.unsqueeze(1)).squeeze(2).T
    elif odd == "dtype":
        got = maxsim.maxsim(Q.float(), D)
    else:
        got = maxsim.maxsim(Q[0], D).unsqueeze(0)
        want = want[:1]
    assert walks
    torch.testing.assert_close(got, want, rtol=2e-2, atol=2e-2)


@pytest.mark.usefixtures("walks")
def test_what_the_op_refuses_is_explained(maxsim, path):
    """Not in the op's words, a RuntimeError, but in those that name the argument."""
    Q = torch.randn(3, 4, 16, device=path.device).half()
    with pytest.raises(ValueError, match="Q and D must share the embedding dim"):
        maxsim.maxsim(Q, Q[..., :8])
