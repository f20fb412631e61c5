"""Tables in Markdown, and figures in them."""

from __future__ import annotations

from collections.abc import Iterable

from results import Row


def figure(value: float) -> str:
    """Three digits, and no fraction from 100 on."""
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}".rstrip(".")


def table(header: list[str], rows: list[list[str]]) -> str:
    """A table whose first column is text and the others are figures."""
    lines = [header, ["---", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def by_workload(rows: Iterable[Row]) -> dict[str, dict[str, Row]]:
    """Rows by workload and implementation, of one kind if names recur in others."""
    out: dict[str, dict[str, Row]] = {}
    for row in rows:
        out.setdefault(row["name"], {})[row["impl"]] = row
    return out


def best_peer(rows: dict[str, Row], key: str) -> str | None:
    """The implementation beside the kernel that has the smallest figure; None if none has one."""
    peers = [name for name, row in rows.items() if name != "ours" and "error" not in row]
    return min(peers, key=lambda name: rows[name][key]) if peers else None
