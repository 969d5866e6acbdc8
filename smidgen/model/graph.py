"""Reading a traced network: what its nodes do to a map, and what they give."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx import Node

# What acts on every place of a map alike.
_EVERYWHERE: frozenset[Any] = frozenset({
    F.relu, F.leaky_relu, F.elu, F.celu, F.gelu, F.hardsigmoid, F.hardswish, F.silu, F.mish, F.softplus, F.softsign,
    F.pad, F.dropout, torch.clamp, torch.sigmoid, torch.tanh, torch.add, torch.sub, torch.mul, torch.div, torch.neg,
    torch.abs, torch.exp, torch.maximum, torch.minimum, torch.sqrt, operator.add, operator.mul, operator.sub,
})  # fmt: skip
_MODULES_EVERYWHERE = (nn.Identity, nn.Dropout, nn.BatchNorm2d, nn.ReLU, nn.ReLU6)
_OVER_ALL: frozenset[Any] = frozenset({torch.mean, torch.amax})
_FLATTENING: frozenset[Any] = frozenset({torch.flatten, torch.reshape})
_MAX, _AVERAGE = F.max_pool2d, F.avg_pool2d


@dataclass(frozen=True)
class Pool:
    """A pooling node's window."""

    largest: bool
    window: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]


def run_nodes(model: fx.GraphModule, x: Tensor, keep: set[str] | None = None) -> dict[str, Any]:
    """What nodes give for an input, by name.

    Args:
        model: in evaluation mode.
        x: inputs.
        keep: the nodes wanted, all when None; only what is still read is held beside them.

    >>> net = fx.symbolic_trace(nn.Sequential(nn.Conv2d(1, 4, 3)))
    >>> [tuple(v.shape) for v in run_nodes(net, torch.zeros(1, 1, 8, 8)).values()]
    [(1, 1, 8, 8), (1, 4, 6, 6), (1, 4, 6, 6)]
    """
    values: dict[Node, Any] = {}
    done: dict[str, Any] = {}
    waiting = {node: set(node.users) for node in model.graph.nodes}
    with torch.no_grad():
        for node in model.graph.nodes:
            values[node] = run_node(model, node, values, x)
            if keep is None or node.name in keep:
                done[node.name] = values[node]
            for operand in node.all_input_nodes:
                waiting[operand].discard(node)
                if not waiting[operand]:
                    values.pop(operand, None)
    return done


def pool_of(model: fx.GraphModule, node: Node) -> Pool | None:
    """A two-dimensional pooling's window, None for any other node and for poolings that count in their own way."""
    given = dict(zip(_arguments(node), node.args[1:], strict=False)) | dict(node.kwargs)
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        if not isinstance(module, (nn.MaxPool2d, nn.AvgPool2d)):
            return None
        largest, given = isinstance(module, nn.MaxPool2d), vars(module)
    elif node.target in (_MAX, _AVERAGE):
        largest = node.target is _MAX
    else:
        return None
    window = _pair(given["kernel_size"])
    plain = _pair(given.get("dilation") or 1) == (1, 1) and not given.get("return_indices")
    plain = plain and given.get("divisor_override") is None
    if not plain:
        return None
    return Pool(largest, window, _pair(given.get("stride") or window), _pair(given.get("padding") or 0))


def conv_of(model: fx.GraphModule, node: Node) -> nn.Conv2d | None:
    """The two-dimensional convolution a node runs."""
    module = model.get_submodule(str(node.target)) if node.op == "call_module" else None
    return module if type(module) is nn.Conv2d else None


def everywhere(model: fx.GraphModule, node: Node) -> bool:
    """Whether a node does the same at every place of a map."""
    if node.op == "call_module":
        return isinstance(model.get_submodule(str(node.target)), _MODULES_EVERYWHERE)
    if node.op != "call_function":
        return False
    axis: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    return node.target in _EVERYWHERE or (node.target is torch.cat and axis == 1)


def flattening(model: fx.GraphModule, node: Node) -> bool:
    """Whether a node may make a row of a map."""
    return node.target in _FLATTENING or (
        node.op == "call_module" and isinstance(model.get_submodule(str(node.target)), nn.Flatten)
    )


def over_all(model: fx.GraphModule, node: Node) -> bool:
    """Whether a node brings any map to one and the same size, such as an average over all places."""
    if node.op == "call_module":
        return isinstance(model.get_submodule(str(node.target)), (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d))
    axes: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    return node.target in _OVER_ALL and isinstance(axes, (list, tuple)) and {axis % 4 for axis in axes} == {2, 3}


def stride_of(model: fx.GraphModule, node: Node) -> int:
    """How many times smaller a node makes a map's sides; 1 where it does not, or not both alike."""
    conv, pool = conv_of(model, node), pool_of(model, node)
    stride = conv.stride if conv is not None else pool.stride if pool is not None else (1, 1)
    return stride[0] if stride[0] == stride[1] else 1


def run_node(model: fx.GraphModule, node: Node, values: dict[Node, Any], x: Tensor) -> Any:
    """What one node gives.

    Args:
        model: the network.
        node: one of its nodes.
        values: of the nodes it reads.
        x: the network's input.
    """
    if node.op == "placeholder":
        return x
    args: Any = fx.map_arg(node.args, values.__getitem__)
    kwargs: Any = fx.map_arg(node.kwargs, values.__getitem__)
    return args[0] if node.op == "output" else getattr(fx.Interpreter(model), node.op)(node.target, args, kwargs)


def _arguments(node: Node) -> tuple[str, ...]:
    if node.target is _MAX:
        return ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
    return ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")


def _pair(value: Any) -> tuple[int, int]:
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[-1]))
