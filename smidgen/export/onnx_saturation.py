"""Integers that multiply to the same numbers on every processor.

ONNX Runtime multiplies uint8 activations with int8 weights four at a time. Processors without VNNI (x86 before 2019,
and many servers that are rented today) add two neighbouring products in 16 bits on the way, and cut off the sum:

    s = a₁·w₁ + a₂·w₂,   computed as min(max(s, −2¹⁵), 2¹⁵ − 1)

which is wrong where two large weights of a sign meet two large activations (ONNX Runtime's page on quantization,
"u8s8"). Two things help. A row of weights can take a coarser step, so that no two neighbours exceed 128 together: as
fast, and rounded a little more. Or the layer's weights become uint8 around 128: the same weights, in as many bytes,
whose products are added in 32 bits everywhere, which takes longer. Either only where sums are cut off on calibration
inputs; which of the two is for `smidgen.export.static` to measure. The file then holds the same network wherever it
runs, and whatever processor it was made on.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from jaxtyping import Bool, Float, Int32, UInt8
from onnx import TensorProto, numpy_helper

from smidgen.calibrate.ranges import values_of
from smidgen.export.onnx_layout import HEAVY
from smidgen.export.onnx_strip import drop_unused
from smidgen.model.channels.following import attributes
from smidgen.numerics.cancellation import factorise
from smidgen.numerics.rounding import round_gptq, round_nearest

MIDDLE = 128  # the zero point of weights in uint8
LOWEST, HIGHEST = -(2**15), 2**15 - 1  # of a sum in 16 bits
LARGEST = 255  # activation
SAMPLES = 32  # inputs that layers are watched on at most
POSITIONS = 4096  # places of a layer's output that are computed at most, over those inputs
STEPS = 255  # of an output's span
WIDEST = 4096  # inputs of a row up to which their second moment is taken: 128 MiB
NOISE = 12**-0.5  # of a step: what rounding the output costs anyway, root mean square


def unsigned(model: onnx.ModelProto, names: Collection[str]) -> onnx.ModelProto:
    """The graph with these weights as uint8; it says the same.

    Args:
        model: with integer activations and weights.
        names: of initializers of int8, from `weights_in` or `saturating`.
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
    drop_unused(graph)  # zero points of int8
    return result


def weights_in(model: onnx.ModelProto) -> tuple[str, ...]:
    """Names of the weights of int8 whose products with uint8 are added in pairs."""
    return tuple(dict.fromkeys(layer.weight for layer in _layers(model)))


@dataclass(frozen=True, eq=False)
class Narrow:
    """A weight whose rows took coarser steps where sums would be cut off.

    Args:
        integers: int8, as the file holds them.
        factors: times by which each row's step is coarser; 1 where it stayed.
        error: that costs, root mean square over all outputs, in steps of 1/255 of their span.
    """

    integers: np.ndarray
    factors: Float[np.ndarray, " out"]
    error: float

    @property
    def cheap(self) -> bool:
        """Whether it costs less than rounding the layer's outputs to 8 bits does anyway."""
        return self.error <= NOISE


