"""The shipped questions and how well a search answers them.
labels.json maps each question to the qualified names of every acceptable answer, written before any search was run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from corpus import Corpus
from torch import Tensor

LABELS = Path(__file__).resolve().parent / "labels.json"


def load_questions(corpus: Corpus) -> dict[str, frozenset[int]]:
    """Question → indices of its acceptable documents; KeyError when a label names no document."""
    labels = json.loads(LABELS.read_text(encoding="utf-8"))
    return {question: frozenset(corpus.index_of[name] for name in names) for question, names in labels.items()}


def first_ranks(scores: Tensor, answers: Sequence[frozenset[int]]) -> list[int]:
    """Rank, from 1, of each question's best acceptable document. scores [Nq, Nd]; ties rank in document order."""
    order = scores.argsort(dim=1, descending=True, stable=True).tolist()
    return [
        next(rank for rank, document in enumerate(ranking, start=1) if document in accepted)
        for ranking, accepted in zip(order, answers, strict=True)
    ]


def mean_reciprocal_rank(ranks: Sequence[int], cutoff: int = 10) -> float:
    """MRR@cutoff: the mean of 1 / rank, where a rank beyond the cutoff counts 0."""
    return sum(1 / rank for rank in ranks if rank <= cutoff) / len(ranks)


def share_within(ranks: Sequence[int], cutoff: int) -> float:
    """Share of questions with an acceptable answer among the first `cutoff`."""
    return sum(rank <= cutoff for rank in ranks) / len(ranks)
