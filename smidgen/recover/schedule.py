"""Pruning little by little while a network trains, in a training loop of your own.

    cubic       s_t = s_f + (s_i − s_f) (1 − (t − t₀) / (n Δt))³      Zhu and Gupta 2017, arXiv:1710.01878
    iterative   n equal steps from s_i to s_f, Δt apart
    one-shot    s_f at t₀

The smallest weights of all layers together go. What is gone stays zero: the optimizer may move it (momentum does, even
without a gradient), so call `step` after the optimizer's, each time. At the end the network is an ordinary one with
zeros in its weights, with no wrapper to take off, and any export writes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from smidgen.errors import PlanError
from smidgen.model.sites import FORWARD

Kind = Literal["cubic", "iterative", "one-shot"]


@dataclass(frozen=True)
class Schedule:
    """How much is gone at which step.

    Args:
        final: sparsity at the end, above 0 and below 1.
        start: step at which pruning begins.
        every: steps between two prunings.
        times: prunings after the first; ``one-shot`` has none.
        initial: sparsity at the beginning.
        kind: ``cubic``, ``iterative`` or ``one-shot``.

    >>> plan = Schedule(0.8, every=10, times=4)
    >>> [round(plan.at(step), 4) for step in (0, 9, 10, 20, 30, 40, 99)]
    [0.0, 0.0, 0.4625, 0.7, 0.7875, 0.8, 0.8]
    """

    final: float
    start: int = 0
    every: int = 100
    times: int = 10
    initial: float = 0.0
    kind: Kind = "cubic"

    def __post_init__(self) -> None:
        if not 0 < self.final < 1 or not 0 <= self.initial < self.final:
            raise PlanError(f"schedule: final={self.final!r} must be above 0 and below 1, initial={self.initial!r} "
                            "from 0 and below that")  # fmt: skip
        if self.kind not in get_args(Kind) or self.start < 0 or self.every < 1 or self.times < 1:
            kinds = ", ".join(get_args(Kind))
            raise PlanError(f"schedule: kind={self.kind!r} must be one of {kinds}, start={self.start!r} from 0, "
                            f"every={self.every!r} and times={self.times!r} from 1")  # fmt: skip

    def at(self, step: int) -> float:
        """Sparsity after this step; it never falls."""
        if step < self.start:
            return self.initial
        if self.kind == "one-shot":
            return self.final
        done = min((step - self.start) // self.every, self.times) / self.times
        share = done if self.kind == "iterative" else 1 - (1 - done) ** 3
        return self.initial + (self.final - self.initial) * share


class Pruner:
    """Keeps a network's weights pruned as a schedule says.

    Args:
        model: trained elsewhere; its weights are changed in place.
        schedule: how much, when.
        protect: names of layers left whole, or patterns of names.

    Raises:
        PlanError: no layer is left to prune, or a protected one is not there.

    >>> net = nn.Linear(4, 5)
    >>> pruner = Pruner(net, Schedule(0.5, kind="one-shot"))
    >>> pruner.step()
    0.5
    >>> int((net.weight == 0).sum())
    10
    """

    def __init__(self, model: nn.Module, schedule: Schedule, protect: Sequence[str] = ()) -> None:
        named = {name: each.weight for name, each in model.named_modules() if isinstance(each, FORWARD)}
        missing = [pattern for pattern in protect if not any(fnmatchcase(name, pattern) for name in named)]
        if missing:
            raise PlanError(f"protect: no layer is called {missing[0]!r}; there are: {', '.join(list(named)[:8])}")
        self.schedule, self.steps = schedule, 0
        self.weights = [w for name, w in named.items() if not any(fnmatchcase(name, each) for each in protect)]
        if not self.weights:
            raise PlanError("schedule: there is no layer to prune; give a network with dense layers or convolutions")
        self.masks: list[Tensor] = [torch.ones_like(weight, dtype=torch.bool) for weight in self.weights]
        self._gone = 0  # counted where masks change: counting takes longer than all else in a step

    def step(self) -> float:
        """After each step of the optimizer: prune where it is time, and keep what is gone at zero.

        Returns:
            The sparsity now.
        """
        share = self.schedule.at(self.steps)
        self.steps += 1
        with torch.no_grad():
            self._prune(share)
            for weight, mask in zip(self.weights, self.masks, strict=True):
                weight.mul_(mask)
        return self.sparsity

    @property
    def sparsity(self) -> float:
        """Share of the weights that is gone."""
        return self._gone / sum(mask.numel() for mask in self.masks)

    def _prune(self, share: float) -> None:
        """The smallest of those still there go, until the share is gone; each layer keeps one."""
        count = sum(mask.numel() for mask in self.masks)
        more = min(round(share * count), count - len(self.masks)) - self._gone
        if more <= 0:
            return
        self._gone += more
        sizes = []
        for weight, mask in zip(self.weights, self.masks, strict=True):
            size = torch.where(mask, weight.detach().abs().double(), torch.inf).flatten()
            size[torch.where(mask, weight.detach().abs(), -1.0).argmax()] = torch.inf
            sizes.append(size.cpu())
        order = torch.argsort(torch.cat(sizes), stable=True)[:more]
        flat = torch.cat([mask.flatten().cpu() for mask in self.masks])
        flat[order] = False
        parts = flat.split([mask.numel() for mask in self.masks])
        self.masks = [part.reshape(mask.shape).to(mask.device) for part, mask in zip(parts, self.masks, strict=True)]

    def state_dict(self) -> dict[str, object]:
        """Masks and steps, to go on later."""
        return {"steps": self.steps, "masks": [mask.clone() for mask in self.masks]}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """What `state_dict` gave.

        Raises:
            PlanError: it is another network's.
        """
        masks, steps = state.get("masks"), state.get("steps")
        fits = isinstance(masks, list) and [tuple(m.shape) for m in masks] == [tuple(w.shape) for w in self.weights]
        if not fits or not isinstance(steps, int):
            raise PlanError("schedule: that state belongs to another network; make a new Pruner")
        assert isinstance(masks, list)
        self.steps = steps
        self.masks = [mask.to(weight.device, torch.bool) for mask, weight in zip(masks, self.weights, strict=True)]
        self._gone = sum(mask.numel() - int(mask.sum()) for mask in self.masks)
