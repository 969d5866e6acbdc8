"""A TFLite file as plain objects and back: read defensively, written in as few bytes as LiteRT runs.

The objects are those of the schema that comes with LiteRT (``ModelT``, ``SubGraphT``, ``TensorT``, ``OperatorT``).
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping
from functools import cache, partial
from types import ModuleType
from typing import Any

import numpy as np

from smidgen.errors import LoadError, one_line

INSTALL = "pip install smidgen[tflite]"
IDENTIFIER = b"TFL3"
VERSION = 3
ALIGNMENT = 16  # of buffers, as the schema asks for
NO_TENSOR = -1  # an input that is left out
MOST_ITEMS = 1 << 20  # operators, tensors or buffers of a file; no network comes near
# In the model's description: the network takes its channels first, the file takes them last.
CHANNELS_LAST = "nhwc"
# Bytes of one element, by the schema's names; types that a network of floats or of 8- and 16-bit integers holds.
ITEM_NBYTES = {
    "FLOAT32": 4, "FLOAT16": 2, "INT32": 4, "UINT8": 1, "INT64": 8, "BOOL": 1, "INT16": 2, "INT8": 1, "FLOAT64": 8,
    "UINT16": 2, "UINT32": 4, "UINT64": 8,
}  # fmt: skip
# Digests of the files that this process wrote, or saw LiteRT run.
SOUND: set[bytes] = set()


def require_litert(what: str, *packages: str) -> None:
    """LoadError, with the command that helps, where LiteRT or one of these packages is not installed.

    Args:
        what: needs them, for the message.
        packages: further ones, by the name they are imported with.
    """
    for package in ("ai_edge_litert", *packages):
        if importlib.util.find_spec(package) is None:
            raise LoadError(f"{what}: TFLite needs the package {package.replace('_', '-')}; {INSTALL}")


@cache
def schema() -> ModuleType:
    """The schema's classes."""
    from ai_edge_litert import schema_py_generated

    return schema_py_generated


@cache
def names_of(enumeration: str) -> dict[int, str]:
    """Names by value: ``names_of("BuiltinOperator")[3]`` is ``CONV_2D``."""
    values = vars(getattr(schema(), enumeration))
    return {value: name for name, value in values.items() if isinstance(value, int) and not name.startswith("_")}


def number_of(enumeration: str, name: str) -> int:
    """The value of a name."""
    return getattr(getattr(schema(), enumeration), name)


def operator_name(model: Any, operator: Any) -> str:
    """Name of an operator, ``CONV_2D``; ``CUSTOM`` for one that is not built in."""
    code = model.operatorCodes[operator.opcodeIndex]
    # Codes past 127 came later, in a field of their own; old files have the first alone.
    return names_of("BuiltinOperator")[max(code.builtinCode, code.deprecatedBuiltinCode)]


def stored_bytes(model: Any, tensor: Any) -> np.ndarray | None:
    """The stored bytes of a constant tensor, uint8; None where it is computed."""
    data = model.buffers[tensor.buffer].data
    return None if data is None or len(data) == 0 else np.asarray(data, np.uint8)


def constant(model: Any, tensor: Any) -> np.ndarray | None:
    """The values of a constant tensor in its shape; None where it is computed."""
    data = stored_bytes(model, tensor)
    if data is None:
        return None
    kind, shape = names_of("TensorType")[tensor.type], _listed(tensor.shape)
    if kind == "INT4":
        halves = np.stack([data & 15, data >> 4], axis=1).ravel()[: int(np.prod(shape, dtype=int))]
        return (halves.astype(np.int8) ^ np.int8(8)).reshape(shape) - np.int8(8)
    return data.view(np.dtype(kind.lower())).reshape(shape)


