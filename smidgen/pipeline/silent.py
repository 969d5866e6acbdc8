"""Channels that a training on bits has silenced, cut out of the graph: what is left trains and runs faster.

A channel is silent when every layer that makes it has only zeros for it, bias included, or when no layer that reads it
has anything but zeros for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from torch import fx

from smidgen.export.onnx import fill
from smidgen.export.prepare import Prepared, prepare
from smidgen.model.channels import find_channels
from smidgen.model.onnx import import_model
from smidgen.model.sites import find_sites
from smidgen.pipeline.prune import smaller_graph
from smidgen.pipeline.task import Task
from smidgen.site import ChannelLayer, Channels, Stored

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


def _used(layer: ChannelLayer, given: tuple[np.ndarray, np.ndarray | None] | None) -> tuple[np.ndarray, np.ndarray]:
    """Which outputs a layer makes and which inputs it reads."""
    if given is None:
        return np.ones(len(layer.outputs), dtype=bool), np.ones(len(layer.inputs), dtype=bool)
    weight, bias = given
    there = (weight != 0).reshape(len(layer.outputs), len(layer.inputs) // layer.groups, -1).any(2)
    by_group = there.reshape(layer.groups, -1, there.shape[1])
    rows = there.any(1) if bias is None else there.any(1) | (bias != 0)
    return rows, by_group.any(1).ravel()
