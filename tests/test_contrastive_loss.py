"""contrastive_loss against torch's own losses of float64 scores: whole and in parts, every option, every path."""

from __future__ import annotations

import sys

import pytest
import torch
from helpers import DTYPES, dtype_id
from torch import Tensor
from torch.nn import functional

QUERIES, DOCUMENTS, NEGATIVES = (5, 6, 16), (7, 9, 16), (5, 3, 8, 16)
PARTS = [1, 1000, 1 << 30]  # one query or document at a time, some that do not divide the numbers, everything


def batch(device: str, own: bool = False, dtypes: tuple = (torch.float32,) * 2) -> dict[str, Tensor]:
    """Embeddings, masks with holes, an empty document and a fully masked query."""
    documents = (5, 7, 9, 16) if own else DOCUMENTS
    masks = {
        "q_mask": torch.rand(QUERIES[:-1]) > 0.3,
        "d_mask": torch.rand(documents[:-1]) > 0.3,
        "negatives_mask": torch.rand(NEGATIVES[:-1]) > 0.3,
    }
    masks["q_mask"][4] = False
    masks["d_mask"].view(-1, 9)[2] = False
    masks["negatives_mask"][1, 0] = False
    tensors = {
        "Q": torch.randn(QUERIES).to(dtypes[0]),
        "D": torch.randn(documents).to(dtypes[1]),
        "negatives": torch.randn(NEGATIVES).to(dtypes[1]),
    }
    return {name: x.to(device) for name, x in (tensors | masks).items()}


def composed(maxsim, Q, D, q_mask=None, d_mask=None, *, negatives=None, negatives_mask=None, **options) -> Tensor:
    """The same of float64 scores, by the functions that users compose it of."""
    labels, teacher = options.get("labels"), options.get("teacher_scores")
    scoring = {key: options[key] for key in ("normalize", "empty_score") if key in options}
    sides = [(D, d_mask)] if negatives is None else [(D, d_mask), (negatives, negatives_mask)]
    scores = [maxsim.maxsim_reference(Q.double(), d.double(), q_mask, mask, **scoring) for d, mask in sides]
    logits = torch.cat(scores, dim=1) / options.get("temperature", 1.0)
    if options.get("mean_over_tokens"):
        counts = q_mask.sum(1) if q_mask is not None else torch.full((len(Q),), Q.shape[1], device=Q.device)
        logits = logits / counts.clamp_min(1)[:, None]
    if labels is None:
        labels = torch.arange(len(Q), device=Q.device) * (D.dim() == 3)
    loss = functional.cross_entropy(logits, labels.long(), reduction="none")
    if teacher is not None:
        weight = options.get("teacher_weight", 1.0)
        student, target = logits.log_softmax(1), teacher.double().log_softmax(1)
        divergence = functional.kl_div(student, target, reduction="none", log_target=True).sum(1)
        loss = (1 - weight) * loss + weight * divergence
    return {"mean": loss.mean(), "sum": loss.sum(), "none": loss}[options.get("reduction", "mean")]


def with_gradients(loss, inputs: dict, **options) -> list[Tensor]:
    leaves = {k: inputs[k].detach().clone().requires_grad_() for k in ("Q", "D", "negatives") if k in inputs}
    value = loss(**(inputs | leaves), **options)
    weights = torch.linspace(0.5, 2, value.numel(), device=value.device).view(value.shape)
    return [value.detach(), *torch.autograd.grad((value * weights).sum(), tuple(leaves.values()))]


def check(maxsim, inputs: dict, limit: float = 1e-5, **options) -> list[Tensor]:
    max_bytes = options.pop("max_bytes")
    got = with_gradients(maxsim.contrastive_loss, inputs, max_bytes=max_bytes, **options)
    want = with_gradients(lambda **everything: composed(maxsim, **everything), inputs, **options)
    assert got[0].dtype is torch.float32
    for mine, exact in zip(got, want, strict=True):
        rounding = 0 if mine is got[0] else torch.finfo(mine.dtype).eps * exact.abs().max()
        assert (mine.double() - exact.double()).abs().max() <= limit * exact.abs().max() + rounding
    return got


OPTIONS = [
    {},
    {"temperature": 0.7, "reduction": "sum", "normalize": True},
    {"mean_over_tokens": True, "temperature": 0.05, "reduction": "none", "empty_score": -3.0},
    {"labels": [6, 0, 0, 3, 9]},
    {"teacher": True, "mean_over_tokens": True},
    {"teacher": True, "teacher_weight": 0.3, "labels": [1, 2, 9, 0, 5], "temperature": 3.0},
]


