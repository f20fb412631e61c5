"""Loads the kernel as users do, and runs a test that asks for `path` once on every compiled path of this machine."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from helpers import Path, load_kernel


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "path" in metafunc.fixturenames:
        metafunc.parametrize("path", load_kernel().paths.available(), indirect=True)


@pytest.fixture(scope="session")
def maxsim() -> ModuleType:
    return load_kernel()


@pytest.fixture(autouse=True)
def seed() -> None:
    """The same numbers on every run."""
    torch.manual_seed(0)


@pytest.fixture
def path(request: pytest.FixtureRequest, maxsim: ModuleType) -> Iterator[Path]:
    """The path under test, which every call inside the test takes."""
    with maxsim.paths.force(request.param):
        yield Path(request.param)
