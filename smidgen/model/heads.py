"""The last layer of a classifier, replaced by one for other classes."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from smidgen.errors import UserError, one_line
from smidgen.model.replace import put
from smidgen.model.sites import FORWARD


def with_head(model: nn.Module, example: Tensor, classes: int) -> tuple[nn.Module, str]:
    """A copy of a classifier whose last layer, dense or 1×1, is a new one.

    Args:
        model: one output, a score a class; in evaluation mode, not changed. The new layer's weights are drawn from
            torch's generator.
        example: one batch of inputs.
        classes: of the copy.

    Returns:
        The copy and the new layer's name.

    Raises:
        UserError: the last layer does not give the scores, or what follows it takes no other number of them.

    >>> net, name = with_head(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 10)), torch.zeros(1, 4), 3)
    >>> net(torch.zeros(1, 4)).shape, name
    (torch.Size([1, 3]), '2')
    """
    name, old = _last_layer(model, example)
    result = copy.deepcopy(model)
    put(result, name, _like(old, classes).to(old.weight.device, old.weight.dtype).eval())
    try:
        with torch.no_grad():
            answer = result(example)
    except Exception as error:  # a network's own code may raise anything
        reason = one_line(error)
        raise UserError(f"transfer: what follows '{name}' needs the old number of classes: {reason}") from error
    if not isinstance(answer, Tensor) or answer.shape[1:2] != (classes,):
        raise UserError(f"transfer: what follows '{name}' fixes the number of classes; the network must end in it")
    return result, name


def _last_layer(model: nn.Module, example: Tensor) -> tuple[str, Any]:
    """The layer that runs last, once it is certain that it gives the scores."""
    called: list[nn.Module] = []
    layers = {each: name for name, each in model.named_modules() if isinstance(each, FORWARD)}
    hooks = [each.register_forward_hook(lambda layer, _, __: called.append(layer)) for each in layers]
    try:
        with torch.no_grad():
            answer = model(example)
    finally:
        for hook in hooks:
            hook.remove()
    if not isinstance(answer, Tensor) or answer.ndim < 2 or answer[0].numel() != answer.shape[1] or not called:
        raise UserError("transfer: the network must answer with one score a class, from a dense or 1×1 layer")
    last: Any = called[-1]
    wide = isinstance(last, nn.Linear) or set(last.kernel_size) == {1}
    if last.weight.shape[0] != answer.shape[1] or not wide or getattr(last, "groups", 1) != 1:
        raise UserError(
            f"transfer: the last layer, '{layers[last]}', is {list(last.weight.shape)} and the network gives "
            f"{answer.shape[1]} scores; it must end in a dense or 1×1 layer that gives them"
        )
    return layers[last], last


def _like(old: Any, classes: int) -> nn.Module:
    if isinstance(old, nn.Linear):
        return nn.Linear(old.in_features, classes)
    return type(old)(old.in_channels, classes, old.kernel_size, stride=old.stride, padding=old.padding)
