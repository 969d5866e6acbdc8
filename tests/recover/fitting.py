"""What is trained in the tests of the loop."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from smidgen.data import Dataset


def points(count: int = 96, seed: int = 0) -> Dataset:
    """Two classes that a line divides, with noise."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((count, 6)).astype(np.float32)
    return Dataset.from_array(x, (x @ np.arange(1, 7) + random.standard_normal(count) > 0).astype(np.int64))


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    # Dropout and BatchNorm: what is drawn and what is gathered on the way must be resumed as well.
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 2))


def cross_entropy(net: nn.Module):
    return lambda x, labels: nn.functional.cross_entropy(net(x), labels)


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)
