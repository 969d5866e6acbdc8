"""torch's table of ONNX operators, read once and not at every export.

`torch.onnx.export` parses the source of every operator it knows, some 3,500 functions, each time it is called: two
thirds of the time that a small network's export takes (torch 2.13 on a shared core: 3.3 s with it, 0.9 s without).
Compression exports many variants of a network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_TABLES: dict[Any, Any] = {}  # by how they were asked for: there is one for each opset


@contextmanager
def read_once() -> Iterator[None]:
    """Exports in this block share one table.

    It is no public part of torch: where a version has none of that name, exports are as slow as ever. A block may not
    export with operators of one's own, which would stay in the table.

    >>> with read_once():
    ...     pass
    """
    try:
        from torch.onnx._internal.exporter import _registration
    except ImportError:
        yield
        return
    holder: Any = getattr(_registration, "ONNXRegistry", None)
    own = vars(holder).get("from_torchlib") if isinstance(holder, type) else None
    if not isinstance(own, classmethod):  # another version's, or shared by a block around this one already
        yield
        return
    build = own.__get__(None, holder)
    holder.from_torchlib = staticmethod(lambda *args, **named: _table(build, args, named))
    try:
        yield
    finally:
        holder.from_torchlib = own


def _table(build: Callable[..., Any], args: tuple[Any, ...], named: dict[str, Any]) -> Any:
    key = (args, *sorted(named.items()))
    if key not in _TABLES:
        _TABLES[key] = build(*args, **named)
    return _TABLES[key]
