"""Fold BatchNorm into the layer before it, so that a weight's scale is the scale of what the network passes on."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

FOLDS_INTO = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
# Exactly these: a subclass may do more than normalise, such as an activation.
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def fold_norms(model: nn.Module, pairs: Iterable[tuple[str, str]]) -> tuple[nn.Module, tuple[tuple[str, str], ...]]:
    """A copy in which each named BatchNorm has become part of the layer before it, and the pairs in which it has.

    ``W' = W · γ/σ``, ``b' = (b − μ)·γ/σ + β`` for each output channel; the BatchNorm becomes an identity.

    Args:
        model: in evaluation mode; not changed.
        pairs: (layer, BatchNorm) module names; the BatchNorm must be the layer's only reader.

    >>> model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).eval()
    >>> folded, pairs = fold_norms(model, [("0", "1")])
    >>> folded[1], pairs
    (Identity(), (('0', '1'),))
    """
    result = copy.deepcopy(model)
    folded = []
    for layer_name, norm_name in pairs:
        layer: Any = result.get_submodule(layer_name)
        norm: Any = result.get_submodule(norm_name)
        if isinstance(layer, FOLDS_INTO) and type(norm) in NORMS and norm.running_var is not None and norm.affine:
            _fold(layer, norm)
            # Under every name it has: the network may call it by another than the graph does.
            for name in [n for n, m in result.named_modules(remove_duplicate=False) if m is norm]:
                parent, _, leaf = name.rpartition(".")
                setattr(result.get_submodule(parent), leaf, nn.Identity())
            folded.append((layer_name, norm_name))
    return result, tuple(folded)


def _fold(layer: Any, norm: Any) -> None:
    with torch.no_grad():
        gain = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        bias = layer.bias.double() if layer.bias is not None else torch.zeros_like(gain)
        shifted = (bias - norm.running_mean.double()) * gain + norm.bias.double()
        column = gain.reshape(-1, *[1] * (layer.weight.ndim - 1))
        layer.weight.copy_((layer.weight.double() * column).to(layer.weight.dtype))
        layer.bias = nn.Parameter(shifted.to(layer.weight.dtype))
