"""A network's graph with weights and activations rounded to integers of eight bits, by PT2E and the XNNPACK quantizer.

    x ≈ s_x (q_x − z_x)    activations, by the range of values seen on calibration inputs that costs the network least
    w ≈ s_i q_w            weights of convolutions and dense layers, a scale a row, symmetric

Each way of choosing the ranges is tried (`smidgen.calibrate.ranges`), since none is best for all networks; the ends
keep all they take. A weight that is integers already keeps just those integers and scales: it is found by its values,
a multiple of them row by row, and its observer is told the scale. Any other is rounded to the nearest, the largest of
a row at 127.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from smidgen.calibrate.answers import outputs_of, true_losses
from smidgen.calibrate.ranges import HOWS, Watch
from smidgen.data import Dataset
from smidgen.export.tflite_weights import multiples

WATCHED = 128  # calibration inputs that ranges are seen on at most, as for TFLite
TRIED = 64  # of them, what each way of choosing costs is measured on
BATCH = 16  # of them at a time
SAMPLE = 1 << 15  # values of an activation that a range is searched on
LARGEST = 127
# Least scale. PT2E's own for XNNPACK, 2⁻¹², would round small weights anew.
LEAST_SCALE = float(np.finfo(np.float32).eps)


def rounded(network: nn.Module, x: torch.Tensor, inputs: Dataset, integers: Sequence[np.ndarray]) -> nn.Module:
    """The network's graph with quantized weights and activations, for inputs like ``x``.

    Args:
        network: in evaluation mode, on the CPU.
        x: one input.
        inputs: calibration inputs.
        integers: of weights, ``[out, …]`` as torch stores them; kept as they are.
    """
    try:
        several = x.expand(2, *x.shape[1:]).contiguous()
        exported = torch.export.export(network, (several,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
        graph = _cheapest(exported, network, inputs, integers, BATCH)
        torch.export.export(graph, (x,))
        return graph
    except Exception:  # a network that fixes its batch, told in many ways: one input at a time
        return _cheapest(torch.export.export(network, (x,)), network, inputs, integers, 1)


def _cheapest(
    exported: Any, network: nn.Module, inputs: Dataset, integers: Sequence[np.ndarray], batch: int
) -> nn.Module:
    """The rounded graph with those ranges that cost the network least on calibration inputs."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    watched: Any = prepare_pt2e(_ready(exported.module(check_guards=False)), _quantizer(min(WATCHED, len(inputs))))
    answers(watched, inputs.array(0, min(WATCHED, len(inputs))), batch)
    _keep(watched, integers)
    ends, observers = _ends(watched), [each for each in watched.modules() if hasattr(each, "watch")]
    held = {each: each.watch.seen() for each in observers if each.watch.kept}
    some = inputs.array(0, min(TRIED, len(inputs)))
    before = answers(network, some, batch)
    tried, losses = [], []
    for how in HOWS:
        for each, seen in held.items():
            each.watch = None  # not to be copied
            found = seen.range("minmax" if each in ends or seen.low == seen.high else how)
            each.min_val, each.max_val = torch.tensor(found.low), torch.tensor(found.high)
        tried.append(convert_pt2e(copy.deepcopy(watched)))
        losses.append(float(true_losses(before, answers(tried[-1], some, batch)).mean()))
    return tried[int(np.argmin(losses))]


def answers(network: nn.Module, inputs: Dataset, batch: int) -> list[list[torch.Tensor]]:
    """A network's outputs for each portion of the inputs."""
    with torch.no_grad():
        return [outputs_of(network(torch.from_numpy(each))) for each in inputs.batches(batch)]


