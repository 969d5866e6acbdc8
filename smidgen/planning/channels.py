"""Which channels go: one by one, those that cost least for what they save, every reader refitted without them.

A channel of set P is gone when no layer reads it. A reader with weight W over columns of covariance C (the inputs' A
about their mean, since its bias is refitted too) that keeps the columns S is best refitted to

    W_S = W C_{:,S} C_SS⁻¹,    at a loss of  ½ tr(G W_P (C⁻¹_PP)⁻¹ W_Pᵀ)

(optimal brain surgeon, blockwise; arXiv:1911.09817). One channel at a time, with a rank-one (rank-kernel) downdate of
C⁻¹ and W, so that of two equal channels only the first is free. A channel costs the sum over all layers that read it,
and saves multiplications, or weights, in all layers that make, pass on or read it; the next to go are those of the
least loss for what they save, a whole block of them where counts stay multiples that run fast.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np

from smidgen.calibrate.activity import Activity
from smidgen.errors import UserError
from smidgen.methods.channels import Criterion, Evidence
from smidgen.planning.channel_readers import Reader
from smidgen.site import Channels, Site

WIDE, WIDE_MULTIPLE, NARROW_MULTIPLE = 48, 16, 8  # channels; see `fast_multiple`


@dataclass(frozen=True)
class Step:
    """Channels of one class that went together.

    Args:
        which: number of the class.
        units: the channels.
        price: what they were chosen by: loss for each multiplication (or weight) saved, or the criterion's own score.
        cost: what they cost: loss in nats, or the criterion's own score.
        left: multiplications (or weights, or what they are worth) that were left.
    """

    which: int
    units: tuple[int, ...]
    price: float
    cost: float
    left: float


@dataclass(frozen=True, eq=False)
class Block:
    """Channels of a class that would go next.

    Args:
        units: the channels; None where only a bound of the cost is known.
        cost: what they cost together, or no less than.
        after: the readers without them, by number.
    """

    units: np.ndarray | None
    cost: float
    after: Mapping[int, Reader] = field(default_factory=dict)


@runtime_checkable
class Pricer(Protocol):
    """Says which channels of a class would go next."""

    def bound(self, which: int, count: int, kept: np.ndarray) -> Block:
        """At least what so many of a class cost; quick."""
        ...

    def block(self, which: int, count: int, kept: np.ndarray) -> Block:
        """Channels, and what they cost."""
        ...

    def remove(self, block: Block) -> None:
        """Take them out for good."""
        ...

    def price(self, cost: float, saved: float, share: float) -> float:
        """What classes are compared by; ``share`` of the class would be gone."""
        ...

    def stale(self, which: int, removed: int) -> bool:
        """Whether what was said of a class does not hold any more once channels of another went."""
        ...


def choose(
    channels: Channels, pricer: Pricer, share: float, *, multiple: int | None = None,
    by: str | Mapping[str, float] = "macs", most: float | None = None, begin: np.ndarray | None = None,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[np.ndarray, list[Step]]:  # fmt: skip
    """Take channels away until so much is left.

    Args:
        channels: of the network.
        pricer: what they are worth.
        share: of the multiplications (or weights) that may be left, between 0 and 1.
        multiple: counts of a class that loses some become multiples of this, and at least this; see `fast_multiple`
            for None.
        by: "macs" or "weights", or what a weight is worth, in bytes or milliseconds, by the name of its layer.
        most: a price; where the next step is dearer no more is taken, whatever is left.
        begin: channels that are left already, by an earlier call with the same pricer.
        tick: called with what is saved and what is to be.

    Returns:
        Whether each channel is kept, and the steps.

    Raises:
        UserError: so little cannot be left without emptying a layer.
    """
    savings = _Savings(channels, by)
    whole, steps = savings.left(), list[Step]()
    keep = np.ones(channels.count, dtype=bool) if begin is None else begin.copy()
    for which, units in enumerate(channels.classes):
        savings.remove(which, int((~keep[units]).sum()))
    blocks: dict[int, Block] = {}
    while savings.left() > share * whole:
        need = savings.left() - share * whole
        which, price = _next(channels, pricer, savings, keep, blocks, multiple, need)
        if most is not None and (which is None or price > most):
            break
        if which is None:
            what = _TOLD[by] if isinstance(by, str) else "whole"
            raise UserError(
                f"prune: {100 * share:g} % of the {what} cannot be left: no layer may be emptied, and "
                f"{100 * savings.left() / whole:.1f} % are left at least; ask for more, or protect fewer layers"
            )
        block = blocks[which]
        assert block.units is not None  # `_next` makes it exact
        pricer.remove(block)
        keep[block.units] = False
        savings.remove(which, len(block.units))
        steps.append(Step(which, tuple(block.units.tolist()), price, block.cost, savings.left()))
        blocks = {each: known for each, known in blocks.items() if not pricer.stale(each, which)}
        tick(round(whole - savings.left()), round((1 - share) * whole))
    return keep, steps


def _next(
    channels: Channels,
    pricer: Pricer,
    savings: _Savings,
    keep: np.ndarray,
    blocks: dict[int, Block],
    multiple: int | None,
    need: float,
) -> tuple[int | None, float]:
    """The class whose block is cheapest, made exact; bounds of the others are enough where they are dearer.

    What is saved beyond the need is worth nothing: the last block is the one that reaches the end for the least.
    """
    prices, counts = dict[int, float](), dict[int, int]()

    def told(which: int) -> float:
        units = channels.classes[which]
        gone = 1 - (keep[units].sum() - counts[which]) / len(units)
        return pricer.price(blocks[which].cost, min(savings.saved(which, counts[which]), need), float(gone))

    for which, units in enumerate(channels.classes):
        counts[which] = _removable(int(keep[units].sum()), multiple or fast_multiple(len(units)))
        if counts[which] and savings.saved(which, counts[which]) > 0:
            if which not in blocks:
                blocks[which] = pricer.bound(which, counts[which], keep)
            prices[which] = told(which)
    while prices:
        which = min(prices, key=lambda each: prices[each])
        if blocks[which].units is not None:
            return which, prices[which]
        blocks[which] = pricer.block(which, counts[which], keep)
        prices[which] = told(which)
    return None, 0.0


_TOLD = {"macs": "multiplications", "weights": "weights"}


def fast_multiple(count: int) -> int:
    """What counts of channels are to be multiples of, of so many.

    onnxruntime works on blocks of 8 or 16 channels, by the processor, and where a count is none of whole blocks a
    concatenation puts the whole map in another order and back. Half of SqueezeNet's multiplications in multiples of 8
    run 1.1 times as fast with AVX-512, in multiples of 16 twice. Small layers would have no choice left.

    >>> fast_multiple(16), fast_multiple(256)
    (8, 16)
    """
    return WIDE_MULTIPLE if count >= WIDE else NARROW_MULTIPLE


def _removable(count: int, multiple: int) -> int:
    """How many go at once, so that a multiple is left, and never none.

    >>> _removable(20, 8), _removable(16, 8), _removable(8, 8), _removable(5, 8)
    (4, 8, 0, 0)
    """
    return 0 if count <= multiple else count % multiple or multiple


class _Savings:
    """What is left of a network, by how many inputs and outputs each layer has."""

    def __init__(self, channels: Channels, by: str | Mapping[str, float]) -> None:
        layers = channels.layers
        self.inputs = np.array([len(layer.inputs) for layer in layers], dtype=float)
        self.outputs = np.array([len(layer.outputs) for layer in layers], dtype=float)
        self.depthwise = np.array([layer.depthwise for layer in layers])
        worth = by if isinstance(by, Mapping) else {x.name: x.positions if by == "macs" else 1 for x in layers}
        times = [layer.taps * worth.get(layer.name, 0.0) for layer in layers]
        groups = [1 if layer.depthwise else layer.groups for layer in layers]
        self.times = np.array(times, dtype=float) / np.array(groups, dtype=float)
        # Channels of a class stand in the same tensors, equally often.
        firsts = [units[0] for units in channels.classes]
        self.reads = np.array([[(layer.inputs == unit).sum() for layer in layers] for unit in firsts], dtype=float)
        self.makes = np.array([[(layer.outputs == unit).sum() for layer in layers] for unit in firsts], dtype=float)

    def _total(self, inputs: np.ndarray, outputs: np.ndarray) -> float:
        return float((self.times * outputs * np.where(self.depthwise, 1.0, inputs)).sum())

    def left(self) -> float:
        return self._total(self.inputs, self.outputs)

    def saved(self, which: int, count: int) -> float:
        after = (self.inputs - count * self.reads[which], self.outputs - count * self.makes[which])
        return self.left() - self._total(*after)

    def remove(self, which: int, count: int) -> None:
        self.inputs = self.inputs - count * self.reads[which]
        self.outputs = self.outputs - count * self.makes[which]


class ByCurvature:
    """Channels by the loss of their readers refitted without them."""

    def __init__(self, channels: Channels, readers: Sequence[Reader]) -> None:
        self.channels, self.readers = channels, dict(enumerate(readers))
        self.scales = np.ones(len(channels.classes))  # see `smidgen.planning.channel_probe`
        self.of = [
            [number for number, reader in enumerate(readers) if reader.columns.keys() & set(units.tolist())]
            for units in channels.classes
        ]

    def bound(self, which: int, count: int, kept: np.ndarray) -> Block:
        """Each channel alone: what is taken away makes those that are left dearer, never cheaper."""
        costs = np.sort(self._costs(which, self.readers, self._left(which, kept)))
        return Block(None, self.scales[which] * float(costs[:count].sum()))

    def block(self, which: int, count: int, kept: np.ndarray) -> Block:
        units = self._left(which, kept)
        own = {number: self.readers[number].copy() for number in self.of[which]}
        chosen, cost = [], 0.0
        while len(chosen) < count:
            costs = self._costs(which, own, units)
            place = int(np.argmin(costs))
            cost += float(costs[place])
            chosen.append(units.pop(place))
            for reader in own.values():
                reader.remove(chosen[-1])
        return Block(np.array(chosen), self.scales[which] * cost, own)

    def _left(self, which: int, kept: np.ndarray) -> list[int]:
        return [unit for unit in self.channels.classes[which].tolist() if kept[unit]]

    def _costs(self, which: int, readers: Mapping[int, Reader], units: list[int]) -> np.ndarray:
        return sum((readers[number].costs(units) for number in self.of[which]), np.zeros(len(units)))

    def remove(self, block: Block) -> None:
        self.readers.update(block.after)

    def price(self, cost: float, saved: float, share: float) -> float:
        return cost / saved

    def stale(self, which: int, removed: int) -> bool:
        return which == removed or bool(set(self.of[which]) & set(self.of[removed]))


class ByScore:
    """Channels by a criterion's score of each alone."""

    def __init__(self, channels: Channels, criterion: Criterion, evidence: Sequence[Evidence]) -> None:
        assert criterion.score is not None
        self.channels, self.across = channels, criterion.across
        self.scores = np.full(channels.count, np.inf)
        for units, known in zip(channels.classes, evidence, strict=True):
            scores = criterion.score(known)
            if len(scores):
                self.scores[units] = scores

    def bound(self, which: int, count: int, kept: np.ndarray) -> Block:
        return self.block(which, count, kept)

    def block(self, which: int, count: int, kept: np.ndarray) -> Block:
        units = self.channels.classes[which]
        units = units[kept[units]]
        chosen = units[np.argsort(self.scores[units], kind="stable")[:count]]
        return Block(chosen, float(self.scores[chosen].mean()))

    def remove(self, block: Block) -> None:
        pass

    def price(self, cost: float, saved: float, share: float) -> float:
        return cost if self.across else share

    def stale(self, which: int, removed: int) -> bool:
        return which == removed


