"""Libraries that train and serve late-interaction models, made to score with this kernel.
``MAXSIM_DISABLE=1`` in the environment, read on every call, gives a patched library its own code back."""

from .colpali_engine import patch_colpali_engine, unpatch_colpali_engine
from .pylate import patch_pylate, unpatch_pylate
from .sentence_transformers import patch_sentence_transformers, unpatch_sentence_transformers

__all__ = [
    "patch_colpali_engine",
    "patch_pylate",
    "patch_sentence_transformers",
    "unpatch_colpali_engine",
    "unpatch_pylate",
    "unpatch_sentence_transformers",
]
