"""Compressed documents on the GPU, of the kernel and of the peers that have the format: PLAID residuals and fp8 of
late-interaction-kernels, int8 of flash-maxsim, signs of neither."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING

import gpu_clock as clock
import torch
from gpu_peers import installed
from gpu_workloads import FORWARD, PLAID, Plaid, PlaidIndex, plaid_index, plaid_reference
from peers import Call, load_kernel
from torch import Tensor
from verify import Wrong, error_of
from workloads import Inputs, Workload, make_inputs, reference

if TYPE_CHECKING:
    from gpu import Run
    from results import Row

# Residuals are decompressed into float16; approximate scores are looked up in float32. fp8 products are summed by the
# tensor cores in fewer bits than float32 has. flash-maxsim multiplies int8 documents as float16.
ALLOWED = {
    **dict.fromkeys(("plaid", "plaid-batch8", "plaid-prepared"), 2 * torch.finfo(torch.float16).eps),
    "plaid-approx": 1e-5,
    "fp8": 5e-3,
    "int8": 5e-3,
    "binary": 1e-5,
}


def module_of(impl: str, name: str) -> ModuleType:
    return getattr(load_kernel(), name) if impl == "ours" else installed(f"late_interaction_kernels.{name}")


BATCH = 8  # queries that share what is decompressed


def timed(kind: str, call: Call, expected: Tensor, workload: Workload, floor: float) -> Row:
    error = error_of(call, (expected,), workload)
    if not error <= ALLOWED[kind]:
        raise Wrong(f"{error:.1e} off float64")
    ms = clock.device_ms(call)
    return {"ms": ms, "floor_ms": floor, "of_floor": floor / ms, "err": error, "peak_MiB": clock.peak_mib(call, ())}


def plaid(run: Run) -> None:
    """From the plain index, from a prepared one, for eight queries at once, and by centroids alone.

    The floor is the index's bytes; the rows of centroids, and of their scores, come from L2 on top.
    """
    for shape in filter(lambda shape: run.wants(shape.name), PLAID):
        index = plaid_index(shape, "cuda")
        expected = plaid_reference(shape, index)
        plain, codes = run.floor_ms(index.nbytes, 0), run.floor_ms(index.codes.nbytes, 0)
        for kind, impls, calls, want, floor in (
            ("plaid", ("ours", "lik"), plain_call, expected, plain),
            ("plaid-batch8", ("ours", "lik"), batch_call, expected.expand(BATCH, -1), plain),
            ("plaid-prepared", ("ours",), prepared_call, expected, plain),
            ("plaid-approx", ("ours", "lik"), approx_call, approx_reference(index), codes),
        ):
            for impl in impls:
                if not run.results.find(kind, shape.name, impl):
                    measure = partial(plaid_row, kind, calls, impl, shape, index, want, floor)
                    run.attempt(kind, shape.name, impl, measure)


def plaid_row(
    kind: str,
    calls: Callable[[ModuleType, Plaid, PlaidIndex], Call],
    impl: str,
    shape: Plaid,
    index: PlaidIndex,
    expected: Tensor,
    floor: float,
) -> Row:
    whole = Workload("plaid", shape.name, "varlen", len(expected), shape.documents, 32, shape.document_tokens)
    call = calls(module_of(impl, "plaid"), shape, index)
    return timed(kind, call, expected, whole, floor) | {"tokens": index.codes.numel()}


def plain_call(module: ModuleType, shape: Plaid, index: PlaidIndex, queries: Tensor | None = None) -> Call:
    return lambda: module.maxsim_residual_varlen(
        index.query if queries is None else queries,
        index.codes,
        index.residuals,
        index.offsets,
        centroids=index.centroids,
        bucket_weights=index.weights,
        nbits=shape.bits,
        max_seqlen_d=shape.document_tokens,
        normalize=True,
    )


def batch_call(module: ModuleType, shape: Plaid, index: PlaidIndex) -> Call:
    return plain_call(module, shape, index, index.query.repeat(BATCH, 1, 1))


def prepared_call(module: ModuleType, shape: Plaid, index: PlaidIndex) -> Call:
    prepared = module.prepare_index(
        index.codes, index.residuals, index.offsets, index.centroids, index.weights, shape.bits
    )
    return lambda: prepared.score(index.query)


def approx_call(module: ModuleType, shape: Plaid, index: PlaidIndex) -> Call:
    kept = torch.arange(shape.document_tokens, device=index.codes.device) < index.lengths[:, None]
    codes = torch.zeros(kept.shape, dtype=torch.int32, device=kept.device)
    codes[kept] = index.codes
    table = centroid_scores(index)
    return lambda: module.plaid_approx_score(table, codes, index.lengths)[None]


def centroid_scores(index: PlaidIndex) -> Tensor:
    return index.centroids.float() @ index.query[0].float().T


def approx_reference(index: PlaidIndex) -> Tensor:
    rows = centroid_scores(index).double()[index.codes]
    return torch.segment_reduce(rows, "max", lengths=index.lengths).sum(-1)[None]


def fp8(run: Run) -> None:
    """Both sides quantised by the implementation's own function, so that both are held to their own numbers: with a
    scale for each token, and with one for all."""
    for workload in _plain_cross(run):
        forms = {impl: partial(fp8_row, run, impl, "token") for impl in ("ours", "lik")}
        forms |= {f"{impl}, one scale": partial(fp8_row, run, impl, "tensor") for impl in ("ours", "lik")}
        _attempt(run, "fp8", workload, forms)


def fp8_row(run: Run, impl: str, scales_of: str, inputs: Inputs) -> Row:
    module = module_of(impl, "fp8")
    quantise = getattr(module, f"quantize_fp8_per_{scales_of}")
    sides = [quantise(x) for x in (inputs.queries, inputs.documents)]
    (queries, query_scales), (documents, document_scales) = sides
    expected = reference(Inputs(inputs.workload, *(x.double() * scale.double()[..., None] for x, scale in sides)))

    def call() -> Tensor:
        return module.maxsim_inference_fp8(queries, documents, scale_Q=query_scales, scale_D=document_scales)

    scales = query_scales.nbytes + document_scales.nbytes
    nbytes = queries.nbytes + documents.nbytes + scales + inputs.workload.count * 4
    return timed("fp8", call, expected[0], inputs.workload, run.floor_ms(nbytes, inputs.flops, speedup=2))


def _plain_cross(run: Run) -> list[Workload]:
    return [w for w in FORWARD if w.layout == "cross" and w.dim % 16 == 0 and run.wants(w.name)]


def _attempt(run: Run, kind: str, workload: Workload, forms: dict[str, Callable[[Inputs], Row]]) -> None:
    missing = {impl: form for impl, form in forms.items() if not run.results.find(kind, workload.name, impl)}
    inputs = make_inputs(workload, "cuda") if missing else None
    for impl, form in missing.items():
        run.attempt(kind, workload.name, impl, partial(form, inputs))


def _stored_row(run: Run, kind: str, call: Call, sides: list[Tensor], factors: list[Tensor], inputs: Inputs) -> Row:
    """`sides` are what the scores are of, `factors` all tensors that a call reads."""
    (expected, *_) = reference(Inputs(inputs.workload, *sides))
    nbytes = sum(tensor.nbytes for tensor in factors) + inputs.workload.count * 4
    return timed(kind, call, expected, inputs.workload, run.floor_ms(nbytes, inputs.flops, speedup=2))


def int8(run: Run) -> None:
    """Three forms of documents: affine and symmetric under a bfloat16 query, and both sides symmetric."""
    for workload in _plain_cross(run):
        impls = ("ours", "flash") if workload.queries == 1 else ("ours",)  # flash-maxsim takes one query
        forms = {
            f"{impl}, {form}": partial(_int8_row, run, impl, form)
            for impl in impls
            for form in ("affine", "symmetric", "8x8")
        }
        _attempt(run, "int8", workload, forms)


def _int8_row(run: Run, impl: str, form: str, inputs: Inputs) -> Row:
    module = load_kernel().int8 if impl == "ours" else installed("flash_maxsim")
    queries, documents = inputs.queries, inputs.documents
    one = queries[0] if inputs.workload.queries == 1 else queries

    def kept(factor: Tensor) -> Tensor:
        """As an index would keep it: ours are read in place in float32, flash-maxsim's in float16."""
        return factor.float() if impl == "ours" else factor

    if form == "affine":
        values, *factors = module.quantize_int8(documents)
        scales, minima = map(kept, factors)
        sides = [queries.double(), values.double() * scales.double() + minima.double()]
        factors = [queries, values, scales, minima]

        def call() -> Tensor:
            return module.flash_maxsim_int8(one, values, scales, minima).view(len(queries), -1)

    elif form == "symmetric":
        values, scales = module.quantize_int8_symmetric(documents)
        scales = kept(scales)
        sides = [queries.double(), values.double() * scales.double()]
        factors = [queries, values, scales]

        def call() -> Tensor:
            return module.flash_maxsim_int8_symmetric(one, values, scales).view(len(queries), -1)

    else:
        values, scales = module.quantize_int8_symmetric(documents)
        scales = kept(scales)
        stored, query_scales = module.quantize_query_int8(one)
        query_scales = kept(query_scales)
        wide = stored.double() * query_scales.double()[..., None]
        sides = [wide.view(queries.shape), values.double() * scales.double()]
        factors = [stored, query_scales, values, scales]

        def call() -> Tensor:
            return module.flash_maxsim_int8x8(one, values, scales, stored, query_scales).view(len(queries), -1)

    return _stored_row(run, "int8", call, sides, factors, inputs)


def binary(run: Run) -> None:
    """One bit a feature, under bfloat16 queries and under queries of one bit."""
    module = load_kernel().binary
    for workload in _plain_cross(run):
        forms = {f"ours, {form}": partial(_binary_row, run, module, form) for form in ("asymmetric", "hamming")}
        _attempt(run, "binary", workload, forms)


def _binary_row(run: Run, module: ModuleType, form: str, inputs: Inputs) -> Row:
    queries, bits = inputs.queries, module.pack_bits(inputs.documents)
    signs = module.unpack_bits(bits).double()
    if form == "asymmetric":
        return _stored_row(
            run,
            "binary",
            lambda: module.maxsim_binary(queries, bits),
            [queries.double(), signs],
            [queries, bits],
            inputs,
        )
    query_bits = module.pack_bits(queries)
    sides = [module.unpack_bits(query_bits).double(), signs]
    return _stored_row(
        run, "binary", lambda: module.maxsim_hamming(query_bits, bits), sides, [query_bits, bits], inputs
    )
