"""ExecuTorch: a network as a ``.pte`` program whose layers XNNPACK computes, in floats or in integers of eight bits.

    write_bytes(to_executorch(model, example), path)
    write_bytes(to_executorch_int8(model, example, inputs, integers), path)

The program is made by torch.export and ExecuTorch's own lowering. With integers, by PT2E and the XNNPACK quantizer:

    x ≈ s_x (q_x − z_x)    activations, the least and greatest value seen on calibration inputs
    w ≈ s_i q_w            weights of convolutions and dense layers, a scale a row, symmetric

A weight that is integers already goes into the file with just those integers and scales: it is found by its values, a
multiple of them row by row, and its observer is told the scale. Any other is rounded to the nearest, the largest of a
row at 127. Batches are of one, as ExecuTorch plans its memory for.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from smidgen.data import Dataset
from smidgen.errors import LoadError
from smidgen.export.tflite_weights import multiples
from smidgen.runtimes.executorch import quiet, require_executorch, sound

WATCHED = 512  # calibration inputs that ranges are seen on at most, as for ONNX
BATCH = 16  # of them at a time
LARGEST = 127
# Least scale. PT2E's own for XNNPACK, 2⁻¹², would round small weights anew.
LEAST_SCALE = float(np.finfo(np.float32).eps)


def to_executorch(model: nn.Module, example: torch.Tensor) -> bytes:
    """A program of floats.

    Args:
        model: in evaluation mode; not changed.
        example: inputs ``[n, …]``, the first of which sets the file's shape.

    Returns:
        The file's content.

    Raises:
        LoadError: the package is missing, or the network cannot be lowered.
    """
    require_executorch("export")
    network, x = copy.deepcopy(model).cpu().eval(), example[:1].detach().cpu()
    with _told():
        return _program(network, x)


def to_executorch_int8(
    model: nn.Module, example: torch.Tensor, inputs: Dataset, integers: Sequence[np.ndarray] = ()
) -> bytes:
    """A program with weights and activations in integers of eight bits, its ends in floats.

    Args:
        model, example: see `to_executorch`.
        inputs: calibration inputs, on which the activations' ranges are seen.
        integers: of weights, ``[out, …]`` as torch stores them, of at most ±127; kept as they are.

    Returns:
        The file's content.

    Raises:
        LoadError: see `to_executorch`.
    """
    require_executorch("export")
    network, x = copy.deepcopy(model).cpu().eval(), example[:1].detach().cpu()
    with _told():
        return _program(_rounded(network, x, inputs, integers), x)


def _program(network: nn.Module, x: torch.Tensor) -> bytes:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    exported = torch.export.export(network, (x,))
    lowered = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
    return sound(bytes(lowered.to_executorch().buffer))


def _rounded(network: nn.Module, x: torch.Tensor, inputs: Dataset, integers: Sequence[np.ndarray]) -> nn.Module:
    """The network's graph with quantized weights and activations, for `_program`."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    some = inputs.array(0, min(WATCHED, len(inputs)))
    try:
        several = x.expand(2, *x.shape[1:]).contiguous()
        graph: Any = torch.export.export(network, (several,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
        watched = prepare_pt2e(graph.module(check_guards=False), _quantizer())
        _watch(watched, some, BATCH)
        _keep(watched, integers)
        rounded = convert_pt2e(watched)
        torch.export.export(rounded, (x,))
    except Exception:  # a network that fixes its batch, told in many ways: one input at a time
        watched = prepare_pt2e(torch.export.export(network, (x,)).module(check_guards=False), _quantizer())
        _watch(watched, some, 1)
        _keep(watched, integers)
        rounded = convert_pt2e(watched)
    return rounded


def _quantizer() -> Any:
    """The XNNPACK quantizer, with the least and greatest value as an activation's range."""
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.observer import MinMaxObserver, PerChannelMinMaxObserver

    config: Any = get_symmetric_quantization_config(is_per_channel=True)
    activation = replace(config.input_activation, observer_or_fake_quant_ctr=MinMaxObserver.with_args(eps=LEAST_SCALE))
    weight = replace(config.weight, observer_or_fake_quant_ctr=PerChannelMinMaxObserver.with_args(eps=LEAST_SCALE))
    config = replace(config, input_activation=activation, output_activation=activation, weight=weight)
    return XNNPACKQuantizer().set_global(config)


def _watch(watched: nn.Module, inputs: Dataset, batch: int) -> None:
    with torch.no_grad():
        for each in inputs.batches(batch):
            watched(torch.from_numpy(each))


def _keep(watched: Any, integers: Sequence[np.ndarray]) -> None:
    """Tell each weight's observer the scales of its rows; a row of zeros takes the layer's largest, for its bias."""
    from torchao.quantization.pt2e.observer import PerChannelMinMaxObserver

    rest = list(integers)
    for node in watched.graph.nodes:
        observer = watched.get_submodule(node.target) if node.op == "call_module" else None
        if not isinstance(observer, PerChannelMinMaxObserver) or node.args[0].op != "get_attr":
            continue
        weight = _attribute(watched, node.args[0].target).detach()
        rows = weight.movedim(observer.ch_axis, 0).flatten(1).numpy()
        scale = _scales(rows, rest if observer.ch_axis == 0 else [])
        observer.max_val = torch.from_numpy(np.float32(LARGEST) * scale)
        observer.min_val = -observer.max_val


def _scales(rows: np.ndarray, integers: list[np.ndarray]) -> np.ndarray:
    """Float32 scales of rows ``[out, n]``: of the integers that they are multiples of, which are then taken away."""
    for n, each in enumerate(integers):
        if each.shape[0] == len(rows) and each.size == rows.size:
            found = multiples(rows, each.reshape(rows.shape))
            if found is not None:
                del integers[n]
                return found[1].astype(np.float32)
    scale = np.abs(rows).max(1) / LARGEST
    return np.where(scale > 0, scale, scale.max() or 1.0).astype(np.float32)


def _attribute(module: Any, name: str) -> torch.Tensor:
    for part in name.split("."):
        module = getattr(module, part)
    return module


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """One line where the lowering fails, and none of what it prints."""
    fault = None
    with quiet():
        try:
            yield
        except Exception as error:  # torch, the lowerings and the backends each raise their own
            fault = error
    if fault is not None:
        text = " ".join(str(fault).split())[:200] or type(fault).__name__
        raise LoadError(f"export: this network cannot become an ExecuTorch program: {text}; use another target")
