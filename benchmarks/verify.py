"""What has to hold before anything is timed: how far a result may be from float64."""

from __future__ import annotations

import torch
from peers import Call
from torch import Tensor
from workloads import Workload


class Wrong(Exception):
    """The result is not what float64 says; says how far off it is."""


def error_of(call: Call, expected: tuple[Tensor, ...], workload: Workload) -> float:
    """The largest difference from float64 relative to the largest value, over all outputs.

    Of gradients it is the norm of the difference relative to the norm: where two document tokens are equally good, a
    winner of one's own moves a whole summand to another token.
    """
    got = call()
    got = got if isinstance(got, tuple) else (got,)
    order = 2 if workload.kind == "train" else float("inf")
    norm = torch.linalg.vector_norm
    errors = [
        norm(g.detach().double() - e, order) / norm(e.double(), order) for g, e in zip(got, expected, strict=True)
    ]
    return float(torch.stack(errors).max())


def rounds_similarities(name: str, workload: Workload) -> bool:
    """Eager torch rounds every similarity to the inputs' dtype, and has other winners for it."""
    return name not in ("ours", "lik", "flash") and workload.dtype is not torch.float32


def allowed_error(name: str, workload: Workload) -> float:
    """The kernel keeps float32 whatever the inputs. The grid's dot products are exact in float32; unit vectors' are
    rounded as the tensor cores round, which chop a little at each of d / 16 additions; fp32 operands are spared that.
    Gradients are in the inputs' dtype."""
    eps = torch.finfo(torch.float16 if workload.form == "tf32" else workload.dtype).eps  # TF32 has as many bits
    if name != "ours" or workload.form == "tf32":
        return max(1e-6, 2 * eps)
    if workload.kind == "train":
        return max(1e-6, eps)
    if workload.unit and workload.dtype is not torch.float32:
        return 2e-6 * max(1.0, workload.dim / 1024)
    return 2e-6 if workload.unit else 1e-6


def verified_error(name: str, call: Call, expected: tuple[Tensor, ...], workload: Workload) -> float:
    """The error, or `Wrong`."""
    error = error_of(call, expected, workload)
    if not error <= allowed_error(name, workload):  # a NaN is no result either
        raise Wrong(f"{error:.1e} off float64")
    return error
