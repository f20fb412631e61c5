"""colpali-engine's own five losses and its processors' score on its torch path and on the kernel.
Its wheels are in .venv/colpali, because torchvision breaks transformers where it cannot load its CUDA library."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

import pytest
import torch
from helpers_integrations import DOCUMENTS, QUERIES, encoded, functions_of, launches, refusals
from torch.nn.functional import normalize, pad

pytestmark = pytest.mark.skipif(find_spec("colpali_engine") is None, reason="colpali-engine is in .venv/colpali")

if find_spec("colpali_engine") is not None:
    from torchvision_ops import declare

    declare()
    from colpali_engine import loss as losses
    from colpali_engine.utils import maxsim as dispatch
    from colpali_engine.utils.processing_utils import BaseVisualRetrieverProcessor


@pytest.fixture
def patched(maxsim) -> Iterator[object]:
    maxsim.integrations.patch_colpali_engine()
    yield maxsim
    maxsim.integrations.unpatch_colpali_engine()


PADDING = 2


def tensors(*shape: int) -> torch.Tensor:
    """Unit vectors with much in common, so that padding, which is zeros behind them, never wins."""
    return pad(normalize(torch.randn(*shape) + 0.5, dim=-1), (0, 0, 0, PADDING))


NAMES = [
    "ColbertLoss",
    "ColbertPairwiseCELoss",
    "ColbertSigmoidLoss",
    "ColbertNegativeCELoss",
    "ColbertPairwiseNegativeCELoss",
]
OPTIONS = [
    {},
    {"use_smooth_max": True},
    {"normalize_scores": False, "temperature": 1.0},
    {"normalize_scores": False, "use_smooth_max": True, "temperature": 1.0},
    {"pos_aware_negative_filtering": True, "temperature": 0.5},
]


# The sigmoid loss takes documents in the order of the queries alone.
@pytest.mark.parametrize(("name", "offset"), [(n, o) for n in NAMES for o in (0, 2) if o == 0 or "Sigmoid" not in n])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_losses_agree(maxsim, monkeypatch, name, offset, options):
    negatives = "Negative" in name
    inputs = [tensors(4, 7, 32), tensors(4 + offset, 12, 32)] + ([tensors(4, 3, 9, 32)] if negatives else [])

    def step() -> tuple[torch.Tensor, list[torch.Tensor]]:
        leaves = [x.clone().requires_grad_() for x in inputs]
        value = getattr(losses, name)(**options)(*leaves, offset=offset)
        return value.detach(), list(torch.autograd.grad(value, leaves))

    with launches(maxsim, monkeypatch) as before:
        want, want_gradients = step()
    maxsim.integrations.patch_colpali_engine()
    with launches(maxsim, monkeypatch) as ran:
        got, got_gradients = step()
    maxsim.integrations.unpatch_colpali_engine()
    assert before == []
    # The positives and the negatives, then the in-batch term.
    assert len(ran) == (3 if negatives else 1)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    for mine, theirs in zip(got_gradients, want_gradients, strict=True):
        # To a query's padding all tokens are equally similar: amax shares its gradient out, the kernel takes the first.
        mine, theirs = mine[..., :-PADDING, :], theirs[..., :-PADDING, :]
        assert theirs.any()
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_score_multi_vector_keeps_the_order(maxsim, monkeypatch):
    queries, documents = encoded(QUERIES), encoded(DOCUMENTS)
    want = BaseVisualRetrieverProcessor.score_multi_vector(queries, documents, batch_size=3, device="cpu")
    maxsim.integrations.patch_colpali_engine()
    with launches(maxsim, monkeypatch) as ran:
        got = BaseVisualRetrieverProcessor.score_multi_vector(queries, documents, batch_size=3, device="cpu")
    maxsim.integrations.unpatch_colpali_engine()
    assert len(ran) == 2 * 3
    torch.testing.assert_close(got, want)
    assert torch.equal(got.argsort(descending=True), want.argsort(descending=True))
    assert got.argmax(1).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("kind", ["lists", "tensors", "float64"])
def test_score_multi_vector_of_what_it_takes(maxsim, monkeypatch, kind):
    """Similarities that are mostly negative show the zeros that documents are padded with, batch by batch."""
    score = BaseVisualRetrieverProcessor.score_multi_vector
    queries = [torch.randn(n, 8) for n in (3, 1, 5, 2, 4)]
    documents = [torch.randn(n, 8) - 0.5 for n in (4, 9, 2, 7, 7, 1, 30)]
    if kind == "tensors":
        queries, documents = torch.randn(5, 3, 8), torch.randn(7, 6, 8)
    elif kind == "float64":
        queries, documents = [x.double() for x in queries], [x.double() for x in documents]
    want = [score(queries, documents, batch_size=size, device="cpu") for size in (2, 128)]
    maxsim.integrations.patch_colpali_engine()
    patched = BaseVisualRetrieverProcessor.score_multi_vector
    with launches(maxsim, monkeypatch) as ran:
        got = [patched(queries, documents, batch_size=size, device="cpu") for size in (2, 128)]
    for empty in ((), queries), (queries, ()):
        with pytest.raises(ValueError, match="provided"):
            patched(*empty)
    maxsim.integrations.unpatch_colpali_engine()
    assert BaseVisualRetrieverProcessor.score_multi_vector is score
    assert len(ran) == (0 if kind == "float64" else 3 * 4 + 1)
    for mine, theirs in zip(got, want, strict=True):
        assert mine.dtype is torch.float32
        torch.testing.assert_close(mine, theirs.float(), rtol=1e-5, atol=1e-5)


def test_what_was_asked_for_is_what_runs(patched, monkeypatch):
    Q, D = tensors(3, 4, 16), tensors(3, 5, 6, 16)
    negatives = losses.ColbertNegativeCELoss()
    calls = [
        lambda: dispatch.maxsim_inbatch(Q, D[:, 0]),
        lambda: dispatch.maxsim_kd(Q, D),
        lambda: negatives(Q, D[:, 0], D),
    ]
    for call in calls:
        with launches(patched, monkeypatch) as ran:
            for variable, value in (("COLPALI_SCORES_BACKEND", "torch"), ("MAXSIM_DISABLE", "1")):
                monkeypatch.setenv(variable, value)
                want = call()
                monkeypatch.delenv(variable)
            assert ran == []
            torch.testing.assert_close(call(), want)
            assert ran
            monkeypatch.setenv("COLPALI_SCORES_BACKEND", "fast")
            with pytest.raises(ValueError, match="COLPALI_SCORES_BACKEND must be one of"):
                call()
            monkeypatch.delenv("COLPALI_SCORES_BACKEND")
    assert dispatch.maxsim_kd(Q.double(), D.double()).dtype is torch.float64


def test_patching_reaches_every_name_and_unpatching_leaves_none(maxsim):
    before = functions_of("colpali_engine")
    maxsim.integrations.patch_colpali_engine()
    maxsim.integrations.patch_colpali_engine()
    during = functions_of("colpali_engine")
    changed = {key for key, value in during.items() if value != before[key]}
    assert {
        ("colpali_engine.utils.maxsim", "maxsim_inbatch"),
        ("colpali_engine.utils.processing_utils", "maxsim_inbatch"),
        ("colpali_engine.loss.late_interaction_losses", "maxsim_kd"),
    } <= changed
    maxsim.integrations.unpatch_colpali_engine()
    assert functions_of("colpali_engine") == before


def test_untested_versions_are_refused(maxsim, monkeypatch):
    refusals(maxsim.integrations.patch_colpali_engine, "colpali-engine", monkeypatch)
