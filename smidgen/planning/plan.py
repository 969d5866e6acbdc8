"""The plan: which form each site takes, as plain values that can be saved and replayed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from math import inf, isfinite
from typing import Any

from smidgen.budget import TARGETS
from smidgen.errors import PlanError, one_line
from smidgen.forms import WIDTHS
from smidgen.forms.fastconv import ALGORITHMS
from smidgen.methods import prunings
from smidgen.site import Site

VERSION = 3
MOVED = ("weights", "biases", "nothing")
BITS = tuple(sorted({bits for widths in WIDTHS.values() for bits in widths}))


@dataclass(frozen=True)
class Choice:
    """What one site takes.

    Args:
        site: its name.
        method: name of a method or a fast algorithm, or None when the site stays dense.
        rank: inner dimension for a factored form; of a pruned one the weights that stay; of a fast algorithm 1.
        loss: predicted rise of the loss.
        nbytes: predicted bytes in the target's file.
        reason: why the site stays as it is, when it does.
        step: c of its rounding to integers of any size, None for others.
        bits: width of its integers or indices where it is fixed, None for others.
    """

    site: str
    method: str | None
    rank: int | None
    loss: float
    nbytes: int
    reason: str | None = None
    step: float | None = None
    bits: int | None = None

    @property
    def taken(self) -> tuple[str | None, int | None, float | None, int | None]:
        """What tells it from the site's other options: method, rank, step, bits."""
        return self.method, self.rank, self.step, self.bits

    @property
    def rounded(self) -> bool:
        """Whether the site becomes integers."""
        return self.step is not None or self.bits is not None

    @property
    def pruned(self) -> bool:
        """Whether single weights are removed; its rank is how many stay."""
        return self.method in prunings()

    @property
    def factored(self) -> bool:
        """Whether it is a chain of smaller layers."""
        return self.method is not None and not self.pruned and not self.fast

    @property
    def fast(self) -> bool:
        """Whether the layer as it is, is computed by a fast algorithm; its rank is 1."""
        return self.method in ALGORITHMS

    @property
    def changed(self) -> bool:
        """Whether the site is anything but the layer as it was."""
        return self.method is not None or self.rounded


@dataclass(frozen=True)
class Cut:
    """Channels that were removed before anything else was planned.

    Args:
        network: fingerprint of the network that had them.
        removed: places of the outputs that went, by layer.
    """

    network: str
    removed: dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Plan:
    """One choice a site, at one price.

    Args:
        choices: in the order the sites run.
        price: λ, loss per byte, at which they were made; infinity where only bytes counted (null in JSON).
        network: fingerprint of the network's sites.
        settings: by method name, what the methods were set to.
        seed: of everything drawn in the run that made it.
        refit: whether that run refitted layers on its data.
        moved: what a refit moved in layers of integers: weights, biases or nothing.
        target: the kind of file whose bytes it was made for.
        data: hash of its calibration inputs, None where it had none.
        price_ms: ν, loss per millisecond, where time had a price; infinity where only time counted (null in JSON).
        price_mac: μ, loss per multiply-accumulate, where those had a price; infinity (null in JSON) as above.
        equalised: α of the equalisation of channels that came before it (`smidgen.export.equalise`), None without.
        cut: channels that were removed before; the choices are of the network without them.
    """

    choices: tuple[Choice, ...]
    price: float
    network: str
    settings: dict[str, dict[str, Any]]
    seed: int = 0
    refit: bool = True
    data: str | None = None
    moved: str = "weights"
    target: str = "onnx"
    price_ms: float = 0.0
    equalised: float | None = None
    cut: Cut | None = None
    price_mac: float = 0.0

    @property
    def loss(self) -> float:
        """Predicted rise of the loss, all sites together."""
        return sum(choice.loss for choice in self.choices)

    @property
    def nbytes(self) -> int:
        """Predicted bytes of all sites together."""
        return sum(choice.nbytes for choice in self.choices)

    @property
    def key(self) -> tuple[tuple[str | None, int | None, float | None, int | None], ...]:
        """What tells two plans apart."""
        return tuple(c.taken for c in self.choices)

    def to_json(self) -> str:
        """The plan as JSON text; see `plan_from_json`."""
        prices = (self.price, self.price_ms, self.price_mac)
        price, price_ms, price_mac = (None if each == inf else each for each in prices)  # no infinity in JSON
        entries = {
            "version": VERSION, "network": self.network, "price": price, "settings": self.settings,
            "seed": self.seed, "refit": self.refit, "data": self.data, "moved": self.moved,
            "target": self.target, "price_ms": price_ms, "price_mac": price_mac, "equalised": self.equalised,
            "cut": None if self.cut is None else asdict(self.cut),
        }  # fmt: skip
        return json.dumps({**entries, "choices": [asdict(c) for c in self.choices]}, indent=1)

    def check(self, sites: list[Site]) -> None:
        """PlanError where the plan belongs to another network than that of these sites."""
        if self.network != fingerprint(sites) or [c.site for c in self.choices] != [s.name for s in sites]:
            raise PlanError("plan: it was made for another network (layer names or shapes differ); make a new one")


