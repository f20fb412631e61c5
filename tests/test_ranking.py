"""Rankings kept by the op against those of torch's own operations: the same keys, whatever the scores are."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st


@pytest.fixture(autouse=True, params=["sm"])
def device(request, maxsim: ModuleType) -> str:
    if not any(path.startswith(request.param) for path in maxsim.paths.available()):
        pytest.skip("needs a GPU")
    return "cuda"


def ranking(maxsim: ModuleType) -> ModuleType:
    return sys.modules[f"{maxsim.__name__}.ranking"]


SPECIAL = [float("nan"), -float("nan"), float("inf"), float("-inf"), 0.0, -0.0, 1e-45, -1e-45, 3.4e38, -3.4e38]


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_keys_are_those_of_the_composition(maxsim, data):
    torch.manual_seed(data.draw(st.integers(0, 10_000)))
    queries = data.draw(st.sampled_from([1, 2, 7, 200]))
    sizes = data.draw(st.lists(st.sampled_from([1, 3, 100, 4095, 4096, 4097, 9000, 20000]), min_size=1, max_size=4))
    k, largest = data.draw(st.sampled_from([1, 2, 10, 100, 1000, 2048])), data.draw(st.booleans())
    kind = data.draw(st.sampled_from(["normal", "ties", "special", "equal", "near"]))
    mine, theirs = (ranking(maxsim).Ranking(k, largest) for _ in range(2))
    first = data.draw(st.sampled_from([0, 5, 2**32 - sum(sizes)]))
    for size in sizes:
        scores = torch.randn(queries, size)
        if kind == "ties":
            scores = torch.randint(-2, 3, (queries, size)).float()
        elif kind == "special":
            places = torch.rand(queries, size) < 0.3
            scores[places] = torch.tensor(SPECIAL)[torch.randint(0, len(SPECIAL), (int(places.sum()),))]
        elif kind == "equal":
            scores = torch.full((queries, size), -1.5)
        elif kind == "near":
            scores = 30 + scores * 1e-5
        mine.add(scores.cuda(), first)
        theirs.add(scores, first)
        first += size
    assert torch.equal(mine.keys.cpu(), theirs.keys)
    for got, want in zip(mine.result(), theirs.result(), strict=True):
        assert got.dtype is want.dtype
        assert torch.equal(got.cpu().nan_to_num(7e37), want.nan_to_num(7e37))


def test_documents_that_are_added_twice(maxsim):
    """They are ranked twice, and nothing is written behind the best k."""
    best = ranking(maxsim).Ranking(5)
    for _ in range(3):
        best.add(torch.arange(10_000.0, device="cuda").expand(4, -1), 0)
    assert best.result()[0].tolist() == [[9999.0, 9999.0, 9999.0, 9998.0, 9998.0]] * 4


@pytest.mark.parametrize("k", [100, 2048])
def test_many_documents(maxsim, k):
    """So many that what slices keep is sliced again."""
    scores = torch.randn(2, 500_000, device="cuda")
    best = ranking(maxsim).Ranking(k)
    best.add(scores, 7)
    want = scores.sort(dim=1, descending=True, stable=True)
    values, ids = best.result()
    assert torch.equal(values, want.values[:, :k]) and torch.equal(ids, want.indices[:, :k] + 7)


def test_more_than_the_op_keeps(maxsim):
    scores = torch.randn(3, 10_000, device="cuda")
    best = ranking(maxsim).Ranking(4000)
    best.add(scores, 0)
    want = scores.sort(dim=1, descending=True, stable=True)
    values, ids = best.result()
    assert torch.equal(values, want.values[:, :4000]) and torch.equal(ids, want.indices[:, :4000])


def test_retrieve_in_a_cuda_graph(maxsim):
    Q, D = (torch.randn(*shape, device="cuda", dtype=torch.bfloat16) for shape in ((3, 8, 16), (9000, 4, 16)))
    want = maxsim.retrieve(Q, D, 10, chunk=4100)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = maxsim.retrieve(Q, D, 10, chunk=4100)
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_ops(maxsim):
    ops = sys.modules[f"{maxsim.__name__}._kernels"]
    utils = ("test_schema", "test_faketensor")
    scores = torch.randn(3, 50, device="cuda")
    keys = ops.rank(None, scores, 0, 7, True)
    torch.library.opcheck(ops.rank, (None, scores, 0, 7, True), test_utils=utils)
    torch.library.opcheck(ops.rank, (keys, scores.t().contiguous().t(), 50, 7, True), test_utils=utils)
    torch.library.opcheck(ops.unrank, (keys.unsqueeze(0), 7, True), test_utils=utils)
    torch.library.opcheck(ops.unrank, (torch.stack([keys, keys]).transpose(1, 2), 4, False), test_utils=utils)
    assert [x.shape for x in ops.unrank(keys[None, :, :0], 3, True)] == [(3, 0), (3, 0)]
    assert ops.rank(keys, scores[:, :0], 50, 7, True).tolist() == keys.tolist()
    for wrong in ((keys[:2], scores, 0, 7), (None, scores.double(), 0, 7), (None, scores, 0, 0), (None, scores, -1, 7)):
        with pytest.raises(RuntimeError):
            ops.rank(*wrong, True)
    for wrong in ((keys, 7), (keys[None].double(), 7), (keys[None], -1)):
        with pytest.raises(RuntimeError):
            ops.unrank(*wrong, True)


@pytest.mark.parametrize("lists", [1, 2, 3, 8])
@pytest.mark.parametrize("largest", [True, False])
def test_rankings_of_several_parts(maxsim, lists, largest):
    """As of one; parts of fewer documents than are wanted have keys of none behind theirs."""
    module, scores = ranking(maxsim), torch.randint(-9, 9, (5, 400)).float()
    for k in (1, 7, 300):
        whole = module.Ranking(k, largest)
        whole.add(scores, 0)
        parts = torch.full((lists, 5, k), torch.iinfo(torch.int64).min)
        bounds = [0, *sorted(torch.randint(0, 401, (lists - 1,)).tolist()), 400]
        for part, first, end in zip(parts, bounds, bounds[1:], strict=False):
            if first < end:
                best = module.Ranking(k, largest)
                best.add(scores[:, first:end], first)
                part[:, : best.keys.shape[1]] = best.keys
        for device in ("cpu", "cuda"):
            got = module.merged(parts.to(device), k, largest)
            for mine, theirs in zip(got, whole.result(), strict=True):
                assert torch.equal(mine.cpu(), theirs)
