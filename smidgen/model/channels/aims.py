"""What the layers of a network without some of its channels are to give: the original's values of the channels left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx

from smidgen.model.aims import Aim, find_aims
from smidgen.model.onnx.naming import identifier
from smidgen.site import Channels


@dataclass(frozen=True, eq=False)
class ChannelAim(Aim):
    """An aim of which some channels are wanted.

    Args:
        kept: their places among the original's.
        axis: where they stand.
    """

    kept: tuple[int, ...] = ()
    axis: int = 1

    def resized(self, values: Tensor, size: tuple[int, ...]) -> Tensor:
        """The original's values of the channels that are left; maps keep their size.

        >>> ChannelAim("0", "0", kept=(0, 2)).resized(torch.arange(3.0).reshape(1, 3, 1, 1), (1, 1)).flatten().tolist()
        [0.0, 2.0]
        """
        return values.index_select(self.axis, torch.tensor(self.kept, device=values.device))


def channel_aims(
    original: fx.GraphModule, changed: fx.GraphModule, channels: Channels, keep: np.ndarray
) -> list[ChannelAim]:
    """An aim for each layer that reads other values than before, in running order.

    Args:
        original, changed: both read from graphs, before and after.
        channels: of the original.
        keep: those that are left.
    """
    found: list[ChannelAim] = []
    outputs = kept_outputs(channels, keep)
    for aim in find_aims(original, changed):
        if aim.layer in outputs:
            axis = -1 if isinstance(changed.get_submodule(aim.layer), torch.nn.Linear) else 1
            found.append(ChannelAim(aim.layer, aim.node, aim.low, aim.high, aim.largest, outputs[aim.layer], axis))
    return found


def kept_outputs(channels: Channels, keep: np.ndarray) -> Mapping[str, tuple[int, ...]]:
    """Which outputs of each layer are left, by the name its module has when the graph is read."""
    return {
        identifier(layer.name): tuple(np.flatnonzero(np.append(keep, True)[layer.outputs]).tolist())
        for layer in channels.layers
    }
