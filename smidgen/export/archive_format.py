"""What stands where in a ``.smidgen`` file: the header of its streams, a record for each tensor cut out of the graph.

    file   = "SMDG" · version · streams present · varint graph bytes · varint size of each stream
             · crc32 of the model · crc32 of each stream · crc32 of all before · the streams, nothing after
    record = varint flags · varint gap · varint rank · varint sides · [varint length · name] · [quantized: …]
             · [masked: varint values that are not zero]

Version 2 has codebooks, version 3 masks of zeros and codes of runs, version 1 none of these; a file is written as the
least version that holds it, which older readers know.

docs/archive.md tells it byte by byte. Nothing here allocates more than the file's own size: sizes are only read, and
compared with the limit.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from smidgen.coding.varint import read_varint, write_varint
from smidgen.errors import LoadError
from smidgen.export.archive_codebooks import MOST_VALUES
from smidgen.export.archive_wire import head
from smidgen.forms.scales import PER_OCTAVE

MAGIC, VERSIONS = b"SMDG", (1, 2, 3)
STREAMS: tuple[str, ...] = ("graph", "integers", "exponents", "float16", "float32", "float64", "codebooks", "masks")
_KNOWN = (6, 7, 8)  # streams of each version
# By kind, which is the flags' lowest two bits: the stream, ONNX's number of the dtype in the file, bytes of a value.
KINDS: tuple[str, ...] = ("float16", "float32", "float64", "quantized")
_DTYPES, _SIZES = (10, 1, 11, 1), (2, 4, 8, 4)
QUANTIZED = 3
# Of a network this project is for; each record costs an unpacker a few hundred bytes of its own.
MOST_RECORDS, MOST_SIDES = 1 << 16, 8
_WHOLE, _FLAT, _TRANSPOSED, _OWN_SHAPE, _SHARED, _FLAGS = (
    1 << 2, 1 << 6, 1 << 7, 1 << 8, 1 << 9, 1 << 10
)  # fmt: skip
_OCTAVE = 3
_MASKED = 1 << 3  # of floats, which have no octave
_MEND = "fetch the file again"


@dataclass(frozen=True)
class Header:
    """What a file says of itself.

    Args:
        graph_nbytes: of the graph stream, unpacked.
        checksum: crc32 of the model.
        nbytes: of the header itself.
        places: first byte and last + 1 of each stream that is there, by name.
    """

    graph_nbytes: int
    checksum: int
    nbytes: int
    places: Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class Record:
    """A tensor that was cut out of the graph.

    Args:
        kind: place in `KINDS`.
        gap: bytes of graph between the cut before and this one.
        dims: of the initializer.
        whole: the field up to its raw bytes was cut out too; they follow from name, kind and dims.
        name: of the initializer, where it was cut out whole.
        shape: of the integers.
        columns: how many column scales.
        per_octave: scales an octave.
        flat: all row exponents are 0, and not stored.
        transposed: the initializer has the first two axes of the weight swapped.
        values: of its codebook, where the integers are indices; 0 where they have scales.
        survivors: of floats, how many are stored and not zero, the others by a mask; None for all of them.
    """

    kind: int
    gap: int
    dims: tuple[int, ...]
    whole: bool = False
    name: bytes = b""
    shape: tuple[int, ...] = ()
    columns: int = 1
    per_octave: int = 1
    flat: bool = False
    transposed: bool = False
    values: int = 0
    survivors: int | None = None

    @property
    def stored(self) -> int:
        """Values of the tensor that a stream of floats holds."""
        return self.count if self.survivors is None else self.survivors

    @property
    def count(self) -> int:
        """Values of the tensor."""
        return math.prod(self.dims)

    @property
    def item_nbytes(self) -> int:
        """Bytes of a value."""
        return _SIZES[self.kind]

    @property
    def nbytes(self) -> int:
        """Raw bytes of the tensor."""
        return self.count * self.item_nbytes

    @property
    def head(self) -> bytes:
        """The bytes that stand before the raw bytes and are not in the graph."""
        return head(self.name, _DTYPES[self.kind], self.dims, self.nbytes) if self.whole else b""


def kind_of(dtype: int) -> int | None:
    """The kind of a float tensor of ONNX's dtype; None for others."""
    return _DTYPES.index(dtype) if dtype in _DTYPES else None


