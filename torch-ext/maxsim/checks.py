"""What every argument must be, and the error that says which one is not and what it was.
Shapes, dtypes and devices cost a few attribute reads; values are read on the CPU, elsewhere only on request."""

from __future__ import annotations

import torch
from torch import Tensor

KERNEL_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
REFERENCE_DTYPES = (*KERNEL_DTYPES, torch.float64)
STORED_DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.uint8)
_INDICES = frozenset((torch.int32, torch.int64))


def tokens(
    name: str, tensor: Tensor, ranks: tuple[int, ...], axes: str, dtypes: tuple[torch.dtype, ...] = KERNEL_DTYPES
) -> None:
    """A strided tensor of one of ``dtypes`` and one of ``ranks``, whose axes are described by ``axes``."""
    if not isinstance(tensor, Tensor):
        raise _not_a_tensor(name, tensor)
    if tensor.dim() not in ranks:
        raise ValueError(f"{name} must be {axes}; got shape {tuple(tensor.shape)}")
    if tensor.dtype not in dtypes:
        hint = "; maxsim.reference takes float64" if tensor.dtype is torch.float64 else ""
        *others, last = (str(dtype).removeprefix("torch.") for dtype in dtypes)
        allowed = f"{', '.join(others)} or {last}" if others else last
        raise TypeError(f"{name} must be {allowed}; got {tensor.dtype}{hint}")
    if tensor.layout is not torch.strided:
        raise TypeError(f"{name} must be a dense strided tensor; got layout {tensor.layout}")


