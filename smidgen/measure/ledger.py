"""Where the bytes of a written ONNX file are: in which layer, how many once zipped, how many in memory."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx

from smidgen.measure.files import read_onnx

FLOAT_BYTES = 4
_LEVEL = 6  # of deflate, as zip has it
_PIECE = 1 << 20  # bytes that are deflated at a time
# Operators through which a stored weight is read: their other inputs are of the same layer.
_READERS = frozenset({"DequantizeLinear", "Gather", "GatherND", "Transpose", "Reshape", "Cast", "Mul"})


@dataclass(frozen=True)
class Weight:
    """Bytes of some stored numbers.

    Args:
        nbytes: as the file stores them.
        zipped_nbytes: the same, deflated.
        memory_nbytes: as the float32 values that they stand for.
    """

    nbytes: int
    zipped_nbytes: int
    memory_nbytes: int

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


def weigh(parts: Iterable[bytes], count: int) -> Weight:
    """Bytes of the stored parts that stand for ``count`` numbers.

    >>> weigh([bytes(4000)], 1000).nbytes, weigh([bytes(4000)], 1000).zipped_nbytes < 100
    (4000, True)
    """
    deflate, stored, zipped = zlib.compressobj(_LEVEL), 0, 0
    for part in parts:
        stored += len(part)
        zipped += len(deflate.compress(part))
    return Weight(stored, zipped + len(deflate.flush()), FLOAT_BYTES * count)


def zipped_nbytes(path: Path) -> int:
    """Bytes of a file once deflated."""
    with path.open("rb") as stream:
        return weigh(iter(lambda: stream.read(_PIECE), b""), 0).zipped_nbytes


def layer_weights(path: Path, layers: Iterable[str]) -> dict[str, Weight]:
    """Bytes of each layer in a file that smidgen wrote, whose stored values are named after their layers.

    Args:
        path: an ONNX file.
        layers: names; the values of layer ``a`` are ``a.weight``, ``a.bias``, ``a.0.weight`` and so on, and scales and
            codebooks that are read together with one of them.

    Returns:
        By layer, of those that the file holds.

    Raises:
        LoadError: when it cannot be read.
    """
    graph = read_onnx(path).graph
    tensors = {each.name: each for each in graph.initializer}
    owners = _owners(graph, tensors, set(layers))
    held: dict[str, list[onnx.TensorProto]] = {}
    for name, owner in owners.items():
        held.setdefault(owner, []).append(tensors[name])
    own = {name for name, owner in owners.items() if _of(name, {owner})}
    return {
        owner: weigh(map(_stored, parts), sum(math.prod(e.dims) for e in parts if e.name in own))
        for owner, parts in held.items()
    }


def _owners(graph: onnx.GraphProto, tensors: Mapping[str, onnx.TensorProto], layers: set[str]) -> dict[str, str]:
    """The layer of each stored tensor: by its name, else by what it is read together with."""
    owners = {name: owner for name in tensors if (owner := _of(name, layers))}
    made = dict(owners)
    for node in graph.node:
        if node.op_type in _READERS:
            owner = next((made[name] for name in node.input if name in made), None)
            if owner is not None and all(name in tensors or name in made for name in node.input if name):
                owners.update({name: owner for name in node.input if name in tensors and name not in owners})
                made.update(dict.fromkeys(node.output, owner))
    return owners


def _of(name: str, layers: set[str]) -> str | None:
    """The layer whose value has this name: what stands before ``.weight``, ``.mask`` or ``.bias``."""
    stem, _, kind = name.rpartition(".")
    if kind not in ("weight", "bias", "mask"):
        return None
    if stem in layers:
        return stem
    before, _, number = stem.rpartition(".")
    return before if number.isdecimal() and before in layers else None


def _stored(tensor: onnx.TensorProto) -> bytes:
    if tensor.raw_data:
        return tensor.raw_data
    return np.ascontiguousarray(onnx.numpy_helper.to_array(tensor)).tobytes()