def join(graph_nbytes: int, checksum: int, streams: Mapping[str, bytes], *, newest: bool = False) -> bytes:
    """The file: header, then the streams that are not empty; of the newest version where its streams need it."""
    there = [(number, streams[name]) for number, name in enumerate(STREAMS) if streams.get(name)]
    present = sum(1 << number for number, _ in there)
    start = MAGIC + bytes([VERSIONS[-1] if newest else _version(present), present]) + write_varint(graph_nbytes)
    start += b"".join(write_varint(len(stream)) for _, stream in there) + _four(checksum)
    start += b"".join(_four(zlib.crc32(stream)) for _, stream in there)
    return start + _four(zlib.crc32(start)) + b"".join(stream for _, stream in there)


def _version(present: int) -> int:
    """The least that knows these streams."""
    return next(version for version, known in zip(VERSIONS, _KNOWN, strict=True) if not present >> known)


def split(data: bytes, limit: int) -> tuple[Header, dict[str, bytes]]:
    """Inverse of `join`, every checksum compared.

    Raises:
        LoadError: not an archive, of another version, or damaged; or its graph is larger than the limit.
    """
    header, checksums = _header(data)
    if header.graph_nbytes > limit:
        raise LoadError(f"archive: a graph of {header.graph_nbytes} bytes, {limit} allowed; raise the limit if right")
    streams = {name: data[start:end] for name, (start, end) in header.places.items()}
    for (name, stream), checksum in zip(streams.items(), checksums, strict=True):
        if zlib.crc32(stream) != checksum:
            raise LoadError(f"archive: its {name} stream of {len(stream)} bytes is damaged; {_MEND}")
    return header, streams


def _header(data: bytes) -> tuple[Header, list[int]]:
    if data[:4] != MAGIC:
        raise LoadError(f"archive: it starts with {data[:4].hex() or 'nothing'}, not 'SMDG'; give a .smidgen file")
    if len(data) < 6:
        raise LoadError(f"archive: {len(data)} bytes are no header; {_MEND}")
    if data[4] not in VERSIONS:
        known = ", ".join(map(str, VERSIONS))
        raise LoadError(f"archive: format {data[4]}, this smidgen reads {known}; get the smidgen that wrote it")
    names = [name for number, name in enumerate(STREAMS) if data[5] >> number & 1]
    graph_nbytes, at = read_varint(data, 6)
    sizes = []
    for _ in names:
        size, at = read_varint(data, at)
        sizes.append(size)
    end = at + 4 * (len(names) + 2)
    if end > len(data) or zlib.crc32(data[: end - 4]) != int.from_bytes(data[end - 4 : end], "little"):
        raise LoadError(f"archive: its header is damaged; {_MEND}")
    if data[5] >> _KNOWN[VERSIONS.index(data[4])] or "graph" not in names:
        raise LoadError(f"archive: streams {data[5]:#x} are not of format {data[4]}; {_MEND}")
    if end + sum(sizes) != len(data):
        raise LoadError(f"archive: {len(data)} bytes where its header promises {end + sum(sizes)}; {_MEND}")
    sums = [int.from_bytes(data[place : place + 4], "little") for place in range(at, end - 4, 4)]
    places, start = {}, end
    for name, size in zip(names, sizes, strict=True):
        places[name] = (start, start + size)
        start += size
    return Header(graph_nbytes, sums[0], end, places), sums[1:]


def _four(checksum: int) -> bytes:
    return checksum.to_bytes(4, "little")


def write_records(records: list[Record]) -> bytes:
    """Their number, then one after another."""
    return write_varint(len(records)) + b"".join(_written(record) for record in records)


def _written(record: Record) -> bytes:
    quantized = record.kind == QUANTIZED
    plain = _plain_shape(record.dims, transposed=record.transposed)
    flags = record.kind | _WHOLE * record.whole | _MASKED * (record.survivors is not None)
    if quantized:
        flags |= PER_OCTAVE.index(record.per_octave) << _OCTAVE | _FLAT * record.flat
        flags |= _TRANSPOSED * record.transposed | _OWN_SHAPE * (record.shape != plain) | _SHARED * (record.values > 0)
    out = write_varint(flags) + write_varint(record.gap) + _sides(record.dims)
    if record.whole:
        out += write_varint(len(record.name)) + record.name
    if quantized:
        out += _sides(record.shape) if flags & _OWN_SHAPE else b""
        # 0 for a single scale, the likeliest, whose span would be another number in every layer.
        span = 0 if record.columns == 1 else record.count // record.shape[0] // record.columns
        out += write_varint(record.values or span)
    return out + (b"" if record.survivors is None else write_varint(record.survivors))


