"""Which compiled path runs a call, for tests and diagnosis.
Left alone, every call takes the best path that its device has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from . import _kernels

_NUMBERS = {
    "portable": 1,
    "avx2": 2,
    "avx512": 3,
    "avx512_bf16": 4,
    "neon": 5,
    "sm_fma": 16,
    "sm80": 17,
    "sm90": 18,
    "sm75": 19,
    "metal": 24,
}
_NAMES = {number: name for name, number in _NUMBERS.items()}

forced = 0  # read by every call; 0 lets the device choose


def available() -> list[str]:
    """The names of the paths that this machine can run."""
    mask = _kernels.available_paths()
    return [name for name, number in _NUMBERS.items() if mask >> number & 1]


def default(tensor: Tensor) -> str:
    """The path that a call on tensors of this dtype and device takes; ``"reference"`` on a device without kernels."""
    if tensor.device.type not in _kernels.DEVICES:
        return "reference"
    return _NAMES[_kernels.default_path(tensor)]


@contextmanager
def force(name: str) -> Iterator[None]:
    """Every call inside takes the path ``name``, on every thread of the process.

    Raises:
        ValueError: ``name`` is not among :func:`available`.
    """
    global forced
    names = available()
    if name not in names:
        raise ValueError(f"name must be one of {', '.join(map(repr, names))}; got {name!r}")
    before, forced = forced, _NUMBERS[name]
    try:
        yield
    finally:
        forced = before