def packed(values: np.ndarray, kind: str) -> np.ndarray:
    """The bytes of a constant, uint8: those of the array, or two integers of four bits in one, the first below.

    >>> packed(np.array([1, -1, 7], np.int8), "INT4").tolist()
    [241, 7]
    """
    if kind == "INT4":
        halves = np.zeros(values.size + values.size % 2, np.uint8)
        halves[: values.size] = np.ascontiguousarray(values, np.int8).ravel().view(np.uint8) & 15
        return halves[1::2] << 4 | halves[0::2]
    return np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)


def scale_of(details: Mapping[str, Any]) -> float:
    """Of a tensor of integers with one scale, by an interpreter's details of it; 0 of any other."""
    return float(details["quantization"][0]) if np.issubdtype(details["dtype"], np.integer) else 0.0


def as_stored(x: np.ndarray, details: Mapping[str, Any]) -> np.ndarray:
    """Numbers as a tensor holds them: ``q = round(x / scale) + zero`` where it is of integers with one scale.

    >>> as_stored(np.array([1.0, -2.0, 99.0]), {"dtype": np.int8, "quantization": (0.5, 10)}).tolist()
    [12, 6, 127]
    """
    scale, kind = scale_of(details), details["dtype"]
    if not scale:
        return np.ascontiguousarray(x, dtype=kind)
    limits = np.iinfo(kind)
    steps = np.round(np.asarray(x, np.float32) / np.float32(scale)) + details["quantization"][1]
    return np.clip(steps, limits.min, limits.max).astype(kind)


def as_floats(stored: np.ndarray, details: Mapping[str, Any]) -> np.ndarray:
    """The numbers that a tensor's integers stand for, ``x = scale · (q − zero)``; others as they are."""
    scale = scale_of(details)
    if not scale:
        return stored
    return (stored.astype(np.float32) - np.float32(details["quantization"][1])) * np.float32(scale)


