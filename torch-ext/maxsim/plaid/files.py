"""Reading what other libraries wrote, without their code and without numpy: .npy files, torch files, JSON.
Nothing that is read is executed; every error names the file and what is wrong with it."""

from __future__ import annotations

import ast
import json
import mmap
import os
import struct
from math import prod
from pathlib import Path

import torch
from torch import Tensor

_MAGIC = b"\x93NUMPY"
_LONGEST_HEADER = 1 << 16
_DTYPES = {
    "<f2": torch.float16,
    "<f4": torch.float32,
    "<f8": torch.float64,
    "|u1": torch.uint8,
    "|i1": torch.int8,
    "<u2": torch.uint16,
    "<i2": torch.int16,
    "<i4": torch.int32,
    "<i8": torch.int64,
}


def read_json(path: Path) -> object:
    """The value of a JSON file."""
    try:
        return json.loads(_existing(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no JSON file, or only the first part of one: {error}") from None


def read_npy(path: Path) -> Tensor:
    """The array of a .npy file as a CPU tensor, mapped into memory: writing to it does not change the file."""
    size = os.path.getsize(_existing(path))
    with path.open("rb") as file:
        dtype, shape, start = _npy_header(path, file.read(min(size, _LONGEST_HEADER + 12)))
        count = prod(shape)
        if start + count * dtype.itemsize > size:
            needed = start + count * dtype.itemsize
            raise ValueError(f"{path} is truncated: shape {shape} of {dtype} needs {needed} bytes; got {size}")
        if count == 0:
            return torch.empty(shape, dtype=dtype)
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    return torch.frombuffer(data, dtype=dtype, count=count, offset=start).view(shape)


def _npy_header(path: Path, head: bytes) -> tuple[torch.dtype, tuple[int, ...], int]:
    """Dtype, shape and the place of the first element. The format is numpy.lib.format's, versions 1 to 3."""
    wide = len(head) > 6 and head[6] in (2, 3)
    prologue = 12 if wide else 10
    if len(head) < prologue or head[:6] != _MAGIC or head[6] not in (1, 2, 3):
        raise ValueError(f"{path} is no .npy file")
    (length,) = struct.unpack("<I" if wide else "<H", head[8:prologue])
    end = prologue + length
    if length > _LONGEST_HEADER or end > len(head):
        raise ValueError(f"{path} is truncated: its header ends at byte {end}")
    try:
        header = ast.literal_eval(head[prologue:end].decode("utf-8").strip())
        descr, fortran, shape = header["descr"], header["fortran_order"], tuple(header["shape"])
    except (ValueError, SyntaxError, KeyError, TypeError, UnicodeDecodeError, RecursionError, MemoryError):
        raise ValueError(f"{path} has no readable .npy header") from None
    if not isinstance(descr, str) or descr not in _DTYPES:
        raise ValueError(f"{path} must hold plain little-endian numbers; got {descr!r}")
    if not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"{path} must have a shape of whole numbers; got {shape}")
    if fortran and len(shape) > 1:
        raise ValueError(f"{path} must be in C order; got Fortran order")
    return _DTYPES[descr], shape, end


def read_torch(path: Path, count: int) -> tuple[Tensor, ...]:
    """The tensor, or the ``count`` tensors, of a file that torch.save wrote. Other objects are refused unread."""
    try:
        value = torch.load(_existing(path), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises what its parsers raise: pickle, zip, runtime and end-of-file errors
        reason = str(error).split("\n", 1)[0]
        raise ValueError(f"{path} is truncated, or no file of tensors: {reason}") from None
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    if len(values) != count or not all(isinstance(part, Tensor) for part in values):
        raise ValueError(f"{path} must hold {count} tensors; got {type(value).__name__} of {len(values)}")
    return values


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing from the index")
    return path
