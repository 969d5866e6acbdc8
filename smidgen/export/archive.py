"""The ``.smidgen`` archive: an ONNX file in as few bytes as its weights need, and back to the bit.

    model bytes = graph, cut apart by the raw bytes of its tensors
    graph       → a model of bytes that knows ONNX                 (archive_primer.py)
    quantized   → integers by one adaptive coder, exponents        (smidgen.coding, archive_exponents.py)
    shared      → indices among those integers, codebooks          (archive_codebooks.py)
    floats      → byte planes, all tensors of a dtype together
    zeros       → masks, of float tensors that have many          (archive_masks.py)

Unpacking puts the pieces together again, so what comes out is the very file that was measured. Numpy only: neither
torch nor a protobuf library is needed. The format: archive_format.py and docs/archive.md.
"""

from __future__ import annotations

import io
import stat
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from smidgen.coding import (
    CODERS,
    method_of,
    pack_bytes,
    pack_floats,
    pack_many,
    unpack_bytes,
    unpack_floats,
    unpack_many,
)
from smidgen.errors import LoadError, VerificationError
from smidgen.export.archive_codebooks import centred, codebook_of, pack_codebooks, unpack_codebooks
from smidgen.export.archive_exponents import pack_exponents, unpack_exponents
from smidgen.export.archive_format import (
    KINDS,
    MOST_RECORDS,
    MOST_SIDES,
    QUANTIZED,
    Header,
    Record,
    join,
    kind_of,
    read_records,
    split,
    write_records,
)
from smidgen.export.archive_masks import join_zeros, pack_masks, split_zeros, unpack_masks
from smidgen.export.archive_primer import primer
from smidgen.export.archive_wire import Initializer, initializers
from smidgen.forms import Codebook, Quantized, dense, shape

# Bytes of an unpacked model unless told otherwise.
LIMIT = 1 << 30
# Raw bytes from which a float tensor pays for its record.
SMALLEST = 16


@dataclass(frozen=True, eq=False)
class Packed:
    """The integers and scales, or the indices and values, that an initializer was made from.

    Args:
        form: `dense` of it is the initializer, in the same order.
        transposed: after its first two axes were swapped.
    """

    form: Quantized | Codebook
    transposed: bool = False

    @property
    def values(self) -> np.ndarray:
        """The initializer's values, little-endian float32."""
        # A hostile archive may name scales whose product is infinite; that is no reason to warn.
        with np.errstate(all="ignore"):
            values = dense(self.form)
        return (values.swapaxes(0, 1) if self.transposed else values).astype("<f4")


@dataclass(frozen=True)
class Contents:
    """What an archive holds.

    Args:
        nbytes: of the archive.
        model_nbytes: of the model it unpacks to.
        streams: bytes of the header and of each stream.
        tensors: cut out of the graph, by kind: float16, float32, float64 or quantized.
        weights: values of those tensors.
    """

    nbytes: int
    model_nbytes: int
    streams: Mapping[str, int]
    tensors: Mapping[str, int]
    weights: Mapping[str, int]


