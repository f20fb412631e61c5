"""A Hugging Face Hub on loopback: kernel repositories in git, binary files in an LFS store, the HTTP API in front.
The clients in the tests are the released `huggingface_hub` and `kernels`, pointed here with `HF_ENDPOINT`."""

from hub.repository import Repository, kernel_files
from hub.server import Hub

__all__ = ["Hub", "Repository", "kernel_files"]
