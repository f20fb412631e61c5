"""Compressed documents on the GPU: PLAID residuals and fp8, of the kernel and of late-interaction-kernels."""

from __future__ import annotations

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

# Residuals are decompressed into float16. fp8 products are summed by the tensor cores in fewer bits than float32 has.
ALLOWED = {"plaid": 2 * torch.finfo(torch.float16).eps, "fp8": 5e-3}


def module_of(impl: str, name: str) -> ModuleType:
    return getattr(load_kernel(), name) if impl == "ours" else installed(f"late_interaction_kernels.{name}")


def timed(kind: str, call: Call, expected: Tensor, workload: Workload, floor: float) -> Row:
    error = error_of(call, (expected,), workload)
    if not error <= ALLOWED[kind]:
        raise Wrong(f"{error:.1e} off float64")
    ms = clock.device_ms(call)
    return {"ms": ms, "floor_ms": floor, "of_floor": floor / ms, "err": error, "peak_MiB": clock.peak_mib(call, ())}


def plaid(run: Run) -> None:
    for shape in filter(lambda shape: run.wants(shape.name), PLAID):
        index = plaid_index(shape, "cuda")
        expected = plaid_reference(shape, index)
        floor = run.floor_ms(index.nbytes, 0)
        for impl in ("ours", "lik"):
            if not run.results.find("plaid", shape.name, impl):
                run.attempt("plaid", shape.name, impl, partial(plaid_row, impl, shape, index, expected, floor))


def plaid_row(impl: str, shape: Plaid, index: PlaidIndex, expected: Tensor, floor: float) -> Row:
    module = module_of(impl, "plaid")

    def call() -> Tensor:
        return module.maxsim_residual_varlen(
            index.query,
            index.codes,
            index.residuals,
            index.offsets,
            centroids=index.centroids,
            bucket_weights=index.weights,
            nbits=shape.bits,
            max_seqlen_d=shape.document_tokens,
            normalize=True,
        )

    whole = Workload("plaid", shape.name, "varlen", 1, shape.documents, 32, shape.document_tokens)
    return timed("plaid", call, expected, whole, floor) | {"tokens": index.codes.numel()}


def fp8(run: Run) -> None:
    """Both sides quantised by the implementation's own function, so that both are held to their own numbers."""
    for workload in FORWARD:
        if workload.layout != "cross" or workload.dim % 16 or not run.wants(workload.name):
            continue
        missing = [impl for impl in ("ours", "lik") if not run.results.find("fp8", workload.name, impl)]
        inputs = make_inputs(workload, "cuda") if missing else None
        for impl in missing:
            run.attempt("fp8", workload.name, impl, partial(fp8_row, run, impl, inputs))


def fp8_row(run: Run, impl: str, inputs: Inputs) -> Row:
    module = module_of(impl, "fp8")
    sides = [module.quantize_fp8_per_token(x) for x in (inputs.queries, inputs.documents)]
    (queries, query_scales), (documents, document_scales) = sides
    expected = reference(Inputs(inputs.workload, *(x.double() * scale.double()[..., None] for x, scale in sides)))

    def call() -> Tensor:
        return module.maxsim_inference_fp8(queries, documents, scale_Q=query_scales, scale_D=document_scales)

    scales = query_scales.nbytes + document_scales.nbytes
    nbytes = queries.nbytes + documents.nbytes + scales + inputs.workload.count * 4
    return timed("fp8", call, expected[0], inputs.workload, run.floor_ms(nbytes, inputs.flops, speedup=2))
