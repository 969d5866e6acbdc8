"""The chooser: the fastest where bytes are free, never slower than direct, never beyond the bytes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from smidgen.measure.fastconv import Way, choose
from smidgen.planning.pace import TOLERANCE

WAYS = st.lists(st.tuples(st.floats(0.1, 10.0), st.integers(10, 1000)), min_size=1, max_size=4).map(
    lambda drawn: [Way("direct" if i == 0 else f"way{i}", ms, nbytes, 0.0) for i, (ms, nbytes) in enumerate(drawn)]
)


@given(st.lists(WAYS, max_size=5))
def test_without_a_limit_the_fastest_is_taken(layers: list[list[Way]]) -> None:
    for ways, i in zip(layers, choose(layers), strict=True):
        fastest = min(ways, key=lambda way: way.ms)
        if fastest.ms < ways[0].ms / (1 + TOLERANCE):
            assert ways[i].ms == fastest.ms
        else:
            assert i == 0


@given(st.lists(WAYS, max_size=5), st.integers(0, 3000))
def test_the_bytes_are_kept_and_nothing_gets_slower(layers: list[list[Way]], spare: int) -> None:
    chosen = [ways[i] for ways, i in zip(layers, choose(layers, spare), strict=True)]
    added = sum(way.nbytes - ways[0].nbytes for way, ways in zip(chosen, layers, strict=True))
    assert added <= spare
    assert all(way.ms <= ways[0].ms for way, ways in zip(chosen, layers, strict=True))


def test_bytes_go_where_a_byte_saves_most() -> None:
    slow = [Way("direct", 10.0, 100, 0.0), Way("winograd4", 6.0, 400, 0.0)]
    quick = [Way("direct", 5.0, 10, 0.0), Way("winograd4", 4.0, 40, 0.0)]
    assert choose([slow, quick], 300) == [0, 1]
    assert choose([slow, quick], 330) == [1, 1]
    smaller = [Way("direct", 5.0, 100, 0.0), Way("fft", 4.0, 80, 0.0)]
    assert choose([smaller, quick], 10) == [1, 1]
