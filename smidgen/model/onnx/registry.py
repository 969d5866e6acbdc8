"""Which function imports which operator, and from which opset."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from .limits import NEWEST_OPSET, OLDEST_OPSET

if TYPE_CHECKING:
    from .call import Call

Handler = Callable[["Call"], Any]
Decorated = TypeVar("Decorated", bound=Callable[..., Any])


@dataclass(frozen=True)
class Entry:
    """One importing function and the opsets it covers, both ends included."""

    handler: Handler
    since: int
    until: int


_ENTRIES: dict[str, list[Entry]] = {}
_ON_SIZES: dict[str, Handler] = {}


def operator(*ops: str, since: int = OLDEST_OPSET, until: int = NEWEST_OPSET) -> Callable[[Decorated], Decorated]:
    """Register the decorated function for `ops` from opset `since` to `until`."""

    def register(handler: Decorated) -> Decorated:
        for op in ops:
            _ENTRIES.setdefault(op, []).append(Entry(handler, since, until))
        return handler

    return register


def on_sizes(*ops: str) -> Callable[[Decorated], Decorated]:
    """Register what `ops` do where every operand is known or made of the input's sizes (shape arithmetic)."""

    def register(handler: Decorated) -> Decorated:
        for op in ops:
            _ON_SIZES[op] = handler
        return handler

    return register


def find(op: str, opset: int) -> Handler | None:
    """The function that imports `op` of `opset`, or None."""
    for entry in _ENTRIES.get(op, []):
        if entry.since <= opset <= entry.until:
            return entry.handler
    return None


def find_on_sizes(op: str) -> Handler | None:
    """The function for `op` in shape arithmetic, or None."""
    return _ON_SIZES.get(op)


def supported_operators() -> dict[str, tuple[int, int]]:
    """Every operator of the default ONNX domain that can be imported, with its first and last opset.

    >>> supported_operators()["Conv"][0]
    7
    """
    from . import operators as _operators  # registers its families on import

    assert _operators
    return {op: (min(e.since for e in found), max(e.until for e in found)) for op, found in sorted(_ENTRIES.items())}
