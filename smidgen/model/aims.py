"""What a changed network's layers are to give: the original's values there, and where a miss does not count.

An activation that cuts values off makes a whole range of inputs alike. Where the original's value is cut off, the layer
may give anything beyond: each aim has the bounds within which a value must be met.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx import Node

from smidgen.model.graph import everywhere, pool_of


@dataclass(frozen=True)
class Aim:
    """What one layer is to give.

    Args:
        layer: name of the module.
        node: of the original, whose values are wanted.
        low, high: bounds of the activation behind the layer, infinite where it cuts nothing off.
        largest: a larger map is brought to size by maxima, not averages.
    """

    layer: str
    node: str
    low: float = -inf
    high: float = inf
    largest: bool = False

    def resized(self, values: Tensor, size: tuple[int, ...]) -> Tensor:
        """The original's map in the size that the layer gives.

        >>> Aim("0", "0").resized(torch.arange(16.0).reshape(1, 1, 4, 4), (2, 2)).flatten().tolist()
        [2.5, 4.5, 10.5, 12.5]
        """
        if values.ndim != 4 or tuple(values.shape[2:]) == size:
            return values
        return (F.adaptive_max_pool2d if self.largest else F.adaptive_avg_pool2d)(values, (size[0], size[1]))


def find_aims(original: fx.GraphModule, changed: fx.GraphModule) -> list[Aim]:
    """An aim for each layer that a change reaches, in running order.

    Args:
        original: before the change.
        changed: from `smidgen.model.downsample.apply_change`, once or several times.

    >>> from smidgen.model.downsample import Change, apply_change
    >>> net = fx.symbolic_trace(nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)))
    >>> find_aims(net, apply_change(net, Change("pooling", "_0", "_2"), torch.zeros(1, 1, 8, 8)))
    [Aim(layer='0', node='_2', low=0.0, high=inf, largest=False)]
    """
    old = {node.name: node for node in original.graph.nodes}
    there = {node.name for node in changed.graph.nodes}
    touched: set[Node] = set()
    aims = []
    for node in changed.graph.nodes:
        before = old.get(node.name)
        if before is None or _differs(original, before, changed, node) or touched & {*node.all_input_nodes}:
            touched.add(node)
            if before is not None and isinstance(_module(changed, node), (nn.Conv2d, nn.Linear)):
                aims.append(_aim(original, before, there))
    return aims


def _differs(original: fx.GraphModule, before: Node, changed: fx.GraphModule, node: Node) -> bool:
    old, new = _module(original, before), _module(changed, node)
    if [each.name for each in before.all_input_nodes] != [each.name for each in node.all_input_nodes]:
        return True
    return isinstance(new, (nn.Conv2d, nn.Linear)) and repr(old) != repr(new)


def _aim(original: fx.GraphModule, node: Node, there: set[str]) -> Aim:
    """Behind the layer's activation, and behind a pooling that is there no more."""
    layer, low, high, cut = str(node.target), -inf, inf, node
    user = _reader(original, node)
    while user is not None and everywhere(original, user) and len(user.all_input_nodes) == 1:
        bounds = _bounds(original, user)
        if bounds is None:  # an activation that cannot be undone: the layer's own values, brought to size
            break
        low, high, cut = max(low, bounds[0]), min(high, bounds[1]), user
        user = _reader(original, user)
    if user is None or user.name in there or pool_of(original, user) is None:
        pool = _gone(original, user, there)
        return Aim(layer, cut.name, low, high, largest=pool)
    return Aim(layer, user.name, low, high)


def _gone(original: fx.GraphModule, user: Node | None, there: set[str]) -> bool:
    """Whether a pooling of maxima that is there no more follows, behind activations of any kind."""
    while user is not None and everywhere(original, user) and len(user.all_input_nodes) == 1:
        user = _reader(original, user)
    pool = None if user is None or user.name in there else pool_of(original, user)
    return pool is not None and pool.largest


def _reader(original: fx.GraphModule, node: Node) -> Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _bounds(original: fx.GraphModule, node: Node) -> tuple[float, float] | None:
    """Between which values a node changes nothing; None where it does more than cut off."""
    module: Any = _module(original, node)
    if node.target is F.relu or isinstance(module, nn.ReLU):
        return 0.0, inf
    if isinstance(module, nn.ReLU6):
        return 0.0, 6.0
    if isinstance(module, (nn.Identity, nn.Dropout)):
        return -inf, inf
    if node.target is not torch.clamp:
        return None
    low, high = (*node.args[1:], None, None)[:2]
    low, high = (-inf if low is None else low), (inf if high is None else high)
    if not isinstance(low, (int, float)) or not isinstance(high, (int, float)) or node.kwargs:
        return None
    return float(low), float(high)


def _module(model: fx.GraphModule, node: Node) -> nn.Module | None:
    return model.get_submodule(str(node.target)) if node.op == "call_module" else None