def pack_archive(model: bytes, quantized: Mapping[str, Packed], coders: Sequence[str] = CODERS) -> bytes:
    """The archive of an ONNX file.

    Args:
        model: the serialised file, its weights inside as raw bytes.
        quantized: by initializer, the integers it was made from; all others are kept as floats.
        coders: of integers that may be used, of `smidgen.coding.streams.METHODS`.

    Raises:
        LoadError: the model is not an ONNX file.
        ValueError: there is no such initializer.
        VerificationError: an initializer is not, to the bit, what its integers give.

    >>> from onnx import helper, numpy_helper
    >>> form = Quantized(np.eye(4, dtype=np.int32), np.zeros(4, np.int32), np.array([-3], np.int32))
    >>> weight = numpy_helper.from_array(dense(form), "w")
    >>> model = helper.make_model(helper.make_graph([], "g", [], [], [weight])).SerializeToString()
    >>> unpack_archive(pack_archive(model, {"w": Packed(form)})) == model
    True
    """
    found = initializers(model)
    named = [quantized.get(tensor.name.decode(errors="replace")) for tensor in found]
    unknown = set(quantized) - {tensor.name.decode(errors="replace") for tensor in found}
    if unknown:
        raise ValueError(f"archive: no initializer {min(unknown)!r} with raw bytes in the model; give one of its names")
    graph, records, at = bytearray(), list[Record](), 0
    forms, floats = list[Quantized | Codebook](), {name: bytearray() for name in KINDS[:QUANTIZED]}
    masks = list[np.ndarray]()
    for tensor, packed in zip(found, named, strict=True):
        raw = model[tensor.raw : tensor.end]
        kind = QUANTIZED if packed is not None else _float_kind(tensor, len(raw))
        if kind is None or len(records) == MOST_RECORDS:
            continue
        start = tensor.start if tensor.whole else tensor.raw
        record = Record(kind, start - at, tensor.dims, tensor.whole, tensor.name if tensor.whole else b"")
        if packed is None:
            zeros = split_zeros(raw, record.item_nbytes)
            if zeros is not None:
                masks.append(zeros[0].reshape(record.dims))
                raw = zeros[1]
                record = replace(record, survivors=len(raw) // record.item_nbytes)
            floats[KINDS[kind]] += raw
        else:
            record = _quantized(record, packed, tensor, raw)
            forms.append(packed.form)
        records.append(record)
        graph += model[at:start]
        at = tensor.end
    data = _joined(bytes(graph + model[at:]), zlib.crc32(model), records, forms, floats, masks, coders)
    if not _unpacks_to(data, model):
        raise VerificationError("archive: it does not unpack to the model; please report it")
    return data


def _unpacks_to(data: bytes, model: bytes) -> bool:
    """Whether an archive gives back the model, compared piece by piece: no second one stands in memory."""
    at, whole = 0, memoryview(model)
    for piece in _pieces(data, max(LIMIT, len(model)))[1]:
        if whole[at : at + len(piece)] != piece:
            return False
        at += len(piece)
    return at == len(model)


def _float_kind(tensor: Initializer, nbytes: int) -> int | None:
    kind = kind_of(tensor.dtype)
    fits = kind is not None and Record(kind, 0, tensor.dims).nbytes == nbytes and 0 < len(tensor.dims) <= MOST_SIDES
    return kind if fits and nbytes >= SMALLEST else None


def _quantized(record: Record, packed: Packed, tensor: Initializer, raw: bytes) -> Record:
    """The record completed.

    Raises:
        VerificationError: the integers do not give the raw bytes.
    """
    form, name = packed.form, tensor.name.decode(errors="replace")
    try:
        given = packed.values
    except ValueError as error:
        raise VerificationError(f"archive: {name!r} has integers and scales that do not fit: {error}") from error
    ranks = len(shape(form)), len(tensor.dims)
    storable = (
        kind_of(tensor.dtype) == 1 and record.nbytes == len(raw) > 0 and 0 < min(ranks) <= max(ranks) <= MOST_SIDES
    )
    if not storable or given.tobytes() != raw:
        raise VerificationError(
            f"archive: {name!r} {list(tensor.dims)} is not, to the bit, what its integers {list(shape(form))} "
            "give; write the model from the same form, or leave it among the floats"
        )
    if isinstance(form, Codebook):
        return replace(record, shape=form.indices.shape, transposed=packed.transposed, values=len(form.values))
    return replace(
        record,
        shape=form.integers.shape,
        columns=len(form.column),
        per_octave=form.per_octave,
        flat=not form.row.any(),
        transposed=packed.transposed,
    )


def _joined(
    graph: bytes,
    checksum: int,
    records: list[Record],
    forms: list[Quantized | Codebook],
    floats: Mapping[str, bytearray],
    masks: list[np.ndarray],
    coders: Sequence[str],
) -> bytes:
    text = write_records(records) + graph
    streams = {"graph": pack_bytes(text, primer=primer())}
    if forms:
        integers = [_integers(form) for form in forms]
        streams["integers"] = pack_many([integers[i] for i in _coding_order([shape(form) for form in forms])], coders)
    if scaled := [form for form in forms if isinstance(form, Quantized)]:
        rows = [form.row.astype(np.int32) for form in scaled if form.row.any()]
        streams["exponents"] = pack_exponents(rows, [form.column.astype(np.int32) for form in scaled])
    if books := [form.values for form in forms if isinstance(form, Codebook)]:
        streams["codebooks"] = pack_codebooks(books)
    if masks:
        streams["masks"] = pack_masks(masks, coders)
    for name, raw in floats.items():
        if raw:
            streams[name] = pack_floats(np.frombuffer(raw, np.dtype(name).newbyteorder("<")).astype(name))
    runs = any(method_of(streams[name]) == "runs" for name in ("integers", "masks") if name in streams)
    return join(len(text), checksum, streams, newest=runs)


def _integers(form: Quantized | Codebook) -> np.ndarray:
    return centred(form) if isinstance(form, Codebook) else np.ascontiguousarray(form.integers, np.int32)


def _coding_order(shapes: Sequence[tuple[int, ...]]) -> list[int]:
    """Matrices before vectors: the integers of biases are of another size, and would unsettle the model of weights."""
    return sorted(range(len(shapes)), key=lambda i: len(shapes[i]) < 2)


def unpack_archive(data: bytes, limit: int = LIMIT) -> bytes:
    """The ONNX file that was packed, to the bit.

    Args:
        data: the archive.
        limit: bytes it may unpack to; nothing larger is allocated for what a file merely claims.

    Raises:
        LoadError: it is no archive, damaged, of another version, or larger than the limit.
    """
    header, pieces = _pieces(data, limit)
    model = b"".join(pieces)
    if zlib.crc32(model) != header.checksum:
        raise LoadError(f"archive: the {len(model)} bytes in it are not those that were packed; fetch the file again")
    return model


def _pieces(data: bytes, limit: int) -> tuple[Header, Iterator[bytes]]:
    """The model in an archive from its first byte to its last, in pieces."""
    header, streams = split(data, limit)
    text, records, start = _opened(header, streams, limit)

    def each() -> Iterator[bytes]:
        at = start
        for record, raw in zip(records, _tensors(records, streams, limit), strict=True):
            yield from (text[at : at + record.gap], record.head, raw)
            at += record.gap
        yield text[at:]

    return header, each()


def describe_archive(data: bytes, limit: int = LIMIT) -> Contents:
    """What an archive holds, its weights left packed.

    Raises:
        LoadError: as `unpack_archive`, as far as that can be told.
    """
    header, streams = split(data, limit)
    text, records, at = _opened(header, streams, limit)
    tensors, weights = dict.fromkeys(KINDS, 0), dict.fromkeys(KINDS, 0)
    for record in records:
        tensors[KINDS[record.kind]] += 1
        weights[KINDS[record.kind]] += record.count
    unpacked = len(text) - at + sum(len(record.head) + record.nbytes for record in records)
    sizes = {"header": header.nbytes, **{name: len(stream) for name, stream in streams.items()}}
    return Contents(len(data), unpacked, sizes, tensors, weights)


def unpack(path: str | Path, limit: int = LIMIT) -> bytes:
    """The ONNX file inside a ``.smidgen`` file.

    Args:
        path: of the file.
        limit: bytes it may unpack to.

    Raises:
        LoadError: it cannot be read; or as `unpack_archive`.
    """
    return unpack_archive(read_archive(path, limit), limit)


def read_archive(path: str | Path, limit: int = LIMIT) -> bytes:
    """The bytes of a ``.smidgen`` file, not looked at.

    Raises:
        LoadError: it cannot be read, or is itself larger than what it may unpack to.
    """
    try:
        status = Path(path).stat()
        if not stat.S_ISREG(status.st_mode):
            raise LoadError(f"archive: '{path}' is no file; give a .smidgen file")
        if status.st_size > limit:
            raise LoadError(f"archive: '{path}' is larger than the {limit} bytes allowed; raise the limit if right")
        return Path(path).read_bytes()
    except OSError as error:
        raise LoadError(f"archive: '{path}' cannot be read: {error.strerror}; give a .smidgen file") from None


def _opened(header: Header, streams: Mapping[str, bytes], limit: int) -> tuple[bytes, list[Record], int]:
    """Records and graph, the records, where the graph begins; the streams are those that the records need."""
    text = unpack_bytes(streams["graph"], header.graph_nbytes, limit, primer())
    records, at = read_records(text, limit)
    kinds = {KINDS[record.kind] for record in records}
    needed = {"graph"} | {KINDS[record.kind] for record in records if record.kind != QUANTIZED and record.stored}
    needed |= {"masks" for record in records if record.survivors is not None}
    for record in (record for record in records if record.kind == QUANTIZED):
        needed |= {"integers", "codebooks" if record.values else "exponents"}
    if needed != set(streams):
        raise LoadError(f"archive: streams {sorted(streams)} for tensors of {sorted(kinds)}; fetch the file again")
    return text, records, at


def _tensors(records: list[Record], streams: Mapping[str, bytes], limit: int) -> Iterator[bytes]:
    """Raw bytes of each record's tensor."""
    forms = _forms([record for record in records if record.kind == QUANTIZED], streams, limit)
    floats = {name: _floats(records, number, streams, limit) for number, name in enumerate(KINDS[:QUANTIZED])}
    masks = _masks([record for record in records if record.survivors is not None], streams, limit)
    for record in records:
        if record.kind == QUANTIZED:
            yield _raw(Packed(next(forms), record.transposed))
        else:
            raw = floats[KINDS[record.kind]].read(record.stored * record.item_nbytes)
            yield raw if record.survivors is None else join_zeros(next(masks), raw, record.item_nbytes)


def _masks(records: list[Record], streams: Mapping[str, bytes], limit: int) -> Iterator[np.ndarray]:
    if not records:
        return iter(())
    counts = [record.stored for record in records]
    return iter(unpack_masks(streams["masks"], [record.dims for record in records], counts, limit))


def _raw(packed: Packed) -> bytes:
    try:
        return packed.values.tobytes()
    except ValueError as error:
        raise LoadError(f"archive: a tensor is damaged: {error}") from error


def _floats(records: list[Record], kind: int, streams: Mapping[str, bytes], limit: int) -> io.BytesIO:
    name, count = KINDS[kind], sum(record.stored for record in records if record.kind == kind)
    if not count:
        return io.BytesIO()
    values = unpack_floats(streams[name], count, name, limit)
    return io.BytesIO(values.astype(values.dtype.newbyteorder("<")).tobytes())


def _forms(records: list[Record], streams: Mapping[str, bytes], limit: int) -> Iterator[Quantized | Codebook]:
    if not records:
        return
    order = _coding_order([record.shape for record in records])
    coded = unpack_many(streams["integers"], [records[i].shape for i in order], limit)
    integers = dict(zip(order, coded, strict=True))
    rows, columns = _exponents([record for record in records if not record.values], streams, limit)
    sizes = [record.values for record in records if record.values]
    books = iter(unpack_codebooks(streams["codebooks"], sizes, limit) if sizes else [])
    for i, record in enumerate(records):
        if record.values:
            yield codebook_of(integers.pop(i), next(books))
            continue
        row = np.zeros(record.shape[0], np.int32) if record.flat else next(rows)
        yield Quantized(integers.pop(i), row, next(columns), record.per_octave)


def _exponents(
    records: list[Record], streams: Mapping[str, bytes], limit: int
) -> tuple[Iterator[np.ndarray], Iterator[np.ndarray]]:
    """Those of rows that are stored, and of columns."""
    if not records:
        return iter(()), iter(())
    sizes = [record.shape[0] for record in records if not record.flat]
    rows, columns = unpack_exponents(streams["exponents"], sizes, [record.columns for record in records], limit)
    return iter(rows), iter(columns)
