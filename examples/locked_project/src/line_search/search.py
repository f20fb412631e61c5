"""Words as vectors of their letters, lines as sets of words, MaxSim between them.
A query word counts as much as its best match in the line, so that a typo costs a little and word order nothing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from zlib import crc32

import torch

from line_search.kernel import locked_maxsim

DIM = 256


@dataclass(frozen=True)
class Match:
    """A line, its position in the text (from 0), and its score: the mean similarity of the query's words, up to 1."""

    position: int
    line: str
    score: float


def embed(text: str) -> torch.Tensor:
    """One unit vector [DIM] for every word of `text`: the counts of its letter trigrams, hashed."""
    words = re.findall(r"\w+", text.lower())
    vectors = torch.zeros(len(words), DIM)
    for vector, word in zip(vectors, words, strict=True):
        marked = f"^{word}$"
        for start in range(len(marked) - 2):
            vector[crc32(marked[start : start + 3].encode()) % DIM] += 1
    return torch.nn.functional.normalize(vectors, dim=-1)


def search(query: str, lines: Sequence[str], count: int = 3) -> list[Match]:
    """The `count` lines closest to `query`, best first."""
    query_tokens = embed(query)
    if query_tokens.shape[0] == 0:
        raise ValueError(f"the query has no words: {query!r}")
    line_tokens = [embed(line) for line in lines]
    lengths = torch.tensor([0, *(tokens.shape[0] for tokens in line_tokens)])
    scores = locked_maxsim().maxsim_varlen(
        query_tokens,
        torch.cat([torch.zeros(0, DIM), *line_tokens]),
        torch.tensor([0, query_tokens.shape[0]], dtype=torch.int32),
        lengths.cumsum(0, dtype=torch.int32),
    )[0]
    best = scores.topk(min(count, len(lines)))
    return [
        Match(position, lines[position], score / query_tokens.shape[0])
        for score, position in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]
