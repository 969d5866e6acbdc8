"""Downsampling earlier in a network: where that is possible, and the network with it.

A change is a region of the graph that runs on a map ``factor`` times smaller on each side. It begins at a convolution,
which takes a larger stride, or at any other value, which is averaged over blocks; and it ends

    pooling      at the pooling right behind that convolution, which is left out
    stride       at a later pooling, or a later convolution whose stride shrinks
    resolution   at the head: an average over all places, or a dense layer, whose weight is folded

In between every convolution gets the kernel that does the same to an input of blocks (`smidgen.model.coarse`). What the
changed network's shapes are is found by running it; a change that does not fit is refused with the reason.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx import Node

from smidgen.errors import Refusal
from smidgen.model.coarse import coarse_conv, folded_dense, narrow_conv, pooled_conv
from smidgen.model.graph import conv_of, everywhere, flattening, over_all, pool_of, run_node, run_nodes, stride_of

Kind = Literal["resolution", "stride", "pooling"]
FACTOR = 2  # of a lower resolution; strides and poolings tell their own
LEAST_SIDE = 4  # of a map that is made smaller
STAGES = 1  # downsamplings that a stride is moved across at most; past those little of the picture is left


@dataclass(frozen=True)
class Change:
    """One place where a network downsamples earlier.

    Args:
        kind: see the module.
        begin: name of the node, a convolution or the value that is averaged.
        end: name of the pooling or convolution whose stride goes; "" where the smaller map goes on to the head.
        wide: the first convolution's kernel grows to see all that its block of outputs saw.

    >>> print(Change("pooling", "conv1", "max_pool2d"))
    pooling: conv1 takes max_pool2d in
    """

    kind: Kind
    begin: str
    end: str = ""
    wide: bool = False

    def __str__(self) -> str:
        grown = ", wider kernel" if self.wide else ""
        told = {
            "pooling": f"{self.begin} takes {self.end} in{grown}",
            "stride": f"{self.begin} takes the stride of {self.end}{grown}",
            "resolution": f"half from {self.begin} on",
        }
        return f"{self.kind}: {told[self.kind]}"


def find_changes(model: fx.GraphModule, example: Tensor) -> tuple[list[Change], dict[Change, str]]:
    """Every change that can be applied to a network, and those that cannot, with the reason.

    Args:
        model: in evaluation mode; not changed.
        example: one input, ``[1, channels, height, width]``.

    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 8, 3, stride=2, padding=1))
    >>> found, refused = find_changes(fx.symbolic_trace(net), torch.zeros(1, 1, 8, 8))
    >>> [str(change) for change in found]
    ['stride: _0 takes the stride of _1', 'stride: _0 takes the stride of _1, wider kernel']
    >>> next(iter(refused.values()))
    "the network's answer is itself a map"
    """
    possible: list[Change] = []
    refused: dict[Change, str] = {}
    for group in _proposed(model):
        reasons: dict[Change, str] = {}
        for change in group:
            try:
                apply_change(model, change, example)
                possible.append(change)
            except Refusal as reason:
                reasons[change] = str(reason)
        if len(reasons) == len(group):  # what works with one kernel need not be told of the other
            refused.update(list(reasons.items())[:1])
    return possible, refused


def apply_change(model: fx.GraphModule, change: Change, example: Tensor) -> fx.GraphModule:
    """A copy of the network with one change.

    Args:
        model: in evaluation mode; not changed.
        change: naming its nodes.
        example: one input.

    Raises:
        Refusal: it cannot be applied here; the message is the reason.

    >>> net = fx.symbolic_trace(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1)))
    >>> small = apply_change(net, Change("resolution", "input_1"), torch.zeros(1, 1, 8, 8))
    >>> small(torch.zeros(1, 1, 8, 8)).shape
    torch.Size([1, 4, 1, 1])
    """
    values = run_nodes(model, example)
    draft = copy.deepcopy(model)
    named = {node.name: node for node in draft.graph.nodes}
    for name in filter(None, (change.begin, change.end)):
        if name not in named:
            raise Refusal(f"'{name}' is not there any more")
    region = None if change.kind == "resolution" else _region(named[change.begin], named[change.end])
    _Surgery(draft, change, values, region).run(example)
    draft.graph.lint()
    draft.recompile()
    return draft


def _proposed(model: fx.GraphModule) -> Iterator[list[Change]]:
    """Changes worth a try; those of one group differ in the kernel alone."""
    nodes = list(model.graph.nodes)
    ends = {node: stride for node in nodes if (stride := stride_of(model, node)) > 1}
    halved = [node for node in nodes if node.op == "placeholder" or node in ends]
    yield from ([Change("resolution", name)] for name in dict.fromkeys(_waist(model, node).name for node in halved))
    for end in ends:
        for begin in _before(model, end, ends):
            kind: Kind = "pooling" if pool_of(model, end) and _right_behind(model, begin, end) else "stride"
            yield [Change(kind, begin.name, end.name, wide) for wide in (False, True)]


def _waist(model: fx.GraphModule, node: Node) -> Node:
    """The first value from a node on that all later ones come from, its activation included: nothing goes past it."""
    nodes = list(model.graph.nodes)
    place = {each: number for number, each in enumerate(nodes)}
    last = {each: max((place[user] for user in each.users), default=0) for each in nodes}
    while any(last[each] > place[node] for each in nodes[: place[node]] if each.op != "get_attr"):
        node = nodes[place[node] + 1]
    user = next(iter(node.users), node)
    while node.op != "placeholder" and len(node.users) == 1 and everywhere(model, user) and user.target is not F.pad:
        node, user = user, next(iter(user.users), user)
    return node


def _before(model: fx.GraphModule, end: Node, ends: dict[Node, int]) -> Iterator[Node]:
    """Convolutions before a node, nearest first, with at most `STAGES` other downsamplings in between."""
    seen, level = set(), [(end, 0)]
    while level:
        node, stages = level.pop(0)
        for operand in node.all_input_nodes:
            if operand in seen:
                continue
            seen.add(operand)
            if conv_of(model, operand) is not None:
                yield operand
            if stages + (operand in ends) <= STAGES:
                level.append((operand, stages + (operand in ends)))


def _right_behind(model: fx.GraphModule, begin: Node, end: Node) -> bool:
    node = end.all_input_nodes[0]
    while node is not begin and everywhere(model, node) and len(node.all_input_nodes) == 1:
        node = node.all_input_nodes[0]
    return node is begin


def _region(begin: Node, end: Node) -> set[Node]:
    """The nodes on the ways from one node to another, the last left out; nothing else may read them."""
    after, before = _reach(begin, lambda node: node.users), _reach(end, lambda node: node.all_input_nodes)
    if end not in after:
        raise Refusal(f"'{begin.name}' does not lead to '{end.name}'")
    region = (after & before) | {begin}
    for node in region:
        other = next((user for user in node.users if user not in region and user is not end), None)
        if other is not None:
            raise Refusal(f"'{other.name}' reads '{node.name}' too, and needs the larger map")
    return region - {end}


def _reach(node: Node, neighbours: Any) -> set[Node]:
    seen: set[Node] = set()
    waiting = [node]
    while waiting:
        fresh = [each for each in neighbours(waiting.pop()) if each not in seen]
        seen.update(fresh)
        waiting.extend(fresh)
    return seen


class _Surgery:
    """Walks a copy of the network, changes it, and runs each node of it on the way, so that every size is known."""

    def __init__(self, draft: fx.GraphModule, change: Change, before: dict[str, Any], region: set[Node] | None) -> None:
        self.draft, self.change, self.before, self.region = draft, change, before, region
        self.values: dict[Node, Any] = {}
        self.coarse: set[Node] = set()  # nodes whose map is smaller now
        self.flat: dict[Node, tuple[tuple[int, ...], tuple[int, ...]]] = {}  # … and flattened: sides before and after
        self.calls = [node.target for node in draft.graph.nodes if node.op == "call_module"]
        self.factor = FACTOR

    def run(self, example: Tensor) -> None:
        nodes = list(self.draft.graph.nodes)
        if self.change.end:
            self.factor = stride_of(self.draft, next(n for n in nodes if n.name == self.change.end))
        with torch.no_grad():
            for node in nodes:
                if node.name == self.change.end:
                    self._end(node)
                elif node.name == self.change.begin:
                    self._begin(node, example)
                else:
                    self._between(node)
                if node not in self.values and node.graph is self.draft.graph and not node._erased:
                    self.values[node] = self._value(node, example)

    def _value(self, node: Node, example: Tensor) -> Any:
        try:
            return run_node(self.draft, node, self.values, example)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            reason = str(error).strip().splitlines()[0][:120]
            raise Refusal(f"'{node.name}' cannot run on a smaller map: {reason}") from None

    def _begin(self, node: Node, example: Tensor) -> None:
        """A larger stride, or averages over blocks."""
        conv = conv_of(self.draft, node)
        value = self.before[node.name]
        sides = tuple(value.shape[2:]) if isinstance(value, Tensor) else ()
        if len(sides) != 2 or min(sides) < max(LEAST_SIDE, 2 * self.factor):
            raise Refusal(f"'{node.name}' has no map of {LEAST_SIDE}×{LEAST_SIDE} or more")
        if self.change.end:
            assert conv is not None
            self._put(node, self._strided(conv, node, sides))
            self.coarse.add(node)
            return
        self.values[node] = self._value(node, example)
        odd = any(side % self.factor for side in sides)
        with self.draft.graph.inserting_after(node):
            pool = self.draft.graph.call_function(F.avg_pool2d, (node, self.factor, self.factor, 0, odd))
        node.replace_all_uses_with(pool, delete_user_cb=lambda user: user is not pool)
        self.values[pool] = self._value(pool, example)
        self.coarse.add(pool)

    def _strided(self, conv: nn.Conv2d, node: Node, sides: tuple[int, ...]) -> nn.Conv2d:
        taken = (self.factor, self.factor)
        window, padding, wanted = taken, (0, 0), tuple(side // self.factor for side in sides)
        if self.change.kind == "pooling":
            pool = pool_of(self.draft, next(n for n in self.draft.graph.nodes if n.name == self.change.end))
            assert pool is not None
            window, padding, wanted = pool.window, pool.padding, tuple(self.before[self.change.end].shape[2:])
        if self.change.wide:
            return pooled_conv(conv, window, self.factor, padding)
        size = tuple(self.values[node.all_input_nodes[0]].shape[2:])
        return narrow_conv(conv, window, self.factor, padding, size, wanted)

    def _between(self, node: Node) -> None:
        """What runs on the smaller map."""
        small = [each for each in node.all_input_nodes if each in self.coarse]
        flat = [each for each in node.all_input_nodes if each in self.flat]
        if flat:
            self._flattened(node, flat[0])
        elif small:
            self._mapped(node, small[0])

    def _mapped(self, node: Node, small: Node) -> None:
        conv = conv_of(self.draft, node)
        if conv is not None:
            sides = self.before[node.name].shape[2:]
            wanted = [[-(-side // self.factor) for side in sides], [side // self.factor for side in sides]]
            self._put(node, coarse_conv(conv, self.factor, self.values[small].shape[2:], wanted))
        elif node.op == "output":
            raise Refusal("the network's answer is itself a map")
        elif over_all(self.draft, node):
            return
        elif flattening(self.draft, node) and self.before[node.name].ndim == 2 and not self.change.end:
            sides = tuple(tuple(v.shape[2:]) for v in (self.before[self._original(small)], self.values[small]))
            if node.op == "call_function":  # a reshape may name the length
                node.target, node.args, node.kwargs = torch.flatten, (small, 1), {}
            self.flat[node] = (sides[0], sides[1])
            return
        elif not everywhere(self.draft, node) and pool_of(self.draft, node) is None:
            raise Refusal(f"'{node.name}' may not do the same on a smaller map")
        self.coarse.add(node)

    def _flattened(self, node: Node, flat: Node) -> None:
        """Behind a flattened map: the dense layer that is folded."""
        layer = self.draft.get_submodule(str(node.target)) if node.op == "call_module" else None
        if type(layer) is nn.Linear:
            self._put(node, folded_dense(layer, *self.flat[flat]))
        elif everywhere(self.draft, node) and len(node.all_input_nodes) == 1:
            self.flat[node] = self.flat[flat]
        else:
            raise Refusal(f"'{node.name}' reads the flattened map, and is no dense layer")

    def _end(self, node: Node) -> None:
        """The stride that goes, and whether the map is then the original's."""
        small = node.all_input_nodes[0]
        conv, wanted = conv_of(self.draft, node), tuple(self.before[node.name].shape)
        if conv is not None:
            self._put(node, coarse_conv(conv, self.factor, self.values[small].shape[2:], [wanted[2:]], rejoining=True))
            found = self.values[node] = self._value(node, torch.empty(0))
        else:
            found = self.values[small]
            node.replace_all_uses_with(small)
            self.draft.graph.erase_node(node)
        if tuple(found.shape) != wanted:
            sides = ["×".join(map(str, shape[2:])) for shape in (tuple(found.shape), wanted)]
            raise Refusal(f"the map is {sides[0]} where it has to be {sides[1]} at '{node.name}'")
        self.coarse.clear()

    def _original(self, node: Node) -> str:
        """The node of the original that a node stands for: behind an inserted average, what it averages."""
        return node.name if node.name in self.before else node.all_input_nodes[0].name

    def _put(self, node: Node, layer: nn.Module) -> None:
        name = str(node.target)
        if self.calls.count(node.target) > 1:
            raise Refusal(f"'{name}' runs several times in one pass")
        parent, _, leaf = name.rpartition(".")
        setattr(self.draft.get_submodule(parent), leaf, layer)
