"""The model of bytes: contexts of the bytes before, of one item back and of the longest match, mixed bit by bit.

    a context's history = (zeros, ones) seen in it, the other count cut down at each surprise     what it is worth:
    chance of a one     = adaptive counter of that history, one table a context                   learnt, not assumed

For small structured files (a network's graph as protobuf, planes of floats) where a dictionary coder has no time to
learn; on nine networks' graphs 23 % smaller than LZMA. Histories and the match model after lpaq (Mahoney, 2007). The
plain twin of `code_text` in `_bytes.h`, the same to the byte.

Differs from lpaq: contexts that skip the last bytes, which protobuf's tags and lengths reward.
"""

from __future__ import annotations

from smidgen.coding.arithmetic import Mixer, Range

# Bytes before that make a context, bit k for the k-th: the last 0, 1, 2, 3, 4, 6, and some with the last left out.
MASKS = (0x00, 0x02, 0x06, 0x0E, 0x1E, 0x7E, 0x0C, 0x10, 0x70, 0x38)
MODELS, SLOT_BITS, SELECTORS, MATCH_BITS, LONGEST = len(MASKS) + 2, 18, 4, 16, 32
_BACK = tuple(tuple(back for back in range(1, 8) if mask >> back & 1) for mask in MASKS)
_WORD = 0xFFFFFFFF


def code_bytes(coder: Range, data: bytes, count: int, stride: int, primer: bytes = b"") -> bytes:
    """Code `count` bytes of items of `stride` bytes; returns them (those given, when encoding).

    The bytes of `primer` are on both sides already: they come first, and only teach the model.

    Raises:
        Damaged: the stream ended early.
    """
    mixer = Mixer(
        coder,
        slots=MODELS << 8,
        sets=SELECTORS,
        models=MODELS,
        extra=1,
        first=0,
        rest=9000,
        rate=30,
        fresh=0,
        boost=1500 * 16,
    )
    _open_histories(mixer)
    match, histories = _Match(), [bytearray(1 << SLOT_BITS) for _ in range(MODELS - 1)]
    done = bytearray()
    given = primer + (bytes(count) if coder.decoding else data)
    for at, byte in enumerate(given):
        coder.quiet = at < len(primer)
        match.follow(done)
        done.append(_code_byte(mixer, histories, _hashes(done, at, stride), match, done, byte))
    return bytes(done[len(primer) :])


def _open_histories(mixer: Mixer) -> None:
    """Every history starts at the chance that its counts suggest."""
    for model in range(MODELS - 1):
        for zeros in range(16):
            for ones in range(16):
                if zeros + ones:
                    chance = 4194303 * (5 * ones + 1) // (5 * (zeros + ones) + 2)
                    mixer.counters[model << 8 | zeros << 4 | ones] = chance << 10 | 2


def _history_after(history: int, bit: int) -> int:
    """Zeros and ones seen in a context, four bits each; what came last tells the most."""
    same, other = (history & 15, history >> 4) if bit else (history >> 4, history & 15)
    same = min(same + 1, 15)
    other = other + 3 >> 1 if other > 2 else other
    return other << 4 | same if bit else same << 4 | other


def _mixed(value: int) -> int:
    value = value * 0x9E3779B1 & _WORD
    return (value ^ value >> 15) * 0x85EBCA6B & _WORD


def _hashes(done: bytearray, at: int, stride: int) -> list[int]:
    """Hashes of the masked bytes before, and of the byte one item back."""
    hashes = []
    for places in _BACK:
        value = 0
        for back in places:
            value = _mixed(value + (done[at - back] if at >= back else 0) + 0x3D4D51CB & _WORD)
        hashes.append(value)
    item = at % stride * 256 + (done[at - stride] if at >= stride else 0) + 0x2545F491
    return [*hashes, _mixed(item & _WORD)]


class _Match:
    """Where the bytes just coded occurred before, and how many of them agree."""

    def __init__(self) -> None:
        self.at, self.length = 0, 0
        self._last = [0] * (1 << MATCH_BITS)

    def follow(self, done: bytearray) -> None:
        at = len(done)
        if self.length and done[self.at] == done[at - 1]:
            self.at += 1
            self.length = min(self.length + 1, LONGEST)
        else:
            self.length = 0
        if at < 4:
            return
        key = _mixed(int.from_bytes(done[at - 1 : at - 5 : -1] if at > 4 else done[::-1], "little")) >> 32 - MATCH_BITS
        if not self.length and self._last[key]:
            self.at = self._last[key]
            longest = min(LONGEST, self.at)
            while self.length < longest and done[self.at - 1 - self.length] == done[at - 1 - self.length]:
                self.length += 1
        self._last[key] = at


def _code_byte(
    mixer: Mixer, histories: list[bytearray], hashes: list[int], match: _Match, done: bytearray, given: int
) -> int:
    length = match.length
    selector = 0 if length == 0 else 1 if length < 8 else 2 if length < 24 else 3
    expected = done[match.at] | 256 if length else 0
    node = 1
    for place in range(7, -1, -1):
        salt = node * 0x27D4EB2F
        cells = [_mixed(each + salt & _WORD) >> 32 - SLOT_BITS for each in hashes]
        slots = [i << 8 | histories[i][cell] for i, cell in enumerate(cells)]
        agrees = length and expected >> (place + 1) == node
        slots.append((MODELS - 1 << 8) + (2 * length + (expected >> place & 1) if agrees else 0))
        bit = mixer.bit(slots, (256,), 0, selector, given >> place & 1)
        for history, cell in zip(histories, cells, strict=True):
            history[cell] = _history_after(history[cell], bit)
        node = node << 1 | bit
    return node & 255
