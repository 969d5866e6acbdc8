"""ONNX files whose weights lie in files beside them, as one file: whole when it is measured, timed, packed or shown.

``torch.onnx.export`` writes ``model.onnx.data`` beside ``model.onnx`` by default, however small the network is.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from smidgen.errors import LoadError

from .reading import read_model
from .tensors import dtype_of, element_count, external_bytes
from .values import Malformed

LARGEST = (2 << 30) - 1  # bytes of a protobuf message


def whole_onnx(path: str | Path) -> Path:
    """The file itself, or, where its weights lie beside it, one of the same name that holds them.

    Args:
        path: any file; one that is no ONNX file is given back as it is, and whoever opens it will tell.

    Returns:
        A file that needs no other; a copy is there until the process ends.

    Raises:
        LoadError: weights that are missing, cut short, outside the file's folder, or too many for one file.

    >>> whole_onnx("model.tflite").name
    'model.tflite'
    """
    path = Path(path)
    if path.suffix.lower() != ".onnx" or not path.is_file():
        return path
    try:
        model, folder = read_model(path, LARGEST)
    except LoadError:
        return path
    outside = [tensor for tensor in _tensors(model) if tensor.data_location == TensorProto.EXTERNAL]
    if not outside:
        return path
    for tensor in outside:
        try:
            _bring_in(tensor, folder)
        except Malformed as problem:
            raise LoadError(f"onnx: '{path}': tensor {tensor.name!r}: {problem}") from None
    if model.ByteSize() > LARGEST:
        raise LoadError(f"onnx: '{path}' has more than {LARGEST} bytes with its weights; give a smaller network")
    content = model.SerializeToString(deterministic=True)
    copy = Path(_copies().name) / hashlib.sha256(content).hexdigest()[:16] / path.name
    if not copy.is_file():
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(content)
    return copy


def _bring_in(tensor: TensorProto, folder: Path) -> None:
    tensor.raw_data = external_bytes(tensor, folder, element_count(tensor.dims) * dtype_of(tensor.data_type).itemsize)
    tensor.ClearField("external_data")
    tensor.data_location = TensorProto.DEFAULT


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    yield from _of_graph(model.graph)
    for function in model.functions:
        yield from _of_nodes(function.node)


def _of_graph(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    yield from _of_nodes(graph.node)


def _of_nodes(nodes: Iterable[NodeProto]) -> Iterator[TensorProto]:
    for attribute in (each for node in nodes for each in node.attribute):
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            yield from _of_graph(graph)


@cache
def _copies() -> tempfile.TemporaryDirectory[str]:
    """Removed when the process ends."""
    return tempfile.TemporaryDirectory(prefix="smidgen-")
