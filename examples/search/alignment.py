"""Draws why a document scored what it did: the similarity of every question token with every document token,
with a ring around each question token's best match. The matches come from the kernel's argmax, not from the matrix."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
from encode import Encoder
from matplotlib.figure import Figure
from packed import Encoded
from torch import Tensor

# Document tokens side by side before the matrix continues in the next row of the picture.
COLUMNS = 48
CELL_INCHES = 0.27
WINNER_COLOUR = "#ff7f0e"


@dataclass(frozen=True)
class Alignment:
    """One pair: word pieces of both sides, similarity [Lq, Ld], winner [Lq] (a document token each), and the score."""

    query_pieces: list[str]
    document_pieces: list[str]
    similarity: Tensor
    winner: Tensor
    score: float


def align(kernel: ModuleType, encoder: Encoder, query: Encoded, documents: Encoded, index: int) -> Alignment:
    """Score the only text of `query` against document `index`, keeping which document token won."""
    rows = documents.segment(index)
    query_tokens, document_tokens = query.tokens[None], documents.tokens[None, rows]
    scores, argmax = kernel.maxsim_with_argmax(query_tokens, document_tokens)
    return Alignment(
        encoder.word_pieces(query.token_ids),
        encoder.word_pieces(documents.token_ids[rows]),
        query_tokens[0] @ document_tokens[0].T,
        argmax[0, 0].long(),
        float(scores),
    )


def draw(alignment: Alignment, question: str, name: str, path: Path) -> None:
    """Write the picture of one pair to `path`."""
    matrix, winner = alignment.similarity.numpy(), alignment.winner.numpy()
    query_length, document_length = matrix.shape
    panels = math.ceil(document_length / COLUMNS)
    width = math.ceil(document_length / panels)
    # Beside the cells: question words at the left, the colour bar at the right, document words above, the title on top.
    size = (max(width * CELL_INCHES + 2.2, 7.0), panels * (query_length * CELL_INCHES + 0.8) + 0.7)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(panels, 1, squeeze=False)[:, 0]
    best = matrix[np.arange(query_length), winner]
    rows = [f"{piece}  {value:.2f}" for piece, value in zip(alignment.query_pieces, best, strict=True)]
    for panel, axis in enumerate(axes):
        start = panel * width
        part = matrix[:, start : start + width]
        # A last panel that is short keeps the cell size of the others.
        image = axis.imshow(
            np.pad(part, ((0, 0), (0, width - part.shape[1])), constant_values=np.nan),
            cmap="Blues",
            vmin=max(0.0, matrix.min()),
            vmax=matrix.max(),
            aspect="equal",
        )
        pieces = alignment.document_pieces[start : start + width]
        axis.set_xticks(range(len(pieces)), pieces, rotation=60, ha="left", rotation_mode="anchor")
        axis.set_yticks(range(query_length), rows)
        axis.tick_params(top=True, bottom=False, labeltop=True, labelbottom=False, length=0, labelsize=8)
        axis.spines[:].set_visible(False)
        won = (winner >= start) & (winner < start + width)
        for label, row in zip(axis.get_yticklabels(), won, strict=True):
            label.set_color("black" if row else "0.6")
        for column in set(winner[won] - start):
            axis.get_xticklabels()[column].set_fontweight("bold")
        axis.scatter(winner[won] - start, np.flatnonzero(won), s=110, facecolors="none", edgecolors=WINNER_COLOUR, lw=2)
    figure.colorbar(image, ax=axes, label="similarity", fraction=0.02, pad=0.01, shrink=0.8)
    figure.suptitle(
        f"“{question}”  →  {name}\nMaxSim {alignment.score:.2f}: the sum of each question token's best match"
    )
    figure.savefig(path, dpi=130)