def filled_in(options: dict, candidates: int, device: str) -> dict:
    options = dict(options)
    if options.pop("teacher", False):
        options["teacher_scores"] = 3 * torch.randn(5, candidates, device=device)
    if "labels" in options:
        options["labels"] = torch.tensor(options["labels"], device=device, dtype=torch.int32)
    return options


@pytest.mark.kernels_ci
@pytest.mark.parametrize("max_bytes", PARTS)
@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options) or "plain")
def test_equals_torchs_losses(maxsim, path, options, own, max_bytes):
    inputs = batch(path.device, own)
    check(maxsim, inputs, max_bytes=max_bytes, **filled_in(options, 10, path.device))


@pytest.mark.parametrize("max_bytes", PARTS)
@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
def test_without_negatives_or_masks(maxsim, path, own, max_bytes):
    inputs = {name: x for name, x in batch(path.device, own).items() if name in ("Q", "D")}
    for options in OPTIONS[:3]:
        check(maxsim, inputs, max_bytes=max_bytes, **options)


@pytest.mark.parametrize("dtypes", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("max_bytes", PARTS)
def test_every_dtype(maxsim, path, dtypes, max_bytes):
    check(maxsim, batch(path.device, dtypes=dtypes), max_bytes=max_bytes, temperature=2.0)


@pytest.mark.parametrize("needed", ["Q", "D", "negatives"])
@pytest.mark.parametrize("max_bytes", PARTS)
def test_only_what_needs_a_gradient(maxsim, path, needed, max_bytes):
    inputs = batch(path.device)
    _, *everything = with_gradients(maxsim.contrastive_loss, inputs, max_bytes=max_bytes)
    want = dict(zip(("Q", "D", "negatives"), everything, strict=True))[needed]
    leaf = inputs[needed].clone().requires_grad_()
    loss = maxsim.contrastive_loss(**(inputs | {needed: leaf}), max_bytes=max_bytes)
    weights = torch.linspace(0.5, 2, 1, device=leaf.device)
    torch.testing.assert_close(torch.autograd.grad((loss * weights).sum(), leaf)[0], want)


def test_parts_hold_no_more_than_they_may(maxsim, path, monkeypatch):
    """Every part's scores and winners, whatever the numbers of queries and documents."""
    module = sys.modules[f"{maxsim.__name__}.blocked_loss"]
    held, run = [], module.run

    def counted(*arguments, **options):
        scores, argmax = run(*arguments, **options)
        held.append(scores.nbytes + (0 if argmax is None else argmax.nbytes))
        return scores, argmax

    monkeypatch.setattr(module, "run", counted)
    Q, D = torch.randn(37, 8, 16, device=path.device), torch.randn(53, 10, 16, device=path.device)
    largest = {}
    for max_bytes in (4000, 20_000, 1 << 30):
        held.clear()
        with_gradients(maxsim.contrastive_loss, {"Q": Q, "D": D}, max_bytes=max_bytes)
        largest[max_bytes] = max(held)
        assert max(held) <= max(max_bytes, 53 * (4 * 8 + 4))
    assert len(held) == 1  # one call where all of it fits
    assert largest[4000] < largest[20_000] < largest[1 << 30]


def test_bitwise_reproducible(maxsim, path):
    inputs = batch(path.device)
    for max_bytes in PARTS:
        runs = [with_gradients(maxsim.contrastive_loss, inputs, max_bytes=max_bytes, backward="lowmem") for _ in "abc"]
        assert all(torch.equal(a, b) for other in runs[1:] for a, b in zip(runs[0], other, strict=True))


def test_nan_reaches_its_own_queries_loss(maxsim, path):
    inputs = {name: x for name, x in batch(path.device).items() if name in ("Q", "D")}
    inputs["Q"][1, 2, 3] = torch.nan
    for max_bytes in PARTS:
        loss = maxsim.contrastive_loss(**inputs, reduction="none", max_bytes=max_bytes)
        assert loss.isnan().tolist() == [False, True, False, False, False]


@pytest.mark.parametrize("max_bytes", PARTS)
def test_minus_infinity_for_empty_documents(maxsim, path, max_bytes):
    """Candidates that do not exist: no probability, no gradient."""
    inputs = batch(path.device)
    labels = torch.tensor([0, 1, 3, 4, 5], device=path.device)
    inputs["d_mask"][labels] = True
    got = check(maxsim, inputs, labels=labels, empty_score=float("-inf"), max_bytes=max_bytes)
    assert all(x.isfinite().all() for x in got) and not got[2][2].any()


@pytest.mark.parametrize("max_bytes", PARTS)
def test_strided_and_expanded_inputs(maxsim, path, max_bytes):
    inputs = batch(path.device)
    Q = inputs["Q"].transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    D = inputs["D"][:1].clone().requires_grad_()
    masks = {"q_mask": inputs["q_mask"][0], "negatives_mask": inputs["negatives_mask"][:, :1].expand(-1, 3, -1)}
    inputs |= masks | {"Q": Q, "D": D.expand(7, 9, 16)}
    loss, exact = maxsim.contrastive_loss(**inputs, max_bytes=max_bytes), composed(maxsim, **inputs)
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=0)
    for mine, want in zip(torch.autograd.grad(loss, (Q, D)), torch.autograd.grad(exact, (Q, D)), strict=True):
        torch.testing.assert_close(mine, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("max_bytes", PARTS)
def test_gradient_accumulation_and_cached_gradients(maxsim, path, max_bytes):
    """GradCache: the loss of detached embeddings first, then the encoder a chunk at a time, equals one step."""
    texts = torch.randn(12, 5, 8, device=path.device)
    steps = []
    for cached in (False, True):
        torch.manual_seed(1)
        encoder = torch.nn.Linear(8, 16, device=path.device)
        if cached:
            with torch.no_grad():
                embeddings = torch.cat([encoder(chunk) for chunk in texts.split(5)])
            embeddings.requires_grad_()
            loss = maxsim.contrastive_loss(embeddings[:6], embeddings[6:], max_bytes=max_bytes)
            loss.backward()
            for chunk, gradient in zip(texts.split(5), embeddings.grad.split(5), strict=True):
                encoder(chunk).backward(gradient)  # accumulates
        else:
            embeddings = encoder(texts)
            loss = maxsim.contrastive_loss(embeddings[:6], embeddings[6:], max_bytes=max_bytes)
            loss.backward()
        steps.append((loss.detach(), encoder.weight.grad, encoder.bias.grad))
    for plain, chunked in zip(*steps, strict=True):
        torch.testing.assert_close(chunked, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("max_bytes", PARTS)
def test_autocast(maxsim, path, max_bytes):
    inputs = batch(path.device)
    halves = {name: x.bfloat16() if x.is_floating_point() else x for name, x in inputs.items()}
    want = with_gradients(maxsim.contrastive_loss, halves, max_bytes=max_bytes)
    for inside in (False, True):
        leaves = [inputs[name].clone().requires_grad_() for name in ("Q", "D", "negatives")]
        named = dict(zip(("Q", "D", "negatives"), leaves, strict=True))
        with torch.autocast(path.device, torch.bfloat16):
            loss = maxsim.contrastive_loss(**(inputs | named), max_bytes=max_bytes)
            if inside:
                gradients = torch.autograd.grad(loss * 0.5, leaves)
        if not inside:
            gradients = torch.autograd.grad(loss * 0.5, leaves)
        assert loss.dtype is torch.float32 and torch.equal(loss, want[0])
        for mine, half in zip(gradients, want[1:], strict=True):
            assert mine.dtype is torch.float32 and torch.equal(mine, half.float())


@pytest.mark.parametrize("max_bytes", PARTS)
def test_compiled(maxsim, path, max_bytes):
    """A whole graph, static and with dynamic shapes, and the bits of eager."""
    torch._dynamo.reset()
    options = {"temperature": 0.3, "mean_over_tokens": True, "max_bytes": max_bytes}
    for dynamic in (False, True):
        compiled = torch.compile(
            lambda **everything: maxsim.contrastive_loss(**everything),
            fullgraph=True,
            backend="aot_eager",
            dynamic=dynamic,
        )
        for size in (5, 4):
            inputs = {name: x[:size] if name != "D" else x for name, x in batch(path.device).items()}
            inputs["d_mask"] = batch(path.device)["d_mask"]
            eager = with_gradients(maxsim.contrastive_loss, inputs, **options)
            for mine, want in zip(with_gradients(compiled, inputs, **options), eager, strict=True):
                torch.testing.assert_close(mine, want, rtol=1e-6, atol=1e-7)


def test_ops_keep_torchs_contract(maxsim, monkeypatch):
    """opcheck, on the arguments that the loss in parts sends."""
    module = sys.modules[f"{maxsim.__name__}.blocked_loss"]
    sent = []
    for name in ("_forward", "_backward"):
        op = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *arguments, op=op: sent.append((op, arguments)) or op(*arguments))
    inputs = batch("cpu")
    teacher = torch.randn(5, 10)
    with_gradients(maxsim.contrastive_loss, inputs, max_bytes=1)
    with_gradients(maxsim.contrastive_loss, inputs, max_bytes=1, teacher_scores=teacher)
    assert len(sent) == 4
    for op, arguments in sent:
        utilities = ["test_schema", "test_faketensor", "test_autograd_registration", "test_aot_dispatch_dynamic"]
        detached = tuple(x.detach() if isinstance(x, Tensor) else x for x in arguments)
        torch.library.opcheck(op, detached, test_utils=utilities)


def test_transforms_take_the_loss_whole(maxsim, path):
    Q, D = torch.randn(3, 4, 8, device=path.device), torch.randn(3, 5, 8, device=path.device)
    got = torch.func.grad(lambda q: maxsim.contrastive_loss(q, D, max_bytes=1))(Q)
    want = with_gradients(maxsim.contrastive_loss, {"Q": Q, "D": D}, max_bytes=1)[1] / 0.5
    torch.testing.assert_close(got, want)


def test_no_queries(maxsim, path):
    D = torch.randn(3, 5, 8, device=path.device, requires_grad=True)
    for max_bytes in PARTS:
        loss = maxsim.contrastive_loss(D[:0], D, reduction="sum", max_bytes=max_bytes)
        assert loss.item() == 0
        assert not torch.autograd.grad(loss, D)[0].any()


def test_errors_name_the_argument(maxsim):
    Q, D, N = torch.randn(3, 4, 8), torch.randn(5, 6, 8), torch.randn(3, 2, 6, 8)
    labels = torch.tensor([0, 1, 2])
    for wrong, message in (
        ({"Q": Q[0]}, r"Q must be \[Nq, Lq, d\]; got shape \(4, 8\)"),
        ({"D": D[0]}, r"D must be \[Nd, Ld, d\] or \[Nq, K, Ld, d\]; got shape \(6, 8\)"),
        (
            {"D": D[:2]},
            "labels must be given where queries outnumber documents; got None for 3 queries and 2 documents",
        ),
        ({"D": D[:0], "labels": labels}, "at least one candidate"),
        ({"labels": torch.tensor([0, 1, 5])}, r"labels must be in \[0, 5\); got labels\[2\]=5"),
        ({"labels": labels[:2]}, r"labels must be \[Nq\] = \(3,\); got shape \(2,\)"),
        ({"negatives": D}, r"negatives must be \[Nq, K, Ln, d\]; got shape \(5, 6, 8\)"),
        ({"negatives": N[:2]}, r"negatives.shape\[0\] must equal Q.shape\[0\]; got 2 and 3"),
        ({"negatives": N[..., :4]}, r"Q and negatives must share the embedding dim"),
        ({"negatives_mask": torch.ones(3, 2, 6)}, "negatives_mask needs negatives; got None"),
        ({"negatives": N, "negatives_mask": torch.ones(3, 3, 6)}, r"negatives_mask must broadcast to .* \(3, 2, 6\)"),
        (
            {"teacher_scores": torch.ones(3, 4)},
            r"teacher_scores must be \[Nq, candidates\] = \(3, 5\); got .* \(3, 4\)",
        ),
        ({"teacher_scores": torch.ones(3, 5), "teacher_weight": 1.5}, r"teacher_weight must be in \[0, 1\]; got 1.5"),
        ({"temperature": 0.0}, "temperature must be positive and finite; got 0"),
        ({"reduction": "max"}, "reduction must be one of 'mean', 'sum', 'none'; got 'max'"),
        ({"backward": "fast"}, "backward must be one of"),
        ({"max_bytes": 0}, "max_bytes must be an int of at least 1; got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            maxsim.contrastive_loss(**({"Q": Q, "D": D} | wrong))
    with pytest.raises(TypeError, match="labels must be int32 or int64; got torch.float32"):
        maxsim.contrastive_loss(Q, D, labels=labels.float())
    with pytest.raises(TypeError, match="mean_over_tokens must be a bool; got int"):
        maxsim.contrastive_loss(Q, D, mean_over_tokens=1)
    with pytest.raises(RuntimeError, match="needs torch.distributed.init_process_group first"):
        maxsim.contrastive_loss(Q, D, group=object())
    with pytest.raises(ValueError, match="group needs D that all queries share"):
        maxsim.contrastive_loss(Q, N, group=object())


def test_labels_that_nobody_checked_spoil_their_own_loss_alone(maxsim, path, monkeypatch):
    """Where reading labels would mean waiting for a device; out of range they are no address."""
    monkeypatch.setattr(sys.modules[f"{maxsim.__name__}.checks"], "_readable", lambda *_: False)
    inputs = batch(path.device)
    for max_bytes in PARTS:
        labels = torch.tensor([0, -1, 2, 1 << 30, 4], device=path.device)
        inputs["Q"].requires_grad_()
        loss = maxsim.contrastive_loss(**inputs, labels=labels, reduction="none", max_bytes=max_bytes)
        assert loss.isnan().tolist() == [False, True, False, True, False]
        torch.autograd.grad(loss.sum(), inputs["Q"])
