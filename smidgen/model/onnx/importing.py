"""The walk over an ONNX graph that makes the torch graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto
from torch import Tensor, fx
from torch.fx import Node

from smidgen.errors import LoadError, UnsupportedOperator

from . import operators as _operators  # registers every operator
from .builder import Builder
from .call import Call
from .limits import BATCH_PROBES, LENGTH_PROBES
from .naming import Names
from .reading import check_model, read_model
from .registry import find, find_on_sizes
from .schemas import check_operands, read_attributes, schema_of
from .tensors import dtype_of, element_count, read_tensor
from .values import Malformed, Sizes, Value

assert _operators

_MEND = "export the model again or replace the node"


@dataclass(frozen=True)
class InputSpec:
    """One input of a network.

    Attributes:
        name: as in the file.
        shape: lengths of the axes, None where one is dynamic.
        dtype: torch's name, such as 'float32'.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str


@dataclass(frozen=True)
class Imported:
    """An ONNX file as a torch network.

    Attributes:
        module: in eval mode; takes the inputs in order and gives a tensor, or a tuple where there are several outputs.
        inputs: what it takes.
        output_names: names of what it gives, as in the file.
        opset: of the file.
        values: name of the graph's node that computes a value, by the value's name in the file.
    """

    module: fx.GraphModule
    inputs: tuple[InputSpec, ...]
    output_names: tuple[str, ...]
    opset: int
    values: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Plan:
    """How the dynamic axes are tried: whether a fixed batch is freed, and stand-ins for other dynamic axes."""

    fixed_batch: int | None
    lengths: tuple[int, int]


def load_onnx(path: str | Path, max_bytes: int = 2 << 30) -> Imported:
    """Read an ONNX file as a trainable torch network.

    Args:
        path: the file; external data must lie in its folder.
        max_bytes: a larger file is refused before it is read.

    Returns:
        The network, its inputs and the names of its outputs.

    Raises:
        UnsupportedOperator: lists every operator that cannot be imported.
        LoadError: the file is missing, damaged, or asks for something that cannot be done.

    Example:
        >>> load_onnx("missing.onnx")
        Traceback (most recent call last):
        smidgen.errors.LoadError: onnx: 'missing.onnx' does not exist; give the path of an .onnx file
    """
    model, folder = read_model(path, max_bytes)
    return import_model(model, folder)


def import_model(model: ModelProto, folder: Path | None = None) -> Imported:
    """Turn a parsed ONNX model into a trainable torch network.

    Args:
        model: the parsed file.
        folder: where external data may lie; None refuses them.

    Returns:
        As `load_onnx`.

    Raises:
        UnsupportedOperator: lists every operator that cannot be imported.
        LoadError: anything else that is wrong.

    Example:
        >>> from onnx import helper as h
        >>> x, y = (h.make_tensor_value_info(name, 1, ["N", 2]) for name in "xy")
        >>> graph = h.make_graph([h.make_node("Relu", ["x"], ["y"])], "tiny", [x], [y])
        >>> loaded = import_model(h.make_model(graph, opset_imports=[h.make_opsetid("", 17)]))
        >>> loaded.module(torch.tensor([[-1.0, 2.0]]))
        tensor([[0., 2.]])
    """
    opset = check_model(model)
    stored = _stored_tensors(model.graph, folder)
    problems: list[LoadError] = []
    for plan in _plans(model.graph, set(stored)):
        try:
            return _Walk(model.graph, opset, folder, stored, plan).run()
        except UnsupportedOperator:
            raise
        except LoadError as error:
            # That a fixed batch cannot be freed is no news for the user.
            problems += [error] if plan.fixed_batch is None else []
    raise problems[0]


def _stored_tensors(graph: GraphProto, folder: Path | None) -> dict[str, Tensor]:
    stored: dict[str, Tensor] = {}
    for proto in graph.initializer:
        try:
            stored[proto.name] = read_tensor(proto, folder)
        except Malformed as fact:
            raise LoadError(f"onnx: tensor {proto.name!r}: {fact}; export the model again") from None
        except Exception as error:
            raise LoadError(f"onnx: tensor {proto.name!r}: {_first_line(error)}; export the model again") from None
    return stored


def _plans(graph: GraphProto, stored: set[str]) -> Iterator[_Plan]:
    dims = [list(value.type.tensor_type.shape.dim) for value in graph.input if value.name not in stored]
    dynamic = any(not dim.HasField("dim_value") for shape in dims for dim in shape[1:])
    lengths = LENGTH_PROBES if dynamic else LENGTH_PROBES[:1]
    leading = [(shape[0], len(shape)) for shape in dims if shape]
    if leading and all(dim.HasField("dim_value") for dim, _ in leading):
        batch, rank = leading[0][0].dim_value, leading[0][1]
        # A leading 1 is a batch at any rank but one; another number only where the layout is surely NCHW.
        if (batch == 1 and rank >= 2) or (batch > 1 and rank >= 4):
            yield from (_Plan(batch, pair) for pair in lengths)
    yield from (_Plan(None, pair) for pair in lengths)


