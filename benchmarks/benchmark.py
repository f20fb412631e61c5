"""Workloads for `kernels benchmark`: each times one entry point of the kernel and checks it against eager torch.
Every input is a multiple of 1/8, so dot products are exact in fp32 whatever the order of summation, and so are ties."""

from __future__ import annotations

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


class MaxSim(Benchmark):
    """The reference of a bf16 workload multiplies in fp32: eager bf16 rounds away what the check looks for."""

    seed = 0

    def tokens(self, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return (torch.randint(-8, 9, (*shape, DIM), device=self.device) / 8).to(dtype)

    def score(self) -> torch.Tensor:
        return self.kernel.maxsim(self.queries, self.documents)

    def reference(self) -> torch.Tensor:
        return similarities(self.queries, self.documents).amax(-1).sum(-1)

    # One query against a text corpus.
    def setup_text_short(self) -> None:
        self.queries, self.documents = self.tokens(1, 32), self.tokens(1000, 300)

    def benchmark_text_short(self) -> None:
        self.out = self.score()

    def verify_text_short(self) -> torch.Tensor:
        return self.reference()

    def setup_text_short_bf16(self) -> None:
        self.queries = self.tokens(1, 32, dtype=torch.bfloat16)
        self.documents = self.tokens(1000, 300, dtype=torch.bfloat16)

    def benchmark_text_short_bf16(self) -> None:
        self.out = self.score()

    def verify_text_short_bf16(self) -> torch.Tensor:
        return self.reference()

    # The same, with the winning document token of every query token.
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
    def setup_inbatch(self) -> None:
        batch, length = (32, 180) if self.device == "cpu" else (128, 300)
        self.queries, self.documents = self.tokens(batch, 32), self.tokens(batch, length)

    def benchmark_inbatch(self) -> None:
        self.out = self.score()

    def verify_inbatch(self) -> torch.Tensor:
        return self.reference()

    # A training step on that batch: forward and the gradients of both sides.
    def setup_inbatch_train(self) -> None:
        self.setup_inbatch()
        self.queries.requires_grad_()
        self.documents.requires_grad_()
        batch = self.queries.shape[0]
        self.grad_scores = torch.randint(-2, 3, (batch, batch), device=self.device, dtype=torch.float32)

    def benchmark_inbatch_train(self) -> None:
        inputs = (self.queries, self.documents)
        self.grad_queries, self.out = torch.autograd.grad(self.score(), inputs, self.grad_scores)

    def verify_inbatch_train(self) -> torch.Tensor:
        # `max` sends the gradient of a tie to its first token, as the kernel does; `amax` would split it.
        scores = similarities(self.queries, self.documents).max(-1).values.sum(-1)
        inputs = (self.queries, self.documents)
        grad_queries, grad_documents = torch.autograd.grad(scores, inputs, self.grad_scores)
        torch.testing.assert_close(self.grad_queries, grad_queries, rtol=0, atol=0)
        return grad_documents
