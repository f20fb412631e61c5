"""The losses of the three libraries on synthetic embeddings, for tests/gpu_integrations.py: what to call, on what.
The encoder is a table of embeddings, so that a step is the loss and its scores and next to nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize


@dataclass
class Sizes:
    batch: int = 128
    query_tokens: int = 32
    document_tokens: int = 300
    negatives: int = 1
    ways: int = 8  # documents of a query in distillation
    dim: int = 128


@dataclass
class Case:
    """One loss: how to build it once the library is patched or not, and what one call is given."""

    name: str
    build: Callable[[], Callable[[], Tensor]]
    parameters: list[Tensor] = field(default_factory=list)


class Table(nn.Module):
    """Stands for an encoder in PyLate and sentence-transformers: token ids are rows of a table."""

    skiplist: tuple[int, ...] = (0,)  # PyLate: token 0 is punctuation
    do_query_expansion = True

    def __init__(self, rows: int, dim: int, dtype: torch.dtype, device: str) -> None:
        super().__init__()
        # Much in common, so that no maximum is negative: PyLate's masked tokens score 0.
        table = normalize(torch.randn(rows, dim, device=device) + 0.6, dim=-1)
        self.table = nn.Parameter(table.to(dtype))

    def forward(self, features: dict[str, Tensor], **_: object) -> dict[str, Tensor]:
        return {**features, "token_embeddings": self.table[features["input_ids"]]}


def columns(sizes: Sizes, documents: int, device: str) -> list[dict[str, Tensor]]:
    """Queries, then columns of documents; a twelfth of the document tokens is punctuation, the ends are padding."""
    first, found = 1, []
    for column, length in enumerate([sizes.query_tokens, *[sizes.document_tokens] * documents]):
        rows = sizes.batch * (sizes.ways if documents == 1 and column else 1)
        ids = torch.arange(first, first + rows * length, device=device).view(rows, length)
        first += rows * length
        mask = torch.ones(rows, length, dtype=torch.int64, device=device)
        if column:
            ids[:, ::12] = 0
            mask[::3, -length // 4 :] = 0
        found.append({"input_ids": ids, "attention_mask": mask})
    return found


def _tabled(
    make: Callable[[nn.Module], nn.Module], name: str, features: list, labels: Tensor | None, like: Tensor
) -> Case:
    rows = 1 + max(int(feature["input_ids"].max()) for feature in features)
    model = Table(rows, like.shape[-1], like.dtype, str(like.device))

    def build() -> Callable[[], Tensor]:
        loss = make(model)
        return lambda: loss([dict(feature) for feature in features], labels)

    return Case(name, build, [model.table])


def pylate_cases(sizes: Sizes, dtype: torch.dtype, device: str) -> list[Case]:
    from pylate import losses

    like = torch.empty(0, sizes.dim, dtype=dtype, device=device)
    several = columns(sizes, 1 + sizes.negatives, device)
    own = columns(sizes, 1, device)
    teacher = torch.randn(sizes.batch, sizes.ways, device=device)
    return [
        _tabled(losses.Contrastive, "Contrastive", several, None, like),
        _tabled(lambda m: losses.CachedContrastive(m, mini_batch_size=32), "CachedContrastive", several, None, like),
        _tabled(losses.Distillation, "Distillation", own, teacher, like),
    ]


def sentence_transformers_cases(sizes: Sizes, dtype: torch.dtype, device: str) -> list[Case]:
    from sentence_transformers.multi_vector_encoder import losses

    like = torch.empty(0, sizes.dim, dtype=dtype, device=device)
    several = columns(sizes, 1 + sizes.negatives, device)
    teacher = torch.randn(sizes.batch, 1 + sizes.negatives, device=device)
    return [
        _tabled(getattr(losses, name), name, several, None if "Ranking" in name else teacher, like)
        for name in (
            "MultiVectorMultipleNegativesRankingLoss",
            "CachedMultiVectorMultipleNegativesRankingLoss",
            "MultiVectorDistillKLDivLoss",
            "MultiVectorMarginMSELoss",
        )
    ]


def colpali_engine_cases(sizes: Sizes, dtype: torch.dtype, device: str) -> list[Case]:
    import torchvision_ops

    torchvision_ops.declare()
    from colpali_engine import loss as losses

    def tensor(*shape: int) -> Tensor:
        unit = normalize(torch.randn(*shape, sizes.dim, device=device) + 0.6, dim=-1)
        return unit.to(dtype).requires_grad_()

    inputs = [
        tensor(sizes.batch, sizes.query_tokens),
        tensor(sizes.batch, sizes.document_tokens),
        tensor(sizes.batch, sizes.ways, sizes.document_tokens),
    ]

    def case(name: str, smooth: bool) -> Case:
        given = inputs if "Negative" in name else inputs[:2]

        def build() -> Callable[[], Tensor]:
            loss = getattr(losses, name)(use_smooth_max=smooth).to(device)
            return lambda: loss(*given)

        return Case(name + (" smooth" if smooth else ""), build, given)

    names = ("ColbertLoss", "ColbertPairwiseCELoss", "ColbertSigmoidLoss", "ColbertNegativeCELoss")
    names += ("ColbertPairwiseNegativeCELoss",)
    return [case(name, smooth) for name in names for smooth in (False, True)]


CASES = {
    "pylate": pylate_cases,
    "colpali_engine": colpali_engine_cases,
    "sentence_transformers": sentence_transformers_cases,
}
BACKENDS = {"pylate": "PYLATE_SCORES_BACKEND", "colpali_engine": "COLPALI_SCORES_BACKEND"}