def end_names(model: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of a model's inputs and of its outputs."""
    graph = model.subgraphs[0]
    names = [[graph.tensors[i].name or "" for i in _listed(ends)] for ends in (graph.inputs, graph.outputs)]
    inputs, outputs = (tuple(n.decode() if isinstance(n, bytes) else n for n in ends) for ends in names)
    return inputs, outputs


def parse(content: bytes, name: str = "the file") -> Any:
    """The model in a TFLite file, with every index, type and size checked.

    LiteRT itself trusts what it reads, and ends the process where it should not have.

    Args:
        content: the file.
        name: for messages.

    Raises:
        LoadError: damaged, or not a TFLite file.

    >>> parse(b"no network")
    Traceback (most recent call last):
    smidgen.errors.LoadError: runtime: the file is not a TFLite file
    """
    require_litert("runtime")
    if len(content) < 8 or content[4:8] != IDENTIFIER:
        raise LoadError(f"runtime: {name} is not a TFLite file")
    try:
        # Every read of the schema's classes is bounds-checked by Python, and offsets cannot be negative.
        root = schema().Model.GetRootAs(bytearray(content), 0)
        _check_counts(root)
        model = schema().ModelT.InitFromObj(root)
        _check(model)
    except Exception as fault:  # struct, numpy and the enumerations each raise their own
        told = one_line(fault, 120)
        raise LoadError(f"runtime: {name} is damaged: {type(fault).__name__}: {told}") from None
    return model


def _check_counts(root: Any) -> None:
    """Before anything is read: a count that is made up would be counted to."""
    counts = [root.SubgraphsLength(), root.BuffersLength(), root.OperatorCodesLength()]
    for i in range(min(root.SubgraphsLength(), MOST_ITEMS)):
        graph = root.Subgraphs(i)
        counts += [graph.TensorsLength(), graph.OperatorsLength(), graph.InputsLength(), graph.OutputsLength()]
    if max(counts) > MOST_ITEMS:
        raise ValueError("more items than any network has")


def _check(model: Any) -> None:
    if model.version != VERSION or not model.subgraphs or not model.buffers or not model.operatorCodes:
        raise ValueError("a model of version 3 with a graph, buffers and operators is needed")
    for graph in model.subgraphs:
        tensors = graph.tensors or []
        for tensor in tensors:
            _check_tensor(model, tensor)
        ends = [*_listed(graph.inputs), *_listed(graph.outputs)]
        _check_places(ends, len(tensors), least=0)
        for operator in graph.operators or []:
            if not 0 <= operator.opcodeIndex < len(model.operatorCodes):
                raise ValueError(f"an operator has the code {operator.opcodeIndex}")
            operator_name(model, operator)
            _check_places(_listed(operator.inputs), len(tensors), least=NO_TENSOR)
            _check_places(_listed(operator.outputs), len(tensors), least=0)


def _listed(indices: Any) -> list[int]:
    return [] if indices is None else [int(i) for i in indices]


def _check_places(places: list[int], count: int, least: int) -> None:
    for place in places:
        if not least <= place < count:
            raise ValueError(f"a tensor {place} is used, there are {count}")


def _check_tensor(model: Any, tensor: Any) -> None:
    if not 0 <= tensor.buffer < len(model.buffers):
        raise ValueError(f"a tensor has the buffer {tensor.buffer}, there are {len(model.buffers)}")
    shape = _listed(tensor.shape)
    if any(size < 0 for size in shape):
        raise ValueError(f"a tensor has the shape {shape}")
    kind, data = names_of("TensorType")[tensor.type], stored_bytes(model, tensor)
    count = int(np.prod(np.array(shape, dtype=object), dtype=object)) if shape else 1
    if count >= 1 << 40:
        raise ValueError(f"a tensor has the shape {shape}")
    needed = -(-count // 2) if kind == "INT4" else count * ITEM_NBYTES.get(kind, 0)
    if data is not None and (kind in ITEM_NBYTES or kind == "INT4") and len(data) != needed:
        raise ValueError(f"a tensor of {kind} {shape} has {len(data)} bytes")


def serialise(model: Any) -> bytes:
    """The file of a model: buffers aligned, equal lists of numbers stored once.

    Args:
        model: as `parse` gives it; not changed in what it says.
    """
    import flatbuffers

    builder = flatbuffers.Builder(1024 + sum(len(b.data) + 64 for b in model.buffers if b.data is not None))
    shared: dict[bytes, int] = {}
    for buffer in model.buffers:
        buffer.Pack = partial(_pack_buffer, buffer)
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            tensor.Pack = partial(_pack_tensor, tensor, shared)
        for operator in graph.operators:
            operator.inputs, operator.outputs = (np.asarray(_listed(i), np.int32) for i in (
                operator.inputs, operator.outputs
            ))  # fmt: skip
    try:
        builder.Finish(model.Pack(builder), IDENTIFIER)
    finally:
        for each in [*model.buffers, *(t for graph in model.subgraphs for t in graph.tensors)]:
            vars(each).pop("Pack", None)
    content = bytes(builder.Output())
    SOUND.add(hashlib.sha256(content).digest())
    return content


def _pack_buffer(buffer: Any, builder: Any) -> int:
    place = None
    if buffer.data is not None and len(buffer.data):
        data = np.ascontiguousarray(buffer.data, dtype=np.uint8)
        builder.StartVector(1, len(data), ALIGNMENT)
        builder.head = builder.head - len(data)
        builder.Bytes[builder.head : builder.head + len(data)] = data.tobytes()
        builder.vectorNumElems = len(data)
        place = builder.EndVector()
    s = schema()
    s.BufferStart(builder)
    if place is not None:
        s.BufferAddData(builder, place)
    return s.BufferEnd(builder)


def _pack_tensor(tensor: Any, shared: dict[bytes, int], builder: Any) -> int:
    s = schema()

    def numbers(values: Any, kind: Any) -> int:
        array = np.asarray(values, kind)
        key = array.dtype.str.encode() + array.tobytes()
        if key not in shared:
            shared[key] = builder.CreateNumpyVector(array)
        return shared[key]

    shape = numbers(_listed(tensor.shape), np.int32)
    name = builder.CreateString(tensor.name) if tensor.name else None
    q, quantization = tensor.quantization, None
    if q is not None and q.scale is not None and len(q.scale):
        scale, zero = numbers(q.scale, np.float32), numbers(q.zeroPoint, np.int64)
        s.QuantizationParametersStart(builder)
        s.QuantizationParametersAddScale(builder, scale)
        s.QuantizationParametersAddZeroPoint(builder, zero)
        s.QuantizationParametersAddQuantizedDimension(builder, q.quantizedDimension)
        quantization = s.QuantizationParametersEnd(builder)
    s.TensorStart(builder)
    s.TensorAddShape(builder, shape)
    s.TensorAddType(builder, tensor.type)
    s.TensorAddBuffer(builder, tensor.buffer)
    if name is not None:
        s.TensorAddName(builder, name)
    if quantization is not None:
        s.TensorAddQuantization(builder, quantization)
    s.TensorAddHasRank(builder, tensor.hasRank)
    return s.TensorEnd(builder)


def strip(model: Any, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> None:
    """Take out of a model, in place, what LiteRT does not need to run it.

    Args:
        model: of one graph.
        inputs, outputs: names that its ends shall have; nothing else keeps one.
    """
    (graph,) = model.subgraphs
    model.metadata, model.metadataBuffer, model.signatureDefs, model.description = None, None, None, None
    graph.name = None
    for operator in graph.operators:
        operator.debugMetadataIndex = NO_TENSOR
    graph.debugMetadataIndex = NO_TENSOR
    _drop_unused_tensors(graph)
    for tensor in graph.tensors:
        tensor.name, tensor.shapeSignature, tensor.hasRank = None, None, not _listed(tensor.shape)
    for places, names in ((graph.inputs, inputs), (graph.outputs, outputs)):
        for place, name in zip(_listed(places), names, strict=False):
            graph.tensors[place].name = name
    _drop_unused_codes(model)
    _share_buffers(model)


def _drop_unused_tensors(graph: Any) -> None:
    used = {*_listed(graph.inputs), *_listed(graph.outputs)}
    for operator in graph.operators:
        used.update(i for i in (*_listed(operator.inputs), *_listed(operator.outputs)) if i != NO_TENSOR)
    places = {old: new for new, old in enumerate(sorted(used))} | {NO_TENSOR: NO_TENSOR}
    graph.tensors = [graph.tensors[i] for i in sorted(used)]
    graph.inputs, graph.outputs = ([places[i] for i in _listed(ends)] for ends in (graph.inputs, graph.outputs))
    for operator in graph.operators:
        operator.inputs = [places[i] for i in _listed(operator.inputs)]
        operator.outputs = [places[i] for i in _listed(operator.outputs)]


def _drop_unused_codes(model: Any) -> None:
    (graph,) = model.subgraphs
    used = sorted({operator.opcodeIndex for operator in graph.operators})
    places = {old: new for new, old in enumerate(used)}
    model.operatorCodes = [model.operatorCodes[i] for i in used]
    for operator in graph.operators:
        operator.opcodeIndex = places[operator.opcodeIndex]


def _share_buffers(model: Any) -> None:
    """Buffer 0 is empty and stands for everything that is computed; equal constants share one."""
    empty = schema().BufferT()
    buffers, places = [empty], {b"": 0}
    for tensor in model.subgraphs[0].tensors:
        data = stored_bytes(model, tensor)
        key = b"" if data is None else data.tobytes()
        if key not in places:
            places[key] = len(buffers)
            buffer = schema().BufferT()
            buffer.data = data
            buffers.append(buffer)
        tensor.buffer = places[key]
    model.buffers = buffers
