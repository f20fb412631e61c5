"""Malformed calls: the right exception, and a message that names the argument and what it got."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor

Q, D, SLABS = torch.randn(3, 5, 8), torch.randn(4, 6, 8), torch.randn(3, 2, 6, 8)
Q_MASK, D_MASK, SLAB_MASK = torch.ones(3, 5) > 0, torch.ones(4, 6) > 0, torch.ones(3, 2, 6) > 0
TQ, TD = torch.randn(15, 8), torch.randn(24, 8)


def i64(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def i32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def meta(tensor: Tensor) -> Tensor:
    return tensor.to("meta")


CU_Q, CU_D = i32(0, 5, 5, 15), i32(0, 6, 24)
QUERY_LENGTHS, DOC_LENGTHS = i64(5, 0, 3), i32(1, 2, 3, 4, 5, 6).view(3, 2)
QUERY_IDS, DOCUMENT_IDS = i64(0, 2), i64(1, 1)


def dense(**changes: object) -> Callable[[ModuleType], object]:
    return lambda m: m.maxsim(**{"Q": Q, "D": D, **changes})


def argmaxed(**changes: object) -> Callable[[ModuleType], object]:
    return lambda m: m.maxsim_with_argmax(**{"Q": Q, "D": D, **changes})


def pairs(**changes: object) -> Callable[[ModuleType], object]:
    return lambda m: m.maxsim_pairs(**{"Q": Q, "D": D[:3], **changes})


def varlen(**changes: object) -> Callable[[ModuleType], object]:
    arguments = {"Q_packed": TQ, "D_packed": TD, "cu_seqlens_q": CU_Q, "cu_seqlens_d": CU_D, **changes}
    return lambda m: m.maxsim_varlen(**arguments)


def padded(**changes: object) -> Callable[[ModuleType], object]:
    arguments = {
        "queries": Q,
        "documents": SLABS,
        "query_lengths": QUERY_LENGTHS,
        "doc_lengths": DOC_LENGTHS,
        **changes,
    }
    return lambda m: m.score_candidates_padded(**arguments)


def contrastive(**changes: object) -> Callable[[ModuleType], object]:
    return lambda m: m.score_contrastive(**{"queries": Q, "documents": TD, "document_offsets": CU_D, **changes})


def listed(**changes: object) -> Callable[[ModuleType], object]:
    arguments = {
        "queries": TQ,
        "query_offsets": CU_Q,
        "documents": TD,
        "document_offsets": CU_D,
        "pair_query_ids": QUERY_IDS,
        "pair_document_ids": DOCUMENT_IDS,
        **changes,
    }
    return lambda m: m.score_pairs_packed(**arguments)


def reference(name: str, *arguments: object, **options: object) -> Callable[[ModuleType], object]:
    return lambda m: getattr(m.reference, name)(*arguments, **options)


# call, exception, what the message must say
MALFORMED = [
    # not a tensor
    (dense(Q=Q.tolist()), TypeError, "Q must be a torch.Tensor; got list"),
    (dense(D=D.numpy()), TypeError, "D must be a torch.Tensor; got ndarray"),
    (dense(Q=None), TypeError, "Q must be a torch.Tensor; got NoneType"),
    (dense(q_mask=True), TypeError, "q_mask must be a torch.Tensor; got bool"),
    (dense(d_mask=[[True] * 6] * 4), TypeError, "d_mask must be a torch.Tensor; got list"),
    (varlen(cu_seqlens_q=[0, 5]), TypeError, "cu_seqlens_q must be a torch.Tensor; got list"),
    (padded(doc_lengths=3), TypeError, "doc_lengths must be a torch.Tensor; got int"),
    (listed(pair_query_ids=(0, 1)), TypeError, "pair_query_ids must be a torch.Tensor; got tuple"),
    # rank
    (dense(Q=Q[0, 0]), ValueError, "Q must be [Nq, Lq, d] or [Lq, d]; got shape (8,)"),
    (dense(Q=SLABS), ValueError, "Q must be [Nq, Lq, d] or [Lq, d]; got shape (3, 2, 6, 8)"),
    (dense(D=D[0, 0]), ValueError, "D must be [Nd, Ld, d], [Ld, d] or [Nq, K, Ld, d]; got shape (8,)"),
    (dense(D=SLABS[None]), ValueError, "D must be"),
    (dense(Q=Q[0], D=SLABS), ValueError, "Q must be [Nq, Lq, d] when D is [Nq, K, Ld, d]; got shape (5, 8)"),
    (pairs(Q=Q[0]), ValueError, "Q must be [B, Lq, d]; got shape (5, 8)"),
    (pairs(D=SLABS), ValueError, "D must be [B, Ld, d]; got shape (3, 2, 6, 8)"),
    (varlen(Q_packed=Q), ValueError, "Q_packed must be [total query tokens, d]; got shape (3, 5, 8)"),
    (varlen(D_packed=D), ValueError, "D_packed must be [total document tokens, d]; got shape (4, 6, 8)"),
    (varlen(cu_seqlens_d=CU_D[None]), ValueError, "cu_seqlens_d must be [segments + 1]; got shape (1, 3)"),
    (varlen(cu_seqlens_q=i32(0)[0]), ValueError, "cu_seqlens_q must be [segments + 1]; got shape ()"),
    (varlen(cu_seqlens_q=i32()), ValueError, "cu_seqlens_q must be [segments + 1]; got shape (0,)"),
    (padded(queries=TQ), ValueError, "queries must be [B, Lq, d]; got shape (15, 8)"),
    (padded(documents=D), ValueError, "documents must be [B, C, Ld, d]; got shape (4, 6, 8)"),
    (contrastive(queries=TQ), ValueError, "queries must be [Nq, Lq, d]; got shape (15, 8)"),
    (contrastive(documents=D), ValueError, "documents must be [total document tokens, d]; got shape (4, 6, 8)"),
    (listed(queries=Q), ValueError, "queries must be [total query tokens, d]; got shape (3, 5, 8)"),
    (listed(pair_query_ids=QUERY_IDS[None]), ValueError, "pair_query_ids must be [pairs]; got shape (1, 2)"),
    (listed(pair_document_ids=i64(1)[0]), ValueError, "pair_document_ids must be [pairs]; got shape ()"),
    # sizes that do not fit
    (dense(D=D[..., :7]), ValueError, "Q and D must share the embedding dim; got Q.shape[-1]=8 and D.shape[-1]=7"),
    (dense(Q=Q[..., :0], D=D[..., :0]), ValueError, "Q and D must have an embedding dim of at least 1; got 0"),
    (dense(D=SLABS[:2]), ValueError, "D.shape[0] must equal Q.shape[0]; got 2 and 3"),
    (pairs(D=D), ValueError, "D.shape[0] must equal Q.shape[0]; got 4 and 3"),
    (padded(documents=SLABS[:1]), ValueError, "documents.shape[0] must equal queries.shape[0]; got 1 and 3"),
    (padded(documents=SLABS[..., :4]), ValueError, "queries and documents must share the embedding dim"),
    (contrastive(documents=TD[:, :3]), ValueError, "queries.shape[-1]=8 and documents.shape[-1]=3"),
    (varlen(D_packed=TD[:, :1]), ValueError, "Q_packed.shape[-1]=8 and D_packed.shape[-1]=1"),
    (
        padded(query_lengths=i64(1, 2)),
        ValueError,
        "query_lengths must have shape (3,), one per segment; got shape (2,)",
    ),
    (padded(query_lengths=i64(1, 2, 3)[:, None]), ValueError, "query_lengths must have shape (3,)"),
    (
        padded(doc_lengths=i64(1, 2, 3)),
        ValueError,
        "doc_lengths must have shape (3, 2), one per segment; got shape (3,)",
    ),
    (padded(doc_lengths=DOC_LENGTHS.T), ValueError, "doc_lengths must have shape (3, 2)"),
    (dense(q_mask=Q_MASK[:2]), ValueError, "q_mask must broadcast to the token shape (3, 5); got shape (2, 5)"),
    (dense(q_mask=Q_MASK.T), ValueError, "q_mask must broadcast to the token shape (3, 5); got shape (5, 3)"),
    (dense(d_mask=D_MASK[:, :5]), ValueError, "d_mask must broadcast to the token shape (4, 6); got shape (4, 5)"),
    (dense(d_mask=SLAB_MASK), ValueError, "d_mask must broadcast to the token shape (4, 6); got shape (3, 2, 6)"),
    (dense(D=SLABS, d_mask=D_MASK), ValueError, "d_mask must broadcast to the token shape (3, 2, 6)"),
    (dense(Q=Q[0], q_mask=Q_MASK), ValueError, "q_mask must broadcast to the token shape (1, 5); got shape (3, 5)"),
    (pairs(d_mask=D_MASK), ValueError, "d_mask must broadcast to the token shape (3, 6); got shape (4, 6)"),
    (
        listed(pair_document_ids=i64(1)),
        ValueError,
        "pair_query_ids and pair_document_ids must have the same length; got 2 and 1",
    ),
    # dtypes and layouts
    (
        dense(Q=Q.double()),
        TypeError,
        "Q must be float16, bfloat16 or float32; got torch.float64; maxsim.reference takes",
    ),
    (dense(D=D.int()), TypeError, "D must be float16, bfloat16 or float32; got torch.int32"),
    (dense(Q=Q.bool()), TypeError, "Q must be float16, bfloat16 or float32; got torch.bool"),
    (dense(D=D.to(torch.complex64)), TypeError, "D must be float16, bfloat16 or float32; got torch.complex64"),
    (pairs(Q=Q.to(torch.float8_e4m3fn)), TypeError, "Q must be float16, bfloat16 or float32; got torch.float8_e4m3fn"),
    (padded(documents=SLABS.double()), TypeError, "documents must be float16, bfloat16 or float32; got torch.float64"),
    (varlen(Q_packed=TQ.long()), TypeError, "Q_packed must be float16, bfloat16 or float32; got torch.int64"),
    (dense(Q=Q.to_sparse()), TypeError, "Q must be a dense strided tensor; got layout torch.sparse_coo"),
    (varlen(cu_seqlens_q=CU_Q.float()), TypeError, "cu_seqlens_q must be int32 or int64; got torch.float32"),
    (contrastive(document_offsets=CU_D.short()), TypeError, "document_offsets must be int32 or int64; got torch.int16"),
    (padded(query_lengths=QUERY_LENGTHS > 1), TypeError, "query_lengths must be int32 or int64; got torch.bool"),
    (listed(pair_document_ids=DOCUMENT_IDS.byte()), TypeError, "pair_document_ids must be int32 or int64"),
    # devices
    (dense(D=meta(D)), RuntimeError, "D must be on the same device as Q, cpu; got meta"),
    (dense(q_mask=meta(Q_MASK)), RuntimeError, "q_mask must be on the same device as the embeddings, cpu; got meta"),
    (dense(d_mask=meta(D_MASK)), RuntimeError, "d_mask must be on the same device as the embeddings, cpu; got meta"),
    (varlen(cu_seqlens_d=meta(CU_D)), RuntimeError, "cu_seqlens_d must be on the same device as the embeddings"),
    (padded(doc_lengths=meta(DOC_LENGTHS)), RuntimeError, "doc_lengths must be on the same device as the embeddings"),
    (contrastive(documents=meta(TD)), RuntimeError, "documents must be on the same device as queries, cpu; got meta"),
    (listed(pair_query_ids=meta(QUERY_IDS)), RuntimeError, "pair_query_ids must be on the same device"),
    # values
    (varlen(cu_seqlens_q=i32(1, 5, 15)), ValueError, "cu_seqlens_q[0] must be 0; got 1"),
    (varlen(cu_seqlens_q=i32(-1, 5, 15)), ValueError, "cu_seqlens_q[0] must be 0; got -1"),
    (varlen(cu_seqlens_d=i32(0, 9, 8, 7)), ValueError, "cu_seqlens_d must not decrease; got cu_seqlens_d[2]=8 after 9"),
    (
        varlen(cu_seqlens_d=i64(0, 6, 25)),
        ValueError,
        "cu_seqlens_d[-1] must be at most 24, the token count of D_packed",
    ),
    (
        varlen(cu_seqlens_q=i64(0, 2**62)),
        ValueError,
        f"cu_seqlens_q[-1] must be at most 15, the token count of Q_packed; got {2**62}",
    ),
    (contrastive(document_offsets=i64(0, -3, 24)), ValueError, "document_offsets[1]=-3 after 0"),
    (listed(query_offsets=i32(0, 16)), ValueError, "query_offsets[-1] must be at most 15, the token count of queries"),
    (listed(document_offsets=i32(2, 24)), ValueError, "document_offsets[0] must be 0; got 2"),
    (
        padded(query_lengths=i64(1, 6, 7)),
        ValueError,
        "query_lengths must be in [0, 5], the padded length of queries; got query_lengths[1]=6",
    ),
    (padded(query_lengths=i64(1, 2, -1)), ValueError, "got query_lengths[2]=-1"),
    (
        padded(doc_lengths=i32(1, 2, 3, 7, 9, 1).view(3, 2)),
        ValueError,
        "doc_lengths must be in [0, 6], the padded length of documents; got doc_lengths[1, 1]=7",
    ),
    (listed(pair_query_ids=i64(0, 3)), ValueError, "pair_query_ids must be in [0, 3); got pair_query_ids[1]=3"),
    (listed(pair_query_ids=i64(-1, 9)), ValueError, "pair_query_ids must be in [0, 3); got pair_query_ids[0]=-1"),
    (
        listed(pair_document_ids=i64(0, 2**40)),
        ValueError,
        f"pair_document_ids must be in [0, 2); got pair_document_ids[1]={2**40}",
    ),
    (
        varlen(max_seqlen_q=9),
        ValueError,
        "max_seqlen_q must be at least 10, the longest segment of cu_seqlens_q; got 9",
    ),
    (
        varlen(max_seqlen_d=17),
        ValueError,
        "max_seqlen_d must be at least 18, the longest segment of cu_seqlens_d; got 17",
    ),
    (varlen(max_seqlen_q=-1), ValueError, "max_seqlen_q must be at least 0; got -1"),
    (listed(max_q_len=0), ValueError, "max_q_len must be at least 10, the longest segment of query_offsets; got 0"),
    (listed(max_q_len=10.0), TypeError, "max_q_len must be an int or None; got float"),
    (varlen(max_seqlen_d=True), TypeError, "max_seqlen_d must be an int or None; got bool"),
    # options
    (dense(backward="csr"), ValueError, "backward must be one of None, 'auto', 'unified', 'lowmem'; got 'csr'"),
    (
        argmaxed(backward=["auto"]),
        ValueError,
        "backward must be one of None, 'auto', 'unified', 'lowmem'; got ['auto']",
    ),
    (pairs(normalize="yes"), TypeError, "normalize must be a bool; got str"),
    (dense(normalize=None), TypeError, "normalize must be a bool; got NoneType"),
    (dense(empty_score="0"), TypeError, "empty_score must be a number; got str"),
    (contrastive(empty_score=None), TypeError, "empty_score must be a number; got NoneType"),
    (padded(empty_score=torch.zeros(())), TypeError, "empty_score must be a number; got Tensor"),
    # the references say the same
    (reference("maxsim_reference", Q, D[..., :1]), ValueError, "Q and D must share the embedding dim"),
    (
        reference("maxsim_reference", Q.int(), D),
        TypeError,
        "Q must be float16, bfloat16, float32 or float64; got torch.int32",
    ),
    (reference("maxsim_reference_varlen", TQ, TD, CU_Q, i32(0, 30)), ValueError, "cu_seqlens_d[-1] must be at most 24"),
    (reference("maxsim_reference_scatter", TQ, TD, CU_Q, CU_D, i64(3), i64(0)), ValueError, "pair_q_idx[0]=3"),
    (reference("maxsim_padded_reference", Q, SLABS, i64(9, 0, 0), DOC_LENGTHS), ValueError, "query_lengths[0]=9"),
    (reference("score_contrastive_reference", Q, TD, i64(0, 3, 2)), ValueError, "document_offsets[2]=2 after 3"),
]


@pytest.mark.parametrize("call, error, message", MALFORMED, ids=[message for _, _, message in MALFORMED])
def test_malformed(maxsim, call, error, message):
    with pytest.raises(error, match=re.escape(message)) as raised:
        call(maxsim)
    assert raised.type is error


def test_there_are_enough():
    assert len({message for _, _, message in MALFORMED}) == len(MALFORMED) >= 60