def _plain_shape(dims: tuple[int, ...], *, transposed: bool) -> tuple[int, ...]:
    return (dims[1], dims[0], *dims[2:]) if transposed and len(dims) > 1 else dims


def _sides(shape: tuple[int, ...]) -> bytes:
    return write_varint(len(shape)) + b"".join(write_varint(side) for side in shape)


def read_records(data: bytes, limit: int) -> tuple[list[Record], int]:
    """Inverse of `write_records`: the records, and where they end.

    Args:
        data: records, and the graph after them.
        limit: bytes that graph and tensors may take together.

    Raises:
        LoadError: no packer writes such records, or they claim more than the limit.
    """
    number, at = read_varint(data, 0)
    if number > min(MOST_RECORDS, len(data)):
        raise LoadError(f"archive: {number} tensors in {len(data)} bytes; {_MEND}")
    records, claimed, gaps = [], 0, 0
    for _ in range(number):
        record, at = _read(data, at, limit)
        claimed += len(record.head) + record.nbytes
        gaps += record.gap
        if claimed > limit:
            break
        records.append(record)
    if claimed + len(data) - at > limit:
        raise LoadError(f"archive: {claimed} bytes of tensors claimed, {limit} allowed; raise the limit if right")
    if gaps > len(data) - at:
        raise LoadError(f"archive: tensors {gaps} bytes into a graph of {len(data) - at}; {_MEND}")
    return records, at


def _read(data: bytes, at: int, limit: int) -> tuple[Record, int]:
    flags, at = read_varint(data, at)
    gap, at = read_varint(data, at)
    dims, at = _read_sides(data, at, limit)
    kind, whole, name = flags & 3, bool(flags & _WHOLE), b""
    if whole:
        size, at = read_varint(data, at)
        name, at = data[at : at + size], at + size
        if at > len(data):
            raise LoadError(f"archive: a name of {size} bytes; {_MEND}")
    if kind != QUANTIZED:
        if flags > 3 | _WHOLE | _MASKED:
            raise LoadError(f"archive: a tensor with flags {flags:#x}; {_MEND}")
        survivors = None
        if flags & _MASKED:
            survivors, at = read_varint(data, at)
            if survivors > math.prod(dims):
                raise LoadError(f"archive: {survivors} values of a tensor {list(dims)}; {_MEND}")
        return Record(kind, gap, dims, whole, name, survivors=survivors), at
    transposed, octave = bool(flags & _TRANSPOSED), flags >> _OCTAVE & 7
    shared, flat = bool(flags & _SHARED), bool(flags & _FLAT)
    if flags >= _FLAGS or octave >= len(PER_OCTAVE) or (shared and (octave or flat)):
        raise LoadError(f"archive: a tensor with flags {flags:#x}; {_MEND}")
    shape = _plain_shape(dims, transposed=transposed)
    if flags & _OWN_SHAPE:
        shape, at = _read_sides(data, at, limit)
    span, at = read_varint(data, at)
    count = math.prod(dims)
    if math.prod(shape) != count or (transposed and len(shape) < 2):
        raise LoadError(f"archive: integers {list(shape)} for a tensor {list(dims)}; {_MEND}")
    if shared:
        if not 0 < span <= MOST_VALUES:
            raise LoadError(f"archive: a codebook of {span} values; {_MEND}")
        return Record(kind, gap, dims, whole, name, shape, transposed=transposed, values=span), at
    width = count // shape[0]
    if span and width % span:
        raise LoadError(f"archive: integers in rows of {width} for a scale every {span}; {_MEND}")
    columns = width // span if span else 1
    return Record(kind, gap, dims, whole, name, shape, columns, PER_OCTAVE[octave], flat, transposed), at


def _read_sides(data: bytes, at: int, limit: int) -> tuple[tuple[int, ...], int]:
    rank, at = read_varint(data, at)
    if not 0 < rank <= MOST_SIDES:
        raise LoadError(f"archive: a tensor of {rank} axes; {_MEND}")
    sides, total = [], 1
    for _ in range(rank):
        side, at = read_varint(data, at)
        total *= side
        if not 0 < total <= limit:
            raise LoadError(f"archive: a tensor of at least {total} values, {limit} bytes allowed; {_MEND}")
        sides.append(side)
    return tuple(sides), at
