"""Tensors of a file, every size checked against what is stored before anything is allocated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from onnx import TensorProto
from torch import Tensor

from .limits import MAX_ELEMENTS, MAX_RANK
from .values import Malformed

DTYPES: dict[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.UINT8: torch.uint8,
    TensorProto.INT8: torch.int8,
    TensorProto.UINT16: torch.uint16,
    TensorProto.INT16: torch.int16,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.BOOL: torch.bool,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.UINT32: torch.uint32,
    TensorProto.UINT64: torch.uint64,
    TensorProto.BFLOAT16: torch.bfloat16,
}
"""Element types a value may have; strings, complex numbers and those of 4 and 8 bits floats are refused."""

# Field that holds the entries where raw_data does not, by element type (onnx.proto, TensorProto).
_FIELDS: dict[torch.dtype, str] = {
    torch.float32: "float_data",
    torch.float64: "double_data",
    torch.int64: "int64_data",
    torch.uint32: "uint64_data",
    torch.uint64: "uint64_data",
}
# Stored as their bit pattern in int32_data.
_BIT_PATTERNS = (torch.float16, torch.bfloat16)


def dtype_of(code: int) -> torch.dtype:
    """Torch's name for an ONNX element type.

    >>> dtype_of(1)
    torch.float32

    Raises:
        Malformed: the type is not one that networks compute with here.
    """
    if code not in DTYPES:
        known = code in TensorProto.DataType.values()
        raise Malformed(f"element type {TensorProto.DataType.Name(code) if known else code} is not supported")
    return DTYPES[code]


def element_count(dims: Sequence[int]) -> int:
    """Product of `dims`, which must be sane.

    >>> element_count([2, 3])
    6

    Raises:
        Malformed: a negative dim, too many dims or too many elements.
    """
    if len(dims) > MAX_RANK:
        raise Malformed(f"{len(dims)} dimensions, more than {MAX_RANK}")
    if any(dim < 0 for dim in dims):
        raise Malformed(f"negative dimension in {list(dims)}")
    count = math.prod(dims)
    if count > MAX_ELEMENTS:
        raise Malformed(f"{count} elements in {list(dims)}, more than {MAX_ELEMENTS}")
    return count


def read_tensor(proto: TensorProto, folder: Path | None = None) -> Tensor:
    """A stored tensor, checked.

    Args:
        proto: the tensor of the file.
        folder: where external data may lie; None refuses it.

    Returns:
        A tensor that owns its memory, of the proto's dims and type.

    Raises:
        Malformed: sizes that do not fit, an unknown type, NaN, or data outside `folder`.
    """
    dtype = dtype_of(proto.data_type)
    dims = list(proto.dims)
    count = element_count(dims)
    if proto.HasField("segment"):
        raise Malformed("tensors stored in segments are not supported")
    if proto.data_location == TensorProto.EXTERNAL:
        flat = _from_bytes(external_bytes(proto, folder, count * dtype.itemsize), dtype, count)
    elif proto.HasField("raw_data"):
        flat = _from_bytes(proto.raw_data, dtype, count)
    else:
        flat = _from_field(proto, dtype, count)
    if dtype.is_floating_point and bool(torch.isnan(flat).any()):
        raise Malformed("it holds NaN")
    return flat.reshape(dims)


def _from_bytes(raw: bytes, dtype: torch.dtype, count: int) -> Tensor:
    expected = count * dtype.itemsize
    if len(raw) != expected:
        raise Malformed(f"{len(raw)} bytes are stored where its dims and type need {expected}")
    if count == 0:
        return torch.empty(0, dtype=dtype)
    if dtype is torch.bool:
        return torch.frombuffer(bytearray(raw), dtype=torch.uint8) != 0
    return torch.frombuffer(bytearray(raw), dtype=dtype)


def _from_field(proto: TensorProto, dtype: torch.dtype, count: int) -> Tensor:
    field = _FIELDS.get(dtype, "int32_data")
    stored = getattr(proto, field)
    if len(stored) != count:
        raise Malformed(f"{len(stored)} entries are stored in {field} where its dims need {count}")
    if dtype in _BIT_PATTERNS:
        bits = np.array(stored, dtype=np.int64).astype(np.uint16)
        return torch.from_numpy(bits).view(dtype)
    if dtype in (torch.uint64, torch.uint32):
        return torch.from_numpy(np.array(stored, dtype=np.uint64)).to(dtype)
    return torch.from_numpy(np.array(stored, dtype=np.float64 if dtype.is_floating_point else np.int64)).to(dtype)


def external_bytes(proto: TensorProto, folder: Path | None, expected: int) -> bytes:
    """What a tensor that lies in another file has there.

    Args:
        proto: the tensor.
        folder: where that file must lie; None refuses it.
        expected: bytes.

    Raises:
        Malformed: data outside the folder, missing, or of another length.
    """
    entries = {entry.key: entry.value for entry in proto.external_data}
    location = entries.get("location", "")
    if folder is None:
        raise Malformed(f"its data lie in another file, {location!r}; load the model from its path")
    offset, length = _whole(entries.get("offset", "0")), _whole(entries.get("length", str(expected)))
    if length != expected:
        raise Malformed(f"{length} external bytes where its dims and type need {expected}")
    file = _inside(folder, location)
    if offset + length > file.stat().st_size:
        raise Malformed(f"external data {location!r} end before byte {offset + length}")
    with file.open("rb") as stream:
        stream.seek(offset)
        return stream.read(length)


def _inside(folder: Path, location: str) -> Path:
    parts = location.replace("\\", "/").split("/")
    if not location or "\0" in location or location.startswith(("/", "\\")) or ".." in parts or ":" in parts[0]:
        raise Malformed(f"external data {location!r} must be a path inside the model's folder")
    base = folder.resolve()
    file = (base / location).resolve()  # follows symbolic links, so one that leads out is seen
    if not file.is_relative_to(base):
        raise Malformed(f"external data {location!r} lead outside the model's folder")
    if not file.is_file():
        raise Malformed(f"external data {location!r} are not beside the model; copy the file there")
    return file


def _whole(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise Malformed(f"external data offset or length {text[:32]!r} is not a whole number")
    return int(text)
