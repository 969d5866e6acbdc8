"""One door to the adaptive coder: the compiled kernel where it was built, else the plain Python twin, with equal bytes.

`pip install` builds `_kernel` where there is a C compiler and goes on without it where there is none: the twin decodes
some ten thousand weights a second, the kernel some millions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType

import numpy as np
from jaxtyping import Int32

from smidgen.coding.arithmetic import Damaged, Range
from smidgen.coding.bytemodel import code_bytes
from smidgen.coding.contexts import Shape, code_weights
from smidgen.coding.tables import tables
from smidgen.errors import LoadError

try:
    from smidgen.coding import _kernel as _built  # pyright: ignore[reportAttributeAccessIssue]  # only where compiled
except ImportError:
    _built = None

# Of `_kernel.c`: one built from other source, as after an update without an installation, is left unused.
INTERFACE = 2
_compiled: ModuleType | None = _built if getattr(_built, "INTERFACE", 0) == INTERFACE else None


def is_compiled() -> bool:
    """Whether the compiled kernel is in use."""
    return _compiled is not None


def geometry(shape: Sequence[int], *, signs: bool = True) -> Shape:
    """Rows, columns, period and width of a weight of any rank, as the model of contexts wants them.

    >>> geometry((20, 10, 5, 5))
    Shape(rows=20, columns=250, period=25, width=5, signs=True)
    >>> geometry((7,))
    Shape(rows=1, columns=7, period=1, width=1, signs=True)
    """
    if len(shape) < 2:
        return Shape(1, math.prod(shape), signs=signs)
    width = max(1, shape[-1]) if len(shape) > 2 else 1
    return Shape(shape[0], math.prod(shape[1:]), max(1, math.prod(shape[2:])), width, signs)


def encode_weights(values: Int32[np.ndarray, " count"], shapes: Sequence[Shape], *, rate: int) -> bytes:
    """Code matrices one after another with one adaptive model.

    Args:
        values: of all matrices, row by row.
        shapes: of each (`geometry`).
        rate: learning rate of the mixture, 0 to 255.
    """
    if _compiled is not None:
        packed = np.array(shapes, np.int64).reshape(-1, 5)
        return _compiled.encode_weights(tables(), np.ascontiguousarray(values), packed, rate)
    coder = Range()
    code_weights(coder, values.tolist(), shapes, rate=rate)
    return coder.close()


def decode_weights(data: bytes, shapes: Sequence[Shape], *, rate: int) -> Int32[np.ndarray, " count"]:
    """Inverse of `encode_weights`.

    Raises:
        LoadError: no encoder writes this stream.
    """
    try:
        if _compiled is not None:
            packed = np.array(shapes, np.int64).reshape(-1, 5)
            return np.frombuffer(_compiled.decode_weights(tables(), data, packed, rate), np.int32).copy()
        coder = Range(data)
        count = sum(shape.rows * shape.columns for shape in shapes)
        values = code_weights(coder, [0] * count, shapes, rate=rate)
        _end(coder)
        return np.array(values, np.int32)
    except ValueError as error:
        raise LoadError("weights: a damaged stream; fetch the file again") from error


def encode_text(data: bytes, stride: int, primer: bytes = b"") -> bytes:
    """Code bytes of items of `stride` bytes with the adaptive model of bytes.

    Args:
        data: any.
        stride: bytes of an item.
        primer: bytes much like these, at most 2²⁰, that the model learns from first; the decoder needs the same.
    """
    if _compiled is not None:
        return _compiled.encode_bytes(tables(), data, len(data), stride, primer)
    coder = Range()
    code_bytes(coder, data, len(data), stride, primer)
    return coder.close()


def decode_text(data: bytes, count: int, stride: int, primer: bytes = b"") -> bytes:
    """Inverse of `encode_text`, for `count` bytes.

    Raises:
        LoadError: no encoder writes this stream.
    """
    try:
        if _compiled is not None:
            return _compiled.decode_bytes(tables(), data, count, stride, primer)
        coder = Range(data)
        decoded = code_bytes(coder, b"", count, stride, primer)
        _end(coder)
        return decoded
    except ValueError as error:
        raise LoadError("bytes: a damaged stream; fetch the file again") from error


def _end(coder: Range) -> None:
    if not coder.ended_well():
        raise Damaged("the stream does not end where its values do")
