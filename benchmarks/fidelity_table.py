"""What quality every stored format keeps, in docs/quantised.md."""

from __future__ import annotations

from markup import figure, table
from results import Row

COLUMNS = [
    ("token_bytes", "bytes a token", figure),
    ("mrr", "MRR@10", "{:.3f}".format),
    ("within", "answered in ten", "{:.1%}".format),
    ("overlap", "of the exact ten", "{:.1%}".format),
    ("first", "same first", "{:.1%}".format),
]


def every_row(result: Row) -> str:
    said = (
        f"{result['questions']} questions, {result['documents']:,} documents, {result['tokens']:,} tokens of "
        f"{result['dim']} features; residuals have {result['centroids']} centroids."
    )
    lines = [[row["name"], *(written(row[key]) for key, _, written in COLUMNS)] for row in result["rows"]]
    return f"{said}\n\n{table(['format', *(title for _, title, _ in COLUMNS)], lines)}"
