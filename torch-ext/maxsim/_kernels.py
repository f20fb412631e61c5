"""The compiled ops, resolved once, and the device types that they serve.
Tensors on any other device go to the torch reference."""

from __future__ import annotations

import torch

from ._ops import add_op_namespace_prefix, ops

forward = ops.forward.default
forward_plain = ops.forward_plain.default
call_plain = getattr(forward_plain, "_op", forward_plain)  # without a frame of Python, which a short call notices
forward_argmax = ops.forward_argmax.default
backward = ops.backward.default
quantised_forward = ops.quantised_forward.default
soft_forward = ops.soft_forward.default
soft_forward_parts = ops.soft_forward_parts.default
soft_backward = ops.soft_backward.default
hidden_forward = ops.hidden_forward.default
hidden_project = ops.hidden_project.default
hidden_chain = ops.hidden_chain.default
rank = ops.rank.default
unrank = ops.unrank.default
available_paths = ops.available_paths.default
default_path = ops.default_path.default


def _devices(op: str) -> frozenset[str]:
    return frozenset(
        device
        for device, key in (("cpu", "CPU"), ("cuda", "CUDA"), ("mps", "MPS"))
        if torch._C._dispatch_has_kernel_for_dispatch_key(add_op_namespace_prefix(op), key)
    )


DEVICES = _devices("forward")
HIDDEN_DEVICES = _devices("hidden_forward")
RANK_DEVICES = _devices("rank")
