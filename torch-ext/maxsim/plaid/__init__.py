"""Scores of documents as ColBERTv2 and PLAID indexes store them: a centroid and a few bits a feature.
Decompressed, normalised and scored in one kernel (Santhanam et al., ColBERTv2, 2021, and PLAID, 2022)."""

from .index import Index, load_index, prepare_index
from .scoring import (
    maxsim_residual,
    maxsim_residual_varlen,
    maxsim_residual_varlen_with_argmax,
    maxsim_residual_with_argmax,
    plaid_approx_score,
    unpack_residuals,
)

__all__ = [
    "Index",
    "load_index",
    "maxsim_residual",
    "maxsim_residual_varlen",
    "maxsim_residual_varlen_with_argmax",
    "maxsim_residual_with_argmax",
    "plaid_approx_score",
    "prepare_index",
    "unpack_residuals",
]
