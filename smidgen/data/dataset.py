"""A set of inputs with optional labels: lazily prepared, cheaply divided, and known by its hash."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from smidgen.data.items import ArrayItems, Items
from smidgen.errors import DataError

BATCH_NBYTES = 4 << 20  # inputs of a batch of the default size


@dataclass(frozen=True, eq=False)
class Dataset:
    """Inputs, prepared when asked for, and their labels.

    Args:
        items: where the inputs come from; shared by every view of the set.
        indices: (N,) the items of this view.
        labels: (N,) of this view, or None.
        source: name of the file or folder, for reports; no path.
        notes: what else a report should say, such as the split that was taken.

    >>> data = Dataset.from_array(np.zeros((4, 2), np.float32), labels=np.arange(4))
    >>> len(data), data.shape, [x.shape for x in data.batches(3)], data.take([3, 1]).labels.tolist()
    (4, (2,), [(3, 2), (1, 2)], [3, 1])
    """

    items: Items = field(repr=False)
    indices: NDArray[np.int64] = field(repr=False)
    labels: NDArray[np.int64] | None = field(repr=False)
    source: str
    notes: tuple[tuple[str, str | int], ...] = ()

    def __post_init__(self) -> None:
        if len(self.indices) == 0:
            raise DataError(f"data: {self.source!r} holds no inputs; give at least one")
        if self.labels is not None and len(self.labels) != len(self.indices):
            raise DataError(
                f"data: {self.source!r} has {len(self.labels)} labels for {len(self.indices)} inputs; give one each"
            )
        for array in (self.indices, self.labels):
            if array is not None:
                array.flags.writeable = False

    @classmethod
    def from_array(cls, x: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]] | None = None) -> Dataset:
        """A set of inputs that are ready for the network.

        Args:
            x: (N, …) floating-point, finite.
            labels: (N,) integers.

        Raises:
            DataError: NaN or infinite values, or labels of another length.
        """
        y = None if labels is None else labels.astype(np.int64)
        return cls(ArrayItems(x, "x"), np.arange(len(x), dtype=np.int64), y, "array")

    def __len__(self) -> int:
        return len(self.indices)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("a Dataset prepares its inputs; they are always a copy")
        return np.asarray(self.items.prepare(self.indices), dtype=dtype)

    @property
    def num_inputs(self) -> int:
        """Number of inputs, as `len`."""
        return len(self)

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Shape of one prepared input, without the batch axis."""
        return self.items.prepare(self.indices[:1]).shape[1:]

    def batches(self, batch_size: int | None = None) -> Iterator[NDArray[np.float32]]:
        """Prepared inputs in order, decoded as they are asked for.

        Args:
            batch_size: inputs a batch; the last may be smaller. By default as many as fit 4 MiB, from 4 to 64: what a
                network makes of one large image takes hundreds of times its bytes.

        Returns:
            An iterator of (N, …) arrays; the caller may write into them.

        Raises:
            DataError: the batch size is not positive, or an image cannot be read.
        """
        if batch_size is None:
            batch_size = min(64, max(4, BATCH_NBYTES // (4 * self.items.prepare(self.indices[:1])[0].size)))
        if batch_size < 1:
            raise DataError(f"data: batch_size={batch_size} is not positive; give e.g. 64")
        return (self.items.prepare(self.indices[at : at + batch_size]) for at in range(0, len(self), batch_size))

    def array(self, start: int, stop: int) -> Dataset:
        """The inputs start..stop-1 as a view; `np.asarray` of it prepares them.

        Args:
            start, stop: places in this set, as in slicing.

        Raises:
            DataError: the range is empty.

        >>> np.asarray(Dataset.from_array(np.eye(3, dtype=np.float32)).array(1, 3)).tolist()
        [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
        """
        return self.take(np.arange(len(self), dtype=np.int64)[start:stop])

    def take(self, indices: Sequence[int] | NDArray[np.integer[Any]]) -> Dataset:
        """A view of some inputs, in the order given; nothing is copied but the numbers.

        Args:
            indices: places in this set.

        Raises:
            DataError: none given, or one that is not in the set.
        """
        chosen = np.asarray(indices, dtype=np.int64).reshape(-1)
        if len(chosen) and not (chosen.min() >= 0 and chosen.max() < len(self)):
            outside = chosen[(chosen < 0) | (chosen >= len(self))][0]
            raise DataError(f"data: input {outside} is not among the {len(self)} of {self.source!r}; count from 0")
        labels = None if self.labels is None else self.labels[chosen]
        return Dataset(self.items, self.indices[chosen], labels, self.source, self.notes)

    @cached_property
    def item_hashes(self) -> tuple[bytes, ...]:
        """SHA-256 of the stored bytes of each input: equal for byte-identical items, also across sets."""
        return tuple(map(self.items.digest, self.indices.tolist()))

    @cached_property
    def sha256(self) -> str:
        """Hex digest over the stored inputs in order and their labels; preprocessing does not enter."""
        digest = hashlib.sha256(b"".join(self.item_hashes))
        if self.labels is not None:
            digest.update(b"labels" + self.labels.astype("<i8").tobytes())
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """What a report says of the set: count, hash, whether labelled, source, notes, and images' preprocessing."""
        labelled, declared = self.labels is not None, self.items.declared()
        return {
            "count": len(self),
            "sha256": self.sha256,
            "labels": labelled,
            "source": self.source,
            **dict(self.notes),
            **({} if declared is None else {"preprocess": declared}),
        }


def check_labels(dataset: Dataset, num_classes: int) -> None:
    """Refuse labels that name no output of the network; a set without labels passes.

    Args:
        dataset: the set.
        num_classes: outputs of the network.

    Raises:
        DataError: a label outside 0..num_classes-1; the first is named.

    >>> check_labels(Dataset.from_array(np.zeros((2, 1)), np.array([1, 2])), num_classes=3)
    """
    if dataset.labels is None:
        return
    wrong = np.flatnonzero((dataset.labels < 0) | (dataset.labels >= num_classes))
    if len(wrong):
        first = int(wrong[0])
        raise DataError(
            f"data: label {dataset.labels[first]} of input {first} in {dataset.source!r} is outside "
            f"0..{num_classes - 1} ({len(wrong)} of {len(dataset)} are); shift them with --label-offset or check them"
        )


def check_inputs(dataset: Dataset, shape: Sequence[int | None]) -> None:
    """Refuse a set that does not fit the network's input.

    Args:
        dataset: the set.
        shape: what the network takes, with or without its batch axis; None where any size fits.

    Raises:
        DataError: another shape; both are named with what to try.

    >>> check_inputs(Dataset.from_array(np.zeros((2, 1, 28, 28))), (None, 1, 28, None))
    """
    given, wanted = dataset.shape, tuple(shape)
    one = wanted[1:] if len(wanted) == len(given) + 1 else wanted
    if len(one) == len(given) and all(w is None or w == g for w, g in zip(one, given, strict=True)):
        return
    raise DataError(
        f"data: {dataset.source!r} gives inputs of shape {_shown(given)} and the network takes "
        f"{_shown(one)}; {_mend(given, one)}"
    )


def _shown(shape: Sequence[int | None]) -> str:
    return (
        "(" + ", ".join("any" if side is None else str(side) for side in shape) + ("," if len(shape) == 1 else "") + ")"
    )


def _mend(given: tuple[int, ...], wanted: tuple[int | None, ...]) -> str:
    """What to try first, from how the two shapes differ."""

    def fits(shape: tuple[int, ...]) -> bool:
        return all(w is None or w == g for w, g in zip(wanted, shape, strict=True))

    if len(given) != 3 or len(wanted) != 3:
        return "give inputs of that shape"
    if fits((given[2], given[0], given[1])) or (wanted[0] in (1, 3) and given[2] in (1, 3) and given[0] not in (1, 3)):
        return "try --layout nchw"
    if fits((given[1], given[2], given[0])) or (wanted[2] in (1, 3) and given[0] in (1, 3) and given[2] not in (1, 3)):
        return "try --layout nhwc"
    axis = 0 if given[0] in (1, 3) else 2
    tries = []
    if wanted[axis] not in (None, given[axis]):
        tries.append("--channels gray" if wanted[axis] == 1 else f"images with {wanted[axis]} channels")
    sides = [w or g for i, (w, g) in enumerate(zip(wanted, given, strict=True)) if i != axis]
    if any(w not in (None, g) for i, (w, g) in enumerate(zip(wanted, given, strict=True)) if i != axis):
        tries.append(f"--resize or --crop to {sides[0]}×{sides[1]}")
    return "try " + " and ".join(tries)