def sides(query_name: str, queries: Tensor, document_name: str, documents: Tensor, document_bits: int = 0) -> None:
    """Both sides share an embedding dimension of at least one, and a device."""
    dim, document_dim = queries.shape[-1], documents.shape[-1]
    if document_bits == 1 and -(-dim // 8) != document_dim:
        raise ValueError(
            f"{document_name} must have ceil(d / 8) bytes a token, one bit for each feature of {query_name}; "
            f"got {query_name}.shape[-1]={dim} and {document_name}.shape[-1]={document_dim}"
        )
    if document_bits != 1 and dim != document_dim:
        raise ValueError(
            f"{query_name} and {document_name} must share the embedding dim; "
            f"got {query_name}.shape[-1]={dim} and {document_name}.shape[-1]={document_dim}"
        )
    if dim == 0:
        raise ValueError(f"{query_name} and {document_name} must have an embedding dim of at least 1; got 0")
    _same_device(document_name, documents, queries, query_name)


def slabs(query_name: str, queries: Tensor, document_name: str, documents: Tensor) -> None:
    """Each query has its own documents: the leading axes agree."""
    if queries.dim() != 3:
        raise ValueError(
            f"{query_name} must be [Nq, Lq, d] when {document_name} is [Nq, K, Ld, d]; got shape {tuple(queries.shape)}"
        )
    if queries.shape[0] != documents.shape[0]:
        raise ValueError(
            f"{document_name}.shape[0] must equal {query_name}.shape[0]; "
            f"got {documents.shape[0]} and {queries.shape[0]}"
        )


def mask(name: str, tensor: Tensor, shape: tuple[int, ...], like: Tensor) -> None:
    """A tensor that broadcasts to the token shape."""
    if not isinstance(tensor, Tensor):
        raise _not_a_tensor(name, tensor)
    _same_device(name, tensor, like)
    fits = tensor.dim() <= len(shape) and all(
        have == want or have == 1 for have, want in zip(reversed(tensor.shape), reversed(shape))
    )
    if not fits:
        raise ValueError(f"{name} must broadcast to the token shape {tuple(shape)}; got shape {tuple(tensor.shape)}")


def lengths(name: str, tensor: Tensor, side: str, padded: Tensor, validate: bool) -> None:
    """One prefix length in ``[0, L]`` per padded segment."""
    _index(name, tensor, padded)
    shape = padded.shape[:-2]
    if tensor.shape != shape:
        raise ValueError(f"{name} must have shape {tuple(shape)}, one per segment; got shape {tuple(tensor.shape)}")
    if _readable(tensor, validate):
        longest = padded.shape[-2]
        _in_range(name, tensor, longest + 1, f"[0, {longest}], the padded length of {side}")


def offsets(name: str, tensor: Tensor, side: str, packed: Tensor, validate: bool) -> None:
    """Segment boundaries: from 0 up, never down, to at most the number of packed tokens."""
    _index(name, tensor, packed)
    if tensor.dim() != 1 or tensor.shape[0] < 1:
        raise ValueError(f"{name} must be [segments + 1]; got shape {tuple(tensor.shape)}")
    if not _readable(tensor, validate):
        return
    first, last, total = int(tensor[0]), int(tensor[-1]), packed.shape[0]
    if first != 0:
        raise ValueError(f"{name}[0] must be 0; got {first}")
    falls = tensor[1:] < tensor[:-1]
    if falls.any():
        at = _first(falls)[0] + 1
        raise ValueError(f"{name} must not decrease; got {name}[{at}]={int(tensor[at])} after {int(tensor[at - 1])}")
    if last > total:
        raise ValueError(f"{name}[-1] must be at most {total}, the token count of {side}; got {last}")


def ids(name: str, tensor: Tensor, count: int, like: Tensor, validate: bool) -> None:
    """Segment numbers in ``[0, count)``."""
    _index(name, tensor, like)
    if tensor.dim() != 1:
        raise ValueError(f"{name} must be [pairs]; got shape {tuple(tensor.shape)}")
    if _readable(tensor, validate):
        _in_range(name, tensor, count, f"[0, {count})")


def shape(name: str, tensor: Tensor, wanted: tuple[int, ...], axes: str, like: Tensor) -> None:
    """A tensor of the shape ``wanted``, which ``axes`` describes, on the device of ``like``."""
    if tensor.shape != wanted:
        raise ValueError(f"{name} must be {axes} = {tuple(wanted)}; got shape {tuple(tensor.shape)}")
    _same_device(name, tensor, like)


def same_length(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Two index vectors that go together."""
    if tensor.shape != other.shape:
        raise ValueError(
            f"{name} and {other_name} must have the same length; got {tensor.shape[0]} and {other.shape[0]}"
        )


def factor(name: str, value: object, tokens_name: str, token_shape: tuple[int, ...], block: int, like: Tensor) -> None:
    """A float for all tokens, or one for each ``block`` neighbours of ``token_shape``."""
    if not isinstance(value, Tensor):
        raise _not_a_tensor(name, value)
    if value.dtype not in KERNEL_DTYPES:
        raise TypeError(f"{name} must be float16, bfloat16 or float32; got {value.dtype}")
    _same_device(name, value, like, tokens_name)
    shape = (*token_shape[:-1], -(-token_shape[-1] // block))
    if value.dim() and tuple(value.shape) != shape:
        raise ValueError(
            f"{name} must be [] or {shape}, one for each "
            + (f"{block} tokens" if block > 1 else "token")
            + f" of {tokens_name}; got shape {tuple(value.shape)}"
        )


def longest(name: str, value: int | None, offsets_name: str, tensor: Tensor, validate: bool) -> None:
    """A caller's bound on segment length is at least the longest segment of ``tensor``, where that can be read."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{name} must be an int or None; got {type(value).__name__}")
    if value < 0:
        raise ValueError(f"{name} must be at least 0; got {value}")
    if tensor.shape[0] > 1 and _readable(tensor, validate):
        actual = int(tensor.diff().max())
        if value < actual:
            raise ValueError(f"{name} must be at least {actual}, the longest segment of {offsets_name}; got {value}")


def option(name: str, value: object, choices: dict) -> int:
    """The number that ``choices`` gives to ``value``."""
    try:
        return choices[value]
    except (KeyError, TypeError):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}; got {value!r}") from None


def number(name: str, value: object) -> float:
    """``value`` as a float."""
    if type(value) is float:
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number; got {type(value).__name__}")
    return float(value)


def within(name: str, value: object, low: float, high: float) -> float:
    """``value`` as a float in ``[low, high]``."""
    value = number(name, value)
    if not low <= value <= high:
        raise ValueError(f"{name} must be in [{low:g}, {high:g}]; got {value:g}")
    return value


def positive(name: str, value: object) -> float:
    """``value`` as a finite float above 0."""
    value = number(name, value)
    if not 0.0 < value < float("inf"):
        raise ValueError(f"{name} must be positive and finite; got {value:g}")
    return value


def count(name: str, value: object) -> int:
    """``value`` as an int of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be an int of at least 1; got {value!r}")
    return value


def flag(name: str, value: object) -> bool:
    """``value`` as a bool."""
    if value is True or value is False:
        return value
    raise TypeError(f"{name} must be a bool; got {type(value).__name__}")


def _not_a_tensor(name: str, value: object) -> TypeError:
    return TypeError(f"{name} must be a torch.Tensor; got {type(value).__name__}")


def _same_device(name: str, tensor: Tensor, like: Tensor, like_name: str = "the embeddings") -> None:
    if tensor.device != like.device:
        raise RuntimeError(f"{name} must be on the same device as {like_name}, {like.device}; got {tensor.device}")


def _index(name: str, tensor: Tensor, like: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise _not_a_tensor(name, tensor)
    if tensor.dtype not in _INDICES:
        raise TypeError(f"{name} must be int32 or int64; got {tensor.dtype}")
    _same_device(name, tensor, like)


def _readable(tensor: Tensor, validate: bool) -> bool:
    """Whether values may be read here: free on the CPU, a synchronisation elsewhere, impossible while tracing."""
    if not validate and tensor.device.type != "cpu":
        return False
    return not (torch.compiler.is_compiling() or torch._C._functorch.is_batchedtensor(tensor))


def _in_range(name: str, tensor: Tensor, end: int, span: str) -> None:
    outside = (tensor < 0) | (tensor >= end)
    if outside.any():
        at = _first(outside)
        where = ", ".join(map(str, at))
        raise ValueError(f"{name} must be in {span}; got {name}[{where}]={int(tensor[tuple(at)])}")


def _first(flags: Tensor) -> list:
    return flags.nonzero()[0].tolist()
