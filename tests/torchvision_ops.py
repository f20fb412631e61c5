"""Lets torchvision be imported where its own library cannot be loaded: PyPI's x86 wheel is linked against CUDA.
colpali-engine imports it through transformers and calls none of its operators."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch

_declared: list[torch.library.Library] = []


def declare() -> None:
    """Declare the two operators that torchvision describes to the compiler, if it cannot define them itself."""
    if _declared:
        return
    (folder,) = find_spec("torchvision").submodule_search_locations
    try:
        torch.ops.load_library(str(Path(folder) / "_C.so"))
    except OSError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declared.append(library)
