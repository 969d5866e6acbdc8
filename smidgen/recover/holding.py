"""What a training changes, held together: weights, the optimizer, and the hooks that go with them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from smidgen.recover.averaging import Average
from smidgen.recover.training import Training


class Holding:
    """Weights, optimizer and hooks of a run.

    Args:
        model: trained.
        groups: of parameters, each with ``lr_scale`` and ``weight_decay``; some may be outside the model.
        training: which optimizer, and whether weights are averaged.
        hooks: stepped after it.
    """

    def __init__(
        self, model: nn.Module, groups: Sequence[Mapping[str, Any]], training: Training, hooks: Sequence[Any]
    ) -> None:
        self._model, self._lr = model, training.lr
        self._trained = [each for group in groups for each in group["params"]]
        own = {id(each) for each in model.parameters()}
        self.beyond = [each for each in self._trained if id(each) not in own]
        self._average = None if training.average is None else Average(model, self._trained, training.average)
        self._hooks = [*hooks, *filter(None, [self._average])]
        made = [dict(group) for group in groups]
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.AdamW(made, lr=training.lr)
            if training.optimizer == "adamw"
            else torch.optim.SGD(made, lr=training.lr, momentum=training.momentum, nesterov=training.momentum > 0)
        )

    def clip(self, most: float | None) -> float:
        """Bound the gradient's norm, where asked; the norm before."""
        gradients = [each.grad for each in self._trained if each.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if most is not None:
            nn.utils.clip_grads_with_norm_(self._trained, most, norm)
        return float(norm)

    def step(self, share: float) -> None:
        """Of the optimizer, at a share of its rate, and then of the hooks, an average of weights last."""
        for group in self.optimizer.param_groups:
            group["lr"] = self._lr * share * group["lr_scale"]
        self.optimizer.step()
        for hook in self._hooks:
            hook.step()

    def judged(self) -> AbstractContextManager[None]:
        """The network has the weights within that are scored and kept: their average, where there is one."""
        return nullcontext() if self._average is None else self._average.shown()

    @property
    def statistics(self) -> list[torch.Tensor]:
        """What `judged` shows of norms; empty where nothing is averaged."""
        return [] if self._average is None else self._average.statistics

    def weights(self) -> dict[str, Any]:
        """A copy of what makes the network: its tensors, those beyond it, and the hooks' states."""
        return {
            "model": {name: value.detach().clone() for name, value in self._model.state_dict().items()},
            "beyond": [each.detach().clone() for each in self.beyond],
            "hooks": copy.deepcopy([hook.state_dict() for hook in self._hooks]),
        }

    def load_weights(self, state: Mapping[str, Any]) -> None:
        """What `weights` gave.

        Raises:
            RuntimeError, KeyError, ValueError: it does not fit.
        """
        self._model.load_state_dict(state["model"])
        with torch.no_grad():
            for each, value in zip(self.beyond, state["beyond"], strict=True):
                each.copy_(value)
        for hook, part in zip(self._hooks, state["hooks"], strict=True):
            hook.load_state_dict(copy.deepcopy(part))

    def state(self) -> dict[str, Any]:
        """A copy of the weights and the optimizer's state."""
        return {**self.weights(), "optimizer": copy.deepcopy(self.optimizer.state_dict())}

    def load(self, state: Mapping[str, Any]) -> None:
        """What `state` gave.

        Raises:
            RuntimeError, KeyError, ValueError: it does not fit.
        """
        self.load_weights(state)
        self.optimizer.load_state_dict(copy.deepcopy(dict(state["optimizer"])))
