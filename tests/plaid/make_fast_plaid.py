"""Writes small indexes with the real fast-plaid, and what its search finds in them: python make_fast_plaid.py OUT.
Needs fast-plaid 1.7.0 and the torch that it is built for; the test-suite reads what this left in tests/plaid/."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from fast_plaid.search import FastPlaid

DOCUMENTS, DIM, TOPICS = 80, 32, 12


def embeddings(count: int, shortest: int, longest: int, generator: torch.Generator) -> list[torch.Tensor]:
    """Unit vectors around a few topics, of which each item has three."""
    topics = torch.randn(TOPICS, DIM, generator=torch.Generator().manual_seed(7))
    items = []
    for _ in range(count):
        length = int(torch.randint(shortest, longest + 1, (1,), generator=generator))
        own = topics[torch.randint(TOPICS, (3,), generator=generator)]
        rows = own[torch.randint(3, (length,), generator=generator)]
        rows = rows + 0.4 * torch.randn(length, DIM, generator=generator)
        items.append(torch.nn.functional.normalize(rows, dim=-1))
    return items


def main(out: Path) -> None:
    for nbits in (2, 4):
        generator = torch.Generator().manual_seed(nbits)
        directory = out / f"fast_plaid_{nbits}bit"
        documents, queries = embeddings(DOCUMENTS, 3, 14, generator), embeddings(5, 8, 8, generator)
        plaid = FastPlaid(str(directory), device="cpu")
        plaid.create(documents, kmeans_niters=4, nbits=nbits, seed=42, start_from_scratch=0)
        options = {"top_k": 10, "n_full_scores": 4096, "n_ivf_probe": 8}
        found = plaid.search(torch.stack(queries), **options, show_progress=False)
        plaid.close()
        expected = {
            "options": options,
            "queries": torch.stack(queries).half().tolist(),
            "found": [[[int(i), float(score)] for i, score in ranking] for ranking in found],
        }
        (out / f"fast_plaid_{nbits}bit.json").write_text(json.dumps(expected))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
