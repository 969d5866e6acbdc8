"""Where a weight acts: the layer's kind, its window and the sizes it saw, without any framework."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from math import prod
from typing import Any, Literal, get_args

Kind = Literal["linear", "conv", "conv_transpose"]


@dataclass(frozen=True)
class Geometry:
    """A layer's window and sizes.

    Args:
        kind: ``linear``, ``conv`` or ``conv_transpose`` (any number of spatial axes).
        in_channels, out_channels: all groups together.
        kernel, stride, padding, dilation: one entry for each spatial axis; empty for ``linear``.
        groups: groups of a convolution.
        in_size, out_size: spatial sizes seen for one sample; for ``linear`` the positions it is applied at.
        output_padding: of a transposed convolution.

    >>> g = Geometry("conv", 3, 8, (3, 3), (1, 1), (1, 1), (1, 1), in_size=(32, 32), out_size=(32, 32))
    >>> g.columns, g.positions
    (27, 1024)
    """

    kind: Kind
    in_channels: int
    out_channels: int
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    in_size: tuple[int, ...] = ()
    out_size: tuple[int, ...] = ()
    output_padding: tuple[int, ...] = ()

    @property
    def columns(self) -> int:
        """Columns of the im2col matrix of one group."""
        return self.in_channels // self.groups * prod(self.kernel)

    @property
    def positions(self) -> int:
        """Output positions for one sample."""
        return prod(self.out_size)

    @property
    def depthwise(self) -> bool:
        """True where every group has a single input channel."""
        return self.kind != "linear" and self.groups > 1 and self.groups == self.in_channels

    def with_(self, **changes: Any) -> Geometry:
        """A copy with some fields changed."""
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, entry: dict[str, Any]) -> Geometry:
        """A geometry from what `to_dict` wrote, checked.

        Raises:
            ValueError: for unknown, missing or senseless values.

        >>> g = Geometry("linear", 3, 2, in_size=(7,), out_size=(7,))
        >>> Geometry.from_dict(g.to_dict()) == g
        True
        """
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()}
        unknown = set(fields) - set(cls.__dataclass_fields__)
        if unknown or fields.get("kind") not in get_args(Kind):
            raise ValueError(f"geometry: unknown fields {sorted(unknown)} or kind {fields.get('kind')!r}")
        for name, value in fields.items():
            least = 0 if "padding" in name else 1
            numbers = () if name == "kind" else value if isinstance(value, tuple) else (value,)
            if any(type(number) is not int or not least <= number < 2**31 for number in numbers):
                raise ValueError(f"geometry: {name} is {value!r}; it must hold whole numbers from {least}")
        return cls(**fields)