class _Walk:
    """One attempt to import a graph under a plan."""

    def __init__(
        self, graph: GraphProto, opset: int, folder: Path | None, stored: dict[str, Tensor], plan: _Plan
    ) -> None:
        self.graph, self.opset, self.folder, self.plan = graph, opset, folder, plan
        self.builder = Builder(plan.fixed_batch)
        self.builder.origins = {id(tensor): name for name, tensor in stored.items()}
        self.values: dict[str, Value | None] = {"": None, **stored}
        self.uses: dict[Any, int] = dict(Counter(name for node in graph.node for name in node.input))
        for value in graph.output:
            self.uses[value.name] = self.uses.get(value.name, 0) + 1

    def run(self) -> Imported:
        """The network, or a LoadError that names the node."""
        names = Names()
        inputs = [self._input(value, names) for value in self.graph.input if value.name not in self.values]
        for index, node in enumerate(self.graph.node):
            self._node(node, node.name or f"#{index}")
        outputs = tuple(value.name for value in self.graph.output)
        results = tuple(self._output(name) for name in outputs)
        self.builder.graph.output(results[0] if len(results) == 1 else results)
        module = self._module()
        there = {node.name for node in module.graph.nodes}
        values = {name: value.name for name, value in self.values.items() if isinstance(value, Node)}
        values = {name: node for name, node in values.items() if node in there}
        return Imported(module, tuple(inputs), outputs, self.opset, values)

    def _input(self, value: ValueInfoProto, names: Names) -> InputSpec:
        kind = value.type.tensor_type
        if not value.type.HasField("tensor_type") or not kind.HasField("shape"):
            raise LoadError(f"onnx: input {value.name!r} is no tensor of declared rank; export it with a shape")
        shapes = [[self._length(d, axis, probe) for axis, d in enumerate(kind.shape.dim)] for probe in range(2)]
        try:
            dtype = dtype_of(kind.elem_type)
            element_count([1 if a != b else a for a, b in zip(*shapes, strict=True)])
            self.values[value.name] = self.builder.placeholder(names.unique(value.name), shapes, dtype)
        except Malformed as fact:
            raise LoadError(f"onnx: input {value.name!r}: {fact}; export the model again") from None
        except Exception as error:
            raise LoadError(f"onnx: input {value.name!r}: {_first_line(error)}; export the model again") from None
        shape = tuple(a if a == b else None for a, b in zip(*shapes, strict=True))
        return InputSpec(value.name, shape, str(dtype).removeprefix("torch."))

    def _length(self, dim: Any, axis: int, probe: int) -> int:
        if not dim.HasField("dim_value"):
            return BATCH_PROBES[probe] if axis == 0 else self.plan.lengths[probe]
        if axis == 0 and dim.dim_value == self.plan.fixed_batch:
            return BATCH_PROBES[probe]
        return int(dim.dim_value)

    def _node(self, node: NodeProto, name: str) -> None:
        try:
            results = self._results(node)
            for output, result in zip(node.output, results, strict=False):
                if output:
                    self.values[output] = result
            missing = [output for output in node.output[len(results) :] if output]
            if missing:
                raise Malformed(f"output {missing[0]!r} is not supported")
        except LoadError:
            raise
        except Malformed as fact:
            self._fail(node, name, str(fact))
        except Exception as error:
            # Whatever a damaged node makes torch or a handler raise, the user learns which node it is.
            self._fail(node, name, f"{type(error).__name__}: {_first_line(error)}")

    def _fail(self, node: NodeProto, name: str, fact: str) -> None:
        raise LoadError(f"onnx: node {name!r} ({node.op_type}, opset {self.opset}): {fact}; {_MEND}") from None

    def _results(self, node: NodeProto) -> tuple[Value | None, ...]:
        schema, handler = schema_of(node.op_type, self.opset), find(node.op_type, self.opset)
        if schema is None or handler is None:
            raise Malformed("it is not supported")
        operands = tuple(self._value(name) for name in node.input)
        check_operands(schema, [_dtype(value) for value in operands], len(node.output))
        call = Call(
            self.builder,
            node.op_type,
            node.name,
            self.opset,
            operands,
            read_attributes(node, schema, self.folder),
            tuple(node.output),
            {index: self.uses.get(name, 0) for index, name in enumerate(node.input)},
        )
        result = self._on_sizes(call)
        if result is None:
            result = handler(call)
        return result if isinstance(result, tuple) else (result,)

    @staticmethod
    def _on_sizes(call: Call) -> Value | None:
        given = [value for value in call.operands if value is not None]
        handler = find_on_sizes(call.op)
        sizes = any(isinstance(value, Sizes) for value in given)
        if handler is None or not sizes or any(isinstance(value, Node) for value in given):
            return None
        return handler(call)

    def _value(self, name: str) -> Value | None:
        if name not in self.values:
            raise Malformed(f"operand {name!r} is not there: an optional output that was not computed")
        return self.values[name]

    def _output(self, name: str) -> Node:
        value = self.values.get(name)
        if value is None:
            raise LoadError(f"onnx: output {name!r} is never computed; {_MEND}")
        try:
            tensor = Call(self.builder, "", "", self.opset, ()).tensor(value)
            node = tensor if isinstance(tensor, Node) else self.builder.attribute(tensor)
        except Malformed as fact:
            raise LoadError(f"onnx: output {name!r}: {fact}; {_MEND}") from None
        scaled = bool(node.meta["probes"][0].ndim) and self.builder.is_batch(node, 0)
        if self.plan.fixed_batch is not None and not scaled:
            raise LoadError(f"onnx: output {name!r} does not follow the batch")
        return node

    def _module(self) -> fx.GraphModule:
        module = fx.GraphModule(self.builder.root, self.builder.graph, "ImportedNetwork")
        module.graph.eliminate_dead_code()
        for node in module.graph.nodes:
            node.meta.clear()
        module.delete_all_unused_submodules()
        read = {node.target for node in module.graph.nodes if node.op == "get_attr"}
        for name in [name for name in module._buffers if name not in read]:
            del module._buffers[name]
        module.graph.lint()
        module.recompile()
        return module.eval()


def _dtype(value: Value | None) -> torch.dtype | None:
    if isinstance(value, Node):
        return value.meta["probes"][0].dtype
    return None if value is None else value.dtype


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0][:200] if text else "no details"
