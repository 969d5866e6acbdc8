"""Batches of a training set: shuffled anew each epoch, divided among processes, augmented.

What a batch holds follows from the seed, the epoch, the step and the process alone, so a run can go on in the middle.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smidgen.data import Dataset
from smidgen.data.items import ArrayItems
from smidgen.errors import DataError
from smidgen.recover.augment import MIXUP, augmented, check_images, mixed
from smidgen.recover.processes import Processes
from smidgen.recover.training import Training

KEPT_NBYTES = 1 << 29  # decoded images are kept for the next epoch when all of them take less
_ORDER, _CHANGES, _CHANCE = range(3)  # what is drawn, each from a stream of its own


@dataclass(frozen=True)
class Place:
    """Where a run is.

    Args:
        epoch, step: from 0, the step in its epoch.
        attempt: how many times the run was taken back; another attempt draws another order.
    """

    epoch: int
    step: int
    attempt: int


class Feed:
    """Batches for one process.

    Args:
        inputs: all of them.
        beside: further rows for each input, such as a teacher's answers.
        training: batch, seed and augmentation.
        team: who divides a step.

    Raises:
        DataError: fewer inputs than one step takes, rows for other inputs or for inputs that are mixed, or changes of
            what is no image.
    """

    def __init__(self, inputs: Dataset, beside: Sequence[Tensor], training: Training, team: Processes) -> None:
        self._inputs, self._beside, self._training, self._team = inputs, beside, training, team
        self._whole = training.batch * team.count
        if len(inputs) < self._whole:
            each = "" if team.count == 1 else f" in each of {team.count} processes"
            raise DataError(
                f"train: {len(inputs)} inputs of {inputs.source!r} are fewer than a batch of {training.batch}{each}; "
                f"give more inputs, or --batch {max(1, len(inputs) // team.count)}"
            )
        if any(len(rows) != len(inputs) for rows in beside):
            raise DataError(f"train: there are not {len(inputs)} rows beside as many inputs")
        if beside and training.mixes:
            raise DataError(f"train: {MIXUP} mixes inputs, and the rows beside them tell of each alone; leave one out")
        check_images(inputs.shape, training.augment)
        self._channels_last = False
        self._classes = 0 if inputs.labels is None or not training.mixes else int(inputs.labels.max()) + 1
        self._kept = self._prepared()
        self._order: tuple[tuple[int, int], NDArray[np.int64]] | None = None

    @property
    def steps(self) -> int:
        """Of an epoch; inputs that fill no step are left to another epoch."""
        return len(self._inputs) // self._whole

    def lay_out(self, attempt: Callable[..., object]) -> None:
        """From here on images come with their channels last in memory, where a step can be made of such.

        Convolutions are faster so on a processor: a step of ResNet-20, of MobileNetV2 and of VGG-16 takes 15, 25 and
        10 % less on one core. Code that takes views of them (`Tensor.view`) refuses, and one step finds out.

        Args:
            attempt: a step of (inputs, labels, rows beside them), of which nothing is to be left.
        """
        shape = self._inputs.shape
        if len(shape) != 3 or shape[0] == 1 or self._team.device.type != "cpu":
            return
        x, labels, rows = self.batch(Place(0, 0, 0))
        try:
            attempt(x.contiguous(memory_format=torch.channels_last), labels, *rows)
        except RuntimeError:
            return  # whatever else is wrong shows in the first step
        self._channels_last = True

    def batch(self, place: Place) -> tuple[Tensor, Tensor | None, list[Tensor]]:
        """Inputs, labels and the rows beside them, on the device; the labels of mixed inputs are shares of classes."""
        first = place.step * self._whole + self._team.rank * self._training.batch
        chosen = self._shuffled(place)[first : first + self._training.batch]
        x = torch.from_numpy(self._kept[chosen] if self._kept is not None else np.asarray(self._inputs.take(chosen)))
        x = x.to(self._team.device)
        labels = self._inputs.labels
        y = None if labels is None else torch.from_numpy(labels[chosen]).to(self._team.device)
        if self._training.augment:
            generator = torch.Generator().manual_seed(self._drawn(_CHANGES, place, self._team.rank))
            x = augmented(x, self._training.augment, generator)
            if self._training.mixes:
                x, y = mixed(x, y, self._classes, generator)
        x = x.contiguous(memory_format=torch.channels_last) if self._channels_last else x
        rows = torch.from_numpy(chosen)
        return x, y, [part[rows.to(part.device)].to(self._team.device) for part in self._beside]

    def seed(self, place: Place) -> int:
        """Of what a step draws itself, as dropout does."""
        return self._drawn(_CHANCE, place, self._team.rank)

    def _shuffled(self, place: Place) -> NDArray[np.int64]:
        key = (place.epoch, place.attempt)
        if self._order is None or self._order[0] != key:
            # One order for all processes: each takes its part of every step.
            generator = torch.Generator().manual_seed(self._drawn(_ORDER, Place(place.epoch, 0, place.attempt), 0))
            self._order = key, torch.randperm(len(self._inputs), generator=generator).numpy()
        return self._order[1]

    def _drawn(self, what: int, place: Place, rank: int) -> int:
        entropy = (self._training.seed, what, place.epoch, place.step, place.attempt, rank)
        return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1))

    def _prepared(self) -> NDArray[np.float32] | None:
        """All inputs decoded, where that takes work and little memory."""
        nbytes = 4 * len(self._inputs) * int(np.prod(self._inputs.shape))
        if isinstance(self._inputs.items, ArrayItems) or nbytes > KEPT_NBYTES:
            return None
        return np.concatenate(list(self._inputs.batches(256)))
