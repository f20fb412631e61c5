"""The layers through `kernelize`, as a model's author and its user would: declared in the model, mapped, swapped in."""

from __future__ import annotations

import inspect

import pytest
import torch
from helpers import ROOT
from kernels import LocalLayerRepository, Mode, kernelize, use_kernel_forward_from_hub, use_kernel_mapping
from torch import Tensor, nn
from torch.nn.functional import normalize


def eager(Q: Tensor, D: Tensor, d_mask: Tensor | None) -> Tensor:
    similarities = torch.einsum("qid,cjd->qcij", Q, D)
    if d_mask is not None:
        similarities = similarities.masked_fill(~d_mask[None, :, None], -torch.inf)
    return similarities.amax(-1).sum(-1)


@use_kernel_forward_from_hub("MaxSim")
class MaxSim(nn.Module):
    def forward(self, Q: Tensor, D: Tensor, q_mask: Tensor | None = None, d_mask: Tensor | None = None) -> Tensor:
        return eager(Q, D, d_mask)


@use_kernel_forward_from_hub("NormalizedMaxSim")
class NormalizedMaxSim(nn.Module):
    def forward(self, Q: Tensor, D: Tensor, q_mask: Tensor | None = None, d_mask: Tensor | None = None) -> Tensor:
        return eager(normalize(Q, dim=-1), normalize(D, dim=-1), d_mask)


@use_kernel_forward_from_hub("MaxSimScorer")
class Scorer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.normalize, self.backward = True, "lowmem"

    def forward(self, Q: Tensor, D: Tensor, q_mask: Tensor | None = None, d_mask: Tensor | None = None) -> Tensor:
        return eager(normalize(Q, dim=-1), normalize(D, dim=-1), d_mask)


class Ranker(nn.Module):
    """A model that scores what its encoder makes of its inputs."""

    def __init__(self, score: nn.Module) -> None:
        super().__init__()
        self.encoder, self.score = nn.Linear(12, 8), score

    def forward(self, queries: Tensor, documents: Tensor, d_mask: Tensor) -> Tensor:
        return self.score(self.encoder(queries), self.encoder(documents), d_mask=d_mask)


MODES = [Mode.INFERENCE, Mode.TRAINING, Mode.TRAINING | Mode.TORCH_COMPILE]


@pytest.mark.parametrize("score", [MaxSim, NormalizedMaxSim, Scorer])
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_kernelize_swaps_the_layer_in(maxsim, score, mode):
    model = Ranker(score())
    inputs = (torch.randn(3, 5, 12), torch.randn(4, 7, 12), torch.rand(4, 7) > 0.2)
    want = model(*inputs)
    want.sum().backward()
    gradient = model.encoder.weight.grad.clone()
    name = "MaxSimScorer" if score is Scorer else score.__name__
    repository = LocalLayerRepository(ROOT, layer_name=name)  # LayerRepository ignores LOCAL_KERNELS
    with use_kernel_mapping({name: {"cpu": {mode: repository}}}):
        model = kernelize(model, mode=mode, device="cpu", use_fallback=False)
    assert model.score.forward.__func__ is getattr(maxsim.layers, name).forward
    model.encoder.weight.grad = None
    got = (torch.compile(model, fullgraph=True, backend="aot_eager") if Mode.TORCH_COMPILE in mode else model)(*inputs)
    torch.testing.assert_close(got, want)
    got.sum().backward()
    torch.testing.assert_close(model.encoder.weight.grad, gradient)


def test_the_layers_are_those_of_the_package(maxsim):
    found = {name for name, value in vars(maxsim.layers).items() if inspect.isclass(value) and value is not Tensor}
    assert found == {"MaxSim", "NormalizedMaxSim", "MaxSimScorer"}
    scorer = maxsim.MaxSimScorer
    assert inspect.signature(scorer.forward) == inspect.signature(maxsim.layers.MaxSimScorer.forward)
