"""How a form is found: one file a method, so the folder listing is the index.

A method module defines ``METHOD``, an object with

    name       what the user types
    settings   a frozen dataclass of plain values (survives JSON)
    family()   all the forms it offers for one site, from small to large, each with its predicted loss

and is found by being there: see `methods()`. A rounding module defines ``ROUNDING`` in the same way, an object that
turns the leaves of any form into integers: see `roundings()`; what those share is in ``_stepped.py``. A sharing module
defines ``SHARING``, which turns them into indices of a few values: see `sharings()`. A pruning module defines
``PRUNING``, which says what weights go and what becomes of the others: see `prunings()`; what those share is in
``_pruned.py``. The laws that all obey are in ``tests/test_methods_contract.py``.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol, get_args, runtime_checkable

import numpy as np

from smidgen.errors import PlanError, one_line
from smidgen.forms import Codebook, Form, Quantized
from smidgen.forms.geometry import Kind
from smidgen.site import Curvature, Site


@dataclass(frozen=True, eq=False)
class Family:
    """The forms one method offers for one site.

    Args:
        method: the method's name.
        ranks: offered ranks, rising.
        losses: predicted loss at each rank (nats, or relative squared error without data), never rising.
        build: rank → form; deterministic.
        outline: rank → a form of the same shapes without values, to price a rank without building it.
    """

    method: str
    ranks: tuple[int, ...]
    losses: tuple[float, ...]
    build: Callable[[int], Form]
    outline: Callable[[int], Form]

    def form(self, rank: int) -> Form:
        """The form at one of the offered ranks."""
        if rank not in self.ranks:
            raise PlanError(
                f"{self.method}: rank {rank} is not offered here; ranks run from {self.ranks[0]} to {self.ranks[-1]}"
            )
        return self.build(rank)


@runtime_checkable
class Method(Protocol):
    """What a method module's ``METHOD`` provides."""

    name: str
    settings: Any

    def family(self, site: Site, curvature: Curvature, *, device: str = "cpu", seed: int = 0) -> Family:
        """All forms offered for a site; raises `smidgen.errors.Refusal` with the reason when there is none."""
        ...

    def with_settings(self, **settings: Any) -> Method:
        """The same method with other settings."""
        ...


@runtime_checkable
class Rounding(Protocol):
    """What a rounding module's ``ROUNDING`` provides: integers for the leaves of any form."""

    name: str
    settings: Any

    def rounded(
        self, weight: Any, factors: Any, rows: Any, step: float, window: int = 1, kept: Any = None
    ) -> Quantized:
        """A weight ``[groups, out, n]`` as integers; see `smidgen.methods._stepped.Stepped.rounded`."""
        ...

    def fixed(self, weight: Any, factors: Any, bits: int, *, shared: bool = False, kept: Any = None) -> Quantized:
        """The same as integers of a fixed width; see `smidgen.methods._stepped.Stepped.fixed`."""
        ...

    def with_settings(self, **settings: Any) -> Rounding:
        """The same rounding with other settings."""
        ...


@runtime_checkable
class Sharing(Protocol):
    """What a sharing module's ``SHARING`` provides: a codebook for the leaves of any form."""

    name: str
    settings: Any

    def shared(self, weight: Any, factors: Any, rows: Any, bits: int, kept: Any = None) -> Codebook:
        """A weight ``[groups, out, n]`` as 2^bits values; see `smidgen.methods.kmeans.KMeans.shared`."""
        ...

    def with_settings(self, **settings: Any) -> Sharing:
        """The same with other settings."""
        ...


@runtime_checkable
class Pruning(Protocol):
    """What a pruning module's ``PRUNING`` provides: which weights of a layer go first, and the others' values."""

    name: str
    settings: Any

    def scores(self, weight: Any, factors: Any, rows: Any, price: float) -> Any:
        """A number for each weight of ``[groups, out, n]``; those of the least go first.

        Args:
            weight: im2col rows of each group.
            factors: of A: one `Factor`, or the lower factors of several groups.
            rows: g, each row's share of the loss, ``[groups, out]``.
            price: the score below which weights will go, as far as is known; a pruning may count with it.
        """
        ...

    def values(self, weight: Any, moment: Any, factors: Any, kept: Any) -> Any:
        """The pruned weight, zero where ``kept`` is False.

        Args:
            weight, factors: as of `scores`.
            moment: A + δI of each group, ``[groups, n, n]``, or None where it is not known whole.
            kept: which weights survive, ``[groups, out, n]``.
        """
        ...

    def with_settings(self, **settings: Any) -> Pruning:
        """The same with other settings."""
        ...

    def variants(self) -> Sequence[Pruning]:
        """Itself with what was left open decided in each way there is; the first is taken where nothing tells."""
        ...


