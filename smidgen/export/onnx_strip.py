"""Take everything out of an ONNX graph that is not needed to run it."""

from __future__ import annotations

import itertools
import string
from collections.abc import Iterator
from typing import Literal

import onnx

_LETTERS = string.ascii_lowercase + string.ascii_uppercase


def strip(proto: onnx.ModelProto, names: Literal["keep", "short"] = "keep") -> onnx.ModelProto:
    """A copy without names, notes and value types that no runtime needs.

    Inputs and outputs keep their names; values in between get the shortest there are. On small networks the notes of
    the torch exporter weigh more than the weights.

    Args:
        proto: the graph.
        names: of weights: "keep" leaves them, "short" shortens them too.

    Returns:
        The same computation in fewer bytes.
    """
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    graph = result.graph
    for field in ("producer_name", "producer_version", "doc_string", "metadata_props"):
        result.ClearField(field)
    for field in ("value_info", "doc_string", "metadata_props", "quantization_annotation"):
        graph.ClearField(field)
    graph.name = "g"
    for value in [*graph.input, *graph.output]:
        value.ClearField("doc_string")
        value.ClearField("metadata_props")
    for tensor in graph.initializer:
        tensor.ClearField("doc_string")
        tensor.ClearField("metadata_props")
    drop_unused(graph)
    if not _has_subgraphs(graph):
        _shorten(graph, weights=names == "short")
    for node in graph.node:
        if node.domain in ("", "ai.onnx"):
            node.ClearField("name")
        for field in ("doc_string", "metadata_props", "overload"):
            node.ClearField(field)
    used = {node.domain for node in graph.node}
    kept = [entry for entry in result.opset_import if entry.domain in used or entry.domain in ("", "ai.onnx")]
    del result.opset_import[:]
    result.opset_import.extend(kept)
    return result


def shortened(model: bytes) -> tuple[bytes, dict[str, str]]:
    """A written file with the shortest names there are for its weights too, and what each is called now.

    Args:
        model: the serialised file, from `smidgen.export.onnx.write`.

    Returns:
        The file, and new names by old ones where they changed.
    """
    proto = strip(onnx.ModelProto.FromString(model))
    names = {} if _has_subgraphs(proto.graph) else _shorten(proto.graph, weights=True)
    return proto.SerializeToString(), names


def _has_subgraphs(graph: onnx.GraphProto) -> bool:
    return any(a.HasField("g") or a.graphs for node in graph.node for a in node.attribute)


def drop_unused(graph: onnx.GraphProto) -> None:
    """Remove nodes and weights that no output needs; a graph with inner graphs is left as it is."""
    if _has_subgraphs(graph):
        return
    needed, unused = {o.name for o in graph.output}, list[int]()
    for i in reversed(range(len(graph.node))):
        if needed.intersection(graph.node[i].output):
            needed.update(graph.node[i].input)
        else:
            unused.append(i)
    # One by one, from the last: what is taken out and put back is copied, and protobuf never gives the first copy's
    # memory back (0.7 GB on MobileNetV2, which asks this once a site).
    for i in unused:
        del graph.node[i]
    for i in reversed(range(len(graph.initializer))):
        if graph.initializer[i].name not in needed:
            del graph.initializer[i]


def _short_names() -> Iterator[str]:
    for length in itertools.count(1):
        for letters in itertools.product(_LETTERS, repeat=length):
            yield "".join(letters)


def _shorten(graph: onnx.GraphProto, *, weights: bool) -> dict[str, str]:
    """Rename values, in the order of their first use; new names by old ones."""
    fixed = {v.name for v in [*graph.input, *graph.output]}
    if not weights or graph.sparse_initializer:
        fixed.update(tensor.name for tensor in graph.initializer)
        fixed.update(tensor.values.name for tensor in graph.sparse_initializer)
    fresh = (name for name in _short_names() if name not in fixed)
    renamed: dict[str, str] = {}
    for node in graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                if name and name not in fixed:
                    if name not in renamed:
                        renamed[name] = next(fresh)
                    names[i] = renamed[name]
    for tensor in graph.initializer:
        tensor.name = renamed.get(tensor.name, tensor.name)
    return renamed
