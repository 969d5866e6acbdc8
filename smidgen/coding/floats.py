"""Small arrays of floats (scales, biases) ↔ bytes, to the bit.

    value = sign, exponent and high mantissa (much alike over an array) | low mantissa (noise)

Byte planes are shuffled apart: plane k holds byte k of every value. The high planes go through `blobs`, the low ones as
they are, the split chosen by size. Floats are never computed with, so nan payloads and signed zeros survive.

    stream = planes coded (1 byte) + varint bytes of those + their stream + the other planes
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Shaped

from smidgen.coding.blobs import pack_bytes, unpack_bytes
from smidgen.coding.streams import MOST_VALUES
from smidgen.coding.varint import read_varint, write_varint
from smidgen.errors import LoadError

# Values on which the split is chosen where there are more.
SAMPLE = 1 << 16
# As stored: little-endian on every machine.
DTYPES = {"float16": np.dtype("<f2"), "float32": np.dtype("<f4"), "float64": np.dtype("<f8")}


def pack_floats(values: Shaped[np.ndarray, " count"]) -> bytes:
    """The smallest stream of a float16, float32 or float64 array.

    Raises:
        ValueError: another dtype.

    >>> scales = np.array([0.5, 0.25, 0.125, -0.0], np.float32)
    >>> unpack_floats(pack_floats(scales), 4, "float32").tolist()
    [0.5, 0.25, 0.125, -0.0]
    """
    stored = DTYPES.get(values.dtype.name)
    if stored is None:
        raise ValueError(f"pack_floats: dtype {values.dtype} must be one of {list(DTYPES)}")
    # Most significant plane first.
    planes = values.astype(stored).view(np.uint8).reshape(-1, stored.itemsize).T[::-1]
    splits = range(stored.itemsize + 1)
    if planes.shape[1] > SAMPLE:
        some = planes[:, :SAMPLE]
        sizes = [some[high:].size + (len(pack_bytes(some[:high].tobytes())) if high else 0) for high in splits]
        splits = [sizes.index(min(sizes))]
    coded = []
    for high in splits:
        stream = pack_bytes(planes[:high].tobytes()) if high else b""
        coded.append(bytes([high]) + write_varint(len(stream)) + stream + planes[high:].tobytes())
    return min(coded, key=len)


def unpack_floats(data: bytes, count: int, dtype: str, limit: int = MOST_VALUES) -> Shaped[np.ndarray, " count"]:
    """Inverse of `pack_floats`.

    Args:
        data: the stream.
        count: of values.
        dtype: float16, float32 or float64.
        limit: values allowed; nothing is allocated for more.

    Raises:
        LoadError: the stream is damaged, the dtype unknown or `count` beyond the limit.
    """
    stored = DTYPES.get(dtype)
    if stored is None:
        raise LoadError(f"floats: dtype {dtype!r} is not one of {list(DTYPES)}; fetch the file again")
    if not 0 <= count <= limit:
        raise LoadError(f"floats: {count} values claimed, {limit} allowed; raise the limit if that is right")
    high = data[0] if data else 255
    if high > stored.itemsize:
        raise LoadError(f"floats: {high} planes in a value of {stored.itemsize} bytes; fetch the file again")
    size, at = read_varint(data, 1)
    low = data[at + size :]
    if at + size > len(data) or len(low) != count * (stored.itemsize - high) or (size and not high):
        raise LoadError("floats: planes do not fill the stream; fetch the file again")
    planes = (unpack_bytes(data[at : at + size], count * high) if high else b"") + low
    shuffled = np.frombuffer(planes, np.uint8).reshape(stored.itemsize, count)
    items = np.ascontiguousarray(shuffled[::-1].T)
    return items.view(stored).reshape(count).astype(stored.newbyteorder("="))
