"""What tests/gpu_integrations.py measured on a GPU, as docs/benchmarks.md shows it."""

from __future__ import annotations

from markup import figure, table
from results import Row

LIBRARIES = {"pylate": "PyLate", "colpali_engine": "colpali-engine", "sentence_transformers": "sentence-transformers"}
IMPLS = ("maxsim", "lik", "torch")


def every_section(result: Row) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in sorted(result["packages"].items()))
    parts = [f"{result['machine']}, torch {result['torch']}; {versions}."]
    parts += [make(result["rows"]) for make in (losses, ranking, retrieval, streaming, hidden)]
    return "\n\n".join(part for part in parts if part)


def cells(row: Row, keys: list[str]) -> list[str]:
    return [figure(row[key]) if key in row else "–" for key in keys]


def losses(rows: list[Row]) -> str:
    """A line for each loss and dtype, implementations side by side."""
    found: dict[tuple[str, str, str], Row] = {}
    for row in rows:
        if row["section"] in LIBRARIES and "step_ms" in row:
            loss, dtype, impl = row["what"].split(", ")
            line = found.setdefault((row["section"], loss, dtype.removeprefix("torch.")), {})
            line |= {f"{impl}_ms": row["step_ms"], f"{impl}_MiB": row["peak_MiB"]}
    keys = [f"{impl}_{unit}" for unit in ("ms", "MiB") for impl in IMPLS]
    lines = [
        [f"{LIBRARIES[library]}: {loss}, {dtype}", *cells(row, keys)] for (library, loss, dtype), row in found.items()
    ]
    header = ["a step of a loss", "ms", "LIK", "torch", "peak MiB", "LIK", "torch"]
    return table(header, lines) if lines else ""


def ranking(rows: list[Row]) -> str:
    names = {"pylate": "PyLate, `rank.rerank`", "colpali_engine": "colpali-engine, `score_multi_vector`"}
    lines = [
        [names[row["what"]], *cells(row, ["maxsim_ms", "torch_ms"])]
        for row in rows
        if row["section"] == "order" and "torch_ms" in row
    ]
    return table(["64 encoded texts for each of 32 queries", "ms", "torch"], lines) if lines else ""


def retrieval(rows: list[Row]) -> str:
    keys = ["retrieve_ms", "scoring_ms", "ratio", "peak_MiB"]
    lines = [[row["what"], *cells(row, keys)] for row in rows if row["section"] == "retrieve" and "ratio" in row]
    return table(["`retrieve`", "ms", "scoring alone", "ratio", "peak MiB"], lines) if lines else ""


def streaming(rows: list[Row]) -> str:
    keys = ["ms", "GB_s", "copy_GB_s", "share", "peak_MiB"]
    lines = [[row["what"], *cells(row, keys)] for row in rows if row["section"] == "stream" and "share" in row]
    header = ["`retrieve_streamed`, corpus in host memory", "ms", "GB/s", "GB/s of copies alone", "share", "peak MiB"]
    return table(header, lines) if lines else ""


def hidden(rows: list[Row]) -> str:
    impls = ("maxsim", "lik", "project_first")
    keys = [f"{impl}_{unit}" for unit in ("ms", "MiB") for impl in impls]
    lines = [[row["what"], *cells(row, keys)] for row in rows if row["section"] == "head" and "maxsim_ms" in row]
    header = ["`maxsim_from_hidden`, 768 to 128", "ms", "LIK", "project first", "peak MiB", "LIK", "project first"]
    return table(header, lines) if lines else ""
