"""Channels that a training on bits has silenced, cut out of the graph: what is left trains and runs faster.

A channel is silent when every layer that makes it has only zeros for it, bias included, or when no layer that reads it
has anything but zeros for it. Those that are heard are put in order of how much they are: which comes first changes no
answer, and the coder learns sizes as it goes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, fx

from smidgen.calibrate.answers import outputs_of
from smidgen.coding import pack_many
from smidgen.export.onnx import fill
from smidgen.export.prepare import Prepared, prepare
from smidgen.forms import Quantized, dense
from smidgen.model.channels import find_channels
from smidgen.model.onnx import import_model
from smidgen.model.replace import with_forms
from smidgen.model.sites import find_sites
from smidgen.pipeline.cutting import smaller_graph
from smidgen.pipeline.task import Task
from smidgen.site import ChannelLayer, Channels, Stored

SAME = 1e-3  # share of the largest answer by which answers may differ and be the same

Integers = Mapping[str, tuple[np.ndarray, np.ndarray | None]]


def without_silent(task: Task, stored: Mapping[str, Stored], integers: Integers) -> Prepared | None:
    """The network without its silent channels; None where all are heard.

    Args:
        task: with the network as it is now.
        stored: its weights as they are to go on, by site name, in floats.
        integers: weight and bias of each layer, as they are rounded.
    """
    prepared = task.prepared
    found = find_channels(fill(prepared.base, prepared.sites, stored))
    keep = heard(found.channels, integers)
    if keep.all():
        return None
    module = import_model(smaller_graph(found, keep)).module
    now = [site.name for site in find_sites(module, task.example)]
    before = [site.name for site in prepared.sites]
    if len(now) != len(before):  # a layer without any use is gone from the graph; what is left could not be told apart
        return None
    _rename(module, dict(zip(now, before, strict=True)))
    return prepare(replace(task.network, module=module), task.example)


def in_order(task: Task, stored: Mapping[str, Stored], x: Tensor) -> Mapping[str, Stored]:
    """The same network with its channels in another order, where the coder likes that better and no answer changes.

    Args:
        task: with the network.
        stored: its integers.
        x: inputs on which answers are compared.
    """
    prepared = task.prepared
    channels = find_channels(fill(prepared.base, prepared.sites, stored)).channels
    if any(layer.groups > 1 and not layer.depthwise for layer in channels.layers):
        return stored  # what is moved from one group to another would be another network
    moved, passing = dict(stored), {layer.name for layer in channels.layers if layer.depthwise}
    for name, (rows, columns) in ordered(channels, integers_of(stored)).items():
        one = stored[name]
        if isinstance(one.form, Quantized):
            weight = one.form.integers[rows].reshape(len(rows), -1)
            if name not in passing:
                weight = weight.reshape(len(rows), len(columns), -1)[:, columns]
            form = replace(one.form, integers=np.ascontiguousarray(weight.reshape(one.form.integers.shape)))
            bias = None if one.bias_form is None else replace(one.bias_form, integers=one.bias_form.integers[rows])
            moved[name] = Stored(form, one.bias if bias is None else dense(bias), bias)
    if _coded(moved) >= _coded(stored):
        return stored
    with torch.no_grad():
        before, after = (
            outputs_of(with_forms(prepared.module, prepared.sites, each)(x)) for each in (dict(stored), moved)
        )
    return moved if same(before, after) else stored


def _coded(stored: Mapping[str, Stored]) -> int:
    """Bytes of the weights' integers."""
    return len(pack_many([one.form.integers for one in stored.values() if isinstance(one.form, Quantized)]))


def same(before: Sequence[Tensor], after: Sequence[Tensor]) -> bool:
    """Whether answers agree to a thousandth of the largest.

    >>> same([torch.tensor([1.0, 2.0])], [torch.tensor([1.0, 2.1])])
    False
    """
    pairs = zip(before, after, strict=True)
    return all(float((a - b).abs().max()) <= SAME * float(a.abs().max()) for a, b in pairs)


