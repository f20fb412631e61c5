"""The two layouts of PLAID indexes on disk, fast-plaid's and Stanford ColBERTv2's, as tensors on the CPU.
Both pack buckets from the highest bit of a byte down, a bucket's lowest bit first; kernels read bytes back to front."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .files import read_json, read_npy, read_torch

NBITS = (1, 2, 4, 8)


class Stored(NamedTuple):
    """What an index's files hold, checked against each other; ``residuals`` with the lowest bits first."""

    nbits: int
    centroids: Tensor  # [C, d]
    bucket_weights: Tensor  # [2 ** nbits]
    codes: Tensor  # [T]
    residuals: Tensor  # uint8 [T, d * nbits / 8]
    lengths: Tensor  # int64 [Nd]


def read(path: Path) -> Stored:
    """Either layout, told apart by the name of the centroids' file."""
    if (path / "centroids.npy").is_file():
        return _checked(path, *_fast_plaid(path))
    if (path / "centroids.pt").is_file():
        return _checked(path, *_stanford(path))
    raise FileNotFoundError(
        f"{path} holds no PLAID index: neither centroids.npy (fast-plaid) nor centroids.pt (ColBERT)"
    )


def _fast_plaid(path: Path) -> tuple[object, Tensor, Tensor, list[Tensor], list[Tensor], list[list[int]]]:
    """fast-plaid from 1.0 to 1.7: numpy files, a pair for each chunk of documents, or one pair for all of them."""
    metadata = _metadata(path / "metadata.json")
    lengths = _lengths(path, metadata)
    rows = [sum(chunk) for chunk in lengths]
    parts = [_npy_chunks(path, name, rows) for name in ("codes", "residuals")]
    return (
        metadata.get("nbits"),
        read_npy(path / "centroids.npy"),
        read_npy(path / "bucket_weights.npy"),
        parts[0],
        parts[1],
        lengths,
    )


def _npy_chunks(path: Path, name: str, rows: list[int]) -> list[Tensor]:
    """A chunk's own file where there is one, else its rows of the merged file, behind which padding may lie."""
    if not rows:
        return []
    merged_path = path / f"merged_{name}.npy"
    merged = None
    parts, first = [], 0
    for i, count in enumerate(rows):
        own = path / f"{i}.{name}.npy"
        if own.is_file():
            parts.append(read_npy(own))
        elif count:
            merged = read_npy(merged_path) if merged is None else merged
            if first + count > merged.shape[0]:
                raise ValueError(
                    f"{merged_path} must have at least {first + count} rows, as many as doclens say; "
                    f"got {merged.shape[0]}"
                )
            parts.append(merged[first : first + count])
        first += count
    return parts


def _stanford(path: Path) -> tuple[object, Tensor, Tensor, list[Tensor], list[Tensor], list[list[int]]]:
    """ColBERTv2's own: torch files, a pair for each chunk; the plan or the metadata says how many and how wide."""
    described = path / "metadata.json"
    metadata = _metadata(described if described.is_file() else path / "plan.json")
    config = metadata.get("config")
    nbits = config.get("nbits") if isinstance(config, dict) else metadata.get("nbits")
    lengths = _lengths(path, metadata)
    (centroids,) = read_torch(path / "centroids.pt", 1)
    _, weights = read_torch(path / "buckets.pt", 2)
    parts = [
        [read_torch(path / f"{i}.{name}.pt", 1)[0] for i in range(len(lengths))] for name in ("codes", "residuals")
    ]
    return nbits, centroids, weights, parts[0], parts[1], lengths


def _metadata(path: Path) -> dict:
    metadata = read_json(path)
    if not isinstance(metadata, dict):
        raise ValueError(f"{path} must hold an object; got {type(metadata).__name__}")
    chunks = metadata.get("num_chunks")
    if type(chunks) is not int or chunks < 0:
        raise ValueError(f"{path} must give num_chunks as a whole number; got {chunks!r}")
    return metadata


def _lengths(path: Path, metadata: dict) -> list[list[int]]:
    chunks = []
    for i in range(metadata["num_chunks"]):
        file = path / f"doclens.{i}.json"
        chunk = read_json(file)
        if not isinstance(chunk, list) or not all(type(n) is int and n >= 0 for n in chunk):
            raise ValueError(f"{file} must be a list of document lengths, whole numbers from 0 up")
        chunks.append(chunk)
    return chunks


def _checked(
    path: Path,
    nbits: object,
    centroids: Tensor,
    weights: Tensor,
    codes: list[Tensor],
    residuals: list[Tensor],
    lengths: list[list[int]],
) -> Stored:
    """Everything that the kernels rely on, and everything that two files both say."""
    if nbits not in NBITS or type(nbits) is not int:
        raise ValueError(f"{path}: nbits must be one of 1, 2, 4, 8; got {nbits!r}")
    if centroids.dim() != 2 or min(centroids.shape) < 1 or not centroids.is_floating_point():
        raise ValueError(f"{path}: centroids must be floating-point [C, d]; got {_describe(centroids)}")
    count, dim = centroids.shape
    if weights.shape != (2**nbits,) or not weights.is_floating_point():
        raise ValueError(f"{path}: bucket weights must be [2 ** nbits] = [{2**nbits}]; got {_describe(weights)}")
    if dim * nbits % 8:
        raise ValueError(f"{path}: d * nbits must be a multiple of 8; got d={dim} and nbits={nbits}")
    width = dim * nbits // 8
    for i, (part, packed) in enumerate(zip(codes, residuals)):
        if part.dim() != 1 or part.is_floating_point():
            raise ValueError(f"{path}: codes of chunk {i} must be integers [T]; got {_describe(part)}")
        if packed.dtype is not torch.uint8 or packed.dim() != 2 or packed.shape[1] != width:
            raise ValueError(
                f"{path}: residuals of chunk {i} must be uint8 [T, d * nbits / 8] = [T, {width}] for d={dim} and "
                f"nbits={nbits}; got {_describe(packed)}"
            )
    all_lengths = torch.tensor([n for chunk in lengths for n in chunk], dtype=torch.int64)
    tokens = int(all_lengths.sum())
    for name, parts in (("codes", codes), ("residuals", residuals)):
        rows = sum(part.shape[0] for part in parts)
        if rows != tokens:
            raise ValueError(f"{path}: {name} must have {tokens} rows, the sum of all document lengths; got {rows}")
    every = _joined(codes, torch.empty(0, dtype=torch.int32)).long()
    outside = (every < 0) | (every >= count)
    if outside.any():
        at = int(outside.nonzero()[0])
        raise ValueError(
            f"{path}: codes must be in [0, {count}), the number of centroids; got {int(every[at])} at {at}"
        )
    packed = _joined(residuals, torch.empty(0, width, dtype=torch.uint8))
    return Stored(nbits, centroids, weights, every.int(), _reversed_bits(packed), all_lengths)


def _joined(parts: list[Tensor], empty: Tensor) -> Tensor:
    return torch.cat(parts) if parts else empty


def _reversed_bits(packed: Tensor) -> Tensor:
    """Every byte back to front."""
    swapped = (packed << 4) | (packed >> 4)
    swapped = ((swapped & 0x33) << 2) | ((swapped >> 2) & 0x33)
    return ((swapped & 0x55) << 1) | ((swapped >> 1) & 0x55)


def _describe(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}"
