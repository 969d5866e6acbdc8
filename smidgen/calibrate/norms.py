"""Second moments of a layer's inputs from BatchNorm's running statistics, where there is no data.

    y = γ (x − μ) / σ + β:    E[y] = β,  Var[y] = γ²    of each channel, over the data that the network was trained on

A BatchNorm thus tells the first two moments of what it passes on. Activations in between are taken of a Gaussian with
those moments (as in data-free quantization, arXiv:1906.04721), sums of branches as sums of independent ones, pooling
and resizing as if they changed nothing. What is not known that way stays unknown: such a layer keeps the identity.

GenderNet, 6 and 8 times smaller without data: agreement 99.4 and 98.7 % with the statistics, 98.8 and 98.6 % without.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnx.numpy_helper
import torch

from smidgen.site import Curvature, Moment, Site

WIDEST = 4608  # columns of the widest layer whose A is written out; as with calibration
NODES = 101  # of the quadrature; the kink of a ReLU is then met to better than 1 %
KEEPS = frozenset({
    "Identity", "Dropout", "MaxPool", "AveragePool", "GlobalAveragePool", "ReduceMean", "Pad", "Resize", "Flatten",
    "Reshape", "Squeeze",
})  # fmt: skip


@dataclass(frozen=True, eq=False)
class Signal:
    """What is known of a value.

    Args:
        mean, variance: ``[channels]``.
    """

    mean: np.ndarray
    variance: np.ndarray

    def through(self, function: Callable[[np.ndarray], np.ndarray]) -> Signal:
        """The moments after an activation, the value before it taken as Gaussian.

        >>> after = Signal(np.zeros(1), np.ones(1)).through(lambda x: np.maximum(x, 0))
        >>> round(float(after.mean[0]), 1), round(float(after.variance[0] + after.mean[0] ** 2), 1)
        (0.4, 0.5)
        """
        points, weights = np.polynomial.hermite_e.hermegauss(NODES)
        weights = weights / weights.sum()
        values = function(self.mean[:, None] + np.sqrt(self.variance)[:, None] * points)
        mean = values @ weights
        return Signal(mean, np.maximum((values - mean[:, None]) ** 2 @ weights, 0.0))


def norm_signals(graph: onnx.GraphProto) -> dict[str, Signal]:
    """What BatchNorms tell of the inputs of the ``Site`` placeholders in a graph, by site name.

    Args:
        graph: from `smidgen.export.onnx.export_base`, its BatchNorms not yet folded.
    """
    constants = {t.name: t for t in graph.initializer}
    known: dict[str, Signal] = {}
    found: dict[str, Signal] = {}
    for node in graph.node:
        if node.op_type == "Site":
            if node.input[0] in known:
                found[node.name] = known[node.input[0]]
            continue
        signal = _after(node, known, constants)
        if signal is not None:
            known[node.output[0]] = signal
    return found


def _after(
    node: onnx.NodeProto, known: Mapping[str, Signal], constants: Mapping[str, onnx.TensorProto]
) -> Signal | None:
    """What is known of a node's first output."""
    if node.op_type == "BatchNormalization":
        gain, shift = (constants.get(name) for name in node.input[1:3])
        if gain is None or shift is None:
            return None
        gain, shift = (onnx.numpy_helper.to_array(t).astype(np.float64) for t in (gain, shift))
        return Signal(shift, gain**2)
    inputs = [known.get(name) for name in node.input if name and name not in constants]
    if not inputs or any(one is None for one in inputs):
        return None
    signals = [one for one in inputs if one is not None]
    if node.op_type in KEEPS:
        return signals[0]
    if node.op_type == "Add" and len(signals) == 2 and signals[0].mean.shape == signals[1].mean.shape:
        return Signal(signals[0].mean + signals[1].mean, signals[0].variance + signals[1].variance)
    if node.op_type == "Concat" and _attribute(node, "axis", 0.0) == 1:
        return Signal(np.concatenate([s.mean for s in signals]), np.concatenate([s.variance for s in signals]))
    function = _activation(node, constants) if len(signals) == 1 else None
    return None if function is None else signals[0].through(function)


def _activation(
    node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]
) -> Callable[[np.ndarray], np.ndarray] | None:
    match node.op_type:
        case "Relu":
            return lambda x: np.maximum(x, 0)
        case "LeakyRelu":
            slope = _attribute(node, "alpha", 0.01)
            return lambda x: np.where(x > 0, x, slope * x)
        case "Clip":
            low, high = (
                float(onnx.numpy_helper.to_array(constants[name]).reshape(-1)[0]) if name in constants else bound
                for name, bound in zip([*node.input[1:], "", ""][:2], (-np.inf, np.inf), strict=True)
            )
            return lambda x: np.clip(x, low, high)
        case "Sigmoid":
            return lambda x: 1 / (1 + np.exp(-x))
        case "Tanh":
            return np.tanh
        case "HardSwish":
            return lambda x: x * np.clip(x / 6 + 0.5, 0, 1)
        case _:
            return None


def _attribute(node: onnx.NodeProto, name: str, default: float) -> float:
    for attribute in node.attribute:
        if attribute.name == name:
            return float(onnx.helper.get_attribute_value(attribute))
    return default


def curvature_of(site: Site, signal: Signal) -> Curvature | None:
    """A of a site from its input's channels; None where the shapes do not tell which column is which channel.

    The loss is the squared error relative to the output's own energy, as without any statistics.

    Args:
        site: the layer.
        signal: of its input.

    >>> from smidgen.forms import Geometry
    >>> layer = Site("fc", Geometry("linear", 2, 1), np.ones((1, 2), np.float32))
    >>> curvature_of(layer, Signal(np.zeros(2), np.array([3.0, 1.0]))).inputs.matrix.tolist()
    [[[3.0, 0.0], [0.0, 1.0]]]
    """
    g = site.geometry
    wide = g.columns > WIDEST
    if g.kind == "conv_transpose" or (wide and g.groups > 1) or g.in_channels % len(signal.mean):
        return None
    spread = g.in_channels // len(signal.mean)  # a flattened map repeats each channel over its positions
    if spread > 1 and g.kind != "linear":
        return None
    mean, variance = (
        np.repeat(np.repeat(v, spread).reshape(g.groups, -1), g.columns // (g.in_channels // g.groups), axis=1)
        for v in (signal.mean, signal.variance)
    )
    means, own = (torch.from_numpy(v).float() for v in (mean, variance))
    if wide:
        inputs = Moment(rows=means[:, None], diagonal=own, mean=means)
    else:
        inputs = Moment(matrix=means[:, :, None] * means[:, None] + torch.diag_embed(own), mean=means)
    energy = Curvature(inputs).loss_as_stored(site.weight, g)
    if not 0 < energy < np.inf:
        return None
    return Curvature(inputs, source="norm statistics", scale=1.0 / energy)
