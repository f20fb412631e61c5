# /// script
# requires-python = ">=3.11"
# dependencies = ["kernels==0.17.2", "numpy", "torch>=2.11"]
# ///
"""Loads the published kernel as a user does and compares its scores and gradients with plain torch in fp64.
Runs on a GPU after an upload; build.toml, which names the repository, lies beside this file or above it."""

import tomllib
from pathlib import Path

import torch
from kernels import get_kernel

HERE = Path(__file__).resolve().parent


def main() -> None:
    config = next(path for folder in (HERE, *HERE.parents) if (path := folder / "build.toml").is_file())
    general = tomllib.loads(config.read_text())["general"]
    kernel = get_kernel(general["hub"]["repo-id"], version=general["version"], trust_remote_code=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        queries = torch.randn(8, 32, 128).to(device, dtype).requires_grad_()
        documents = torch.randn(64, 300, 128).to(device, dtype).requires_grad_()
        scores = kernel.maxsim(queries, documents)
        exact_inputs = [tensor.detach().double().requires_grad_() for tensor in (queries, documents)]
        exact = torch.einsum("qid,njd->qnij", *exact_inputs).amax(-1).sum(-1)
        torch.testing.assert_close(scores.double(), exact, rtol=1e-5, atol=1e-3)
        weights = torch.randn_like(scores)
        gradients = torch.autograd.grad(scores, (queries, documents), weights)
        expected = torch.autograd.grad(exact, exact_inputs, weights.double())
        for gradient, reference in zip(gradients, expected, strict=True):
            torch.testing.assert_close(gradient.double(), reference, rtol=1e-2, atol=1e-2)
        print(f"{device} {dtype}: scores and gradients agree with fp64")


if __name__ == "__main__":
    main()
