"""TFLite with integers: weights and activations of eight bits, float ends.

    x ≈ s_x (q_x − z_x)    activations, one scale and zero point a tensor
    w ≈ s_i q_w            weights, a scale a row or one for all, symmetric; of four bits in dense layers that have such
    b ≈ s_x s_i q_b        biases, 32 bits

(LiteRT 8-bit quantization specification.) Weights that are integers already go into the file as they are, found by
their values: a row of the converted weight is a multiple of the row of integers. All others are rounded to the nearest.
Operators without an 8-bit kernel stay in floats between a DEQUANTIZE and a QUANTIZE, as do those that are told to; a
layer's weight is a DEQUANTIZE of integers then.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from smidgen.calibrate.tflite_ranges import Range, joined
from smidgen.export.tflite_graph import drop_clamps, drop_flattening
from smidgen.export.tflite_weights import multiples, rows_of, stored_as
from smidgen.runtimes.tflite_file import (
    NO_TENSOR,
    constant,
    end_names,
    number_of,
    operator_name,
    packed,
    parse,
    schema,
    serialise,
    strip,
)

# Operators that multiply by a constant weight: where their data, weight and bias lie among the inputs, and the weight's
# axis of rows. With the operator's version that knows eight bits (tensorflow/compiler/mlir/lite/tools/versioning).
WEIGHTED = {
    "CONV_2D": (0, 1, 2, 0), "DEPTHWISE_CONV_2D": (0, 1, 2, 3), "FULLY_CONNECTED": (0, 1, 2, 0),
    "TRANSPOSE_CONV": (2, 1, 3, 0),
}  # fmt: skip
# Outputs have the scale of their data.
COPYING = frozenset({
    "RESHAPE", "TRANSPOSE", "MAX_POOL_2D", "AVERAGE_POOL_2D", "PAD", "STRIDED_SLICE", "SLICE", "SQUEEZE", "EXPAND_DIMS",
    "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR", "DEPTH_TO_SPACE", "SPACE_TO_DEPTH", "CONCATENATION", "MAXIMUM",
    "MINIMUM", "MIRROR_PAD", "SPLIT", "GATHER",
})  # fmt: skip
# Any scales at all ends.
FREE = frozenset({"ADD", "SUB", "MUL", "MEAN", "SUM", "RELU", "RELU6", "LEAKY_RELU", "PRELU", "HARD_SWISH"})
# Outputs have a scale that the kernel prescribes: (scale, zero point). At the end of a network they stay in floats, for
# the sake of their precision.
PRESCRIBED = {"LOGISTIC": (1 / 256, -128), "TANH": (1 / 128, 0), "SOFTMAX": (1 / 256, -128)}
VERSIONS = {
    "CONV_2D": 3, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 12, "TRANSPOSE_CONV": 3, "MAX_POOL_2D": 2,
    "AVERAGE_POOL_2D": 2, "PAD": 2, "STRIDED_SLICE": 2, "SLICE": 2, "RESIZE_BILINEAR": 2, "RESIZE_NEAREST_NEIGHBOR": 2,
    "SPACE_TO_DEPTH": 2, "CONCATENATION": 2, "MAXIMUM": 2, "MINIMUM": 2, "SPLIT": 2, "TRANSPOSE": 2, "ADD": 2, "SUB": 2,
    "MUL": 2, "MEAN": 2, "SUM": 2, "RELU": 2, "RELU6": 2, "LEAKY_RELU": 2, "LOGISTIC": 2, "TANH": 2, "SOFTMAX": 2,
    "GATHER": 2, "DEQUANTIZE": 2, "DEPTH_TO_SPACE": 2,
}  # fmt: skip
ROW_DEQUANTIZE = 5  # version of a DEQUANTIZE whose rows have scales
SAME = 1e-6  # of a scale, by which those of two rows may differ and be one
LARGEST_BIAS = 2.0**30  # half of what 32 bits hold, which leaves the sum of products the rest


@dataclass(frozen=True)
class Steps:
    """How a tensor of eight bits is read: ``x = scale · (q − zero)``."""

    scale: float
    zero: int

    @classmethod
    def of(cls, low: float, high: float) -> Steps:
        """Of a range, widened to hold zero exactly.

        >>> Steps.of(-1.0, 0.9921875)
        Steps(scale=0.0078125, zero=0)
        """
        low, high = min(low, 0.0), max(high, 0.0)
        scale = float(np.float32((high - low) / 255)) or 1 / 255
        return cls(scale, int(np.clip(np.round(-128 - low / scale), -128, 127)))

    def stored(self, values: np.ndarray) -> np.ndarray:
        """Values as integers of eight bits."""
        return np.clip(np.round(values / self.scale) + self.zero, -128, 127).astype(np.int8)


def quantized(
    content: bytes,
    ranges: Mapping[int, Range],
    integers: Sequence[np.ndarray] = (),
    *,
    floats: Collection[int] = (),
    micro: bool = False,
) -> bytes:
    """The file in integers of eight bits, its ends in floats.

    Args:
        content: a file of floats, from `smidgen.export.tflite.to_tflite` with its columns in their order.
        ranges: of its activations by the tensor's number, from `smidgen.calibrate.tflite_ranges`.
        integers: of weights, ``[out, …]`` as torch stores them, of at most ±127.
        floats: numbers of operators that stay in floats.
        micro: for microcontrollers: no weights of four bits, and a softmax at the end in integers too.
    """
    model = parse(content)
    (graph,) = model.subgraphs
    description, names = model.description, end_names(model)
    kept = {id(graph.operators[n]) for n in floats}
    drop_clamps(model, WEIGHTED.keys(), floats)
    _Quantizer(model, ranges, list(integers), kept, micro).run()
    drop_flattening(model)
    strip(model, *names)
    model.description = description
    return serialise(model)


@dataclass(eq=False)
class _Quantizer:
    """One pass over the operators in running order."""

    model: Any
    ranges: Mapping[int, Range]
    integers: list[np.ndarray]
    floats: Collection[int]  # identities of operators
    micro: bool = False
    # By the number of a tensor in the file of floats: its two versions, where they exist.
    whole: dict[int, int] = field(default_factory=dict)
    eight: dict[int, int] = field(default_factory=dict)
    made: list[Any] = field(default_factory=list)

    def run(self) -> None:
        graph = self.graph = self.model.subgraphs[0]
        self.kinds = {name: number_of("TensorType", name) for name in ("FLOAT32", "INT8", "INT32", "INT4")}
        operators = list(graph.operators)
        chosen = [n for n, operator in enumerate(operators) if id(operator) not in self.floats and self._can(operator)]
        self.steps = self._all_steps([operators[n] for n in chosen])
        self.whole = {int(i): int(i) for i in graph.inputs}
        for n, operator in enumerate(operators):
            self._as_integers(operator) if n in chosen else self._as_floats(operator)
        graph.outputs = [self._whole(int(i)) for i in graph.outputs]
        graph.operators = self.made

    def _can(self, operator: Any) -> bool:
        """Whether the operator has a kernel for eight bits that takes what it is given."""
        name, tensors = operator_name(self.model, operator), self.graph.tensors
        ends = [int(i) for i in operator.outputs]
        if name not in COPYING | FREE and name not in WEIGHTED and name not in PRESCRIBED:
            return False
        if name in PRESCRIBED and not self._alone(ends[0]):
            return False
        if any(tensors[i].type != self.kinds["FLOAT32"] or i not in self.ranges for i in ends):
            return False
        if name in WEIGHTED:
            data, weight = (int(operator.inputs[place]) for place in WEIGHTED[name][:2])
            stored = constant(self.model, tensors[weight])
            return data in self.ranges and stored is not None and stored.dtype == np.float32
        return all(self._readable(int(i)) for i in operator.inputs)

    def _alone(self, i: int) -> bool:
        """Whether no other tensor has to have a tensor's scale, and it is no answer."""
        readers = [o for o in self.graph.operators if i in [int(k) for k in o.inputs]]
        copied = any(operator_name(self.model, o) in COPYING for o in readers)
        return not copied and (self.micro or i not in [int(k) for k in self.graph.outputs])

    def _readable(self, i: int) -> bool:
        tensor = self.graph.tensors[i] if i != NO_TENSOR else None
        if tensor is None or tensor.type != self.kinds["FLOAT32"]:
            return True  # axes, shapes, paddings: as they are
        return i in self.ranges or constant(self.model, tensor) is not None

    def _all_steps(self, operators: list[Any]) -> dict[int, Steps]:
        """Steps by tensor; those that a copying operator ties together have the same."""
        group: dict[int, int] = {}

        def root(i: int) -> int:
            while group.setdefault(i, i) != i:
                i = group[i]
            return i

        for operator in operators:
            ends = [int(i) for i in operator.outputs]
            if operator_name(self.model, operator) in COPYING:
                ends += [int(i) for i in operator.inputs if int(i) in self.ranges]
            for i in ends:
                group[root(i)] = root(ends[0])
        members: dict[int, list[int]] = {}
        for i in {*self.ranges, *group}:
            members.setdefault(root(i), []).append(i)
        found = {}
        for places in members.values():
            span = joined(self.ranges, places)
            if span is not None:
                found.update(dict.fromkeys(places, Steps.of(*span)))
        for operator in operators:
            if operator_name(self.model, operator) in PRESCRIBED:
                found[int(operator.outputs[0])] = Steps(*PRESCRIBED[operator_name(self.model, operator)])
        return found

    def _as_floats(self, operator: Any) -> None:
        inputs, name = [self._whole(int(i)) for i in operator.inputs], operator_name(self.model, operator)
        if id(operator) in self.floats and name in WEIGHTED:
            inputs[WEIGHTED[name][1]] = self._unpacked(inputs[WEIGHTED[name][1]], name)
        operator.inputs = inputs
        self.whole.update({int(i): int(i) for i in operator.outputs})
        self.made.append(operator)

    def _as_integers(self, operator: Any) -> None:
        name = operator_name(self.model, operator)
        if name in WEIGHTED:
            self._layer(operator, name)
        else:
            # A constant beside data of a copying operator has the data's steps.
            tied = self.steps[int(operator.outputs[0])] if name in COPYING else None
            operator.inputs = [self._eight(int(i), tied) for i in operator.inputs]
        for i in map(int, operator.outputs):
            self._turn(self.graph.tensors[i], self.steps[i])
            self.eight[i] = i
        self._raise_version(operator, name)
        self.made.append(operator)

    def _unpacked(self, weight: int, name: str) -> int:
        """A layer's weight as floats that are made of integers, where there are such for it."""
        values = constant(self.model, self.graph.tensors[weight])
        found = None if values is None else self._known(rows_of(values, name))
        if values is None or found is None:
            return weight
        stored, scale = found
        shared = np.ptp(scale) <= SAME * scale.max()
        scale = (scale[:1] if shared else scale).astype(np.float32)
        zeros, axis = np.zeros(len(scale)), WEIGHTED[name][3]
        packed_weight = self._add(stored_as(stored, values.shape, name), "INT8", scale, zeros, axis)
        self.whole[packed_weight] = self._like(weight)
        self.graph.tensors[self.whole[packed_weight]].buffer = 0  # the empty one: it is computed now
        self._insert("DEQUANTIZE", packed_weight, self.whole[packed_weight])
        if not shared:
            code = self.model.operatorCodes[self._code("DEQUANTIZE")]
            code.version = max(code.version, ROW_DEQUANTIZE)
        return self.whole[packed_weight]

    def _layer(self, operator: Any, name: str) -> None:
        data, weight, bias, axis = WEIGHTED[name]
        inputs = [int(i) for i in operator.inputs]
        steps = self.steps[inputs[data]]
        values = constant(self.model, self.graph.tensors[inputs[weight]])
        assert values is not None  # `_can` saw it
        rows = rows_of(values, name)
        held = inputs[bias] if bias < len(inputs) else NO_TENSOR
        shift = constant(self.model, self.graph.tensors[held]) if held != NO_TENSOR else None
        stored, scale = self._row_integers(rows, None if shift is None else np.abs(shift) / steps.scale / LARGEST_BIAS)
        if np.ptp(scale) <= SAME * scale.max():  # one is said once
            scale = scale[:1]
        inputs[data] = self._eight(inputs[data], None)
        # Two in a byte where a dense layer's are so few; an odd row would end within one.
        four = name == "FULLY_CONNECTED" and np.abs(stored).max(initial=0) < 8 and stored.shape[1] % 2 == 0
        kind = "INT4" if four and not self.micro else "INT8"
        inputs[weight] = self._add(stored_as(stored, values.shape, name), kind, scale, np.zeros(len(scale)), axis)
        if shift is not None:
            wide = scale.astype(np.float64) * steps.scale
            inputs[bias] = self._add(np.round(shift / wide).astype(np.int32), "INT32", wide, np.zeros(len(wide)), 0)
        operator.inputs = inputs

    def _row_integers(self, rows: np.ndarray, least: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Integers and scales of a weight's rows ``[out, n]``; scales at least so large that the bias fits."""
        found = self._known(rows)
        if found is None:
            scale = np.abs(rows).max(1) / 127
            scale = np.where(scale > 0, scale, scale.max() or 1.0)
            found = np.round(rows / scale[:, None]).astype(np.int8), scale
        stored, scale = found
        if least is not None and (scale < least).any():
            wider = np.maximum(scale, least)
            changed = (scale < least)[:, None]
            stored = np.where(changed, np.round(rows / wider[:, None]), stored).astype(np.int8)
            scale = wider
        return stored, scale.astype(np.float32)

    def _known(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """The integers that the rows are multiples of, with their scales, each once."""
        for n, integers in enumerate(self.integers):
            if integers.size == rows.size and len(integers) == len(rows):
                found = multiples(rows, integers.reshape(rows.shape))
                if found is not None:
                    del self.integers[n]
                    return found
        return None

    def _eight(self, i: int, tied: Steps | None) -> int:
        """The number of a tensor's version in integers, made where it is missing."""
        if i == NO_TENSOR or self.graph.tensors[i].type not in (self.kinds["FLOAT32"], self.kinds["INT8"]):
            return i
        if i in self.eight:
            return self.eight[i]
        values = None if i in self.whole else constant(self.model, self.graph.tensors[i])
        if values is not None:
            steps = tied or Steps.of(float(values.min()), float(values.max()))
            return self._add(steps.stored(values), "INT8", [steps.scale], [steps.zero])
        self.eight[i] = self._like(i)
        self._turn(self.graph.tensors[self.eight[i]], self.steps[i])
        self._insert("QUANTIZE", i, self.eight[i])
        return self.eight[i]

    def _whole(self, i: int) -> int:
        """The number of a tensor's version in floats, made where it is missing."""
        if i not in self.eight or i in self.whole:
            return self.whole.get(i, i)
        self.whole[i] = self._like(i)
        tensor = self.graph.tensors[self.whole[i]]
        tensor.type, tensor.quantization = self.kinds["FLOAT32"], None
        self._insert("DEQUANTIZE", i, self.whole[i])
        return self.whole[i]

    def _like(self, i: int) -> int:
        self.graph.tensors.append(copy.copy(self.graph.tensors[i]))
        return len(self.graph.tensors) - 1

    def _turn(self, tensor: Any, steps: Steps) -> None:
        tensor.type, tensor.quantization = self.kinds["INT8"], _parameters([steps.scale], [steps.zero])

    def _add(self, values: np.ndarray, kind: str, scale: Any, zero: Any, axis: int = 0) -> int:
        """A new constant."""
        tensor, buffer = schema().TensorT(), schema().BufferT()
        buffer.data = packed(values, kind)
        self.model.buffers.append(buffer)
        tensor.shape, tensor.type, tensor.buffer = list(values.shape), self.kinds[kind], len(self.model.buffers) - 1
        tensor.quantization = _parameters(scale, zero, axis)
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def _insert(self, name: str, before: int, after: int) -> None:
        operator = schema().OperatorT()
        operator.opcodeIndex, operator.inputs, operator.outputs = self._code(name), [before], [after]
        self._raise_version(operator, name)
        self.made.append(operator)

    def _code(self, name: str) -> int:
        code = schema().OperatorCodeT()
        code.builtinCode = number_of("BuiltinOperator", name)
        code.deprecatedBuiltinCode = min(code.builtinCode, 127)
        for n, known in enumerate(self.model.operatorCodes):
            if known.builtinCode == code.builtinCode:
                return n
        self.model.operatorCodes.append(code)
        return len(self.model.operatorCodes) - 1

    def _raise_version(self, operator: Any, name: str) -> None:
        code = self.model.operatorCodes[operator.opcodeIndex]
        code.version = max(code.version, VERSIONS.get(name, 1))


def _parameters(scale: Any, zero: Any, axis: int = 0) -> Any:
    found = schema().QuantizationParametersT()
    found.scale, found.zeroPoint = np.asarray(scale, np.float32), np.asarray(zero, np.int64)
    found.quantizedDimension = axis
    return found
