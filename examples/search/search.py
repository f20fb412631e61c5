#!/usr/bin/env python3
"""Semantic search over the documentation of Python's own standard library, scored by the maxsim kernel.
Without a question it answers and evaluates the shipped ones; with one (an argument, or QUERY) it answers that."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from types import ModuleType

# Read once, at the first import of huggingface_hub: the weights and the kernel are on disk.
os.environ["HF_HUB_OFFLINE"] = "1"

import torch  # noqa: E402
from alignment import align, draw  # noqa: E402
from corpus import Corpus, collect  # noqa: E402
from encode import Encoder, encode_corpus  # noqa: E402
from evaluate import first_ranks, load_questions, mean_reciprocal_rank, share_within  # noqa: E402
from kernel import load_kernel  # noqa: E402
from packed import Encoded  # noqa: E402
from timing import CHUNK, compare, pad_in_chunks  # noqa: E402

PICTURE = Path(__file__).resolve().parent / "alignment.png"
# The shipped question whose best answer is drawn.
DRAWN = "How do I join path components?"


def main() -> None:
    question = parse_question()
    corpus = collect()
    kernel = load_kernel()
    encoder = Encoder()
    documents = encode_corpus(encoder, [document.text for document in corpus.documents], corpus.digest)
    count, dim = documents.tokens.shape
    print(f"{len(documents):,} documents of the standard library, {count:,} token vectors of {dim} dimensions")
    print(
        f"{len(corpus.unavailable)} of its modules cannot be imported here and are left out (other platforms, mostly)"
    )
    if question:
        answer(question, kernel, encoder, corpus, documents)
    else:
        answer_shipped(kernel, encoder, corpus, documents)


def parse_question() -> str:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", nargs="?", default=os.environ.get("QUERY", ""), help="default: QUERY, if set")
    return parser.parse_args().question.strip()


def score(kernel: ModuleType, queries: Encoded, documents: Encoded) -> torch.Tensor:
    """MaxSim of every query with every document, [Nq, Nd], both sides packed."""
    return kernel.maxsim_varlen(queries.tokens, documents.tokens, queries.cu_seqlens, documents.cu_seqlens)


def answer(question: str, kernel: ModuleType, encoder: Encoder, corpus: Corpus, documents: Encoded) -> None:
    """Print the ten best documents for one question and draw the best one's alignment."""
    query = encoder.encode([question], "query")
    start = time.perf_counter()
    best = score(kernel, query, documents)[0].topk(10)
    milliseconds = (time.perf_counter() - start) * 1e3
    print(f"\n{question}   (scored in {milliseconds:.0f} ms)")
    for value, index in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        document = corpus.documents[index]
        print(f"  {value:5.2f}  {document.name:44} {document.docstring.splitlines()[0]}")
    picture(question, int(best.indices[0]), kernel, encoder, corpus, documents)


def answer_shipped(kernel: ModuleType, encoder: Encoder, corpus: Corpus, documents: Encoded) -> None:
    """Answer the shipped questions, then report quality and speed beside the usual alternatives."""
    questions = load_questions(corpus)
    accepted = list(questions.values())
    queries = encoder.encode(list(questions), "query")
    scores = score(kernel, queries, documents)
    ranks = first_ranks(scores, accepted)
    pooled_ranks = first_ranks(queries.pooled @ documents.pooled.T, accepted)

    print("\nThe shipped questions: rank of the first acceptable answer by MaxSim | by mean-pooled cosine")
    for index, question in enumerate(questions):
        print(f"{ranks[index]:5} |{pooled_ranks[index]:4}   {question}")
        best = scores[index].topk(3)
        hits = (
            f"{'*' if hit in accepted[index] else ''}{corpus.documents[hit].name} {value:.2f}"
            for value, hit in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        )
        print(f"{'':14}{'   '.join(hits)}")

    print(f"\n{len(questions)} questions, same encoder      MRR@10   right first   in the top 10")
    for label, found in (("MaxSim over tokens", ranks), ("mean-pooled cosine", pooled_ranks)):
        first, ten = share_within(found, 1), share_within(found, 10)
        print(f"  {label:27} {mean_reciprocal_rank(found):7.3f} {first:13.0%} {ten:15.0%}")
    pairs = list(zip(ranks, pooled_ranks, strict=True))
    higher, lower = sum(a < b for a, b in pairs), sum(a > b for a, b in pairs)
    print(f"  MaxSim ranks the answer higher on {higher}, lower on {lower}; the encoder was trained for mean pooling.")

    print_timings(kernel, encoder.encode([DRAWN], "query"), encoder.encode(list(questions)[:16], "query"), documents)
    drawn = list(questions).index(DRAWN)
    picture(DRAWN, int(scores[drawn].argmax()), kernel, encoder, corpus, documents)


def print_timings(kernel: ModuleType, query: Encoded, queries: Encoded, documents: Encoded) -> None:
    print(f"\nScoring {len(documents):,} documents, {torch.get_num_threads()} threads    maxsim   eager torch")
    for dtype in (torch.float32, torch.bfloat16):
        corpus = documents.to(dtype)
        chunks = pad_in_chunks(corpus)
        for batch in (query, queries):
            timing = compare(kernel, batch.to(dtype), corpus, chunks)
            print(
                f"  {len(batch):3} question{'s' if len(batch) > 1 else ' '} {str(dtype).removeprefix('torch.'):10}"
                f" {timing.kernel_seconds * 1e3:14.1f} ms {timing.eager_seconds * 1e3:10.1f} ms"
                f"   {timing.eager_seconds / timing.kernel_seconds:5.1f} x"
                f"   largest difference {timing.difference:.0e}"
            )
    print(f"  maxsim reads the packed tokens; eager torch gets every {CHUNK} documents padded to their longest.")


def picture(
    question: str, index: int, kernel: ModuleType, encoder: Encoder, corpus: Corpus, documents: Encoded
) -> None:
    query = encoder.encode([question], "query")
    alignment = align(kernel, encoder, query, documents, index)
    draw(alignment, question, corpus.documents[index].name, PICTURE)
    print(f"\nWhich token of {corpus.documents[index].name} answers which token of the question: {PICTURE}")


if __name__ == "__main__":
    main()
