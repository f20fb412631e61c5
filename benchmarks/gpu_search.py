"""Search over an index of 100 000 documents, beside fast_plaid.search on the same GPU:
`python benchmarks/gpu_search.py DIRECTORY --output FILE`.

Needs fast-plaid 1.7 and the torch that it is built for; the index is written to DIRECTORY by it, and read by both. A
row has the milliseconds until results are on the host, and the share of the exact best ten that was found. One query of
ours is timed as the replay of a CUDA graph too."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from gpu import describe_machine
from peers import load_kernel
from results import Results
from torch import Tensor

DOCUMENTS, DIM, TOPICS, QUERIES = 100_000, 128, 4000, 64
OPTIONS = {"top_k": 10, "n_full_scores": 4096, "n_ivf_probe": 8}


def corpus(generator: torch.Generator) -> tuple[list[Tensor], Tensor]:
    """Documents of 40 to 120 tokens around twelve of the topics each, and queries made of tokens of one document."""
    topics = torch.nn.functional.normalize(torch.randn(TOPICS, DIM, generator=generator), dim=-1)
    documents = []
    for length in torch.randint(40, 121, (DOCUMENTS,), generator=generator).tolist():
        own = topics[torch.randint(TOPICS, (12,), generator=generator)]
        rows = own[torch.randint(12, (length,), generator=generator)]
        rows = rows + 0.06 * torch.randn(length, DIM, generator=generator)
        documents.append(torch.nn.functional.normalize(rows, dim=-1).half())
    queries = []
    for chosen in torch.randint(DOCUMENTS, (QUERIES,), generator=generator).tolist():
        rows = documents[chosen][torch.randint(len(documents[chosen]), (32,), generator=generator)].float()
        rows = rows + 0.03 * torch.randn(32, DIM, generator=generator)
        queries.append(torch.nn.functional.normalize(rows, dim=-1))
    return documents, torch.stack(queries).half()


def wall_ms(call: Callable[[], object], repeats: int = 20) -> float:
    """The median time until the results are on the host, as fast-plaid returns them."""
    call()
    times = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return sorted(times)[repeats // 2] * 1e3


def recall(found: list[list[int]], exact: list[list[int]]) -> float:
    return sum(len(set(a) & set(b)) for a, b in zip(found, exact, strict=True)) / sum(map(len, exact))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", help="where fast-plaid writes the index")
    parser.add_argument("--output", type=Path, help="write the results there")
    options = parser.parse_args()
    from fast_plaid.search import FastPlaid

    documents, queries = corpus(torch.Generator().manual_seed(0))
    theirs = FastPlaid(options.directory, device="cuda")
    theirs.create(documents, kmeans_niters=2, nbits=4, n_samples_kmeans=4000, start_from_scratch=0)
    index = load_kernel().plaid.load_index(options.directory, "cuda")
    on_gpu = queries.cuda()
    exact = torch.cat([index.score(part.float()) for part in on_gpu.split(8)]).topk(OPTIONS["top_k"]).indices.tolist()

    def their_search(part: Tensor) -> list[list[int]]:
        return [[i for i, _ in ranking] for ranking in theirs.search(part, show_progress=False, **OPTIONS)]

    def our_search(part: Tensor) -> list[list[int]]:
        return index.search(part, **OPTIONS)[1].tolist()

    results = Results(describe_machine(load_kernel()) | {"fast-plaid": version("fast-plaid")}, options.output)
    for impl, search, mine in (("fast-plaid", their_search, queries), ("ours", our_search, on_gpu)):
        for count, repeats in ((1, 20), (QUERIES, 5)):
            ms = wall_ms(lambda search=search, part=mine[:count]: search(part), repeats)
            row = {"kind": "search", "name": f"{count}x{DOCUMENTS}", "impl": impl, "ms": ms}
            results.add(row | {"recall@10": recall(search(mine[:count]), exact[:count])})
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        index.search(on_gpu[:1], **OPTIONS)
    results.add({"kind": "search", "name": f"1x{DOCUMENTS}", "impl": "ours, graph", "ms": wall_ms(graph.replay)})


if __name__ == "__main__":
    main()
