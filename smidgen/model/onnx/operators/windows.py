"""Where the windows of convolutions and pools lie: kernel, stride, dilation, padding of each spatial axis."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.fx import Node

from ..call import Call
from ..values import Malformed


@dataclass(frozen=True)
class Windows:
    """One entry an axis.

    Attributes:
        length: of the operand, None where dynamic.
        kernel, stride, dilation: as in ONNX.
        begin, end: padding before and after.
    """

    length: tuple[int | None, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    begin: tuple[int, ...]
    end: tuple[int, ...]

    @property
    def span(self) -> tuple[int, ...]:
        """Entries from a window's first to its last."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilation, strict=True))

    @property
    def symmetric(self) -> bool:
        """Whether both sides are padded alike, as torch's layers do it."""
        return self.begin == self.end

    def ceil_end(self) -> tuple[int, ...]:
        """Padding after the operand with which rounding down gives as many windows as rounding up without it.

        A window that would start in the padding behind the operand does not count.
        """
        ends = []
        for n, span, s, b, e in zip(self.length, self.span, self.stride, self.begin, self.end, strict=True):
            if n is None:
                raise Malformed("ceil_mode with uneven padding needs a static height and width")
            count = -(-(n + b + e - span) // s) + 1
            if (count - 1) * s >= n + b:
                count -= 1
            ends.append(max(e, (count - 1) * s + span - n - b))
        return tuple(ends)


def windows(call: Call, x: Tensor | Node, kernel: list[int]) -> Windows:
    """Read `strides`, `dilations`, `pads` and `auto_pad` of a node.

    Args:
        call: the node.
        x: its operand, (batch, channels, spatial axes).
        kernel: of each spatial axis.

    Raises:
        Malformed: entries that are not positive, or do not fit the operand.
    """
    spatial = call.rank(x) - 2
    if spatial < 1 or len(kernel) != spatial:
        raise Malformed(f"a kernel of {len(kernel)} axes does not fit an operand of rank {call.rank(x)}")
    given = call.attr("kernel_shape")
    if min(kernel) < 1 or (given is not None and list(given) != list(kernel)):
        raise Malformed(f"kernel_shape {given} does not fit its weight {kernel}")
    stride = call.attr_ints("strides", spatial, 1, least=1)
    dilation = call.attr_ints("dilations", spatial, 1, least=1)
    length = call.shape(x)[2:]
    span = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    begin, end = _padding(call, length, span, stride)
    return Windows(length, tuple(kernel), tuple(stride), tuple(dilation), begin, end)


def _padding(
    call: Call, length: tuple[int | None, ...], span: list[int], stride: list[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    spatial, mode = len(span), call.attr("auto_pad", "NOTSET")
    if mode == "VALID":
        return (0,) * spatial, (0,) * spatial
    if mode == "NOTSET":
        pads = call.attr_ints("pads", 2 * spatial, 0)
        return tuple(pads[:spatial]), tuple(pads[spatial:])
    if mode not in ("SAME_UPPER", "SAME_LOWER"):
        raise Malformed(f"auto_pad {mode!r} is unknown")
    begin, end = [], []
    for n, reach, s in zip(length, span, stride, strict=True):
        if n is None and s != 1:
            raise Malformed(f"auto_pad {mode} with stride {s} needs a static height and width")
        total = reach - 1 if n is None else max((-(-n // s) - 1) * s + reach - n, 0)
        begin.append(total // 2 if mode == "SAME_UPPER" else total - total // 2)
        end.append(total - begin[-1])
    return tuple(begin), tuple(end)


def pad_list(begin: tuple[int, ...], end: tuple[int, ...]) -> list[int]:
    """Padding as `torch.nn.functional.pad` takes it: last axis first.

    >>> pad_list((1, 2), (3, 4))
    [2, 4, 1, 3]
    """
    return [value for pair in zip(reversed(begin), reversed(end), strict=True) for value in pair]