def integers_of(stored: Mapping[str, Stored]) -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
    """Weight and bias of each layer of integers; a bias of floats counts as heard where it is not zero."""
    found = {}
    for name, one in stored.items():
        if isinstance(one.form, Quantized):
            found[name] = one.form.integers, one.bias if one.bias_form is None else one.bias_form.integers
    return found


def _rename(module: fx.GraphModule, names: Mapping[str, str]) -> None:
    """Give layers the names they had: an ONNX file knows identifiers alone."""
    moved = {name: module.get_submodule(name) for name, before in names.items() if name != before}
    for node in module.graph.nodes:
        if node.op == "call_module" and node.target in moved:
            node.target = names[node.target]
    for name, layer in moved.items():
        module.add_submodule(names[name], layer)
    module.delete_all_unused_submodules()
    module.recompile()


def heard(channels: Channels, integers: Integers) -> np.ndarray:
    """Whether each channel is both made and read; one of each kind always is.

    Args:
        channels: of the network.
        integers: weight and bias of each layer; a layer that is not there makes and reads all its channels.
    """
    made, read = np.zeros(channels.count + 1, dtype=bool), np.zeros(channels.count + 1, dtype=bool)
    for layer in channels.layers:
        rows, columns = _used(layer, integers.get(layer.name))
        made[layer.outputs[rows]] = True
        read[layer.inputs[columns]] = True
    keep = (made & read)[:-1]
    for units in channels.classes:
        if not keep[units].any():
            keep[units[0]] = True
    return keep


def ordered(channels: Channels, integers: Integers) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Rows and columns of each layer's weight, in an order in which channels are heard more and more.

    Args:
        channels: of the network.
        integers: weight and bias of each layer.

    Returns:
        By layer, the row that comes in the place of each, and the column; layers that are not there stay.
    """
    loud = np.zeros(channels.count)
    for layer in channels.layers:
        if layer.name in integers:
            sizes = _by_channel(layer, np.abs(integers[layer.name][0]))
            for labels, each in ((layer.outputs, sizes.sum(1)), (layer.inputs, _by_input(layer, sizes))):
                total = np.bincount(labels[labels >= 0], each[labels >= 0], channels.count)
                loud += total / max(total.sum(), 1.0) * np.count_nonzero(total)
    source = np.arange(channels.count)
    for units in channels.classes:
        source[units] = units[np.argsort(loud[units], kind="stable")]
    return {
        layer.name: (_places(layer.outputs, source), _places(layer.inputs, source))
        for layer in channels.layers
        if layer.name in integers
    }


def _places(labels: np.ndarray, source: np.ndarray) -> np.ndarray:
    """Which place each is taken from, the n-th of a channel from the n-th of the one that comes in its place."""
    found = np.arange(len(labels))
    for label in np.unique(labels[labels >= 0]).tolist():
        places = np.flatnonzero(labels == label)
        found[places] = np.flatnonzero(labels == source[label])[: len(places)]
    return found


def _by_channel(layer: ChannelLayer, weight: np.ndarray) -> np.ndarray:
    """Summed over the kernel: outputs × inputs of a group."""
    return weight.reshape(len(layer.outputs), len(layer.inputs) // layer.groups, -1).sum(2)


def _by_input(layer: ChannelLayer, sizes: np.ndarray) -> np.ndarray:
    return sizes.reshape(layer.groups, -1, sizes.shape[1]).sum(1).ravel()


def _used(layer: ChannelLayer, given: tuple[np.ndarray, np.ndarray | None] | None) -> tuple[np.ndarray, np.ndarray]:
    """Which outputs a layer makes and which inputs it reads."""
    if given is None:
        return np.ones(len(layer.outputs), dtype=bool), np.ones(len(layer.inputs), dtype=bool)
    weight, bias = given
    there = (weight != 0).reshape(len(layer.outputs), len(layer.inputs) // layer.groups, -1).any(2)
    by_group = there.reshape(layer.groups, -1, there.shape[1])
    rows = there.any(1) if bias is None else there.any(1) | (bias != 0)
    return rows, by_group.any(1).ravel()
