"""Pictures of results: a workload a line, an implementation a mark. table.py draws them; matplotlib is in bench.txt."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from markup import by_workload
from results import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {"ours": "#d62728", "lik": "#1f77b4", "flash": "#2ca02c", "eager": "#7f7f7f"}
NAMES = {"ours": "maxsim", "lik": "late-interaction-kernels", "flash": "flash-maxsim", "eager": "eager torch"}


def digest(results: Path) -> str:
    """What a picture says of the file that it was made from."""
    return hashlib.sha256(results.read_bytes()).hexdigest()


def canvas(width: float, height: float, panels: int = 1) -> Figure:
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "maxsim", "font.size": 9})
    figure = Figure((width, height), layout="constrained")
    figure.subplots(1, panels)
    return figure


def save(figure: Figure, path: Path, source: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="svg", metadata={"Date": None, "Description": f"results {source}"})


def times(result: Row, kind: str) -> Figure:
    """Milliseconds of every implementation, and the floor where there is one."""
    workloads = by_workload(row for row in result["rows"] if row["kind"] == kind)
    figure = canvas(8, 0.8 + 0.32 * len(workloads))
    (axes,) = figure.axes
    places = range(len(workloads))
    floors = [rows.get("ours", {}).get("floor_ms", float("nan")) for rows in workloads.values()]
    if any(floor > 0 for floor in floors):
        axes.scatter(floors, places, marker="|", s=160, color="black", label="floor", zorder=3)
    for impl, colour in COLOURS.items():
        found = [rows.get(impl, {}).get("ms", float("nan")) for rows in workloads.values()]
        axes.scatter(found, places, color=colour, label=NAMES[impl], s=28, zorder=4 if impl == "ours" else 2)
    axes.set(xscale="log", xlabel="ms, less is better", yticks=list(places), yticklabels=list(workloads))
    axes.invert_yaxis()
    axes.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=5, frameon=False)
    return figure


def forward(result: Row) -> Figure:
    return times(result, "forward")


def train(result: Row) -> Figure:
    return times(result, "train")


# Large corpora under one query: a kind of rows, its workload, an implementation, bytes a token, what it is called, and
# where that stands. A prepared index stores a token's length, and half as many bytes of its code.
STORED = [
    ("forward", "corpus-10k", "ours", 256, "bfloat16", (6, -3)),
    ("fp8", "corpus-10k", "ours", 132, "fp8", (6, -3)),
    ("int8", "corpus-10k", "ours, 8x8", 132, "int8 × int8", (6, -11)),
    ("int8", "corpus-10k", "ours, affine", 136, "int8 under bfloat16", (6, -3)),
    ("binary", "corpus-10k", "ours, asymmetric", 16, "signs", (6, -3)),
    ("plaid", "plaid-10k-512-4bit", "ours", 68, "residuals of 4 bits", (6, -12)),
    ("plaid-prepared", "plaid-10k-512-4bit", "ours", 70, "4 bits, prepared", (6, 3)),
    ("plaid", "plaid-10k-300-2bit", "ours", 36, "residuals of 2 bits", (6, -12)),
    ("plaid-prepared", "plaid-10k-300-2bit", "ours", 38, "2 bits, prepared", (6, 3)),
    ("forward", "corpus-10k", "lik", 256, "bfloat16", (6, 6)),
    ("fp8", "corpus-10k", "lik", 132, "fp8", (6, -3)),
    ("plaid", "plaid-10k-300-2bit", "lik", 36, "residuals of 2 bits", (6, -3)),
    ("plaid", "plaid-10k-512-4bit", "lik", 68, "residuals of 4 bits", (6, -3)),
    ("int8", "corpus-10k", "flash, affine", 136, "int8 under bfloat16", (6, -11)),
]
PADDED_TOKENS = 10_000 * 300  # of corpus-10k


def stored(result: Row) -> Figure:
    """Speed against bytes: document tokens that one query meets in a second, and what a copy's rate allows."""
    figure = canvas(8, 4.2)
    (axes,) = figure.axes
    rows = {(row["kind"], row["name"], row["impl"]): row for row in result["rows"] if "ms" in row}
    named = set()
    for kind, workload, impl, token_bytes, title, offset in STORED:
        row = rows.get((kind, workload, impl))
        if row is None:
            continue
        who = impl.split(",")[0]
        rate = row.get("tokens", PADDED_TOKENS) / row["ms"] / 1e6
        label = None if who in named else NAMES[who]
        axes.scatter(token_bytes, rate, color=COLOURS[who], s=28, label=label, zorder=4 if who == "ours" else 2)
        axes.annotate(title, (token_bytes, rate), offset, textcoords="offset points", fontsize=7, color=COLOURS[who])
        named.add(who)
    ends = (12, 320)
    axes.plot(ends, [result["copy_TBps"] * 1e3 / x for x in ends], color="black", linewidth=1, label="a copy's rate")
    axes.set(xscale="log", yscale="log", xlabel="bytes a token, d = 128", ylabel="10⁹ tokens a second")
    places = [16, 32, 64, 128, 256]
    axes.set_xticks(places, [str(x) for x in places])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=4, frameon=False)
    return figure


def ladder(result: Row) -> Figure:
    figure = canvas(8, 2.8, panels=2)
    panels = (("math", "TFLOPs", "TFLOP/s, 256 × 256 documents"), ("memory", "TBps", "TB/s, 1 × 10 000 documents"))
    for axes, (shape, key, title) in zip(figure.axes, panels, strict=True):
        rows = [row for row in result["rows"] if row["shape"] == shape]
        bars = axes.barh([row["rung"] for row in rows], [row[key] for row in rows], color=COLOURS["ours"])
        axes.bar_label(bars, fmt="%.3g", padding=2)
        axes.set(title=title)
        axes.margins(x=0.15)
        axes.invert_yaxis()
    return figure


def training(result: Row) -> Figure:
    """Loss by step of both implementations; where they agree, one covers the other."""
    figure = canvas(6, 2.8)
    (axes,) = figure.axes
    styles = {"torch": (COLOURS["eager"], 4.0, "torch"), "maxsim": (COLOURS["ours"], 1.5, "maxsim")}
    for impl, (colour, width, name) in styles.items():
        losses = result["runs"][impl]["losses"]
        axes.plot(range(1, len(losses) + 1), losses, color=colour, linewidth=width, label=name)
    axes.set(xlabel="step", ylabel="loss")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


FAMILIES = {
    "floats": ("float32", "bfloat16"),
    "fp8": ("e4m3_token", "e4m3_block", "e4m3_tensor", "e5m2_token"),
    "int8": ("int8_affine", "int8_symmetric", "int8x8"),
    "one bit": ("binary", "hamming"),
    "residuals": ("residual_1bit", "residual_2bit", "residual_4bit"),
}


def fidelity(result: Row) -> Figure:
    """Quality against bytes: what of the exact ranking is found, and how well the questions are answered."""
    figure = canvas(8, 3.4, panels=2)
    rows = {row["name"]: row for row in result["rows"]}
    for axes, (key, title) in zip(
        figure.axes, (("overlap", "share of the exact first ten"), ("mrr", "MRR@10")), strict=True
    ):
        for family, names in FAMILIES.items():
            found = [rows[name] for name in names]
            label = family if key == "overlap" else None
            axes.plot([row["token_bytes"] for row in found], [row[key] for row in found], "o", alpha=0.7, label=label)
        axes.set(title=title, xscale="log", xlabel=f"bytes a token, d = {result['dim']}")
        axes.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=5, frameon=False)
    return figure
