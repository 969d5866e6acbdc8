"""One ONNX node as the function that imports it sees it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from .builder import Builder
from .limits import MAX_LENGTH
from .shape_tensor import stack_numbers
from .values import Malformed, Size, Sizes, Value, object_array


@dataclass(frozen=True)
class Call:
    """Operands, attributes and the graph under construction.

    Attributes:
        builder: where nodes are emitted.
        op: the operator.
        name: the node's name in the file, may be empty.
        opset: of the default domain.
        operands: values, None where an optional one is left out.
        attributes: plain Python values and tensors by name.
        outputs: names, '' where one is left out.
        uses: how many nodes read each value; graph outputs count.
    """

    builder: Builder
    op: str
    name: str
    opset: int
    operands: tuple[Value | None, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    uses: dict[Any, int] = field(default_factory=dict)

    # Operands

    def has(self, index: int) -> bool:
        """Whether the operand is given."""
        return index < len(self.operands) and self.operands[index] is not None

    def raw(self, index: int) -> Value:
        """The operand as it is."""
        if not self.has(index):
            raise Malformed(f"operand {index} is missing")
        value = self.operands[index]
        assert value is not None
        return value

    def x(self, index: int = 0) -> Tensor | Node:
        """The operand as a tensor or the node that computes one."""
        return self.tensor(self.raw(index))

    def optional(self, index: int) -> Tensor | Node | None:
        """The operand, or None where it is left out."""
        return self.x(index) if self.has(index) else None

    def all(self) -> list[Tensor | Node]:
        """Every operand."""
        return [self.x(index) for index in range(len(self.operands))]

    def tensor(self, value: Value) -> Tensor | Node:
        """`value` as a tensor or the node that computes one."""
        if not isinstance(value, Sizes):
            return value
        flat = list(value.entries.reshape(-1))
        if value.known:
            return torch.tensor(flat, dtype=value.dtype).reshape(value.entries.shape)
        return self.builder.emit(stack_numbers, flat, list(value.entries.shape), value.dtype)

    def constant(self, index: int) -> Tensor:
        """The operand, which must be known when the model is imported."""
        value = self.x(index)
        if isinstance(value, Node):
            raise Malformed(f"operand {index} must be a constant, but the network computes it")
        return value

    def is_constant(self, index: int) -> bool:
        """Whether the operand is given and known."""
        return self.has(index) and isinstance(self.raw(index), Tensor)

    def ints(self, index: int) -> list[int]:
        """The operand as known integers."""
        value = self.constant(index)
        if value.is_floating_point() or value.numel() > MAX_LENGTH:
            raise Malformed(f"operand {index} must be a short vector of integers")
        return [int(entry) for entry in value.reshape(-1).tolist()]

    def number(self, index: int) -> int | float | bool:
        """The operand as one known number."""
        value = self.constant(index)
        if value.numel() != 1:
            raise Malformed(f"operand {index} must hold one number, not {value.numel()}")
        return value.reshape(()).item()

    def lengths(self, index: int) -> list[Size]:
        """The operand as integers that are known or made of the input's sizes."""
        value = self.raw(index)
        if isinstance(value, Sizes):
            return list(value.entries.reshape(-1))
        return list(self.ints(index))

    # What is known of a value

    def shape(self, value: Tensor | Node) -> tuple[int | None, ...]:
        """Lengths of the axes, None where one is dynamic."""
        if isinstance(value, Tensor):
            return tuple(value.shape)
        first, second = (probe.shape for probe in value.meta["probes"])
        return tuple(int(a) if a == b else None for a, b in zip(first, second, strict=True))

    def static_shape(self, value: Tensor | Node) -> tuple[int, ...]:
        """Lengths of the axes, which must all be known."""
        known = [length for length in self.shape(value) if length is not None]
        if len(known) != self.rank(value):
            raise Malformed(f"its operand's shape {list(self.shape(value))} must be static")
        return tuple(known)

    def sizes(self, value: Tensor | Node) -> list[Size]:
        """Lengths of the axes, nodes where they are dynamic."""
        return [self.builder.size(value, axis) for axis in range(self.rank(value))]

    def rank(self, value: Tensor | Node) -> int:
        """Number of axes."""
        return value.ndim if isinstance(value, Tensor) else value.meta["probes"][0].ndim

    def dtype(self, value: Tensor | Node) -> torch.dtype:
        """Element type."""
        return value.dtype if isinstance(value, Tensor) else value.meta["probes"][0].dtype

    def axis(self, value: int, rank: int) -> int:
        """`value` counted from the front.

        Raises:
            Malformed: it is not an axis of a tensor of that rank.
        """
        if not -rank <= value < max(rank, 1):
            raise Malformed(f"axis {value} does not exist in a tensor of rank {rank}")
        return value % rank if rank else 0

    # Attributes

    def attr(self, name: str, default: Any = None) -> Any:
        """The attribute's value; types were checked against the operator's schema."""
        return self.attributes.get(name, default)

    def flag(self, name: str, default: int) -> bool:
        """A yes-or-no attribute: 0 or 1, as runtimes do not agree on what another number means."""
        value = self.attributes.get(name, default)
        if value not in (0, 1):
            raise Malformed(f"attribute {name!r} = {value} must be 0 or 1")
        return value == 1

    def required(self, name: str) -> Any:
        """The attribute's value, which must be given."""
        if name not in self.attributes:
            raise Malformed(f"attribute {name!r} is missing")
        return self.attributes[name]

    def attr_ints(self, name: str, length: int, default: int, least: int = 0) -> list[int]:
        """A list attribute of `length` entries, none below `least`; all `default` where it is left out."""
        values = list(self.attributes.get(name) or [default] * length)
        if len(values) != length or any(not least <= value < 1 << 31 for value in values):
            raise Malformed(f"attribute {name!r} = {values} must be {length} integers of at least {least}")
        return values

    # Emitting

    def emit(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """See `Builder.emit`."""
        return self.builder.emit(target, *args, **kwargs)

    def layer(self, module: nn.Module, tensors: dict[str, Tensor | None], x: Any) -> Any:
        """See `Builder.layer`."""
        return self.builder.layer(module, tensors, (self.op, self.name), x)

    def as_sizes(self, entries: Sequence[Size] | Size) -> Value:
        """Integers that are known or made of the input's sizes, as a value."""
        sizes = Sizes(object_array(list(entries) if isinstance(entries, Sequence) else entries))
        return self.tensor(sizes) if sizes.known else sizes
