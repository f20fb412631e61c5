"""Writes the tables and pictures of the documents from benchmarks/results/, tables between their markers.
No figure is typed by hand; `python benchmarks/table.py` rewrites them all. What was not measured yet says so."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import cpu_table
import distributed_table
import fidelity_table
import gpu_table
import integrations_table
import plot
import search_table
import train_table
from results import Row

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
CPU_RESULTS, GPU_RESULTS, LADDER_RESULTS, TRAIN_RESULTS, FIDELITY_RESULTS, INTEGRATION_RESULTS = (
    RESULTS / f"{name}.json" for name in ("cpu", "h200", "ladder", "train_example", "fidelity", "integrations")
)

TRAIN_GPU_RESULTS, DISTRIBUTED_RESULTS, BUILD_RESULTS, SEARCH_RESULTS = (
    RESULTS / f"{name}.json" for name in ("train_example_h200", "distributed", "build", "search")
)

# Document, name of the markers in it, results, what makes the text between the markers, and pictures below it.
TABLES: list[tuple[Path, str, Path, Callable[[Row], str], list[str]]] = [
    (ROOT / "README.md", "cpu-summary", CPU_RESULTS, cpu_table.summary, []),
    (ROOT / "docs" / "benchmarks.md", "cpu-rows", CPU_RESULTS, cpu_table.every_row, []),
    (ROOT / "README.md", "h200-summary", GPU_RESULTS, gpu_table.summary, []),
    (
        ROOT / "docs" / "benchmarks.md",
        "h200-rows",
        GPU_RESULTS,
        gpu_table.every_row,
        ["h200-forward", "h200-train", "h200-stored"],
    ),
    (ROOT / "docs" / "benchmarks.md", "integrations", INTEGRATION_RESULTS, integrations_table.every_section, []),
    (ROOT / "docs" / "tasks" / "train.md", "train-example", TRAIN_RESULTS, train_table.training, []),
    (ROOT / "docs" / "tasks" / "train.md", "train-example-h200", TRAIN_GPU_RESULTS, train_table.training, []),
    (ROOT / "docs" / "tasks" / "several_gpus.md", "distributed", DISTRIBUTED_RESULTS, distributed_table.every_row, []),
    (ROOT / "docs" / "tasks" / "several_gpus.md", "billion", GPU_RESULTS, distributed_table.plan, []),
    (ROOT / "docs" / "tasks" / "several_gpus.md", "streamed", INTEGRATION_RESULTS, distributed_table.streamed, []),
    (ROOT / "docs" / "proving.md", "build", BUILD_RESULTS, distributed_table.build, []),
    (ROOT / "docs" / "tasks" / "compressed.md", "search", SEARCH_RESULTS, search_table.every_row, []),
    (ROOT / "docs" / "ladder.md", "ladder", LADDER_RESULTS, gpu_table.ladder, ["ladder"]),
    (ROOT / "docs" / "quantised.md", "fidelity", FIDELITY_RESULTS, fidelity_table.every_row, ["fidelity"]),
]
PICTURES: dict[str, tuple[Path, Callable[[Row], object]]] = {
    "h200-forward": (GPU_RESULTS, plot.forward),
    "h200-train": (GPU_RESULTS, plot.train),
    "h200-stored": (GPU_RESULTS, plot.stored),
    "ladder": (LADDER_RESULTS, plot.ladder),
    "train-example": (TRAIN_RESULTS, plot.training),
    "fidelity": (FIDELITY_RESULTS, plot.fidelity),
}


def picture_path(name: str) -> Path:
    return ROOT / "docs" / "images" / f"{name}.svg"


def content(results: Path, make: Callable[[Row], str], pictures: list[str]) -> str:
    if not results.exists():
        return "Not measured yet."
    shown = [f"![{name}](images/{name}.svg)" for name in pictures]
    return "\n\n".join([*shown, make(json.loads(results.read_text()))])


def filled(text: str, marker: str, table: str) -> str:
    """`text` with `table` between the two comments that name `marker`."""
    between = re.compile(rf"(<!-- {marker} -->\n).*?(<!-- end of {marker} -->)", re.DOTALL)
    out, found = between.subn(lambda match: f"{match[1]}\n{table}\n\n{match[2]}", text)
    if found != 1:
        raise ValueError(f"{found} places are marked {marker}")
    return out


def update() -> None:
    for document, marker, results, make, pictures in TABLES:
        text = document.read_text()
        document.write_text(filled(text, marker, content(results, make, pictures)))
    for name, (results, draw) in PICTURES.items():
        if results.exists():
            plot.save(draw(json.loads(results.read_text())), picture_path(name), plot.digest(results))
        else:
            print(f"{picture_path(name).relative_to(ROOT)}: skipped, {results.relative_to(ROOT)} does not exist")


if __name__ == "__main__":
    update()
