"""One query and one document as a heat map and as a web page on which the matched words are highlighted.
Nothing but the standard library draws them, and the page loads nothing."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence
from html import escape

import torch
from torch import Tensor

from . import checks
from .explanation import explain, similarity_matrix

_LOW, _HIGH, _WINNER = (255, 255, 255), (8, 48, 107), (217, 95, 2)
_CONTINUES, _STARTS = "##", ("\u2581", "\u0120")  # how WordPiece, SentencePiece and byte-level BPE mark their pieces


def heat_map(similarities: Tensor, winners: Tensor | None = None, *, cell: int = 8) -> bytes:
    """A PNG image of ``similarities [Lq, Ld]``: a row for each query token, dark where the similarity is high.

    Args:
        similarities: as :func:`maxsim.similarity_matrix` gives them.
        winners: int ``[Lq]``, the document token of each row that is drawn in orange; -1 draws none.
        cell: side of a cell in pixels.
    """
    if not isinstance(similarities, Tensor) or similarities.dim() != 2:
        raise ValueError(f"similarities must be a tensor [Lq, Ld]; got {_got(similarities)}")
    if winners is not None and (not isinstance(winners, Tensor) or winners.shape != similarities.shape[:1]):
        raise ValueError(f"winners must be a tensor [{similarities.shape[0]}]; got {_got(winners)}")
    if isinstance(cell, bool) or not isinstance(cell, int) or cell < 1:
        raise ValueError(f"cell must be an int of at least 1; got {cell!r}")
    if similarities.numel() == 0:
        raise ValueError(f"similarities must have at least one cell; got shape {tuple(similarities.shape)}")
    values = similarities.detach().float().cpu()
    low, high = values.aminmax()
    share = ((values - low) / (high - low).clamp_min(1e-12)).unsqueeze(-1)
    ends = torch.tensor([_LOW, _HIGH], dtype=torch.float32)
    pixels = (ends[0] + share * (ends[1] - ends[0])).round().to(torch.uint8)
    if winners is not None:
        rows = (winners >= 0).nonzero().squeeze(1).cpu()
        pixels[rows, winners.cpu().long()[rows]] = torch.tensor(_WINNER, dtype=torch.uint8)
    return _png(pixels.repeat_interleave(cell, 0).repeat_interleave(cell, 1))


def explain_page(
    query_tokens: Sequence[str],
    document_tokens: Sequence[str],
    Q: Tensor,
    D: Tensor,
    q_mask: Tensor | None = None,
    d_mask: Tensor | None = None,
    *,
    normalize: bool = False,
    title: str = "MaxSim",
) -> str:
    """An HTML page that shows why ``Q [Lq, d]`` and ``D [Ld, d]`` score what they score.

    The document's matched words are highlighted, more strongly the more similar they are, and pointing at a query word
    outlines its winner. A table lists every query token with its winner and their similarity; the heat map shows all
    pairs of tokens.

    Args:
        query_tokens, document_tokens: the Lq and Ld tokens as text. Pieces of one word, marked as WordPiece ("##ing"),
            SentencePiece or byte-level BPE mark them, are written together.
        Q, D, q_mask, d_mask, normalize: as for :func:`maxsim.maxsim`.
    """
    checks.tokens("Q", Q, (2,), "[Lq, d]")
    checks.tokens("D", D, (2,), "[Ld, d]")
    for name, tokens, side in (("query_tokens", query_tokens, Q), ("document_tokens", document_tokens, D)):
        if len(tokens) != side.shape[0]:
            raise ValueError(f"{name} must be one text for each of {side.shape[0]} tokens; got {len(tokens)}")
    score, winners, similarities = explain(Q, D, q_mask, d_mask, normalize=normalize)
    matches = list(zip(winners.tolist(), similarities.tolist()))
    strongest: dict[int, float] = {}
    for winner, similarity in matches:
        if winner >= 0:
            strongest[winner] = max(similarity, strongest.get(winner, 0.0))
    query = "".join(
        f'{gap}<span class="q" tabindex="0" data-winner="{winner}">{escape(text)}</span>'
        for (gap, text), (winner, _) in zip(_words(query_tokens), matches)
    )
    top = max(strongest.values(), default=0.0) or 1.0
    document = "".join(
        f'{gap}<span id="d{j}"{_highlight(strongest[j] / top, strongest[j]) if j in strongest else ""}>'
        f"{escape(text)}</span>"
        for j, (gap, text) in enumerate(_words(document_tokens))
    )
    rows = "".join(
        f"<tr><td>{escape(text)}</td><td>{escape(document_tokens[winner]) if winner >= 0 else '–'}</td>"
        f"<td>{winner if winner >= 0 else '–'}</td><td>{similarity:.4f}</td></tr>"
        for text, (winner, similarity) in zip(query_tokens, matches)
    )
    image = ""
    if matches and document_tokens:
        png = heat_map(similarity_matrix(Q, D, normalize=normalize), winners)
        source = base64.b64encode(png).decode()
        image = f'<h2>All pairs</h2><img alt="query down, document across" src="data:image/png;base64,{source}">'
    return _PAGE.format(
        title=escape(title), score=f"{score.item():.4f}", query=query, document=document, rows=rows, image=image
    )


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{title}</title>
<style>
body {{ font: 16px/1.6 sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }}
.q {{ border-bottom: 2px solid rgb(217, 95, 2); cursor: pointer; }}
.q[data-winner="-1"] {{ border-color: transparent; color: #888; }}
.shown {{ outline: 3px solid rgb(8, 48, 107); }}
table {{ border-collapse: collapse; }}
th, td {{ text-align: left; padding: 0 1rem 0 0; }}
td:nth-child(n + 3) {{ text-align: right; }}
img {{ max-width: 100%; border: 1px solid #ccc; image-rendering: pixelated; }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>Score <strong>{score}</strong></p>
<h2>Query</h2>
<p>{query}</p>
<h2>Document</h2>
<p>{document}</p>
<h2>Best match of each query token</h2>
<table>
<thead><tr><th>query token</th><th>document token</th><th>index</th><th>similarity</th></tr></thead>
<tbody>{rows}</tbody>
</table>
{image}
<script>
for (const word of document.querySelectorAll(".q")) {{
  const winner = document.getElementById("d" + word.dataset.winner);
  for (const [event, on] of [["mouseenter", true], ["focus", true], ["mouseleave", false], ["blur", false]])
    word.addEventListener(event, () => winner && winner.classList.toggle("shown", on));
}}
</script>
</body>
</html>
"""


def _highlight(share: float, similarity: float) -> str:
    strength = 0.15 + 0.85 * max(share, 0.0)
    return f' style="background: rgba(217, 95, 2, {strength:.2f})" title="{similarity:.4f}"'


def _words(tokens: Sequence[str]) -> list[tuple[str, str]]:
    """Each token as written, after the space that comes before it or without one."""
    marked = any(token.startswith(_STARTS) for token in tokens)
    words = []
    for i, token in enumerate(tokens):
        continues = token.startswith(_CONTINUES) and len(token) > len(_CONTINUES)
        starts = token.startswith(_STARTS) if marked else not continues
        text = token[len(_CONTINUES) :] if continues else token[1:] if token.startswith(_STARTS) else token
        words.append((" " if i and starts else "", text))
    return words


def _png(pixels: Tensor) -> bytes:
    """``pixels``, uint8 ``[height, width, 3]``, as a PNG file."""
    height, width, _ = pixels.shape
    lines = torch.cat([pixels.new_zeros(height, 1), pixels.flatten(1)], dim=1)  # each line starts with its filter, none

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(lines.flatten().tolist()))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def _got(value: object) -> object:
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
