"""Integers that multiply to the same numbers on every processor: weights as uint8 where int8 would saturate.

ONNX Runtime multiplies uint8 activations with int8 weights four at a time. Processors without VNNI (x86 before 2019,
and many servers that are rented today) add two neighbouring products in 16 bits on the way, and cut off the sum:

    s = a₁·w₁ + a₂·w₂,   computed as min(max(s, −2¹⁵), 2¹⁵ − 1)

which is wrong where two large weights of a sign meet two large activations (ONNX Runtime's page on quantization,
"u8s8"). uint8 weights around 128 are the same weights, in as many bytes; their products are added in 32 bits
everywhere, which takes longer. So only the layers that do saturate become such, and the file holds the same network
wherever it runs, and whatever processor it was made on.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from jaxtyping import Bool, Float, UInt8
from onnx import TensorProto, numpy_helper

from smidgen.calibrate.ranges import values_of
from smidgen.export.onnx_layout import HEAVY

MIDDLE = 128  # the zero point of weights in uint8
LOWEST, HIGHEST = -(2**15), 2**15 - 1  # of a sum in 16 bits
LARGEST = 255  # activation
SAMPLES = 32  # inputs that layers are watched on at most
POSITIONS = 4096  # places of a layer's output that are computed at most, over those inputs
STEPS = 255  # of an output's span
NOISE = 1 / np.sqrt(12)  # of a step: what rounding the output costs anyway, root mean square


def unsigned(model: onnx.ModelProto, names: Collection[str]) -> onnx.ModelProto:
    """The graph with these weights as uint8; it says the same.

    Args:
        model: with integer activations and weights.
        names: of initializers of int8, from `weights_in`.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type != "DequantizeLinear" or node.input[0] not in names:
            continue
        tensor = tensors[node.input[0]]
        if tensor.data_type == TensorProto.INT8:  # once, where two nodes read it
            values = numpy_helper.to_array(tensor).astype(np.int16) + MIDDLE
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.uint8), tensor.name))
            rows = tuple(tensors[node.input[1]].dims)
            graph.initializer.append(numpy_helper.from_array(np.full(rows, MIDDLE, np.uint8), f"{tensor.name}~m"))
        node.input[:] = [*node.input[:2], f"{tensor.name}~m"]
    read = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in read or tensor.name in names]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return result


def weights_in(model: onnx.ModelProto) -> tuple[str, ...]:
    """Names of the weights of int8 whose products with uint8 are added in pairs."""
    return tuple(dict.fromkeys(layer.weight for layer in _layers(model)))


def saturating(model: onnx.ModelProto, inputs: np.ndarray, threads: int = 1) -> tuple[str, ...]:
    """Weights that must be uint8 for the network to answer alike on every processor.

    A layer is one where, for any of its outputs, the error of sums cut off is larger than that of rounding it to its
    own 8 bits: root mean square over samples and places.

    Args:
        model: with integer activations, weights in int8.
        inputs: calibration inputs, of which the first are watched.
        threads: of the runtime.

    Returns:
        Names of initializers, for `unsigned`.
    """
    layers = [layer for layer in _layers(model) if layer.risky.any()]
    if not layers:
        return ()
    names = list(dict.fromkeys(layer.activation for layer in layers))
    # Watched in a graph that cannot saturate: what a layer gets is then what it should.
    exact = unsigned(model, weights_in(model))
    seen: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for values in values_of(exact, names, [inputs[:SAMPLES]], threads=threads):
        for name in names:
            seen[name].append(values[name])
    found = [layer.weight for layer in layers if layer.error(np.concatenate(seen[layer.activation])) > NOISE]
    return tuple(dict.fromkeys(found))