CHANNELS = "channels"  # asked like a method, but of the whole network: see `smidgen.pipeline.channels`

# How leaves become small; and all that a plan keeps the settings of.
Leaves = Rounding | Sharing
AnyMethod = Method | Rounding | Sharing | Pruning


@cache
def methods() -> dict[str, Method]:
    """Every method there is, by name.

    >>> sorted(methods())
    ['cp', 'spatial', 'svd', 'tucker2']
    """
    return _found("METHOD")


@cache
def roundings() -> dict[str, Rounding]:
    """Every way of rounding there is, by name.

    >>> "gptq" in roundings()
    True
    """
    return _found("ROUNDING")


@cache
def sharings() -> dict[str, Sharing]:
    """Every way of sharing weights there is, by name.

    >>> sorted(sharings())
    ['kmeans']
    """
    return _found("SHARING")


@cache
def prunings() -> dict[str, Pruning]:
    """Every way of pruning single weights there is, by name.

    >>> sorted(prunings())
    ['magnitude', 'obs', 'wanda']
    """
    return _found("PRUNING")


def _found(attribute: str) -> dict[str, Any]:
    there = (importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__))
    members = [getattr(module, attribute) for module in there if hasattr(module, attribute)]
    return {member.name: member for member in members}


def choose_rounding(name: str, settings: Mapping[str, Mapping[str, Any]]) -> Leaves:
    """The rounding, or sharing, a user asked for.

    Args:
        name: one of `roundings` or `sharings`.
        settings: settings by name, those of a saved plan for instance.

    Raises:
        PlanError: for a name or setting that does not exist.

    >>> choose_rounding("nearest", {}).name
    'nearest'
    """
    there: dict[str, Leaves] = {**roundings(), **sharings()}
    _known("rounding", name, sorted(there))
    return _set(there[name], settings.get(name, {}))


def _set(member: Any, settings: Mapping[str, Any]) -> Any:
    try:
        return member.with_settings(**settings)
    except (TypeError, ValueError) as error:
        reason = one_line(error)
        raise PlanError(f"{member.name}: {reason}; its settings are {member.settings}") from error


def falling(losses: Any) -> np.ndarray:
    """Losses in the order of rising rank, each no larger than the one before: the best so far is kept."""
    return np.minimum.accumulate(np.maximum(np.asarray(losses, dtype=np.float64), 0.0))


def choose_methods(
    wanted: str | Sequence[str] | Mapping[str, Sequence[str]], settings: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, Method | Pruning], dict[str, tuple[str, ...]]]:
    """The methods a user asked for, prunings among them, and which layer kinds each may touch.

    Args:
        wanted: ``"auto"`` for all, a name, names (``auto`` among them), or names by layer kind (``linear``, ``conv``,
            ``conv_transpose``).
        settings: settings by method name, those of a saved plan for instance.

    Returns:
        Methods by name, and names by layer kind.

    Raises:
        PlanError: for a method, layer kind or setting that does not exist.

    >>> choose_methods({"linear": ["svd"], "conv": ["cp"]}, {})[1]["conv"]
    ('cp',)
    """
    kinds = get_args(Kind)
    if isinstance(wanted, Mapping):
        for kind in wanted:
            _known("layer kind", kind, kinds)
        allowed = {kind: tuple(wanted.get(kind, ())) for kind in kinds}
    else:
        names = [wanted] if isinstance(wanted, str) else list(wanted)
        if "auto" in names:
            names = sorted({*methods(), *names} - {"auto"})
        allowed = {kind: tuple(names) for kind in kinds}
    chosen = {}
    for name in sorted({name for names in allowed.values() for name in names}):
        there: dict[str, Method | Pruning] = {**methods(), **prunings()}
        _known("method", name, sorted(there), CHANNELS)
        chosen[name] = _set(there[name], settings.get(name, {}))
    return chosen, allowed


def _known(what: str, name: str, there: Sequence[str], *beside: str) -> None:
    """PlanError for a name that is not there; those beside are offered too, though they are no such member."""
    if name not in there:
        there = [*there, *beside]
        near = difflib.get_close_matches(name, there, n=1)
        hint = f" (did you mean '{near[0]}'?)" if near else ""
        raise PlanError(f"methods: there is no {what} '{name}'{hint}; there are: {', '.join(there)}")
