"""MaxSim with a soft maximum, ``tau * logsumexp(s / tau)``, in place of the maximum: every document token has a share.
The backward pass computes the shares again from the logarithms that the forward pass saves, one float a query token."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import _kernels, autograd, checks, paths, reference
from ._ops import add_op_namespace_prefix, ops
from .dispatch import allow_tf32, autocast
from .problem import Problem, candidates, dense, scores_shape, unbatched
