"""A contrastive or distillation loss of MaxSim scores, for which neither all scores nor all winners are held.
What is small goes through torch's autograd at once; a large batch is scored in parts, and again for its gradient."""

from __future__ import annotations

import torch
from torch import Tensor, distributed
from torch.autograd import forward_ad
from torch.nn import functional

from . import _kernels, autograd, blocked_loss, checks, gathering
from .dispatch import BACKWARD_MODES, autocast
from .problem import Problem, dense

_REDUCTIONS = {"mean": Tensor.mean, "sum": Tensor.sum, "none": lambda loss: loss}


def contrastive_loss(
    Q: Tensor,
    D: Tensor,
    q_mask: Tensor | None = None,
    d_mask: Tensor | None = None,
    *,
    labels: Tensor | None = None,
    negatives: Tensor | None = None,
    negatives_mask: Tensor | None = None,
    teacher_scores: Tensor | None = None,
    teacher_weight: float = 1.0,
    temperature: float = 1.0,
    mean_over_tokens: bool = False,
    normalize: bool = False,
    backward: str | None = None,
    empty_score: float = 0.0,
    reduction: str = "mean",
    group: distributed.ProcessGroup | None = None,
    max_bytes: int = 12 << 20,
    validate: bool = False,
) -> Tensor:
    """How far a query's MaxSim scores are from its positive, or from a teacher's scores; differentiable.

    The candidates of query i are all documents of a shared ``D``, or its own ``D[i]``, followed by its own
    ``negatives[i]``. Where z are its scores of them, divided by ``temperature``, its loss is

    * the cross entropy ``logsumexp(z) - z[label]``, as ``torch.nn.functional.cross_entropy`` has it (InfoNCE);
    * with a teacher ``KL(softmax(teacher) || softmax(z))``, as ``torch.nn.functional.kl_div`` has it, or both of them,
      weighed by ``teacher_weight``.

    Args:
        Q, q_mask: queries ``[Nq, Lq, d]`` and which of their tokens count, as for :func:`maxsim.maxsim`.
        D, d_mask: documents ``[Nd, Ld, d]`` that all queries share, or ``[Nq, K, Ld, d]``, each query's own.
        labels: int32 or int64 ``[Nq]``, which candidate is the positive. None is the diagonal of a shared ``D``,
            document i for query i, and the first of a query's own documents.
        negatives, negatives_mask: more documents of each query alone, ``[Nq, K, Ln, d]``, and their tokens.
        teacher_scores: ``[Nq, candidates]``, the teacher's logits, which get no gradient.
        teacher_weight: in [0, 1], the share of the divergence; the rest is cross entropy. Unused without a teacher.
        temperature: more than 0, divides the scores.
        mean_over_tokens: divide a query's scores also by the number of its tokens that count, or by 1 if none does.
        normalize, backward, empty_score: as for :func:`maxsim.maxsim`.
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for the losses ``[Nq]``.
        group: a process group of torch.distributed (``torch.distributed.group.WORLD`` is the default one). The
            candidates then are the documents of all its ranks, those of rank 0 first; ``labels`` and
            ``teacher_scores`` count through them, and without labels the positives are this rank's own. Gradients
            return to the ranks that have the documents, summed over all ranks' losses: DistributedDataParallel's
            average of them is the gradient of the mean over all queries. Every rank has to call it. Numbers and
            lengths of documents may differ, and comparing them makes the host wait for the device.
        max_bytes: how much may be held beside inputs and gradients. A batch that needs more, for its scores and
            winners, is computed in parts, and its gradient by scoring them again; the least is one query against all
            candidates and one document against all queries. Devices without kernels hold everything.
        validate: check the values of ``labels`` on an accelerator too, which synchronises. On the CPU they always are.
            A query whose label is out of range, and was not checked, has a loss of NaN.

    Returns:
        float32. Under autocast all embeddings are cast as a matrix product would cast them.

    Raises:
        TypeError, ValueError, RuntimeError: an argument does not fit; the message names it.
    """
    checks.option("reduction", reduction, _REDUCTIONS)
    checks.option("backward", backward, BACKWARD_MODES)
    checks.count("max_bytes", max_bytes)
    checks.tokens("Q", Q, (3,), "[Nq, Lq, d]")
    checks.tokens("D", D, (3, 4), "[Nd, Ld, d] or [Nq, K, Ld, d]")
    shared = D.dim() == 3
    weight = 0.0 if teacher_scores is None else checks.within("teacher_weight", teacher_weight, 0.0, 1.0)
    parts = [_cast(dense(Q, D, q_mask, d_mask))]
    if negatives is not None:
        checks.tokens("negatives", negatives, (4,), "[Nq, K, Ln, d]")
        parts.append(_cast(_negatives(Q, negatives, q_mask, negatives_mask))._replace(queries=parts[0].queries))
    elif negatives_mask is not None:
        raise ValueError("negatives_mask needs negatives; got None")
    if labels is None and shared and weight < 1 and D.shape[0] < Q.shape[0]:
        raise ValueError(
            f"labels must be given where queries outnumber documents; got None for {Q.shape[0]} queries and "
            f"{D.shape[0]} documents"
        )
    first = 0
    if group is not None:
        if not shared:
            raise ValueError(f"group needs D that all queries share; got each query's own, {tuple(D.shape)}")
        documents, mask, first = gathering.gather_documents(parts[0].documents, parts[0].document_mask, group)
        parts[0] = parts[0]._replace(documents=documents, document_mask=mask)
    candidates = sum(part.documents.shape[-3] for part in parts)
    if candidates == 0 and Q.shape[0]:
        raise ValueError("D and negatives must hold at least one candidate for a query; got none")
    if labels is None:
        labels = (
            torch.arange(Q.shape[0], device=Q.device) + first if shared else Q.new_zeros(Q.shape[0], dtype=torch.long)
        )
        in_range = True
    else:
        checks.ids("labels", labels, candidates, Q, validate)
        checks.shape("labels", labels, (Q.shape[0],), "[Nq]", Q)
        in_range = checks._readable(labels, validate)
    if teacher_scores is not None:
        checks.tokens("teacher_scores", teacher_scores, (2,), "[Nq, candidates]", checks.REFERENCE_DTYPES)
        checks.shape("teacher_scores", teacher_scores, (Q.shape[0], candidates), "[Nq, candidates]", Q)
    options = blocked_loss.Options(
        1.0 / checks.positive("temperature", temperature),
        weight,
        checks.flag("mean_over_tokens", mean_over_tokens),
        checks.flag("normalize", normalize),
        checks.number("empty_score", empty_score),
        backward,
    )
    teacher = None if teacher_scores is None else teacher_scores.detach().to(torch.float32)
    if _whole(parts, candidates, max_bytes):
        logits = blocked_loss.logits_of(parts, options)
        if teacher is None and in_range:  # torch's own is one launch, and stops the device where labels are not
            return functional.cross_entropy(logits, labels.long(), reduction=reduction)
        loss = blocked_loss.losses_of(logits, labels, teacher, weight)[0]
    else:
        loss = blocked_loss.in_parts(parts, labels, teacher, options, max_bytes)
    return _REDUCTIONS[reduction](loss)


def _negatives(Q: Tensor, negatives: Tensor, q_mask: Tensor | None, mask: Tensor | None) -> Problem:
    """The second part, its errors under the names that the caller knows."""
    checks.sides("Q", Q, "negatives", negatives)
    checks.slabs("Q", Q, "negatives", negatives)
    if mask is not None:
        checks.mask("negatives_mask", mask, negatives.shape[:-1], negatives)
    return dense(Q, negatives, q_mask, mask)


def _cast(part: Problem) -> Problem:
    """Both sides in the autocast dtype: the loss in parts scores them again outside of autocast."""
    device = part.queries.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return part
    return autocast(part, torch.get_autocast_dtype(device))


def _whole(parts: list[Problem], candidates: int, max_bytes: int) -> bool:
    """Whether scores and winners may be held, or have to be: by devices without kernels, and by transforms."""
    queries = parts[0].queries
    if queries.device.type not in (*_kernels.DEVICES, "meta") or autograd.transformed():
        return True
    if forward_ad._current_level >= 0:  # scoring says what it does not support
        return True
    return queries.shape[0] * candidates * blocked_loss.pair_bytes(queries) <= max_bytes
