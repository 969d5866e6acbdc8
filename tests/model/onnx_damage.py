"""Damage to ONNX files: each mutation changes a model in place; `mutated` picks some by a seed."""

from __future__ import annotations

import contextlib
import random

import onnx
from onnx import TensorProto, numpy_helper

from tests.model.onnx_samples import MODELS, OPS

ODD_NUMBERS = (0, 1, -1, 2, 3, 5, 7, 16, 255, 4096, 1 << 20, (1 << 31) - 1, 1 << 31, -(1 << 31), 1 << 62, -(1 << 63))


def _pick(rng, items):
    return rng.choice(list(items)) if len(items) else None


def _attribute(rng, model):
    node = _pick(rng, [node for node in model.graph.node if node.attribute])
    attribute = _pick(rng, node.attribute)
    if attribute.ints:
        if rng.random() < 0.2:
            attribute.ints.append(rng.choice(ODD_NUMBERS))
        else:
            attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(ODD_NUMBERS)
    elif attribute.type == onnx.AttributeProto.INT:
        attribute.i = rng.choice(ODD_NUMBERS)
    elif attribute.type == onnx.AttributeProto.FLOAT:
        attribute.f = rng.choice([0.0, -1.0, 1e30, float("nan"), float("inf"), 0.5])
    else:
        attribute.s = rng.choice([b"", b"SAME_LOWER", b"VALID", b"edge", b"wrap", b"cubic", b"nearest", b"\xff\xfe"])


def _attribute_kind(rng, model):
    attribute = _pick(rng, _pick(rng, [node for node in model.graph.node if node.attribute]).attribute)
    attribute.type = rng.choice([1, 2, 3, 4, 5, 6, 7, 8])


def _attribute_gone(rng, model):
    node = _pick(rng, [node for node in model.graph.node if node.attribute])
    del node.attribute[rng.randrange(len(node.attribute))]


def _attribute_twice(rng, model):
    node = _pick(rng, [node for node in model.graph.node if node.attribute])
    node.attribute.append(_pick(rng, node.attribute))


def _dims(rng, model):
    tensor = _pick(rng, model.graph.initializer)
    if tensor.dims and rng.random() < 0.8:
        tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(ODD_NUMBERS)
    else:
        tensor.dims.append(rng.choice([1, 2, 1 << 40]))


def _dims_swapped(rng, model):
    tensor = _pick(rng, [tensor for tensor in model.graph.initializer if len(tensor.dims) > 1])
    if tensor is not None:
        dims = list(tensor.dims)
        rng.shuffle(dims)
        tensor.dims[:] = dims


def _numbers(rng, model):
    tensor = _pick(rng, model.graph.initializer)
    array = numpy_helper.to_array(tensor).copy().reshape(-1)
    if array.size:
        floats = [0.0, -1.0, 1e9, float("nan"), float("inf"), 0.3]
        array[rng.randrange(array.size)] = rng.choice(floats if array.dtype.kind == "f" else ODD_NUMBERS)
        tensor.raw_data = array.tobytes()


def _kind(rng, model):
    _pick(rng, model.graph.initializer).data_type = rng.choice(range(0, 24))


def _raw(rng, model):
    tensor = _pick(rng, model.graph.initializer)
    tensor.raw_data = rng.choice([b"", tensor.raw_data[:-1], tensor.raw_data * 2, tensor.raw_data[1:]])


def _external(rng, model):
    tensor = _pick(rng, model.graph.initializer)
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", rng.choice(["/etc/passwd", "../x", "x", "", "a/../../x", "c:\\x"])


def _op(rng, model):
    _pick(rng, model.graph.node).op_type = rng.choice(OPS)


def _operand(rng, model):
    node = _pick(rng, [node for node in model.graph.node if node.input])
    names = [name for other in model.graph.node for name in [*other.input, *other.output]] + ["nowhere", ""]
    node.input[rng.randrange(len(node.input))] = rng.choice(names)


def _operands_swapped(rng, model):
    node = _pick(rng, [node for node in model.graph.node if len(node.input) > 1])
    names = list(node.input)
    rng.shuffle(names)
    node.input[:] = names


def _operand_count(rng, model):
    node = _pick(rng, [node for node in model.graph.node if node.input])
    if rng.random() < 0.5:
        node.input.append(rng.choice(list(node.input)))
    else:
        del node.input[rng.randrange(len(node.input))]


def _output(rng, model):
    node = _pick(rng, model.graph.node)
    names = [name for other in model.graph.node for name in other.output] + ["", "fresh"]
    if rng.random() < 0.3:
        node.output.append(rng.choice(names))
    else:
        node.output[0] = rng.choice(names)


def _node_gone(rng, model):
    del model.graph.node[rng.randrange(len(model.graph.node))]


def _nodes_swapped(rng, model):
    nodes = list(model.graph.node)
    i, j = rng.randrange(len(nodes)), rng.randrange(len(nodes))
    nodes[i], nodes[j] = nodes[j], nodes[i]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _input(rng, model):
    tensor = model.graph.input[0].type.tensor_type
    choice = rng.random()
    if choice < 0.6:
        dim = rng.choice(list(tensor.shape.dim))
        dim.dim_value = rng.choice(ODD_NUMBERS)
    elif choice < 0.8:
        tensor.elem_type = rng.choice(range(0, 20))
    elif choice < 0.9:
        tensor.shape.dim.add().dim_value = rng.choice(ODD_NUMBERS)
    else:
        rng.choice(list(tensor.shape.dim)).dim_param = "M"


def _opset(rng, model):
    model.opset_import[0].version = rng.choice([-1, 0, 1, 6, 7, 9, 11, 12, 13, 18, 21, 23, 99, 1 << 40])


def _graph_output(rng, model):
    model.graph.output[0].name = rng.choice([name for node in model.graph.node for name in node.output] + ["", "none"])


STRUCTURED = (
    _attribute,
    _attribute,
    _attribute,
    _attribute_kind,
    _attribute_gone,
    _attribute_twice,
    _dims,
    _dims_swapped,
    _numbers,
    _numbers,
    _kind,
    _raw,
    _external,
    _op,
    _operand,
    _operands_swapped,
    _operand_count,
    _output,
    _node_gone,
    _nodes_swapped,
    _input,
    _opset,
    _graph_output,
)


def mutated(seed: int) -> tuple[str, bytes]:
    """A damaged file, and how it was damaged."""
    rng = random.Random(seed)
    make = rng.choice(MODELS)
    model = make()
    kind = rng.random()
    if kind < 0.75:
        chosen = rng.choices(STRUCTURED, k=1 if rng.random() < 0.8 else 2)
        for mutate in chosen:
            with contextlib.suppress(ValueError, AttributeError, TypeError, OverflowError):  # nothing left to mutate
                mutate(rng, model)
        return f"{make.__name__}: {', '.join(m.__name__ for m in chosen)}", model.SerializeToString()
    content = bytearray(model.SerializeToString())
    if kind < 0.8:
        return f"{make.__name__}: cut", bytes(content[: rng.randrange(len(content))])
    for _ in range(rng.choice([1, 1, 2, 5])):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return f"{make.__name__}: bits", bytes(content)
