"""Real text pairs from Python's own documentation: the sentence that sums up a docstring, and the rest of it.
Nothing is read from outside this Python installation; ../search/corpus.py collects the docstrings."""

from __future__ import annotations

import random
import re
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "search"))

from corpus import collect  # noqa: E402  it is in the folder above

# What is shorter says too little to be found by.
MIN_WORDS = 4, 12
HELD_OUT = 300


@dataclass(frozen=True)
class Pair:
    """A question-like sentence, and the text that answers it."""

    query: str
    document: str


@dataclass(frozen=True)
class Pairs:
    """To train on, and to find again: the documents of `held_out` are searched with its queries."""

    train: list[Pair]
    held_out: list[Pair]


def load(seed: int) -> Pairs:
    """Every docstring that has a first sentence and a rest, shuffled; `HELD_OUT` of them are not trained on.

    Names are left out of the queries, and a docstring that many objects share is one pair.
    """
    found = {}
    for document in collect().documents:
        summary, _, rest = document.docstring.partition("\n\n")
        query = re.sub(r"\s+", " ", summary).strip()
        if len(query.split()) >= MIN_WORDS[0] and len(rest.split()) >= MIN_WORDS[1]:
            found.setdefault(query, Pair(query, re.sub(r"\s+", " ", rest).strip()))
    pairs = list(found.values())
    random.Random(seed).shuffle(pairs)
    return Pairs(pairs[HELD_OUT:], pairs[:HELD_OUT])
