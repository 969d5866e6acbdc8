"""Binary arithmetic coding, and mixtures of adaptive counters for its probabilities: the plain twin of `_mixture.h`.

    interval [low, high], 64 bits;   bit = 1 takes the lower p/65536 of it;   equal leading bytes leave
    p = σ(Σ_i w_i·stretch(p_i)),     w_i += η·(bit − p)·stretch(p_i)
    p_i += (bit − p_i)/(n_i + 3/2),  n_i ≤ limit

The coder is a carryless range coder after Martin, "Range encoding" (1979), 64 bits wide so that 16-bit probabilities
lose nothing measurable. A stream ends with the fewest bytes that single out its interval, padding being understood
after it. A decoder computes the same end and refuses a stream that ends elsewhere: one cut by more than a few bytes, or
with bytes left over. Nothing more can be told: nearly every string of bytes is some array's code.

Mixing: Mahoney, "Adaptive weighing of context models for lossless data compression", Florida Tech CS-2005-16.
Differs from the paper: a counter that has seen nothing speaks as a prior and starts from the mixture itself.
"""

from __future__ import annotations

from collections.abc import Sequence

from smidgen.coding.tables import EDGE, KINDS, LEVELS, tables

_FULL = (1 << 64) - 1
# Read past the end of a stream; not zeros, which are the cheapest symbols of a cut stream and would go unnoticed.
PAD = 0x5A
_PADDING = 0x5A5A5A5A5A5A5A5A
# A mixing weight stays within ±16, where 64-bit sums cannot overflow in the compiled twin.
_WEIGHT_LIMIT = 1 << 20


class Damaged(ValueError):
    """A stream that no encoder writes."""


class Range:
    """A 64-bit carryless range coder of single bits; decodes where it is given bytes, else encodes.

    >>> coder = Range()
    >>> for bit in (1, 0, 1, 1):
    ...     _ = coder.bit(40000, bit)
    >>> data = coder.close()
    >>> back = Range(data)
    >>> [back.bit(40000) for _ in range(4)], back.ended_well()
    ([1, 0, 1, 1], True)
    """

    def __init__(self, data: bytes | None = None) -> None:
        self.decoding, self.quiet = data is not None, False
        self._data = data or b""
        self._low, self._high, self._at = 0, _FULL, 8
        self._code = int.from_bytes(self._data[:8].ljust(8, bytes([PAD])), "big")
        self._out = bytearray()

    def bit(self, chance: int, bit: int = 0) -> int:
        """Code one bit whose probability of being 1 is chance/65536; returns it."""
        if self.quiet:  # both sides know the bit: the models learn, the stream does not grow
            return bit
        low, high = self._low, self._high
        width = high - low
        middle = low + (width >> 16) * chance + ((width & 0xFFFF) * chance >> 16)
        if self.decoding:
            bit = int(self._code <= middle)
        if bit:
            high = middle
        else:
            low = middle + 1
        while not (low ^ high) >> 56:
            if self.decoding:
                self._shift_in()
            else:
                self._out.append(high >> 56)
            low, high = low << 8 & _FULL, (high << 8 & _FULL) | 255
        self._low, self._high = low, high
        return bit

    def _shift_in(self) -> None:
        if self._at > len(self._data) + 8:
            raise Damaged("the stream ends early")
        byte = self._data[self._at] if self._at < len(self._data) else PAD
        self._at += 1
        self._code = (self._code << 8 & _FULL) | byte

    def _tail(self) -> tuple[int, int]:
        """The fewest bytes that, with padding after them, lie in the interval; and their value."""
        for count in range(8):
            mask = _FULL >> 8 * count
            value = self._low & ~mask | _PADDING & mask
            if value < self._low:
                value += mask + 1
            if self._low <= value <= self._high:
                return count, value
        return 8, self._low

    def close(self) -> bytes:
        """End the stream and return it."""
        count, value = self._tail()
        return bytes(self._out) + value.to_bytes(8, "big")[:count]

    def ended_well(self) -> bool:
        """Whether a decoder stands exactly where an encoder would have ended."""
        count, value = self._tail()
        return self._at - 8 + count == len(self._data) and self._code == value


class Mixer:
    """Counters of many contexts and the logistic mixtures that turn them into one probability.

    Args:
        coder: codes the bits.
        slots: how many counters.
        sets: how many sets of mixing weights.
        models: counters asked for each bit.
        first: initial weight of each given input but the last (the bias, 0), in 1/65536; `rest`: of each counter.
        extra: given inputs.
        rate, boost: learning rate of the weights, and how much more of it at first.
        limit: observations after which a counter's rate falls no further; `fresh`: those its prior counts for.
    """

    def __init__(
        self,
        coder: Range,
        *,
        slots: int,
        sets: int,
        models: int,
        extra: int,
        first: int,
        rest: int,
        rate: int,
        fresh: int,
        boost: int = 300 * 16,
    ) -> None:
        everything = tables().tolist()
        start = 2 * EDGE + 1
        self.coder, self.rate, self.fresh = coder, rate, fresh
        self.boost, self.limit = boost, 255
        self.squash = everything[:start]
        self._stretch = everything[start : start + 4096]
        self.share = everything[start + 4096 : start + 5120]
        self.prior = everything[start + 5120 : start + 5120 + LEVELS * KINDS]
        self.counters = [0] * slots
        self._weights = [[first] * (extra - 1) + [0] + [rest] * models for _ in range(sets)]
        self._seen = [0] * sets

    def bit(self, slots: Sequence[int], given: Sequence[int], guess: int, chosen: int, bit: int) -> int:
        """Code one bit: `slots` name its counters, `given` are further inputs, `chosen` the set of weights."""
        counters, stretch, weights = self.counters, self._stretch, self._weights[chosen]
        held = [counters[slot] for slot in slots]
        inputs = [*given, *[stretch[each >> 20] if each & 1023 else guess for each in held]]
        dot = sum(map(int.__mul__, weights, inputs)) >> 16
        chance = self.squash[min(max(dot, -EDGE), EDGE) + EDGE]
        bit = self.coder.bit(chance, bit)
        step = ((bit << 16) - chance) * (self.rate + self.boost // (self._seen[chosen] + 16))
        self._seen[chosen] = min(self._seen[chosen] + 1, 65535)
        for i, value in enumerate(inputs):
            moved = weights[i] + (value * step + (1 << 21) >> 22)
            weights[i] = min(max(moved, -_WEIGHT_LIMIT), _WEIGHT_LIMIT)
        target, share, limit = 4194303 if bit else 0, self.share, self.limit
        for slot, each in zip(slots, held, strict=True):
            if not each & 1023:
                each = chance << 16 | self.fresh
            value, seen = each >> 10, each & 1023
            value += (target - value) * share[seen] >> 16
            counters[slot] = value << 10 | min(seen + 1, limit)
        return bit
