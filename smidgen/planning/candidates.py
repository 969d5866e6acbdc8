"""Everything each site could become, with predicted loss and bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from smidgen.errors import PlanError, Refusal
from smidgen.forms import Dense, Form, nbytes
from smidgen.methods import Family, Leaves, Method
from smidgen.site import Curvature, Site


class Label(NamedTuple):
    """What tells one option of a site from another.

    Args:
        method, rank: its structure; None for the dense layer.
        step: c of its rounding to integers of any size, None for others.
        bits: width of its integers or indices, None for others.
    """

    method: str | None
    rank: int | None
    step: float | None = None
    bits: int | None = None


@runtime_checkable
class Rounder(Protocol):
    """Turns a site's float forms into integers; see `smidgen.planning.precision.Precision`."""

    method: Leaves

    def form(self, form: Form, step: float | None, bits: int | None = None) -> Form:
        """The form with integers in its leaves, by a step or of a width."""
        ...


@dataclass(frozen=True, eq=False)
class Options:
    """What one site could become.

    Args:
        site: the layer.
        families: one a method that offers something.
        losses, sizes: predicted loss and bytes of each option; entry 0 is the layer as it is.
        labels: what each option is.
        refusals: reason by method name.
        worth: predicted loss of losing the layer altogether; what the trade-off dial is measured in.
        precision: how its forms become integers, for targets that hold integers.
        times: milliseconds of each option for one input, entry 0 the layer as it is; None where nothing was timed.
        macs: multiply-accumulates of each option for one input; None where nobody asked.
    """

    site: Site
    families: Mapping[str, Family]
    losses: np.ndarray
    sizes: np.ndarray
    labels: tuple[Label, ...]
    refusals: Mapping[str, str] = field(default_factory=dict)
    worth: float = 0.0
    precision: Rounder | None = None
    times: np.ndarray | None = None
    macs: np.ndarray | None = None

    def place(self, taken: tuple[str | None, int | None, float | None, int | None]) -> int:
        """Which option a choice took; see `smidgen.planning.plan.Choice.taken`."""
        return self.labels.index(Label(*taken))

    def only(self, places: Sequence[int]) -> Options:
        """Some of the options, everything of theirs in step."""
        kept = list(places)
        return replace(
            self, losses=self.losses[kept], sizes=self.sizes[kept], labels=tuple(self.labels[i] for i in kept),
            times=None if self.times is None else self.times[kept],
            macs=None if self.macs is None else self.macs[kept],
        )  # fmt: skip

    def form(self, method: str | None, rank: int | None, step: float | None = None, bits: int | None = None) -> Form:
        """The form of one option."""
        form = self._structure(method, rank)
        if step is None and bits is None:
            return form
        if self.precision is None:
            raise PlanError(f"plan: '{self.site.name}' cannot be rounded: {'; '.join(self.refusals.values())}")
        return self.precision.form(form, step, bits)

    def _structure(self, method: str | None, rank: int | None) -> Form:
        if method is None or rank is None:
            return Dense(self.site.weight)
        if method not in self.families:
            reason = self.refusals.get(method, "it was not asked")
            raise PlanError(f"plan: '{self.site.name}' cannot take {method}: {reason}")
        return self.families[method].form(rank)

    def outline(self, method: str | None, rank: int | None) -> Form:
        """A form of the same shapes without values, to count what it costs."""
        if method is None or rank is None:
            return Dense(self.site.weight)
        return self.families[method].outline(rank)


def gather(
    sites: Sequence[Site],
    curvatures: Mapping[str, Curvature],
    methods: Mapping[str, Method],
    *,
    allowed: Mapping[str, Sequence[str]] | None = None,
    target: str = "onnx",
    device: str = "cpu",
    seed: int = 0,
    tick: Callable[[str], None] = lambda name: None,
) -> list[Options]:
    """Ask every method for its forms at every site.

    Args:
        sites: the network's sites, in running order.
        curvatures: by site name.
        methods: the methods to ask, by name.
        allowed: names of those that may touch each layer kind; all when None.
        target: the file whose bytes count.
        device: where methods compute.
        seed: for methods that draw.
        tick: called with each site's name when it is done.
    """
    result = []
    for site in sites:
        names = methods if allowed is None else allowed.get(site.geometry.kind, ())
        asked = {name: methods[name] for name in names}
        result.append(_options(site, curvatures.get(site.name, weights_only(site)), asked, target, device, seed))
        tick(site.name)
    return result


def _options(
    site: Site, curvature: Curvature, methods: Mapping[str, Method], target: str, device: str, seed: int
) -> Options:
    whole = nbytes(Dense(site.weight), site.geometry, target)
    entries: list[tuple[float, int, Label]] = [(0.0, whole, Label(None, None))]
    families, refusals = {}, {}
    for name, method in methods.items():
        try:
            if site.refusal is not None:
                raise Refusal(site.refusal)
            family = method.family(site, curvature, device=device, seed=seed)
        except Refusal as refusal:
            refusals[name] = str(refusal)
            continue
        families[name] = family
        for rank, loss in zip(family.ranks, family.losses, strict=True):
            size = nbytes(family.outline(rank), site.geometry, target)
            if size < whole:
                entries.append((loss, size, Label(name, rank)))
        if all(label.method != name for _, _, label in entries):
            refusals[name] = f"{name}: every rank would grow this layer ({whole} bytes)"
    return Options(
        site,
        families,
        losses=np.array([e[0] for e in entries]),
        sizes=np.array([e[1] for e in entries]),
        labels=tuple(e[2] for e in entries),
        refusals=refusals,
        worth=curvature.loss_as_stored(site.weight, site.geometry) if families else 0.0,
    )


def weights_only(site: Site) -> Curvature:
    """The curvature where there is no data: loss is the squared error relative to the weight's own energy."""
    energy = float(np.square(site.weight, dtype=np.float64).sum())
    return Curvature(source="no data", scale=2.0 / energy if energy > 0 else 1.0)
