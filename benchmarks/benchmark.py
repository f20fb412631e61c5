"""Workloads for `kernels benchmark`: each times one entry point of the kernel and checks it against eager torch.
Every input is a multiple of 1/8, so dot products are exact in fp32 whatever the order of summation, and so are ties."""

from __future__ import annotations

from collections.abc import Callable

import torch
from kernels.benchmark import Benchmark

DIM = 128


def similarities(queries: torch.Tensor, documents: torch.Tensor) -> torch.Tensor:
    """Token products in fp32, by the fastest eager formula of each layout.

    [Nq, Nd, Lq, Ld] for documents [Nd, Ld, d], [Nq, K, Lq, Ld] for documents [Nq, K, Ld, d].
    """
    queries, documents = queries.float(), documents.float()
    if documents.dim() == 4:
        return torch.einsum("qid,qkjd->qkij", queries, documents)
    if queries.shape[0] == 1:
        return (queries @ documents.mT)[None]
    return torch.einsum("qid,njd->qnij", queries, documents)


# Queries, documents and their tokens.
Shape = tuple[int, int, int, int]


def cross(shape: Shape, dtype: torch.dtype = torch.float32, dim: int = DIM, cpu: Shape | None = None) -> Callable:
    """A setup of every query with every document; `cpu` is the shape where there is no accelerator."""

    def setup(self: MaxSim) -> None:
        queries, documents, query_tokens, document_tokens = cpu if cpu and self.device == "cpu" else shape
        self.queries = self.tokens(queries, query_tokens, dim=dim).to(dtype)
        self.documents = self.tokens(documents, document_tokens, dim=dim).to(dtype)

    return setup


