"""Rows of figures on their way to a file under benchmarks/results/: each is there as soon as it is measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def printed(row: Row) -> None:
    figures = (f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}" for key, value in row.items())
    print("  ".join(figures), flush=True)


def write(content: Row, output: Path) -> None:
    """All of it or nothing: whoever reads `output` never sees a part."""
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    partial.replace(output)


class Results:
    """A header that says where the rows were made, and the rows: `kind`, `name`, `impl` and what was measured.

    A run that was cut off goes on where it stopped: rows that are in `output` already, under the same machine, are
    not measured again unless they failed.
    """

    def __init__(self, machine: Row, output: Path | None):
        self.output = output
        self.content: Row = machine | {"rows": []}
        if output is not None and output.exists():
            self.content = json.loads(output.read_text())
            before = {key: self.content.get(key) for key in machine}
            if before != machine:
                raise SystemExit(f"{output} was made by {before}, not by {machine}: move it away")
            self.content["rows"] = [row for row in self.rows if "error" not in row]

    @property
    def rows(self) -> list[Row]:
        return self.content["rows"]

    def once(self, name: str, measure: Callable[[], float]) -> float:
        """A figure that the whole run needs, such as a ceiling: from the file if it is there."""
        if name not in self.content:
            rows = self.content.pop("rows")
            self.content |= {name: measure(), "rows": rows}
            print(f"{name} = {self.content[name]:.4g}", flush=True)
            self.write()
        return self.content[name]

    def find(self, kind: str, name: str, impl: str) -> Row | None:
        return next((r for r in self.rows if (r["kind"], r["name"], r["impl"]) == (kind, name, impl)), None)

    def add(self, row: Row) -> None:
        self.rows.append(row)
        printed(row)
        self.write()

    def write(self) -> None:
        if self.output is not None:
            write(self.content, self.output)
