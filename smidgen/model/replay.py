"""Forward passes on the same inputs, again and again, each begun where nothing has changed since the last.

Refits and probes run a network once for every layer, and layers are taken in running order: all before the layer at
hand answers as it did. Of a traced network (every imported ONNX file is one) the values that are still wanted at some
narrow place before that layer are kept, and the next pass begins there: MobileNetV2's 53 refits take the time of three
whole passes instead of 26.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx import Interpreter, Node
from torch.utils._pytree import tree_leaves

KEPT_NBYTES = 256 << 20  # most memory for the values a pass begins with, of all inputs


class Enough(Exception):
    """Raised by a hook: the pass has shown what was wanted."""


class Replay:
    """A network's passes on given inputs.

    Args:
        model: in evaluation mode; the caller may replace its layers between passes. Any but a traced one
            (``fx.GraphModule``) is run from its beginning.
        batches: the inputs, ``[n, …]`` each.
        device: where the model lies.
        most_nbytes: memory for the values that are kept.

    >>> model = fx.symbolic_trace(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))).eval()
    >>> replay = Replay(model, [np.ones((1, 2), "f4")])
    >>> [y.shape for y in replay.run({"1"})]  # and the next pass begins after layer 0
    [torch.Size([1, 2])]
    >>> replay.begins
    2
    """

    def __init__(
        self, model: nn.Module, batches: Sequence[np.ndarray], *, device: str = "cpu", most_nbytes: int = KEPT_NBYTES
    ) -> None:
        self.model, self.device = model, device
        self.batches, self.most_nbytes = batches, most_nbytes
        self.begins = 0  # the node, by number, that the next pass begins with
        self._nodes: list[Node] = list(model.graph.nodes) if isinstance(model, fx.GraphModule) else []
        self._last = _last_uses(self._nodes)
        self._kept: list[dict[Node, Any]] = [{} for _ in batches]

    def run(self, changing: Collection[str]) -> list[Any]:
        """The outputs for each batch; None where a hook raised `Enough`.

        Args:
            changing: names of the layers that may be replaced after this pass, all layers replaced since the last one
                among them.
        """
        final = min((self._place(name) for name in changing), default=0)
        if final < self.begins:
            self.begins, self._kept = 0, [{} for _ in self.batches]
        pause: int | None = None if final > self.begins else self.begins
        results = []
        with torch.no_grad():
            for number, batch in enumerate(self.batches):
                x = torch.from_numpy(batch).to(self.device)
                if not self._nodes:
                    results.append(_unless_enough(self.model, x))
                    continue
                walk = _Walk(self, x, dict(self._kept[number]), len(batch), final, pause)
                results.append(_unless_enough(walk))
                pause, self._kept[number] = walk.pause, walk.kept
                if walk.spoilt():
                    self._nodes = []  # an in-place operation wrote over what was kept
        self.begins = self.begins if pause is None else pause
        return results

    def _place(self, name: str) -> int:
        """Number of the first node that runs a layer; 0 where it is not known."""
        for number, node in enumerate(self._nodes):
            if node.op == "call_module" and f"{name}.".startswith(f"{node.target}."):
                return number
        return 0


class _Walk:
    """One batch through the nodes of a traced network, from the place where it begins."""

    def __init__(
        self, replay: Replay, x: Tensor, values: dict[Node, Any], samples: int, final: int, pause: int | None
    ) -> None:
        self.replay, self.x, self.values, self.final = replay, x, values, final
        self.kept = dict(values)
        self.pause = replay.begins if pause is None else pause
        self._search = pause is None
        self._share = sum(len(batch) for batch in replay.batches) / samples
        self._versions: dict[int, tuple[Tensor, int]] = {}
        self._note()

    def __call__(self) -> Any:
        nodes, last = self.replay._nodes, self.replay._last
        interpreter = Interpreter(self.replay.model)
        interpreter.env = self.values
        for number in range(self.replay.begins, len(nodes)):
            self._keep(number)
            node = nodes[number]
            if node.op == "output":
                return fx.map_arg(node.args[0], self.values.__getitem__)
            self.values[node] = self.x if node.op == "placeholder" else interpreter.run_node(node)
            for done in last.get(node, ()):
                self.values.pop(done, None)
        return None

    def _keep(self, number: int) -> None:
        """Take the values before a node, if the next pass can begin there."""
        wanted = number == self.pause if not self._search else number <= self.final and self._fits()
        if wanted and number > self.replay.begins:
            self.pause, self.kept = number, dict(self.values)
            self._note()

    def _fits(self) -> bool:
        stores = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in _tensors(self.values)}
        return self._share * sum(stores.values()) <= self.replay.most_nbytes

    def _note(self) -> None:
        self._versions = {id(t): (t, t._version) for t in _tensors(self.kept)}

    def spoilt(self) -> bool:
        """Whether a later node wrote into a kept value."""
        return any(t._version != version for t, version in self._versions.values())


def _tensors(values: dict[Node, Any]) -> Iterable[Tensor]:
    return (leaf for leaf in tree_leaves(list(values.values())) if isinstance(leaf, Tensor))


def _last_uses(nodes: list[Node]) -> dict[Node, list[Node]]:
    """Which values each node is the last to read."""
    reader: dict[Node, Node] = {}
    for node in nodes:
        for operand in (*node.all_input_nodes, node):
            reader[operand] = node
    result: dict[Node, list[Node]] = {}
    for operand, node in reader.items():
        result.setdefault(node, []).append(operand)
    return result


def _unless_enough(call: Any, *args: Any) -> Any:
    try:
        return call(*args)
    except Enough:
        return None
