"""A network that trains with its activations rounded as its file of integers will round them.

    realised → its graph, and the ranges that its file would have → the graph as a torch network, rounded there
             → run with the weights of the network that trains

Values go by their names in the exported graph, so what is rounded is what the file rounds, whatever the network's code.
TFLite and ExecuTorch files go by graphs of their own: what is rounded for them is what ONNX Runtime would round, which
is nearly the same, and their ranges are chosen when they are written.

It is not the default: no gain was measured. ResNet-20 in eight bits has little to regain: KL of the file on 440 inputs
of the training split is 0.0013 ± 0.0003 untrained, after two epochs on 1,320 others 0.0014 ± 0.0003 without this and
0.0014 ± 0.0003 with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, fx, nn
from torch.func import functional_call

from smidgen.calibrate.ranges import Activations
from smidgen.errors import LoadError, PlanError
from smidgen.export.onnx import fill, results_of
from smidgen.export.onnx_layout import simplified
from smidgen.export.static import TARGET, chosen_activations, ranges_in
from smidgen.forms import STATIC
from smidgen.model.onnx import Imported, import_model
from smidgen.pipeline.task import Task
from smidgen.recover.activations import with_rounding
from smidgen.recover.trainable import layers_at
from smidgen.site import Stored

Forward = Callable[[Tensor], Any]


def check_rounding(target: str, trains: bool) -> None:
    """PlanError where nothing is trained, or activations stay floats."""
    if not trains:
        raise PlanError("round_activations: activations are rounded while the network trains; give --train")
    if target not in STATIC:
        raise PlanError(f"round_activations: a file of {target} computes in floats; give target {', '.join(STATIC)}")


def rounded_forward(task: Task, stored: Mapping[str, Stored], net: nn.Module) -> tuple[Forward, Activations]:
    """What a network answers with rounded activations, and how these are.

    Args:
        task: with calibration and selection inputs.
        stored: what is written where the training begins.
        net: from `smidgen.recover.trainable.trainable`, whose weights are used as they are when it is called.

    Raises:
        PlanError: the network's graph cannot be trained.
    """
    prepared, roles = task.prepared, task.roles
    assert roles is not None  # `check_given` saw to it
    found = chosen_activations(prepared, stored, roles.calibration, roles.selection, task.threads)
    ranges = ranges_in(simplified(fill(prepared.base, prepared.sites, stored, TARGET)), found)
    graph = simplified(fill(prepared.base, prepared.sites, stored))
    try:
        imported = import_model(graph)
    except LoadError as error:
        raise PlanError(f"round_activations: the network's graph cannot be trained: {error}; leave it out") from None
    borrowed = _borrowed(imported, results_of(prepared.base, stored, prepared.sites), net)
    twin = with_rounding(imported.module, {imported.values[name]: each for name, each in ranges.items()})
    twin.to(task.device).requires_grad_(False)

    def forward(x: Tensor) -> Any:
        weights = {name: getattr(layer, kind) for name, (layer, kind) in borrowed.items()}
        return functional_call(twin, weights, (x,))

    return forward, found


def _borrowed(imported: Imported, results: Mapping[str, list[str]], net: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """The twin's parameters, and which layer's weight or bias each is."""
    nodes = {node.name: node for node in imported.module.graph.nodes}
    inner, found = dict(imported.module.named_parameters()), {}
    for name, given in results.items():
        for layer, result in zip(layers_at(net, name), given, strict=True):
            last = nodes[imported.values[result]]
            first = _layer_node(last)
            found[f"{first.target}.weight"] = layer, "weight"
            if getattr(layer, "bias", None) is not None:
                # The product of matrices adds its bias in a step of its own.
                found[f"{first.target}.bias" if f"{first.target}.bias" in inner else _added(last)] = layer, "bias"
    wrong = [name for name, (layer, kind) in found.items() if inner[name].shape != getattr(layer, kind).shape]
    if wrong:
        raise PlanError(f"round_activations: layer {wrong[0]!r} is another in the network's graph; leave it out")
    return found


def _layer_node(node: fx.Node) -> fx.Node:
    """The layer whose result a node gives, perhaps cropped or with a bias added."""
    while node.op != "call_module":
        (node, *_) = node.all_input_nodes
    return node


def _added(node: fx.Node) -> str:
    """The parameter that is added to a product."""
    return next(str(each.target) for each in node.all_input_nodes if each.op == "get_attr")
