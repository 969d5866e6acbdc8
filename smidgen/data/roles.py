"""Three roles of data, always disjoint: calibration, selection and test.

The order is fixed by a hash of the seed and each item's place, so it never changes with a library's random generator.
With labels it is stratified: the j-th of the c items of a class stands at (j + u) / c, u one hashed offset for each
class, and every stretch of the sorted line then holds each class in its share, to within an item or two.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smidgen.data.dataset import Dataset
from smidgen.errors import DataError

HELD_BACK = 5  # one part in five for selection, and one for test where none is given
# Inputs for selection: of more, a paired difference would be told hardly better, and training can use them.
MOST_SELECTION = 5000


@dataclass(frozen=True, eq=False)
class Roles:
    """Disjoint parts of the data, each for one purpose.

    Args:
        calibration: for statistics; its labels are not needed.
        selection: for choosing (λ, shrinkage, early stop).
        test: scored once, at the end.
        unheld: all that is for neither of the two, calibration first, items that are byte-identical to theirs among it.
        calibration_dropped: items left out because a byte-identical one is in selection or test.
        selection_dropped: items left out because a byte-identical one is in test.
        test_given: whether the test set was given rather than held back.
        selection_given: whether selection was.
    """

    calibration: Dataset
    selection: Dataset
    test: Dataset
    unheld: Dataset
    calibration_dropped: int = 0
    selection_dropped: int = 0
    test_given: bool = False
    selection_given: bool = False

    @cached_property
    def training(self) -> Dataset:
        """All that is for neither selection nor test, calibration inputs first: what there is to train on."""
        taken = {*self.test.item_hashes, *self.selection.item_hashes}
        places, _ = _without(self.unheld, np.arange(len(self.unheld)), taken, len(self.unheld))
        return self.unheld.take(places)

    def describe(self) -> dict[str, dict[str, Any]]:
        """What a report says of each role: count, hash, source, and the overlap that was left out."""
        return {
            "calibration": {**self.calibration.describe(), "overlap_dropped": self.calibration_dropped},
            "selection": {
                **self.selection.describe(),
                "overlap_dropped": self.selection_dropped,
                "given": self.selection_given,
            },
            "test": {**self.test.describe(), "given": self.test_given},
        }


def split_roles(
    data: Dataset,
    *,
    test: Dataset | None = None,
    validation: Dataset | None = None,
    seed: int = 0,
    max_calibration: int = 1000,
    hold_back: int | None = None,
) -> Roles:
    """Divide the data into calibration, selection and test.

    Selection is of `validation`, or else a fifth of `data`; 5,000 items at most. Test is `test`, else another fifth.
    Calibration is from the rest, its first `max_calibration`: a larger limit keeps the smaller one's items first and
    moves nothing else. Items that are byte-identical to a test item are left out of the other two roles, and those in
    selection out of calibration.

    Args:
        data: to be divided.
        test: a given test set; never shortened.
        validation: a given set to select by; of what the network was trained on, it says best what a change costs.
        seed: another seed, another division.
        max_calibration: most items for calibration.
        hold_back: items of `data` for selection, instead of those many.

    Raises:
        DataError: too few items, none left beside those held back, counted after byte-identical ones are left out,
            `validation` beside `hold_back`, or without labels where `data` has some.

    >>> data = Dataset.from_array(np.arange(10, dtype=np.float32)[:, None])
    >>> roles = split_roles(data)
    >>> len(roles.calibration), len(roles.selection), len(roles.test)
    (6, 2, 2)
    """
    _check(data, test, validation, hold_back)
    if max_calibration < 1:
        raise DataError(f"data: max_calibration={max_calibration} is not positive; give e.g. 1000")
    order, part = _order(data.labels, len(data), seed), max(1, len(data) // HELD_BACK)
    if test is None:
        held_back, order = data.take(order[:part]), order[part:]
    else:
        held_back = test
    taken = set(held_back.item_hashes)
    if validation is None:
        chosen = min(part, MOST_SELECTION) if hold_back is None else hold_back
        judges, asked = data, order[:chosen]
        # What selection does not need comes last, so that the first inputs for calibration are those they always were.
        rest = np.concatenate([order[max(part, chosen) :], order[chosen:part]])
    else:
        # In such an order too, for some look at the first of them only.
        judges, asked, rest = validation, _order(validation.labels, len(validation), seed)[:MOST_SELECTION], order
    selection, selection_dropped = _without(judges, asked, taken, len(asked))
    taken.update(judges.take(selection).item_hashes if selection else ())
    calibration, calibration_dropped = _without(data, rest, taken, max_calibration)
    if not selection or not calibration:
        role = "calibration" if selection else "selection"
        dropped = selection_dropped + calibration_dropped
        raise DataError(
            f"data: nothing is left for {role} once {dropped} input(s) identical to test or "
            f"selection inputs are left out of {(data if selection else judges).source!r}; give more that are "
            "in neither"
        )
    return Roles(
        data.take(calibration),
        judges.take(selection),
        held_back,
        data.take(rest),
        calibration_dropped,
        selection_dropped,
        test is not None,
        validation is not None,
    )


def _check(data: Dataset, test: Dataset | None, validation: Dataset | None, hold_back: int | None) -> None:
    """Refuse what cannot be divided so."""
    parts = ["calibration", *(name for name, given in (("selection", validation), ("test", test)) if given is None)]
    if len(data) < len(parts):
        told = f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else parts[0]
        raise DataError(f"data: {data.source!r} holds {len(data)} input(s), too few for {told}; "
                        f"give at least {len(parts)}")  # fmt: skip
    if validation is not None:
        if hold_back is not None:
            raise DataError("data: hold_back says how many inputs choose, and so does validation; leave one out")
        if data.labels is not None and validation.labels is None:
            raise DataError(f"data: {data.source!r} has labels and {validation.source!r}, which chooses, has none; "
                            "give labels for it")  # fmt: skip
    elif hold_back is not None and not 1 <= hold_back < len(data):
        raise DataError(f"data: {data.source!r} holds {len(data)} input(s), {hold_back} of them cannot be held back; "
                        f"give 1 to {len(data) - 1}")  # fmt: skip


def _without(data: Dataset, places: NDArray[np.int64], taken: set[bytes], limit: int) -> tuple[list[int], int]:
    """The first `limit` places whose items are not taken, and how many were passed over; no more is read."""
    kept: list[int] = []
    dropped = 0
    for place in places.tolist():
        if len(kept) == limit:
            break
        if data.items.digest(int(data.indices[place])) in taken:
            dropped += 1
        else:
            kept.append(place)
    return kept, dropped


def _order(labels: NDArray[np.int64] | None, count: int, seed: int) -> NDArray[np.int64]:
    """A fixed permutation of the places, stratified where there are labels."""
    keys = np.array([_hashed(seed, "item", place) for place in range(count)], dtype=np.uint64)
    shuffled = np.argsort(keys, kind="stable").astype(np.int64)
    if labels is None:
        return shuffled
    position = np.empty(count)
    for label in np.unique(labels).tolist():
        members = np.flatnonzero(labels[shuffled] == label)
        offset = _hashed(seed, "class", label) / 2**64
        position[members] = (np.arange(len(members)) + offset) / len(members)
    return shuffled[np.argsort(position, kind="stable")]


def _hashed(seed: int, kind: str, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{kind}:{number}".encode()).digest()[:8], "big")
