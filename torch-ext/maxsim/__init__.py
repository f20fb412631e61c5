"""MaxSim, the late-interaction score of ColBERT and ColPali: sum over query tokens of the best document token.
Exact, fused, forward and backward, over padded, packed, paired and per-query layouts."""

from . import binary, distributed, fp8, fused_head, int8, integrations, layers, paths, plaid, quantised, reference
from .explanation import Explanation, explain, similarity_matrix
from .explanation_page import explain_page, heat_map
from .gathering import gather_documents
from .losses import contrastive_loss
from .reference import (
    maxsim_reference,
    maxsim_reference_with_argmax,
    score_candidates_padded_reference,
    score_candidates_padded_with_argmax_reference,
    score_contrastive_reference,
    score_contrastive_with_argmax_reference,
    score_pairs_packed_reference,
    score_pairs_packed_with_argmax_reference,
    soft_maxsim_reference,
)
from .retrieval import MaxSimScorer, retrieve, score_ids
from .scoring import (
    maxsim,
    maxsim_padded,
    maxsim_pairs,
    maxsim_varlen,
    maxsim_with_argmax,
    score_candidates_padded,
    score_candidates_padded_train,
    score_candidates_padded_with_argmax,
    score_contrastive,
    score_contrastive_train,
    score_contrastive_with_argmax,
    score_pairs_packed,
    score_pairs_packed_train,
    score_pairs_packed_with_argmax,
)
from .soft import soft_maxsim, soft_maxsim_padded
from .streaming import retrieve_streamed

__all__ = [
    "Explanation",
    "MaxSimScorer",
    "binary",
    "contrastive_loss",
    "distributed",
    "explain",
    "explain_page",
    "fp8",
    "fused_head",
    "gather_documents",
    "heat_map",
    "int8",
    "integrations",
    "layers",
    "maxsim",
    "maxsim_padded",
    "maxsim_pairs",
    "maxsim_reference",
    "maxsim_reference_with_argmax",
    "maxsim_varlen",
    "maxsim_with_argmax",
    "paths",
    "plaid",
    "quantised",
    "reference",
    "retrieve",
    "retrieve_streamed",
    "score_candidates_padded",
    "score_candidates_padded_reference",
    "score_candidates_padded_train",
    "score_candidates_padded_with_argmax",
    "score_candidates_padded_with_argmax_reference",
    "score_contrastive",
    "score_contrastive_reference",
    "score_contrastive_train",
    "score_contrastive_with_argmax",
    "score_contrastive_with_argmax_reference",
    "score_ids",
    "score_pairs_packed",
    "score_pairs_packed_reference",
    "score_pairs_packed_train",
    "score_pairs_packed_with_argmax",
    "score_pairs_packed_with_argmax_reference",
    "similarity_matrix",
    "soft_maxsim",
    "soft_maxsim_padded",
    "soft_maxsim_reference",
]
