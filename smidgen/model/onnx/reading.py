"""From a path to a checked ONNX model: nothing of it is trusted yet."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import GraphProto, ModelProto

from smidgen.errors import LoadError, UnsupportedOperator

from .limits import MAX_NODES, NEWEST_OPSET, OLDEST_OPSET
from .registry import find
from .schemas import schema_of

_SUPPORTED = "supported: smidgen.model.onnx.supported_operators()"


def read_model(path: str | Path, max_bytes: int) -> tuple[ModelProto, Path]:
    """The parsed file and the folder its external data may lie in.

    Raises:
        LoadError: no file, too large, or not ONNX.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise LoadError(f"onnx: '{path}' is a folder; give the .onnx file")
        if not path.is_file():
            raise LoadError(f"onnx: '{path}' does not exist; give the path of an .onnx file")
        nbytes = path.stat().st_size
        if nbytes > max_bytes:
            raise LoadError(f"onnx: '{path}' has {nbytes} bytes, more than max_bytes={max_bytes}; raise the limit")
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        raise LoadError(f"onnx: '{path}' cannot be read: {error}; check the path and its rights") from None
    if not content:
        raise LoadError(f"onnx: '{path}' is empty; export the model again")
    try:
        return onnx.load_model_from_string(content), path.parent
    except (DecodeError, ValueError, RuntimeError):
        raise LoadError(f"onnx: '{path}' is not an ONNX file, or is cut short; export the model again") from None


def check_model(model: ModelProto) -> int:
    """The opset, after everything about the model that needs no shapes was checked.

    Raises:
        UnsupportedOperator: lists every operator that cannot be imported.
        LoadError: anything else that is wrong with the graph.
    """
    if not model.HasField("graph") or not model.graph.output or not model.opset_import:
        raise LoadError("onnx: the file holds no graph with outputs and an opset; export the model again")
    versions = [item.version for item in model.opset_import if item.domain in ("", "ai.onnx")]
    if len(versions) != 1:
        raise LoadError(f"onnx: the default opset is declared {len(versions)} times; export the model again")
    opset = int(versions[0])
    if not OLDEST_OPSET <= opset <= NEWEST_OPSET:
        raise LoadError(f"onnx: opset {opset} is not supported; export with opset {OLDEST_OPSET} to {NEWEST_OPSET}")
    graph = model.graph
    if len(graph.node) > MAX_NODES:
        raise LoadError(f"onnx: {len(graph.node)} nodes, more than {MAX_NODES}; give a smaller graph")
    if graph.sparse_initializer:
        raise LoadError("onnx: sparse initializers are not supported; store them dense")
    _check_text(graph)
    _check_operators(graph, opset)
    _check_names(graph)
    return opset


def _check_text(graph: GraphProto) -> None:
    texts = [text for node in graph.node for text in (node.op_type, node.domain, node.name, *node.input, *node.output)]
    texts += [item.name for items in (graph.input, graph.output, graph.initializer) for item in items]
    for text in texts:
        # Protobuf hands a name that is not UTF-8 through as bytes.
        if not isinstance(text, str):
            raise LoadError(f"onnx: the name {text!r:.64} is not UTF-8; export the model again")


def _check_operators(graph: GraphProto, opset: int) -> None:
    unknown: dict[tuple[str, str], list[str]] = {}
    for index, node in enumerate(graph.node):
        default = node.domain in ("", "ai.onnx")
        if not default or find(node.op_type, opset) is None or schema_of(node.op_type, opset) is None:
            unknown.setdefault((node.domain, node.op_type), []).append(node.name or f"#{index}")
    if unknown:
        found = "; ".join(
            f"{op!r} (domain {domain or 'ai.onnx'!r}) at node {nodes[0]!r}"
            + (f" and {len(nodes) - 1} more" if len(nodes) > 1 else "")
            for (domain, op), nodes in sorted(unknown.items())
        )
        raise UnsupportedOperator(
            f"onnx: opset {opset} has operators that cannot be imported: {found}; "
            f"export with another opset or replace the nodes; {_SUPPORTED}"
        )


def _check_names(graph: GraphProto) -> None:
    known = _unique([value.name for value in graph.input], "input")
    stored = _unique([tensor.name for tensor in graph.initializer], "initializer")
    _unique([value.name for value in graph.output], "output")
    known |= stored
    produced = {name for node in graph.node for name in node.output if name}
    for index, node in enumerate(graph.node):
        for name in node.input:
            if name and name not in known:
                why = "comes later or from itself (a cycle)" if name in produced else "is nowhere defined"
                raise LoadError(
                    f"onnx: node {node.name or f'#{index}'!r} ({node.op_type}) reads {name!r}, which {why}; "
                    "export the model again"
                )
        for name in node.output:
            if name and name in known:
                raise LoadError(f"onnx: the name {name!r} is given to two values; export the model again")
            known.add(name)
    for value in graph.output:
        if value.name not in known:
            raise LoadError(f"onnx: output {value.name!r} is nowhere defined; export the model again")


def _unique(names: list[str], kind: str) -> set[str]:
    if "" in names:
        raise LoadError(f"onnx: an {kind} has no name; export the model again")
    doubled = [name for name, count in Counter(names).items() if count > 1]
    if doubled:
        raise LoadError(f"onnx: the {kind} name {doubled[0]!r} is given twice; export the model again")
    return set(names)