def _ready(graph: Any) -> Any:
    """The graph as the quantizer and XNNPACK want it, in place; it computes the same.

    Every use of a weight gets a weight of its own: XNNPACK refuses integers that are shared. And bounds on a value are
    written as the quantizer knows them: it rounds a layer's output after ReLU and ReLU6, but before a clamp, where the
    steps must span all that the clamp cuts off.
    """
    for node in [each for each in graph.graph.nodes if each.op == "get_attr"]:
        for n, user in enumerate(list(node.users)[1:]):
            name, value = f"{node.name}_use{n + 2}", _attribute(graph, node.target)
            graph.register_parameter(name, nn.Parameter(value.detach().clone(), requires_grad=False))
            with graph.graph.inserting_before(user):
                own = graph.graph.get_attr(name)
            own.meta = dict(node.meta)
            user.replace_input_with(node, own)
    aten = torch.ops.aten
    for node in graph.graph.nodes:
        if node.target is aten.clamp.default or node.target is aten.clamp_min.default:
            x, low, high = (*node.args, None, None)[:3]
            if low == 0 and high is None:
                node.target, node.args = aten.relu.default, (x,)
            elif isinstance(low, (int, float)) and isinstance(high, (int, float)) and low < high:
                node.target, node.args = aten.hardtanh.default, (x, float(low), float(high))
    graph.recompile()
    return graph


def _quantizer(count: int) -> Any:
    """The XNNPACK quantizer; its observers of activations keep a sample of ``count`` inputs' values."""
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (  # pyright: ignore[reportMissingImports]
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.observer import MinMaxObserver, PerChannelMinMaxObserver

    class Watching(MinMaxObserver):
        """Extremes and a sample."""

        def __init__(self, **settings: Any) -> None:
            super().__init__(**settings)
            self.watch = Watch(max(1, SAMPLE * BATCH // max(count, BATCH)))

        def forward(self, x_orig: torch.Tensor) -> torch.Tensor:
            if self.watch is not None and x_orig.is_floating_point() and x_orig.numel():
                self.watch.add(x_orig.detach().numpy())
            return super().forward(x_orig)

    config: Any = get_symmetric_quantization_config(is_per_channel=True)
    activation = replace(config.input_activation, observer_or_fake_quant_ctr=Watching.with_args(eps=LEAST_SCALE))
    weight = replace(config.weight, observer_or_fake_quant_ctr=PerChannelMinMaxObserver.with_args(eps=LEAST_SCALE))
    config = replace(config, input_activation=activation, output_activation=activation, weight=weight)
    return XNNPACKQuantizer().set_global(config)


def _ends(watched: Any) -> set[nn.Module]:
    """The observers of what the network takes and gives."""
    (output,) = (node for node in watched.graph.nodes if node.op == "output")
    observed = [node for node in watched.graph.nodes if node.op == "call_module"]
    given = {id(node) for node in output.all_input_nodes}
    found = [node for node in observed if id(node) in given or node.args[0].op == "placeholder"]
    return {watched.get_submodule(node.target) for node in found}


def _keep(watched: Any, integers: Sequence[np.ndarray]) -> None:
    """Tell each weight's observer the scales of its rows; a row of zeros takes the layer's largest, for its bias."""
    from torchao.quantization.pt2e.observer import PerChannelMinMaxObserver

    for node in watched.graph.nodes:
        observer = watched.get_submodule(node.target) if node.op == "call_module" else None
        if not isinstance(observer, PerChannelMinMaxObserver) or node.args[0].op != "get_attr":
            continue
        weight = _attribute(watched, node.args[0].target).detach()
        rows = weight.movedim(observer.ch_axis, 0).flatten(1).numpy()
        scale = _scales(rows, integers if observer.ch_axis == 0 else [])
        observer.max_val = torch.from_numpy(np.float32(LARGEST) * scale)
        observer.min_val = -observer.max_val


def _scales(rows: np.ndarray, integers: Sequence[np.ndarray]) -> np.ndarray:
    """Float32 scales of rows ``[out, n]``: of the integers that they are multiples of, else the nearest's."""
    for each in integers:
        if each.shape[0] == len(rows) and each.size == rows.size:
            found = multiples(rows, each.reshape(rows.shape))
            if found is not None:
                return found[1].astype(np.float32)
    scale = np.abs(rows).max(1) / LARGEST
    return np.where(scale > 0, scale, scale.max() or 1.0).astype(np.float32)


def _attribute(module: Any, name: str) -> torch.Tensor:
    for part in name.split("."):
        module = getattr(module, part)
    return module
