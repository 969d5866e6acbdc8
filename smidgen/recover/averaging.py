"""A running average of the weights that a training goes through, judged and kept in their place.

Steps of a rate that is not yet small circle round a minimum; their mean lies nearer to it than any of them (Polyak and
Juditsky 1992, doi:10.1137/0330046; for networks Izmailov et al. 2018, arXiv:1803.05407, and, with this exponential
mean, Tarvainen and Valpola 2017, arXiv:1703.01780).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Average:
    """A hook: mean ← d · mean + (1 − d) · weights after each step, d = min(decay, (1 + steps) / (10 + steps)).

    Early on d is small, so that the weights it began with are soon forgotten.

    Args:
        model: whose statistics of norms are averaged with the weights.
        trained: parameters, those outside the model too.
        decay: the mean's share of itself, below 1.

    >>> weight = nn.Parameter(torch.zeros(()))
    >>> average = Average(nn.Identity(), [weight], decay=0.5)
    >>> for value in (1.0, 2.0):
    ...     _ = weight.data.fill_(value)
    ...     average.step()
    >>> with average.shown():
    ...     print(round(weight.item(), 3))  # 9/11, then (3 · 9/11 + 9 · 2) / 12
    1.705
    >>> weight.item()
    2.0
    """

    def __init__(self, model: nn.Module, trained: Sequence[Tensor], decay: float) -> None:
        self._trained = list(trained)
        self._norms = [each for each in model.modules() if "running_mean" in dict(each.named_buffers(recurse=False))]
        self._mean = [each.clone() for each in self._live()]
        self._decay, self._steps = decay, 0

    def _live(self) -> list[Tensor]:
        """Weights, then statistics, as the network has them now: moving it may give each other memory."""
        statistics = [norm.get_buffer(name) for norm in self._norms for name in ("running_mean", "running_var")]
        return [each.detach() for each in (*self._trained, *statistics)]

    @property
    def statistics(self) -> list[Tensor]:
        """Those of norms, averaged: what processes that share each step do not have alike."""
        return self._mean[len(self._trained) :]

    def step(self) -> None:
        """Take in the weights as they are now."""
        self._steps += 1
        decay = min(self._decay, (1 + self._steps) / (10 + self._steps))
        get_ema_multi_avg_fn(decay)(self._mean, self._live(), self._steps)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """The network has the mean's weights within, and its own again after.

        What is zero now is zero then too: a weight that was pruned along the way is gone, whatever it was before.
        """
        own = [each.clone() for each in self._live()]
        for live, mean in zip(self._live(), self._mean, strict=True):
            live.copy_(torch.where(live == 0, live, mean))
        try:
            yield
        finally:
            for live, value in zip(self._live(), own, strict=True):
                live.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """A copy of the mean, and of how many steps."""
        return {"mean": [each.clone() for each in self._mean], "steps": self._steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What `state_dict` gave.

        Raises:
            RuntimeError, KeyError, ValueError: it does not fit.
        """
        for mine, given in zip(self._mean, state["mean"], strict=True):
            mine.copy_(given)
        self._steps = int(state["steps"])
