"""What arguments of residual documents say about one another: errors that name them, and codes and offsets that point
out of range, fall, or leave rows out."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import pytest
import torch
from helpers import Path
from test_plaid import LIMITS, Index, assert_close

ERRORS = [
    ({"nbits": 3}, ValueError, "nbits must be one of 1, 2, 4, 8; got 3"),
    ({"codes": torch.zeros(4, 73)}, TypeError, "codes must be integers"),
    ({"codes": torch.zeros(4, dtype=torch.int32)}, ValueError, r"codes must be \[Nd, max_Ld\]; got shape \(4,\)"),
    ({"residuals": torch.zeros(4, 73, 5, dtype=torch.uint8)}, ValueError, r"\(4, 73, 6\) for d=24 and nbits=2"),
    ({"residuals": torch.zeros(4, 73, 6)}, TypeError, "residuals must be uint8; got torch.float32"),
    ({"bucket_weights": torch.zeros(3)}, ValueError, r"bucket_weights must be \[2 \*\* nbits\] = \[4\]"),
    ({"centroids": torch.zeros(40, 25)}, ValueError, "must share the embedding dim"),
    ({"doc_lengths": torch.tensor([1, 2, 3, 74])}, ValueError, r"doc_lengths\[3\]=74"),
    ({"doc_lengths": torch.tensor([1, 2])}, ValueError, "doc_lengths must have shape"),
    ({"Q": torch.zeros(2, 3, 24, dtype=torch.float64)}, TypeError, "Q must be float16, bfloat16 or float32"),
    ({"normalize": 1}, TypeError, "normalize must be a bool"),
]


@pytest.mark.parametrize(("change", "kind", "message"), ERRORS, ids=lambda value: str(value)[:40])
def test_errors_name_the_argument(maxsim: ModuleType, change: dict, kind: type, message: str) -> None:
    index = Index.random(2, 24)
    names = ("codes", "residuals", "doc_lengths", "centroids", "bucket_weights", "nbits")
    arguments = {"Q": index.queries, **dict(zip(names, index.padded, strict=True)), **change}
    with pytest.raises(kind, match=message):
        maxsim.plaid.maxsim_residual(**arguments)


def test_codes_out_of_range(maxsim: ModuleType, path: Path) -> None:
    """Named where values are read, NaN on a GPU that was not asked to; what pads a document may be anything."""
    index = Index.random(2, 128, torch.float16, path.device)
    clean = maxsim.plaid.maxsim_residual(index.queries, *index.padded)
    index.codes[0, 72], index.codes[2, 0], index.codes[1, 1] = -1, 40, 2**62
    assert torch.equal(maxsim.plaid.maxsim_residual(index.queries, *index.padded), clean)
    for bad in (40, -1, 2**40):
        index.codes[3, 5] = bad
        with pytest.raises(ValueError, match=rf"codes must be in \[0, 40\), .* got codes\[3, 5\]={bad}"):
            maxsim.plaid.maxsim_residual(index.queries, *index.padded, validate=True)
        if path.device == "cuda":
            got = maxsim.plaid.maxsim_residual(index.queries, *index.padded)
            assert got[:, 3].isnan().all() and torch.equal(got[:, :3], clean[:, :3])
        else:
            module = __import__("sys").modules[f"{maxsim.__name__}.plaid.documents"]
            with pytest.raises(RuntimeError, match="codes"):
                module.forward(
                    index.queries,
                    module.Residuals(
                        index.codes, index.residuals, None, index.lengths, index.centroids, index.weights, 2
                    ),
                    None,
                    True,
                    True,
                    0.0,
                    0,
                    False,
                )


def test_hostile_offsets(maxsim: ModuleType, path: Path) -> None:
    index = Index.random(2, 128, torch.float16, path.device)
    codes, residuals, offsets, *rest = index.packed
    clean = maxsim.plaid.maxsim_residual_varlen(index.queries, codes, residuals, offsets, *rest)
    for place, value in ((4, 2**30), (2, -7), (1, 90)):
        hostile = offsets.clone()
        hostile[place] = value
        if path.device == "cuda":
            got = maxsim.plaid.maxsim_residual_varlen(index.queries, codes, residuals, hostile, *rest)
            assert got[:, place - 1].isnan().all() or value == 90
            untouched = [j for j in range(4) if j not in (place - 1, place)]
            assert torch.equal(got[:, untouched], clean[:, untouched])
        else:
            with pytest.raises(ValueError, match="cu_seqlens_d"):
                maxsim.plaid.maxsim_residual_varlen(index.queries, codes, residuals, hostile, *rest)


def test_an_offset_among_many_that_falls(maxsim: ModuleType, path: Path) -> None:
    index = Index.random(2, 128, torch.float16, path.device, (1, 32), (1,) * 20000)
    codes, residuals, offsets, *rest = index.packed
    clean = maxsim.plaid.maxsim_residual_varlen(index.queries, codes, residuals, offsets, *rest)
    offsets[17000] = 3
    if path.device == "cpu":
        with pytest.raises(ValueError, match="cu_seqlens_d"):
            maxsim.plaid.maxsim_residual_varlen(index.queries, codes, residuals, offsets, *rest)
        return
    got = maxsim.plaid.maxsim_residual_varlen(index.queries, codes, residuals, offsets, *rest)
    assert got[:, 16999].isnan().all()
    for others in (slice(0, 16999), slice(17001, 20000)):
        assert torch.equal(got[:, others], clean[:, others])


@pytest.mark.parametrize("queries", [(1, 32), (3, 40)], ids=str)
@pytest.mark.parametrize(("before", "behind"), [(0, 40), (37, 0), (16, 333)])
def test_documents_of_some_rows(
    maxsim: ModuleType, path: Path, queries: tuple[int, int], before: int, behind: int
) -> None:
    """Offsets may end in front of the last row. Kernels that read them also stand a beginning behind the first."""
    if before and path.device == "cpu":
        pytest.skip("must begin with 0 where somebody reads them first")
    index = Index.random(2, 128, torch.float16, path.device, queries, (300, 0, 5, 700, 64), 300)
    codes, residuals, offsets, *rest = index.packed
    more = [torch.cat([rows[:before], rows, rows[:behind]]) for rows in (codes, residuals)]
    some = (*more, offsets + before, *rest)
    for normalize in (True, False):
        want = maxsim.plaid.maxsim_residual_varlen(index.queries, *index.packed, normalize=normalize)
        got = maxsim.plaid.maxsim_residual_varlen(index.queries, *some, normalize=normalize)
        assert torch.equal(got, want)
    prepared = maxsim.plaid.prepare_index(*index.packed)
    want = prepared.score(index.queries)
    assert_close(want, index, True, LIMITS[torch.float16])
    some_prepared = maxsim.plaid.prepare_index(*more, index.packed[2], *rest)
    assert torch.equal(replace(some_prepared, offsets=offsets + before).score(index.queries), want)
