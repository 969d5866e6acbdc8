"""Sizes as a tensor, in the emitted graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Number = int | float | bool | torch.SymInt | torch.SymFloat | torch.SymBool


def stack_numbers(numbers: Sequence[Number], shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Numbers, some of them sizes, as a tensor of `shape`.

    >>> stack_numbers([2, 3], [2, 1], torch.int64)
    tensor([[2],
            [3]])
    """
    entries: Any = numbers  # torch's stubs do not know that sizes are numbers
    return torch.stack([torch.scalar_tensor(entry, dtype=dtype) for entry in entries]).reshape(list(shape))