class MaxSim(Benchmark):
    """The reference of a bf16 workload multiplies in fp32: eager bf16 rounds away what the check looks for."""

    seed = 0

    def tokens(self, *shape: int, dim: int = DIM) -> torch.Tensor:
        return torch.randint(-8, 9, (*shape, dim), device=self.device) / 8

    def score(self) -> None:
        self.out = self.kernel.maxsim(self.queries, self.documents)

    def reference(self) -> torch.Tensor:
        return similarities(self.queries, self.documents).amax(-1).sum(-1)

    # One query against a text corpus.
    setup_text_short = cross((1, 1000, 32, 300))
    benchmark_text_short = score
    verify_text_short = reference

    setup_text_short_bf16 = cross((1, 1000, 32, 300), torch.bfloat16)
    benchmark_text_short_bf16 = score
    verify_text_short_bf16 = reference

    setup_corpus_bf16 = cross((1, 10000, 32, 300), torch.bfloat16, cpu=(1, 500, 32, 300))
    benchmark_corpus_bf16 = score
    verify_corpus_bf16 = reference

    # Page images: long documents, and a query that is a page itself.
    setup_pages_bf16 = cross((1, 1000, 128, 1024), torch.bfloat16, cpu=(1, 20, 128, 1024))
    benchmark_pages_bf16 = score
    verify_pages_bf16 = reference

    setup_page_queries_bf16 = cross((1, 500, 1024, 1024), torch.bfloat16, cpu=(1, 5, 1024, 1024))
    benchmark_page_queries_bf16 = score
    verify_page_queries_bf16 = reference

    # The text corpus again, with the winning document token of every query token.
    setup_text_short_argmax = setup_text_short

    def benchmark_text_short_argmax(self) -> None:
        self.out, self.argmax = self.kernel.maxsim_with_argmax(self.queries, self.documents)

    def verify_text_short_argmax(self) -> torch.Tensor:
        best, winner = similarities(self.queries, self.documents).max(-1)
        torch.testing.assert_close(self.argmax.long(), winner, rtol=0, atol=0)
        return best.sum(-1)

    # Ten candidates for each of 32 queries, padded, with a length for every one.
    def setup_small_rerank(self) -> None:
        self.queries, self.documents = self.tokens(32, 32), self.tokens(32, 10, 180)
        self.query_lengths = torch.randint(8, 33, (32,), device=self.device)
        self.document_lengths = torch.randint(60, 181, (32, 10), device=self.device)

    def benchmark_small_rerank(self) -> None:
        self.out = self.kernel.score_candidates_padded(
            self.queries, self.documents, self.query_lengths, self.document_lengths
        )

    def verify_small_rerank(self) -> torch.Tensor:
        query_tokens = torch.arange(32, device=self.device) < self.query_lengths[:, None]
        document_tokens = torch.arange(180, device=self.device) < self.document_lengths[..., None]
        products = similarities(self.queries, self.documents)
        best = products.masked_fill(~document_tokens[:, :, None, :], float("-inf")).amax(-1)
        return best.masked_fill(~query_tokens[:, None, :], 0).sum(-1)

    # A corpus of ragged documents, packed without padding. The reference gets it padded before the clock starts.
    def setup_varlen(self) -> None:
        lengths = torch.randint(20, 301, (1000,))
        self.queries, self.documents = self.tokens(32), self.tokens(int(lengths.sum()))
        self.query_offsets = torch.tensor([0, 32], dtype=torch.int32, device=self.device)
        offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
        self.document_offsets = offsets.to(self.device, torch.int32)
        self.padded = torch.nn.utils.rnn.pad_sequence(self.documents.split(lengths.tolist()), batch_first=True)
        self.padding = (torch.arange(self.padded.shape[1]) >= lengths[:, None]).to(self.device)

    def benchmark_varlen(self) -> None:
        self.out = self.kernel.maxsim_varlen(
            self.queries, self.documents, self.query_offsets, self.document_offsets, 32, self.padded.shape[1]
        )

    def verify_varlen(self) -> torch.Tensor:
        products = similarities(self.queries[None], self.padded)
        return products.masked_fill(self.padding[:, None, :], float("-inf")).amax(-1).sum(-1)

    # In-batch negatives: every query against every document of the batch.
    setup_inbatch = cross((128, 128, 32, 300), cpu=(32, 32, 32, 180))
    benchmark_inbatch = score
    verify_inbatch = reference

    setup_inbatch_bf16 = cross((256, 256, 32, 300), torch.bfloat16, cpu=(32, 32, 32, 180))
    benchmark_inbatch_bf16 = score
    verify_inbatch_bf16 = reference

    setup_inbatch_fp16 = cross((256, 256, 32, 300), torch.float16, cpu=(8, 8, 32, 180))
    benchmark_inbatch_fp16 = score
    verify_inbatch_fp16 = reference

    # Vectors as single-vector models have them.
    setup_inbatch_d768_bf16 = cross((128, 128, 32, 300), torch.bfloat16, dim=768, cpu=(8, 8, 32, 180))
    benchmark_inbatch_d768_bf16 = score
    verify_inbatch_d768_bf16 = reference

    # A training step on that batch: forward and the gradients of both sides.
    def setup_inbatch_train(self) -> None:
        self.setup_inbatch()
        self.queries.requires_grad_()
        self.documents.requires_grad_()
        batch = self.queries.shape[0]
        self.grad_scores = torch.randint(-2, 3, (batch, batch), device=self.device, dtype=torch.float32)

    def benchmark_inbatch_train(self) -> None:
        inputs = (self.queries, self.documents)
        scores = self.kernel.maxsim(*inputs)
        self.grad_queries, self.out = torch.autograd.grad(scores, inputs, self.grad_scores)

    def verify_inbatch_train(self) -> torch.Tensor:
        # `max` sends the gradient of a tie to its first token, as the kernel does; `amax` would split it.
        scores = similarities(self.queries, self.documents).max(-1).values.sum(-1)
        inputs = (self.queries, self.documents)
        grad_queries, grad_documents = torch.autograd.grad(scores, inputs, self.grad_scores)
        torch.testing.assert_close(self.grad_queries, grad_queries, rtol=0, atol=0)
        return grad_documents