@dataclass(frozen=True, eq=False)
class _Layer:
    """A Conv, Gemm or MatMul of integers.

    Args:
        node: the operator.
        weight, activation: names of integers: the initializer, and the value that is read.
        zero: of the activation.
        kernel: of a Conv.
        rows: weights [out, in], each row in the order in which the runtime adds: a kernel's channels lie together.
        scale: of each row, in steps of the activation.
    """

    node: onnx.NodeProto
    weight: str
    activation: str
    zero: int
    kernel: tuple[int, ...]
    rows: np.ndarray
    scale: np.ndarray

    @property
    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Weights whose products are added in 16 bits, [out, pairs] each."""
        even = np.pad(self.rows, ((0, 0), (0, self.rows.shape[1] % 2))).astype(np.int32)
        return even[:, 0::2], even[:, 1::2]

    @property
    def risky(self) -> Bool[np.ndarray, "out pairs"]:
        """Pairs that the largest activations would saturate."""
        one, two = self.pairs
        above = LARGEST * (np.maximum(one, 0) + np.maximum(two, 0)) > HIGHEST
        return above | (LARGEST * (np.minimum(one, 0) + np.minimum(two, 0)) < LOWEST)

    def error(self, values: UInt8[np.ndarray, "samples ..."]) -> float:
        """The largest error of any output, in steps of 1/255 of the span of the layer's outputs."""
        read = self._read(values)  # [in of all groups, places]
        groups = read.shape[0] // self.rows.shape[1]
        span, worst = [0.0], 0.0
        for group, rows in enumerate(np.split(np.arange(len(self.rows)), groups)):
            part = read[group * self.rows.shape[1] : (group + 1) * self.rows.shape[1]]
            exact = self.scale[rows, None] * (self.rows[rows].astype(np.float64) @ (part - self.zero))
            span += [float(exact.max()), float(exact.min())]
            worst = max(worst, self._missing(rows, part))
        return worst * STEPS / max(max(span) - min(span), 1e-30)

    def _missing(self, rows: np.ndarray, read: Float[np.ndarray, "in places"]) -> float:
        """What the rows' sums lack, root mean square, in the largest of them."""
        (one, two), risky = self.pairs, self.risky
        worst = 0.0
        even = np.pad(read, ((0, read.shape[0] % 2), (0, 0)))
        for row in rows:
            (at,) = np.nonzero(risky[row])
            if len(at):
                sums = one[row, at, None] * even[2 * at] + two[row, at, None] * even[2 * at + 1]
                lacking = (sums - np.clip(sums, LOWEST, HIGHEST)).sum(axis=0)
                worst = max(worst, float(self.scale[row] * np.sqrt(np.square(lacking).mean())))
        return worst

    def _read(self, values: np.ndarray) -> Float[np.ndarray, "in places"]:
        """What each output is made of, in the order of the rows; some places where there are many."""
        if self.node.op_type != "Conv":
            return values.reshape(-1, values.shape[-1])[:POSITIONS].T.astype(np.float64)
        images, most = torch.from_numpy(values.astype(np.float32)), POSITIONS // len(values)
        parts = [self._patches(image, most) for image in images]
        return torch.cat(parts, dim=1).numpy().astype(np.float64)

    def _patches(self, image: Float[torch.Tensor, "channels ..."], most: int) -> Float[torch.Tensor, "in places"]:
        """Patches under the kernel: for each group, places of the kernel, and in each the channels."""
        given, length = _attributes(self.node), self.rows.shape[1]
        flat = len(self.kernel) == 1
        ones = [1] * len(self.kernel)
        pads = given.get("pads", [0, 0] * len(self.kernel))
        kernel, strides, dilations = (
            (1, each[0]) if flat else (each[0], each[1])
            for each in (self.kernel, given.get("strides", ones), given.get("dilations", ones))
        )
        top, left, bottom, right = (0, pads[0], 0, pads[1]) if flat else pads
        image = image.unsqueeze(1) if flat else image
        image = torch.nn.functional.pad(image, (left, right, top, bottom), value=float(self.zero))
        patches = torch.nn.functional.unfold(image[None], kernel, dilations, 0, strides)[0]
        patches = patches[:, :: max(1, patches.shape[1] // max(1, most))]
        places = kernel[0] * kernel[1]
        patches = patches.reshape(-1, length // places, places, patches.shape[1]).transpose(1, 2)
        return patches.reshape(-1, patches.shape[-1])


def _layers(model: onnx.ModelProto) -> Sequence[_Layer]:
    """Every operator of integers that is computed as a product of matrices."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    makers = {node.output[0]: node for node in model.graph.node if node.op_type == "DequantizeLinear"}
    found = []
    for node in model.graph.node:
        if node.op_type not in HEAVY or not {*node.input[:2]} <= makers.keys():
            continue
        read, weight = (makers[name] for name in node.input[:2])
        tensor = tensors.get(weight.input[0])
        if tensor is None or tensor.data_type != TensorProto.INT8 or read.input[0] in tensors:
            continue
        values, kernel = numpy_helper.to_array(tensor), ()
        if node.op_type == "Conv":
            kernel = values.shape[2:]
            if values.shape[1] == 1 and _attributes(node).get("group", 1) > 1:
                continue  # a channel for itself: ONNX Runtime computes it place by place, in 32 bits
            rows = np.moveaxis(values, 1, -1).reshape(len(values), -1)
        else:
            rows = values if _attributes(node).get("transB", 0) else values.T
        zero = int(numpy_helper.to_array(tensors[read.input[2]]))
        scale = np.broadcast_to(numpy_helper.to_array(tensors[weight.input[1]]).ravel(), len(rows))
        found.append(_Layer(node, tensor.name, read.input[0], zero, kernel, rows, scale.astype(np.float64)))
    return found


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