def evidence_of(
    channels: Channels,
    sites: Mapping[str, Site],
    activity: Mapping[str, Activity],
    gains: Mapping[str, np.ndarray],
) -> list[Evidence]:
    """What criteria look at, for each class."""
    return [_evidence(channels, units, sites, activity, gains) for units in channels.classes]


def _evidence(
    channels: Channels, units: np.ndarray, sites: Mapping[str, Site], activity: Mapping[str, Activity],
    gains: Mapping[str, np.ndarray],
) -> Evidence:  # fmt: skip
    filters, sizes, scales, seen = [], [], [], []
    for layer in channels.layers:
        site, made = sites.get(layer.name), np.isin(layer.outputs, units)
        if site is not None and made.any():
            weight = site.weight
            turned = site.geometry.kind == "conv_transpose" and not layer.depthwise
            matrix = (weight.swapaxes(0, 1) if turned else weight).reshape(len(layer.outputs), -1).astype(np.float64)
            filters.append(_by_unit(matrix, layer.outputs, units))
            sizes.append(float(np.linalg.norm(matrix, axis=1).mean()))
            if layer.name in gains:
                scales.append(_by_unit(gains[layer.name][:, None], layer.outputs, units)[:, 0])
        if layer.name in activity and not layer.depthwise and np.isin(layer.inputs, units).any():
            known = activity[layer.name]
            table = np.stack([known.size, known.zeros, known.taylor], axis=1)
            seen.append(_by_unit(table, layer.inputs, units, mean=True))
    size, zeros, taylor = (tuple(table[:, i] for table in seen) for i in range(3))
    return Evidence(tuple(filters), tuple(sizes), size, zeros, taylor, tuple(scales))


def _by_unit(table: np.ndarray, places: np.ndarray, units: np.ndarray, *, mean: bool = False) -> np.ndarray:
    """Rows of a table for each channel: side by side, or their mean, where it stands in several places."""
    rows = [table[places == unit] for unit in units]
    return np.stack([row.mean(0) if mean else row.ravel() for row in rows])
