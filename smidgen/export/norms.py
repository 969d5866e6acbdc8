"""Take BatchNorms that were folded out of an exported graph, so that it need not be exported again."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace

import onnx

from smidgen.export.onnx import DOMAIN, Base
from smidgen.export.onnx_strip import strip


def without_norms(base: Base, folded: Collection[tuple[str, str]]) -> Base:
    """The graph in which folded BatchNorms are gone and their placeholders answer in their place.

    The placeholder needs no bias of its own: `fill` gives it the one of the form it is filled with.

    Args:
        base: from `export_base`.
        folded: those of ``base.norms`` that became part of their layer.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(base.proto)
    graph, sites = proto.graph, {site for site, _ in folded}
    # By place, not by name: the optimiser may let two norms share equal weights.
    norms = {node.input[0]: node for node in graph.node if node.op_type == "BatchNormalization"}
    dropped, parameters = set(), set()
    for node in graph.node:
        if node.domain == DOMAIN and node.name in sites:
            norm = norms[node.output[0]]
            dropped.add(norm.output[0])
            parameters.update(norm.input[1:])
            node.output[0] = norm.output[0]
            _as_gemm(node)
    kept = [
        onnx.NodeProto.FromString(node.SerializeToString())
        for node in graph.node
        if node.op_type != "BatchNormalization" or node.output[0] not in dropped
    ]
    del graph.node[:]
    graph.node.extend(kept)
    unread = parameters.difference(_reads(graph.node))
    tensors = [tensor for tensor in graph.initializer if tensor.name not in unread]
    del graph.initializer[:]
    graph.initializer.extend(tensors)
    return replace(base, proto=strip(proto), norms=tuple(pair for pair in base.norms if pair not in folded))


def _as_gemm(marker: onnx.NodeProto) -> None:
    """A dense layer before a BatchNorm works on [n, features]: with the new bias it is one node, not two."""
    for attribute in marker.attribute:
        if attribute.name == "flat":
            attribute.i = 1


def _reads(nodes: Iterable[onnx.NodeProto]) -> Iterator[str]:
    for node in nodes:
        yield from node.input
        for attribute in node.attribute:
            yield from _reads(attribute.g.node)
