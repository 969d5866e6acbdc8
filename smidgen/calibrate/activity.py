"""What the channels of a layer's input do: their size, how often they are zero, and what the loss says of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from smidgen.calibrate.curvature import sampled_loss
from smidgen.site import Site


@dataclass(frozen=True, eq=False)
class Activity:
    """Of each channel of a layer's input, ``[channels]``.

    Args:
        size: mean of \\|a\\| over samples and positions.
        zeros: share of zeros.
        taylor: ½ E[(Σ a · ∂loss/∂a)²], the sum over positions; labels are drawn from the network's own answers.
    """

    size: np.ndarray
    zeros: np.ndarray
    taylor: np.ndarray


class _Sums:
    def __init__(self, channels: int, last: bool) -> None:
        self.last = last
        self.size, self.zeros, self.taylor = (torch.zeros(channels, dtype=torch.float64) for _ in range(3))
        self.samples = self.places = 0
        self.given = torch.zeros(())

    def rows(self, x: Tensor) -> Tensor:
        """``[samples, positions, channels]``."""
        return x.reshape(len(x), -1, x.shape[-1]) if self.last else x.flatten(2).mT if x.ndim > 2 else x[:, None]

    def add(self, x: Tensor) -> None:
        self.given = self.rows(x.detach())
        self.size += self.given.abs().double().sum((0, 1)).cpu()
        self.zeros += (self.given == 0).double().sum((0, 1)).cpu()
        self.samples += len(x)
        self.places += self.given.shape[0] * self.given.shape[1]

    def add_gradient(self, gradient: Tensor) -> None:
        self.taylor += 0.5 * (self.given * self.rows(gradient)).sum(1).double().square().sum(0).cpu()

    def result(self) -> Activity:
        parts = (self.size / self.places, self.zeros / self.places, self.taylor / self.samples)
        size, zeros, taylor = (part.numpy() for part in parts)
        return Activity(size, zeros, taylor)


def collect_activity(
    model: nn.Module, sites: list[Site], batches: Iterable[np.ndarray], *, seed: int = 0, temperature: float = 1.0
) -> dict[str, Activity]:
    """What the inputs of every site do.

    Args:
        model: in evaluation mode.
        sites: its sites.
        batches: unlabelled inputs, arrays ``[n, …]``.
        seed: of the drawn labels.
        temperature: of the answers that labels are drawn from; see `smidgen.calibrate.curvature`.

    >>> from smidgen.model.sites import find_sites
    >>> net = nn.Sequential(nn.ReLU(), nn.Linear(2, 3)).eval()
    >>> found = collect_activity(net, find_sites(net, torch.zeros(1, 2)), [np.array([[-1, 2], [-1, 4]], "f4")])
    >>> found["1"].size.tolist(), found["1"].zeros.tolist()
    ([0.0, 3.0], [1.0, 0.0])
    """
    generator = torch.Generator().manual_seed(seed)
    sums = {s.name: _Sums(s.geometry.in_channels, s.geometry.kind == "linear") for s in sites if s.refusal is None}
    handles = [model.get_submodule(name).register_forward_pre_hook(_watch(one)) for name, one in sums.items()]
    try:
        with torch.enable_grad():
            for batch in batches:
                x = torch.from_numpy(batch).requires_grad_()
                sampled_loss(model(x), temperature, generator).backward()
    finally:
        for handle in handles:
            handle.remove()
        model.zero_grad(set_to_none=True)
    return {name: one.result() for name, one in sums.items() if one.samples}


def _watch(sums: _Sums) -> Any:
    def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        sums.add(args[0])
        given = args[0].clone()  # an activation in place must not touch the value whose gradient is asked
        given.register_hook(sums.add_gradient)
        return (given, *args[1:])

    return hook
