"""What an ONNX value is while a graph is imported.

A value is known (a `torch.Tensor`), computed when the network runs (an `fx.Node`), or an integer array known entry by
entry, some of which are sizes of the input (`Sizes`): what ``Shape`` gives and shape arithmetic works on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node


class Malformed(Exception):
    """A fact about one node that makes it impossible to import; the importer adds which node and what to do."""


@dataclass(frozen=True)
class Sizes:
    """An array whose entries are Python numbers or graph nodes that compute one.

    Args:
        entries: object array of any rank.
        dtype: what ONNX says the entries are.
    """

    entries: np.ndarray
    dtype: torch.dtype = torch.int64

    @property
    def known(self) -> bool:
        """Whether no entry needs the network's input."""
        return not any(isinstance(entry, Node) for entry in self.entries.flat)


Value = Tensor | Node | Sizes
Size = int | Node


def object_array(entries: list | np.ndarray | int | float | Node) -> np.ndarray:
    """`entries` as an object array, its entries untouched.

    >>> object_array([1, 2]).dtype
    dtype('O')
    """
    if isinstance(entries, np.ndarray):
        return entries.astype(object)
    array = np.empty(len(entries) if isinstance(entries, list) else (), dtype=object)
    array[...] = entries
    return array
