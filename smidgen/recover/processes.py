"""One process that trains, or several that share each step.

Several are started by ``torchrun``; what passes between them is Hugging Face accelerate's and torch's affair. Each
takes its own part of a step's inputs, and gradients are their mean, so n processes of batch b train as one of batch
n·b. Norms that take statistics of a batch see each process's own part.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from smidgen.errors import LoadError, UserError


@runtime_checkable
class Processes(Protocol):
    """Those that train one network together."""

    rank: int
    count: int
    device: torch.device

    def share(self, loss: nn.Module) -> nn.Module:
        """The module whose backward pass gives every process the mean gradient."""
        ...

    def mean(self, *values: float) -> list[float]:
        """Of each value over the processes."""
        ...

    def agree(self, tensors: Sequence[Tensor]) -> None:
        """All take those of the first process."""
        ...

    def wait(self) -> None:
        """Until every process is here."""
        ...


class Alone:
    """One process.

    Args:
        device: that it computes on.

    >>> Alone("cpu").count
    1
    """

    def __init__(self, device: str) -> None:
        self.rank, self.count, self.device = 0, 1, torch.device(device)

    def share(self, loss: nn.Module) -> nn.Module:
        """As it is."""
        return loss

    def mean(self, *values: float) -> list[float]:
        """As they are."""
        return list(values)

    def agree(self, tensors: Sequence[Tensor]) -> None:
        """They do."""

    def wait(self) -> None:
        """For no one."""


class Together:
    """Several processes, through accelerate.

    Args:
        device: ``cpu`` or ``cuda``.

    Raises:
        LoadError: accelerate is not installed.
    """

    def __init__(self, device: str) -> None:
        try:
            library = importlib.import_module("accelerate")
        except ImportError as error:
            raise LoadError("train: several processes need accelerate; run: pip install 'smidgen[train]'") from error
        # A layer that a loss leaves out (a frozen body, a head not asked) has no gradient and must not be waited for.
        unused = library.DistributedDataParallelKwargs(find_unused_parameters=True)
        self._accelerator = library.Accelerator(cpu=torch.device(device).type == "cpu", kwargs_handlers=[unused])
        self.rank, self.count = self._accelerator.process_index, self._accelerator.num_processes
        self.device: torch.device = self._accelerator.device

    def share(self, loss: nn.Module) -> nn.Module:
        """The module in a wrapper that averages gradients."""
        return self._accelerator.prepare(loss)

    def mean(self, *values: float) -> list[float]:
        """Of each value over the processes."""
        told = torch.tensor(values, dtype=torch.float64, device=self.device)
        return self._accelerator.reduce(told, reduction="mean").tolist()

    def agree(self, tensors: Sequence[Tensor]) -> None:
        """All take those of the first process."""
        for each in tensors:
            torch.distributed.broadcast(each, 0)

    def wait(self) -> None:
        """Until every process is here."""
        self._accelerator.wait_for_everyone()


def processes(device: str) -> Processes:
    """Those of this run: several where a launcher says so in ``WORLD_SIZE``.

    >>> processes("cpu").rank
    0
    """
    several = os.environ.get("WORLD_SIZE", "1")
    return Together(device) if several.isdecimal() and int(several) > 1 else Alone(device)


def leads() -> bool:
    """Whether this process is the one that tells and writes; the only one does.

    >>> leads()
    True
    """
    return os.environ.get("RANK", "0") == "0"


class Asked(nn.Module):
    """The loss as a module, so that what averages gradients over processes sees every parameter it reads."""

    def __init__(self, model: nn.Module, loss: Callable[..., Tensor], beyond: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self.model, self.loss, self.beyond = model, loss, nn.ParameterList(beyond)

    def forward(self, x: Tensor, labels: Tensor | None, *rows: Tensor) -> Tensor:
        found = self.loss(x, labels, *rows)
        if found.ndim or not found.requires_grad:
            raise UserError("train: the loss must be one number that depends on what is trained")
        return found
