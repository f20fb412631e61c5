"""Lets torchvision be imported where its own library cannot be loaded: PyPI's x86 wheel is linked against CUDA.
colpali-engine imports it through transformers and calls none of its operators."""

from __future__ import annotations

import torch

_declared: list[torch.library.Library] = []


def declare() -> None:
    """Declare the two operators that torchvision describes to the compiler, if nobody has."""
    if _declared or torch.cuda.is_available():
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(library)
