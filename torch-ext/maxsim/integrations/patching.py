"""How a library's functions are replaced wherever they were imported, and given back.
A replacement gets the original, so that it can defer to it call by call."""

from __future__ import annotations

import importlib
import os
import sys
from importlib import metadata
from types import ModuleType
from typing import Callable, NamedTuple

import torch
from torch import Tensor

from .. import _kernels, checks

Substitute = Callable[[Callable], Callable]


class Target(NamedTuple):
    """What to replace: a function of the module that defines it, or a method of a class."""

    owner: ModuleType | type
    name: str
    substitute: Substitute


class Patch:
    """The replacements in one library, in place or not."""

    def __init__(self, distribution: str, tested: tuple[str, ...], targets: Callable[[], list[Target]]) -> None:
        self.distribution, self.tested, self.targets = distribution, tested, targets
        self.package = distribution.replace("-", "_")
        self.replaced: list[tuple[object, str, Callable, Callable]] = []

    def apply(self) -> None:
        """Replace, once.

        Raises:
            ImportError: the library is not installed.
            RuntimeError: its version is not among those that the replacements are tested with.
        """
        if self.replaced:
            return
        self._refuse_untested()
        importlib.import_module(self.package)
        for owner, name, substitute in self.targets():
            original = vars(owner)[name]
            replacement = substitute(original)
            self._set(owner, name, original, replacement)
            self.replaced.append((owner, name, original, replacement))

    def remove(self) -> None:
        """Put back what :meth:`apply` replaced."""
        while self.replaced:
            owner, name, original, replacement = self.replaced.pop()
            self._set(owner, name, replacement, original)

    def _set(self, owner: object, name: str, old: Callable, new: Callable) -> None:
        if isinstance(owner, type):
            setattr(owner, name, new)
        else:
            _rebind(self.package, old, new)

    def _refuse_untested(self) -> None:
        try:
            version = metadata.version(self.distribution)
        except metadata.PackageNotFoundError:
            raise ImportError(f"patch_{self.package}() needs {self.distribution}, which is not installed") from None
        if version not in self.tested:
            raise RuntimeError(
                f"patch_{self.package}() replaces internals of {self.distribution} and is tested with "
                f"{', '.join(self.tested)}; got {version}, which is left as it is"
            )


def ours(*tensors: object) -> bool:
    """Whether the kernel takes this call: not switched off, and tensors of its dtypes on one of its devices."""
    if os.environ.get("MAXSIM_DISABLE", "0") == "1":
        return False
    if not all(isinstance(tensor, Tensor) and tensor.dtype in checks.KERNEL_DTYPES for tensor in tensors):
        return False
    devices = {tensor.device for tensor in tensors}
    return len(devices) == 1 and serves(devices.pop())


def serves(device: str | torch.device) -> bool:
    """Whether there are kernels for ``device``."""
    return torch.device(device).type in _kernels.DEVICES


def _rebind(package: str, old: Callable, new: Callable) -> None:
    """Every name in the package's modules that is ``old``, imported or a default argument, becomes ``new``."""
    for name, module in list(sys.modules.items()):
        if name != package and not name.startswith(package + "."):
            continue
        for key, value in list(vars(module).items()):
            if value is old:
                setattr(module, key, new)
            elif isinstance(value, type) and value.__module__ == name:
                for member in vars(value).values():
                    defaults = getattr(member, "__defaults__", None)
                    if defaults and any(default is old for default in defaults):
                        member.__defaults__ = tuple(new if default is old else default for default in defaults)