def narrowed(model: onnx.ModelProto, weights: Mapping[str, Narrow]) -> onnx.ModelProto:
    """The graph with rows of weights rounded to coarser steps.

    Args:
        model: weights in int8, activations still in floats: biases take the steps of the weights.
        weights: from `saturating`.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    tensors = {tensor.name: tensor for tensor in result.graph.initializer}
    done: set[str] = set()
    for node in result.graph.node:
        if node.op_type != "DequantizeLinear" or node.input[0] not in weights or node.input[1] in done:
            continue
        integers, scale, weight = tensors[node.input[0]], tensors[node.input[1]], weights[node.input[0]]
        steps = (numpy_helper.to_array(scale) * weight.factors).astype(np.float32)
        integers.CopyFrom(numpy_helper.from_array(weight.integers, integers.name))
        scale.CopyFrom(numpy_helper.from_array(steps, scale.name))
        done.add(scale.name)
    return result


def saturating(model: onnx.ModelProto, inputs: np.ndarray, threads: int = 1) -> dict[str, Narrow]:
    """Weights that the network cannot have in int8 as they are, to answer alike on every processor.

    A row is one where sums cut off put its output out by more than rounding that to its own 8 bits: root mean square
    over samples and places.

    Args:
        model: with integer activations, weights in int8.
        inputs: calibration inputs, of which the first are watched.
        threads: of the runtime.

    Returns:
        By initializer, the weights with such rows rounded so that their largest neighbours fit: curvature-aware, later
        columns making good what earlier ones lose on these inputs.
    """
    layers = [layer for layer in _layers(model) if layer.risky.any()]
    if not layers:
        return {}
    names = list(dict.fromkeys(layer.activation for layer in layers))
    # Watched in a graph that cannot saturate: what a layer gets is then what it should.
    exact = unsigned(model, weights_in(model))
    seen: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for values in values_of(exact, names, [inputs[:SAMPLES]], threads=threads):
        for name in names:
            seen[name].append(values[name])
    found: dict[str, Narrow] = {}
    for layer in layers:
        read = layer.read(np.concatenate(seen[layer.activation]))
        wrong = layer.errors(read) > NOISE
        if wrong.any() and layer.weight not in found:
            found[layer.weight] = layer.narrow(read, wrong)
    return found


@dataclass(frozen=True, eq=False)
class _Layer:
    """A Conv, Gemm or MatMul of integers.

    Args:
        node: the operator.
        weight, activation: names of integers: the initializer, and the value that is read.
        zero: of the activation.
        kernel: of a Conv.
        rows: weights [out, in], each row in the order in which the runtime adds: a kernel's channels lie together.
        shape: of the weight in the file.
        scale: of each row, in steps of the activation.
    """

    node: onnx.NodeProto
    weight: str
    activation: str
    zero: int
    kernel: tuple[int, ...]
    rows: np.ndarray
    shape: tuple[int, ...]
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

    @property
    def factors(self) -> Float[np.ndarray, " out"]:
        """Times by which each row's step must be coarser; rounding may add a half to each of two weights."""
        one, two = self.pairs
        above = (np.maximum(one, 0) + np.maximum(two, 0)).max(axis=1)
        below = -(np.minimum(one, 0) + np.minimum(two, 0)).min(axis=1)
        return np.maximum(np.maximum(above, below) / (MIDDLE - 1), 1.0)

    def errors(self, read: Float[np.ndarray, "in places"]) -> Float[np.ndarray, " out"]:
        """What each output is out by, root mean square, in steps of 1/255 of the span of the layer's outputs."""
        missing = np.zeros(len(self.rows))
        for rows, part in self._groups(read):
            missing[rows] = self._missing(rows, part)
        return missing * STEPS / self._span(read)

    def _span(self, read: Float[np.ndarray, "in places"]) -> float:
        """From the least to the largest output, zero among them."""
        ends = [0.0]
        for rows, part in self._groups(read):
            outputs = self.scale[rows, None] * (self.rows[rows].astype(np.float64) @ (part - self.zero))
            ends += [float(outputs.max()), float(outputs.min())]
        return max(max(ends) - min(ends), 1e-30)

    def narrow(self, read: Float[np.ndarray, "in places"], wrong: Bool[np.ndarray, " out"]) -> Narrow:
        """The weight with those rows rounded to coarser steps."""
        factors, integers = np.where(wrong, self.factors, 1.0), self.rows.astype(np.int32)
        squares = 0.0
        for rows, part in self._groups(read):
            rows = rows[wrong[rows]]
            if len(rows):
                integers[rows] = _coarser(self.rows[rows], factors[rows], part - self.zero)
                change = integers[rows] * factors[rows, None] - self.rows[rows]
                squares += float(np.square(self.scale[rows, None] * (change @ (part - self.zero))).sum())
        mean = squares / (len(self.rows) * read.shape[1])
        error = float(np.sqrt(mean)) * STEPS / self._span(read)
        return Narrow(self._as_in_file(integers.astype(np.int8)), factors, error)

    def _groups(self, read: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows of each group, and what they read."""
        length = self.rows.shape[1]
        for group, rows in enumerate(np.split(np.arange(len(self.rows)), read.shape[0] // length)):
            yield rows, read[group * length : (group + 1) * length]

    def _as_in_file(self, rows: np.ndarray) -> np.ndarray:
        if self.node.op_type == "Conv":
            out, channels, *kernel = self.shape
            return np.ascontiguousarray(np.moveaxis(rows.reshape(out, *kernel, channels), -1, 1))
        return np.ascontiguousarray(rows if attributes(self.node).get("transB", 0) else rows.T)

    def _missing(self, rows: np.ndarray, read: Float[np.ndarray, "in places"]) -> Float[np.ndarray, " rows"]:
        """What the rows' sums lack, root mean square."""
        (one, two), risky = self.pairs, self.risky
        even = np.pad(read, ((0, read.shape[0] % 2), (0, 0)))
        found = np.zeros(len(rows))
        for place, row in enumerate(rows):
            (at,) = np.nonzero(risky[row])
            if len(at):
                sums = one[row, at, None] * even[2 * at] + two[row, at, None] * even[2 * at + 1]
                lacking = (sums - np.clip(sums, LOWEST, HIGHEST)).sum(axis=0)
                found[place] = self.scale[row] * np.sqrt(np.square(lacking).mean())
        return found

    def read(self, values: UInt8[np.ndarray, "samples ..."]) -> Float[np.ndarray, "in places"]:
        """What the outputs are made of, for all groups, in the order of the rows; some places where there are many."""
        if self.node.op_type != "Conv":
            return values.reshape(-1, values.shape[-1])[:POSITIONS].T.astype(np.float64)
        images, most = torch.from_numpy(values.astype(np.float32)), POSITIONS // len(values)
        parts = [self._patches(image, most) for image in images]
        return torch.cat(parts, dim=1).numpy().astype(np.float64)

    def _patches(self, image: Float[torch.Tensor, "channels ..."], most: int) -> Float[torch.Tensor, "in places"]:
        """Patches under the kernel: for each group, places of the kernel, and in each the channels."""
        given, length = attributes(self.node), self.rows.shape[1]
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
        # At random: every so many would be a column of the image, its edge perhaps.
        chosen = np.random.default_rng(0).permutation(patches.shape[1])[: max(1, most)]
        patches = patches[:, torch.from_numpy(chosen)]
        places = kernel[0] * kernel[1]
        patches = patches.reshape(-1, length // places, places, patches.shape[1]).transpose(1, 2)
        return patches.reshape(-1, patches.shape[-1])


def _coarser(rows: np.ndarray, factors: np.ndarray, read: np.ndarray) -> Int32[np.ndarray, "rows in"]:
    """Rows in steps so many times as large, for what they read."""
    targets, steps = torch.from_numpy(rows.astype(np.float64)), torch.from_numpy(factors.astype(np.float32))
    if rows.shape[1] > min(WIDEST, read.shape[1] / 2):  # too few places tell nothing of most directions
        return round_nearest(targets, steps, torch.ones(rows.shape[1])).integers.numpy()
    moment = torch.from_numpy(read @ read.T / max(1, read.shape[1]))
    factor = factorise(moment, order="descending")
    return round_gptq(targets, factor, steps, levels=MIDDLE - 1).integers.numpy()


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
            if values.shape[1] == 1 and attributes(node).get("group", 1) > 1:
                continue  # a channel for itself: ONNX Runtime computes it place by place, in 32 bits
            rows = np.moveaxis(values, 1, -1).reshape(len(values), -1)
        else:
            rows = values if attributes(node).get("transB", 0) else values.T
        zero = int(numpy_helper.to_array(tensors[read.input[2]]))
        scale = np.broadcast_to(numpy_helper.to_array(tensors[weight.input[1]]).ravel(), len(rows))
        wide = scale.astype(np.float64)
        found.append(_Layer(node, tensor.name, read.input[0], zero, kernel, rows, values.shape, wide))
    return found
