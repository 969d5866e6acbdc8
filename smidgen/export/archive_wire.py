"""Where the weights lie in the bytes of an ONNX file, found without a protobuf library.

    ModelProto.graph = 7 ─ GraphProto.initializer = 5 ─ TensorProto: dims = 1, data_type = 2, name = 8, raw_data = 9

Only the outermost graph is looked at: what inner graphs and constants hold stays part of the graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from smidgen.coding.varint import read_varint, write_varint
from smidgen.errors import LoadError

GRAPH, INITIALIZER = 7, 5
DIMS, DATA_TYPE, NAME, RAW_DATA = 1, 2, 8, 9
# Wire types: what follows a field's tag.
VARINT, EIGHT_BYTES, BYTES, FOUR_BYTES = 0, 1, 2, 5
_FIXED = {EIGHT_BYTES: 8, FOUR_BYTES: 4}


class Initializer(NamedTuple):
    """A tensor of the graph whose values are raw bytes.

    Args:
        name, dtype, dims: as the file says; dtype is ONNX's number.
        start: of the whole field in the file.
        raw, end: first and last + 1 of the raw bytes.
        whole: the field is `head` followed by the raw bytes, and so need not be kept.
    """

    name: bytes
    dtype: int
    dims: tuple[int, ...]
    start: int
    raw: int
    end: int
    whole: bool


def initializers(model: bytes) -> list[Initializer]:
    """All initializers with raw bytes, in the file's order.

    Raises:
        LoadError: these bytes are not a protobuf message.
    """
    try:
        return [
            tensor
            for number, wire, _, at, end in _fields(model, 0, len(model))
            if (number, wire) == (GRAPH, BYTES)
            for inner, kind, start, first, last in _fields(model, at, end)
            if (inner, kind) == (INITIALIZER, BYTES) and (tensor := _initializer(model, start, first, last)) is not None
        ]
    except LoadError:
        raise LoadError(
            f"archive: these {len(model)} bytes are not an ONNX file; give one that onnx can read"
        ) from None


def head(name: bytes, dtype: int, dims: tuple[int, ...], nbytes: int) -> bytes:
    """The bytes of an initializer up to its raw bytes, as protobuf libraries write them.

    >>> head(b"w", 1, (2, 3), 24).hex()
    '2a230802080310014201774a18'
    """
    inner = b"".join(_tag(DIMS, VARINT) + write_varint(side) for side in dims) + _tag(DATA_TYPE, VARINT)
    inner += write_varint(dtype) + _tag(NAME, BYTES) + write_varint(len(name)) + name
    inner += _tag(RAW_DATA, BYTES) + write_varint(nbytes)
    return _tag(INITIALIZER, BYTES) + write_varint(len(inner) + nbytes) + inner


def _tag(number: int, wire: int) -> bytes:
    return bytes([number << 3 | wire])


def _fields(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Number, wire type, and where it starts, its value starts and ends, of each field of a message."""
    while at < end:
        start = at
        tag, at = read_varint(data, at)
        number, wire = tag >> 3, tag & 7
        first = at
        if wire == VARINT:
            _, at = read_varint(data, at)
        elif wire == BYTES:
            size, first = read_varint(data, at)
            at = first + size
        elif wire in _FIXED:
            at += _FIXED[wire]
        else:
            raise LoadError("not protobuf")
        if at > end or not number:
            raise LoadError("not protobuf")
        yield number, wire, start, first, at


def _initializer(data: bytes, start: int, first: int, last: int) -> Initializer | None:
    """None where a tensor has no raw bytes, or more than one field of them."""
    name, dtype, dims, raws = b"", 0, [], []
    for number, wire, _, at, end in _fields(data, first, last):
        if (number, wire) == (DIMS, VARINT):
            dims.append(read_varint(data, at)[0])
        elif (number, wire) == (DIMS, BYTES):  # packed, as proto3 writes it
            while at < end:
                side, at = read_varint(data, at)
                dims.append(side)
        elif (number, wire) == (DATA_TYPE, VARINT):
            dtype = read_varint(data, at)[0]
        elif (number, wire) == (NAME, BYTES):
            name = data[at:end]
        elif (number, wire) == (RAW_DATA, BYTES):
            raws.append((at, end))
    if len(raws) != 1:
        return None
    raw, end = raws[0]
    made = head(name, dtype, tuple(dims), end - raw)
    whole = end == last and data[start:raw] == made
    return Initializer(name, dtype, tuple(dims), start, raw, end, whole)
