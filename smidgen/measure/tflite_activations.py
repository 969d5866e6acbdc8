"""The memory that a TFLite file's activations take at once, by what its graph says.

    peak = max over operators of the bytes of all tensors that are live while the operator runs

for the file's batch of one, as `smidgen.measure.activations` counts an ONNX file, but for operators that write over
what they read: LiteRT's and TensorFlow Lite Micro's give every result a place of its own. Tensors have no names in the
files that smidgen writes; their operators stand for them.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from smidgen.measure.activations import Peak
from smidgen.measure.files import read_tflite
from smidgen.runtimes.tflite_file import ITEM_NBYTES, names_of, operator_name, stored_bytes


def tflite_peak(path: str | Path) -> Peak | None:
    """Where the most activations are live; None where a size cannot be known before running.

    Args:
        path: a TFLite file.

    Raises:
        LoadError: when it cannot be read.
    """
    model = read_tflite(path)
    if len(model.subgraphs) != 1:
        return None  # what a loop or a branch holds depends on the data
    graph = model.subgraphs[0]
    live = _lives(model)
    sizes = {i: _nbytes(graph.tensors[i]) for i in live}
    if any(size is None for size in sizes.values()):
        return None
    held = [sum(sizes[i] or 0 for i, (first, last) in live.items() if first <= t <= last)
            for t in range(max(1, len(graph.operators)))]  # fmt: skip
    peak = held.index(max(held))
    there = [(_told(model, i), sizes[i] or 0) for i, (first, last) in live.items() if first <= peak <= last]
    node = f"operator {peak + 1} ({operator_name(model, graph.operators[peak])})" if graph.operators else "no operator"
    return Peak(held[peak], node, tuple(sorted(there, key=lambda each: -each[1])))


def _lives(model: Any) -> dict[int, tuple[int, int]]:
    """From which operator to which a computed tensor is live, by its number."""
    graph, found = model.subgraphs[0], {}
    for i in graph.inputs:
        found[int(i)] = (0, 0)
    for n, operator in enumerate(graph.operators):
        for i in map(int, operator.inputs):
            if i in found:
                found[i] = (found[i][0], n)
        for i in map(int, operator.outputs):
            found[i] = (n, n)
    for i in map(int, graph.outputs):
        if i in found:
            found[i] = (found[i][0], max(0, len(graph.operators) - 1))
    return {i: span for i, span in found.items() if stored_bytes(model, graph.tensors[i]) is None}


def _nbytes(tensor: Any) -> int | None:
    each = ITEM_NBYTES.get(names_of("TensorType")[tensor.type])
    return None if each is None else each * math.prod([] if tensor.shape is None else (int(s) for s in tensor.shape))


def _told(model: Any, i: int) -> str:
    """What a tensor is called: its own name, or that of the operator that makes it."""
    graph = model.subgraphs[0]
    name = graph.tensors[i].name
    if name:
        return name.decode(errors="replace") if isinstance(name, bytes) else name
    n = next(n for n, operator in enumerate(graph.operators) if i in [int(k) for k in operator.outputs])
    return f"operator {n + 1} ({operator_name(model, graph.operators[n])})"
