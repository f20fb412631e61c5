"""Small problems that between them launch every CUDA kernel in every layout, for tests/gpu_sanitize.py, which looks at
accesses and at who was launched, not at results: those are the other tests' subject."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace

import helpers
import helpers_quantised as hq
import torch
from helpers import Batch, load_kernel
from random_problems import WORK, Problem
from test_plaid import Index
from torch import Tensor

maxsim = load_kernel()
ops = sys.modules[f"{maxsim.__name__}._ops"].ops
number_of = maxsim.paths._NUMBERS
DEVICE = "cuda"
HALVES = [torch.float16, torch.bfloat16]
# One block of query tokens to a document, a few, and more than any tile has; a query of several blocks.
QUERIES = [(1, 20), (3, 20), (9, 20), (2, 65)]
DOCUMENTS = [(7, 30), (4, 120)]  # whose lengths suit narrow and wide tiles
WHOLE = [(3, 224), (3, 256)]  # and the same, of which whole tiles are copied


def tensors(queries: tuple, documents: tuple, dim: int, dtypes: Iterable[torch.dtype]) -> list[Tensor]:
    sizes = (queries, documents)
    return [torch.randn(*n, dim, device=DEVICE).to(t) for n, t in zip(sizes, dtypes, strict=True)]


def score(path: str, problem: tuple, normalize: bool, width: int, tf32: bool = False) -> None:
    options = (normalize, 0.0, number_of[path], tf32)
    ops.forward(*problem, *options)
    ops.forward_argmax(*problem, *options, width, 0)


def exact(path: str, dims: list[int]) -> None:
    mixes = [(t, t) for t in (*HALVES, torch.float32)] + [(torch.float16, torch.float32)]
    for dtypes, dim, normalize in itertools.product(mixes, dims, (False, True)):
        for queries, documents in itertools.product(QUERIES, DOCUMENTS):
            q, d = tensors(queries, documents, dim, dtypes)
            score(path, (q, d, *[None] * 8), normalize, queries[1])
        ids = torch.randint(2, (11,), device=DEVICE)
        score(path, (q, d, *[None] * 6, ids, ids.int()), normalize, queries[1])
    for dim in dims:
        q, d = tensors((2, 33), (3, 40), dim, [torch.float32] * 2)
        score(path, (q, d, *[None] * 8), False, 33, tf32=True)


def offsets(count: int, tokens: int) -> Tensor:
    return torch.arange(count + 1, device=DEVICE) * tokens


def hopper() -> None:
    exact("sm90", [48, 128, 200])
    for dtype in HALVES:  # the widest tiles of long rows
        score("sm90", (*tensors((5, 40), (3, 300), 200, (dtype, dtype)), *[None] * 8), False, 40)
    for dtype, queries, (count, tokens) in itertools.product(HALVES, QUERIES, DOCUMENTS):
        q, d = tensors(queries, (count * tokens,), 128, (dtype, dtype))
        score("sm90", (q, d, None, offsets(count, tokens), *[None] * 6), False, queries[1])
    for dtype, queries, (count, tokens) in itertools.product(HALVES, QUERIES, WHOLE):
        for dim in (48, 96, 128):
            score("sm90", (*tensors(queries, (count, tokens), dim, (dtype, dtype)), *[None] * 8), False, queries[1])
        q, d = tensors(queries, (count, tokens), 128, (dtype, dtype))
        lengths, marks = torch.arange(count, device=DEVICE) * 110, torch.rand(d.shape[:2], device=DEVICE) < 0.9
        for kept in ((lengths, None, None), (None, None, marks), (lengths, None, marks)):
            score("sm90", (q, d, *[None] * 3, *kept, None, None), False, queries[1])
    for dtype, queries, normalize in itertools.product(HALVES, QUERIES, (False, True)):
        for dim in (100, 102, 127):  # rows at multiples of eight bytes, of four and of two
            q, d = tensors(queries, (4, 120), dim, (dtype, dtype))
            score("sm90", (q, d, *[None] * 8), normalize, queries[1])
        q, d = tensors(queries, (4, 120), 300, (dtype, dtype))  # and so far apart that each is copied alone
        score("sm90", (q[..., 1:101], d[..., 1:101], *[None] * 8), normalize, queries[1])
        score(
            "sm90",
            (q[..., 1:101], d.flatten(0, 1)[..., 1:101], None, offsets(4, 120), *[None] * 6),
            normalize,
            queries[1],
        )
    for queries, dim, normalize in itertools.product(QUERIES, (48, 128), (False, True)):  # the wider split tiles
        score("sm90", (*tensors(queries, (5, 90), dim, [torch.float32] * 2), *[None] * 8), normalize, queries[1])
    alike = [(t, t) for t in (*HALVES, torch.float32)]
    loose = [(kind, 333) for kind in (*alike, (torch.float32, torch.float16))] + [((torch.float32,) * 2, 127)]
    for (kind, dim), queries, normalize in itertools.product(loose, QUERIES, (False, True)):  # rows from anywhere
        q, d = tensors(queries, (4, 120), dim, kind)
        marks, lengths = torch.rand(4, 120, device=DEVICE) < 0.7, torch.arange(4, device=DEVICE) * 40
        score("sm90", (q, d, *[None] * 3, lengths, None, marks, None, None), normalize, queries[1])
        score("sm90", (q[..., ::2], d[..., ::2], *[None] * 8), normalize, queries[1])
        d = d.permute(2, 0, 1).contiguous().permute(1, 2, 0)
        score("sm90", (q, d, *[None] * 8), normalize, queries[1])
    for dtype in HALVES:
        lengths = torch.arange(800, device=DEVICE) % 7  # several for a thread block, and two too long for one
        lengths[[5, 300]] = 3000
        q, d = tensors((1, 20), (int(lengths.sum()),), 128, (dtype, dtype))
        score("sm90", (q, d, None, torch.nn.functional.pad(lengths.cumsum(0), (1, 0)), *[None] * 6), False, 20)
        lengths = torch.arange(90, device=DEVICE) * 37 % 211  # and documents that share tiles, with one end or several
        lengths[40:60] %= 9
        q, d = tensors((9, 32), (int(lengths.sum()),), 128, (dtype, dtype))
        ends = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
        score("sm90", (q.flatten(0, 1), d, offsets(9, 32), ends, *[None] * 6), False, 32)
    # So many documents that starting up no longer counts.
    count = 32 * torch.cuda.get_device_properties(DEVICE).multi_processor_count + 1
    options = (False, 0.0, number_of["sm90"], False)
    for dtype in HALVES:
        q, d = tensors((1, 8), (count, 3), 128, (dtype, dtype))
        ops.forward(q, d, *[None] * 8, *options)
        ops.forward(q, d.flatten(0, 1), None, offsets(count, 3), *[None] * 6, *options)
        for dim in (96, 128):
            q, d = torch.randn(1, 8, dim, device=DEVICE).to(dtype), torch.zeros(104, dim, dtype=dtype, device=DEVICE)
            ops.forward(q, d.expand(count, 104, dim), *[None] * 8, *options)
        lengths = torch.arange(count, device=DEVICE) % 100
        ops.forward(q, d.expand(count, 104, 128), *[None] * 3, lengths, *[None] * 4, *options)


def others() -> None:
    for path in {"sm75", "sm80"} & set(maxsim.paths.available()):
        exact(path, [48, 128, 200])
        for dtype, dim, tokens in itertools.product(HALVES, (40, 128), (65, 340)):  # each query has its own documents
            q, d = tensors((5, 20), (5 * 60, tokens), dim, (dtype, dtype))
            score(path, (q, d.unflatten(0, (5, 60)), *[None] * 8), False, 20)
        for dtype, dim, queries in itertools.product(HALVES, (40, 128), ((3, 60), (2, 120), (1, 250))):
            for documents, tokens in ((900, 70), (300, 340)):  # several for a thread block, and several tiles
                q, d = tensors(queries, (documents, tokens), dim, (dtype, dtype))
                d = d.unflatten(0, (queries[0], -1))
                lengths = (torch.arange(documents, device=DEVICE) % tokens).view(d.shape[:2])
                marks = torch.rand(d.shape[:3], device=DEVICE) < 0.9
                for kept, normalize in itertools.product(((None, None), (lengths, marks)), (False, True)):
                    problem = (q, d, *[None] * 3, kept[0], None, kept[1], None, None)
                    ops.forward(*problem, normalize, 0.0, number_of[path], False)
    exact("sm_fma", [48])


def anywhere() -> None:
    """What nobody thought of: odd sizes, every layout, masks, strides, metadata out of range, winners out of range."""
    WORK[DEVICE] = (1 << 22, 1 << 18)
    generator = torch.Generator(DEVICE)
    for path in maxsim.paths.available():
        if not path.startswith("sm"):
            continue
        for number in range(30):
            p = Problem(path, number, DEVICE, generator)
            for layout in (p.first, p.second):
                score(path, layout.arguments, p.normalize, layout.width)
                shape = ops.forward(*layout.arguments, p.normalize, 0.0, number_of[path], False).shape
                spoiled = torch.randint(-3, 1 << 20, (*shape, layout.width), device=DEVICE, dtype=torch.int32)
                for winners in (spoiled, spoiled % 7):
                    ones = torch.ones(shape, device=DEVICE)
                    ops.backward(ones, winners, *layout.arguments, p.normalize, True, True, 0, number_of[path])


def quantised() -> None:
    for path in maxsim.paths.available():
        if not path.startswith("sm"):
            continue
        with maxsim.paths.force(path):
            for name in hq.FORMATS:
                ragged = Batch.random([9, 0, 33], [21, 1, 0, 140, 5, 33], 48, device=DEVICE)
                sides = hq.quantise(maxsim, name, ragged)
                for layout in hq.LAYOUTS:
                    stored(layout(sides, DEVICE))
                shapes = itertools.product([*QUERIES, (1, 40)], DOCUMENTS, (48, 128))
                for (count, length), (documents, tokens), dim in shapes:
                    batch = Batch.random([length] * count, [tokens] * documents, dim, device=DEVICE)
                    if path != "sm_fma":
                        stored(hq.cross_lengths(hq.quantise(maxsim, name, batch), DEVICE))
    # Both sides of eight bits, under one scale and one for each token.
    kinds = (torch.float8_e4m3fn, torch.float8_e5m2, torch.int8)
    for dtype, dim, queries, documents in itertools.product(kinds, (48, 64, 128), QUERIES, DOCUMENTS):
        values = [x.mul(8).to(dtype) for x in tensors(queries, documents, dim, [torch.float32] * 2)]
        for of_token in (False, True):
            scales = [torch.ones(x.shape[:-1] if of_token else (), device=DEVICE) for x in values]
            sides = [maxsim.quantised.Quantised(*side) for side in zip(values, scales, strict=True)]
            maxsim.quantised.score(*sides)
            maxsim.quantised.score_with_argmax(*sides)


def unmapped() -> None:
    """On Hopper: rows that no tensor map describes, and no memory behind the last of them."""
    exact("sm90", [101])
    with maxsim.paths.force("sm90"):
        for name, dim in itertools.product(hq.FORMATS, (50, 101)):
            for queries, documents in (([9, 0, 33], [21, 1, 0, 140, 5, 33]), ([20] * 9, [30] * 7)):
                sides = hq.quantise(maxsim, name, Batch.random(queries, documents, dim, device=DEVICE))
                for layout in (hq.cross_lengths, hq.varlen):
                    stored(layout(sides, DEVICE))


def stored(laid: hq.Laid) -> None:
    maxsim.quantised.score(*laid.sides, **laid.options)
    maxsim.quantised.score_with_argmax(*laid.sides, **laid.options)


def learnt(call: Callable[..., Tensor], *inputs: Tensor) -> None:
    leaves = [x.detach().nan_to_num().requires_grad_() for x in inputs]
    call(*leaves).square().sum().backward()


def learning() -> None:
    mixes = [(t, t) for t in (*HALVES, torch.float32)] + [(torch.float16, torch.float32)]
    for dtypes in mixes:
        for layout, dim in itertools.product(helpers.LAYOUTS, (31, 64)):
            laid = layout(maxsim, helpers.ragged(layout, dim, dtypes, DEVICE))
            learnt(lambda q, d, laid=laid: laid.score(q, d, normalize=True), laid.queries, laid.documents)
        # Queries that win few tokens a slice has room for, and one token that wins more than fit.
        for queries, documents in (((40, 130), (3, 70)), ((40, 260), (2, 1))):
            learnt(maxsim.maxsim, *tensors(queries, documents, 128, dtypes))
        learnt(maxsim.contrastive_loss, *tensors((4, 20), (4, 30), 64, dtypes))
        blocked = {"max_bytes": 1, "normalize": True}
        learnt(lambda q, d, o=blocked: maxsim.contrastive_loss(q, d, **o), *tensors((4, 20), (4, 30), 64, dtypes))


def softly() -> None:
    mixes = [(t, t) for t in (*HALVES, torch.float32)] + [(torch.float16, torch.float32)]
    for path in maxsim.paths.available():
        if not path.startswith("sm"):
            continue
        with maxsim.paths.force(path):
            shapes = [((2, 20), (3, 30)), ((3, 70), (3, 4, 100)), ((1, 20), (1, 30))]
            for dtypes, (queries, documents), dim in itertools.product(mixes, shapes, (31, 128)):
                for normalize in (False, True):
                    q, d = tensors(queries, documents, dim, dtypes)
                    learnt(lambda q, d, n=normalize: maxsim.soft_maxsim(q, d, tau=0.1, normalize=n), q, d)
                    with torch.no_grad():
                        maxsim.soft_maxsim(q, d)


def compressed() -> None:
    for path in maxsim.paths.available():
        if not path.startswith("sm"):
            continue
        with maxsim.paths.force(path):
            dtypes = (*HALVES, torch.float32)
            kinds = list(itertools.product((1, 2, 4, 8), (128, 64, 36), dtypes, [(1, 20), (5, 32)]))
            kinds += itertools.product((4,), (128,), dtypes, [(2, 70), (9, 16)])
            for nbits, dim, dtype, queries in kinds if path != "sm_fma" else kinds[:2]:
                index = Index.random(nbits, dim, dtype, DEVICE, queries=queries)
                for mode in ("", "_with_argmax"):
                    getattr(maxsim.plaid, f"maxsim_residual{mode}")(index.queries, *index.padded)
                    getattr(maxsim.plaid, f"maxsim_residual_varlen{mode}")(index.queries, *index.packed)
                codes, *others = index.packed
                for integers in (torch.int16, torch.int32, torch.int64):
                    maxsim.plaid.maxsim_residual_varlen(index.queries, codes.to(integers), *others)
                prepared = maxsim.plaid.prepare_index(*index.packed)
                for some in (index.queries, index.queries[:1]):
                    prepared.score(some)
                for integers in (torch.int32, torch.int64):
                    replace(prepared, codes=prepared.codes.to(integers)).score(index.queries[:1])
            index.codes[0, 0], index.codes[1, 0] = -5, 2**40
            maxsim.plaid.maxsim_residual(index.queries, *index.padded)
            learnt(lambda q, index=index: maxsim.plaid.maxsim_residual(q, *index.padded), index.queries)
            for width in (1, 7, 32, 50):
                table = torch.randn(40, width, device=DEVICE)
                maxsim.plaid.plaid_approx_score(table, index.codes.int(), index.lengths)
                long = torch.randint(40, (5, 150), device=DEVICE)
                maxsim.plaid.plaid_approx_score(table, long.int(), torch.full((5,), 150, device=DEVICE))


def hidden() -> None:
    if "sm90" not in maxsim.paths.available():
        return
    shapes = [((2, 32), (5, 77)), ((1, 129), (9, 257)), ((9, 32), (20, 130))]  # kept whole, by one token not, in parts
    for dtype, (queries, documents), dim in itertools.product(HALVES, shapes, (64, 128)):
        Q, H = tensors(queries, documents, dim, (dtype, dtype))[0], torch.randn(*documents, 200, device=DEVICE)
        W, b = torch.randn(dim, 200, device=DEVICE).to(dtype), torch.randn(dim, device=DEVICE).to(dtype)
        mask = torch.rand(documents, device=DEVICE) > 0.3
        for normalize, kept in itertools.product((False, True), (None, mask)):
            inputs = (Q, H.to(dtype), W, b)
            maxsim.fused_head.maxsim_from_hidden(*inputs, kept, normalize)
            learnt(lambda *x, m=kept, n=normalize: maxsim.fused_head.maxsim_from_hidden(*x, m, n), *inputs)


def searching() -> None:
    Q, D = tensors((3, 8), (9000, 4), 16, [torch.bfloat16] * 2)
    for k, largest in itertools.product((1, 10, 100, 2500), (True, False)):
        maxsim.retrieve(Q, D, k, chunk=4100, largest=largest)
    for nbits, width in ((2, 32), (4, 7)):
        index = Index.random(nbits, 128, torch.float16, DEVICE, (2, width), tuple(range(60)))
        maxsim.plaid.prepare_index(*index.packed).search(index.queries, 5, n_full_scores=80, n_ivf_probe=3)
    # Similarities that torch computed, and more candidates than a block ranks.
    index = Index.random(2, 64, torch.float16, DEVICE, (2, 32), (1,) * 9000)
    maxsim.plaid.prepare_index(*index.packed).search(index.queries, 5, n_full_scores=8000, n_ivf_probe=3)
    for k in (100, 2048):  # so many scores that what slices keep is sliced again
        ranking = sys.modules[f"{maxsim.__name__}.ranking"]
        best = ranking.Ranking(k)
        best.add(torch.randn(2, 150_000, device=DEVICE), 7)
        best.result()
        ranking.merged(torch.stack([best.keys] * 3), k, True)  # as of several ranks


FAMILIES: dict[str, Callable[[], None]] = {
    f.__name__: f
    for f in (hopper, others, anywhere, unmapped, quantised, learning, softly, compressed, hidden, searching)
}