def fingerprint(sites: list[Site]) -> str:
    """Names and shapes of a network's sites as one short hash.

    >>> len(fingerprint([]))
    16
    """
    text = json.dumps([(s.name, list(s.weight.shape), s.geometry.kind) for s in sites])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def plan_from_json(text: str) -> Plan:
    """Read a plan back; `Plan.check` tells whether it belongs to a network.

    Args:
        text: what `Plan.to_json` wrote.

    Raises:
        PlanError: for damaged text, another version or unknown fields.
    """
    try:
        entries = json.loads(text)
        version = entries.pop("version")
        if version != VERSION:
            raise PlanError(f"plan: version {version} is not supported; this smidgen reads version {VERSION}")
        choices = tuple(_choice(entry) for entry in entries.pop("choices"))
        price_ms = entries.pop("price_ms", 0.0)  # plans made before time had a price have none
        price_mac = entries.pop("price_mac", 0.0)
        price, settings, network = entries.pop("price"), entries.pop("settings"), entries.pop("network")
        seed, refit, data = entries.pop("seed"), entries.pop("refit"), entries.pop("data")
        moved, target = entries.pop("moved"), entries.pop("target")
        equalised = entries.pop("equalised", None)  # nor has one made before channels were
        cut = _cut(entries.pop("cut", None))
        if equalised is not None and not (_number(equalised) and 0 <= equalised <= 1):
            raise TypeError(f"equalised must be a share or null, not {equalised!r}")
        if moved not in MOVED:
            raise TypeError(f"moved must be one of {', '.join(MOVED)}, not {moved!r}")
        if target not in TARGETS:
            raise TypeError(f"target must be one of {', '.join(TARGETS)}, not {target!r}")
        if type(seed) is not int or type(refit) is not bool or not (data is None or isinstance(data, str)):
            raise TypeError(f"a whole seed, refit true or false, a hash of the data: not {seed!r}, {refit!r}, {data!r}")
        prices = all(each is None or _number(each) for each in (price, price_ms, price_mac))
        if entries or not isinstance(network, str) or not prices:
            raise TypeError(f"the network's hash and the price are needed, and nothing beside them: {sorted(entries)}")
        if not isinstance(settings, dict) or not all(isinstance(value, dict) for value in settings.values()):
            raise TypeError("settings must be an object of objects")
        price, price_ms, price_mac = (inf if each is None else float(each) for each in (price, price_ms, price_mac))
        return Plan(
            choices, price, network, settings, seed, refit, data, moved, target, price_ms, equalised, cut, price_mac
        )
    except PlanError:
        raise
    except Exception as error:
        reason = one_line(error)
        raise PlanError(f"plan: not a plan file that smidgen wrote: {type(error).__name__}: {reason}") from error


def _cut(entry: Any) -> Cut | None:
    if entry is None:
        return None
    network, removed = entry["network"], entry["removed"]
    places = isinstance(removed, dict) and all(
        isinstance(each, list) and all(type(place) is int and place >= 0 for place in each) for each in removed.values()
    )
    if set(entry) != {"network", "removed"} or not isinstance(network, str) or not places:
        raise TypeError("cut needs a network's hash and, for each layer, the places of its outputs that go")
    return Cut(network, {name: tuple(each) for name, each in removed.items()})


def _choice(entry: dict[str, Any]) -> Choice:
    if not _number(entry["loss"]) or type(entry["nbytes"]) is not int:
        raise TypeError(f"loss and nbytes must be numbers, not {entry['loss']!r} and {entry['nbytes']!r}")
    choice = Choice(**{**entry, "loss": float(entry["loss"])})
    whole = isinstance(choice.rank, int) and not isinstance(choice.rank, bool) and choice.rank > 0
    if not isinstance(choice.site, str) or (choice.method is None) != (choice.rank is None):
        raise TypeError(f"a choice needs a site, and a method together with a rank, not {entry}")
    if choice.step is not None and not (_number(choice.step) and choice.step > 0):
        raise TypeError(f"step of '{choice.site}' must be a positive number, not {choice.step!r}")
    if choice.bits is not None and (type(choice.bits) is not int or choice.bits not in BITS or choice.step is not None):
        raise TypeError(f"bits of '{choice.site}' must be one of {BITS}, with no step beside, not {choice.bits!r}")
    if choice.method is not None and (not isinstance(choice.method, str) or not whole):
        raise TypeError(f"rank of '{choice.site}' must be a positive whole number, not {choice.rank!r}")
    return choice


def _number(value: object) -> bool:
    return type(value) in (int, float) and isfinite(value)  # type: ignore[arg-type]
