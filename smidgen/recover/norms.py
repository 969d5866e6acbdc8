"""The statistics of BatchNorms anew, for weights that have changed since they were taken.

    μ = mean over all batches of the batch's mean        σ² = mean over all batches of the batch's variance

A plain average of one pass over the training inputs, in the place of the exponential one that training leaves behind,
which still remembers what the weights were: rounding, pruning and averaged weights shift what a BatchNorm sees (Peters
et al. 2018 call it re-estimation; with averaged weights Izmailov et al. 2018, arXiv:1803.05407, section 3.2).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from smidgen.errors import DataError
from smidgen.model.fold import NORMS


def reestimate(model: nn.Module, batches: Iterable[Tensor], *, device: str = "cpu") -> int:
    """Recompute the running statistics of every BatchNorm, in place.

    Args:
        model: its mode, its weights and the BatchNorms' momentum are as before afterwards; dropout is off meanwhile.
        batches: training inputs, ``[n, …]`` each; batches of one size, as the average is over batches.
        device: where the model lies.

    Returns:
        The number of BatchNorms.

    Raises:
        DataError: there are no batches.

    >>> net = nn.Sequential(nn.BatchNorm1d(1))
    >>> reestimate(net, [torch.tensor([[0.0], [2.0]]), torch.tensor([[2.0], [8.0]])])
    1
    >>> net[0].running_mean.item(), net[0].running_var.item()
    (3.0, 10.0)
    """
    norms = [module for module in model.modules() if isinstance(module, NORMS) and module.track_running_stats]
    if not norms:
        return 0
    modes = {module: module.training for module in model.modules()}
    momenta = [norm.momentum for norm in norms]
    seen, before = 0, [{name: value.clone() for name, value in norm.named_buffers()} for norm in norms]
    try:
        model.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # torch's way of asking for the plain average
            norm.training = True
        with torch.no_grad():
            for batch in batches:
                model(batch.to(device))
                seen += 1
    finally:
        for module, mode in modes.items():
            module.training = mode
        for norm, momentum, buffers in zip(norms, momenta, before, strict=True):
            norm.momentum = momentum
            if not seen:
                norm.load_state_dict(buffers, strict=False)
    if not seen:
        raise DataError("norms: there are no inputs to take the statistics from; give at least one batch")
    return len(norms)
