"""Budgets, targets and sizes as people write them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smidgen.budget import TARGETS, Budget, format_size, parse_latency, parse_size, parse_target
from smidgen.errors import BudgetError

_SIZES = st.integers(min_value=1, max_value=10**14)


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("200 kB", 200_000),
        ("200kB", 200_000),
        ("200 KB", 200_000),
        ("1.5MB", 1_500_000),
        (" 64 KiB ", 65_536),
        ("2MiB", 2_097_152),
        ("1 GB", 10**9),
        ("1GiB", 2**30),
        ("4096", 4096),
        ("12 B", 12),
        ("12 bytes", 12),
        ("200_000", 200_000),
        (".5 kB", 500),
        ("0.0016 kB", 2),
    ],
)
def test_sizes_people_write(text: str, nbytes: int) -> None:
    assert parse_size(text) == nbytes
    assert Budget(size=text).nbytes == nbytes


@pytest.mark.parametrize(
    "text",
    ["", "kB", "two kB", "1..5 MB", "200 kBs", "-3 kB", "0", "0.0001 kB", "1e9999999999", "nan", "inf", "9999999 GB"],
)
def test_sizes_nobody_means(text: str) -> None:
    with pytest.raises(BudgetError, match=r"budget: size=.*for example size="):
        parse_size(text)


def test_long_text_is_refused_at_once_and_shown_short() -> None:
    with pytest.raises(BudgetError) as caught:
        parse_size("9" * 1_000_000)
    assert len(str(caught.value)) < 200


@given(_SIZES)
def test_parse_reads_what_format_writes(nbytes: int) -> None:
    shown = format_size(nbytes)
    unit = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9}[shown.split()[1]]
    assert abs(parse_size(shown) - nbytes) <= unit / 20
    assert format_size(parse_size(shown)) == shown


@given(_SIZES, _SIZES)
def test_format_keeps_the_order(a: int, b: int) -> None:
    small, large = sorted((a, b))
    assert parse_size(format_size(small)) <= parse_size(format_size(large))


@given(st.text(max_size=60))
def test_any_text_is_a_size_or_a_budget_error(text: str) -> None:
    try:
        assert parse_size(text) >= 1
    except BudgetError as error:
        assert "\n" not in str(error)  # noqa: PT017


@pytest.mark.parametrize("drop", [0.5, "0.5", "0.5%", " 0.5 % ", ".5"])
def test_drops_are_percentage_points(drop: float | str) -> None:
    assert Budget(max_drop=drop) == Budget(max_drop=0.5)
    assert Budget(max_drop=drop).points == 0.5


@pytest.mark.parametrize("ratio", [6, 6.0, "6", "6x", "6 X", "6×"])
def test_ratios(ratio: float | int | str) -> None:
    assert Budget(ratio=ratio) == Budget(ratio=6.0)
    assert Budget(ratio=ratio).times == 6.0


@pytest.mark.parametrize("speedup", [2, 2.0, "2", "2x", "2 X", "2×"])
def test_speedups(speedup: float | int | str) -> None:
    assert Budget(speedup=speedup) == Budget(speedup=2.0)
    assert Budget(speedup=speedup).faster == 2.0
    assert Budget(speedup=speedup).timed


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("5 ms", 5.0),
        ("5ms", 5.0),
        ("5", 5.0),
        ("250us", 0.25),
        ("250 \u00b5s", 0.25),
        ("250 \u03bcs", 0.25),
        ("250 US", 0.25),
        ("0.02 s", 20.0),
        (" 1_500 us ", 1.5),
        (".5ms", 0.5),
    ],
)
def test_times_people_write(text: str, ms: float) -> None:
    assert parse_latency(text) == ms
    assert Budget(latency=text) == Budget(latency=ms)
    assert Budget(latency=text).latency_ms == ms


def test_a_number_alone_is_milliseconds() -> None:
    assert Budget(latency=5).latency_ms == 5.0
    assert Budget(latency=5).timed
    assert not Budget(size=5).timed


@given(st.text(max_size=60))
def test_any_text_is_a_time_or_a_budget_error(text: str) -> None:
    try:
        assert parse_latency(text) > 0
    except BudgetError as error:
        assert "\n" not in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": 0},
        {"size": -1},
        {"size": True},
        {"size": 10**16},
        {"ratio": 1},
        {"ratio": 0.5},
        {"ratio": float("nan")},
        {"ratio": float("inf")},
        {"ratio": 1e9},
        {"ratio": "6y"},
        {"ratio": 10**400},
        {"max_drop": 0},
        {"max_drop": -0.5},
        {"max_drop": 100},
        {"max_drop": "0.5 kB"},
        {"max_drop": "half"},
        {"max_drop": float("nan")},
        {"tradeoff": -0.1},
        {"tradeoff": 1.1},
        {"tradeoff": float("nan")},
        {"macs": 0},
        {"macs": 1},
        {"macs": "100%"},
        {"macs": "3x"},
        {"macs": -0.5},
        {"macs": True},
        {"macs": float("nan")},
        {"macs": "9" * 400 + "%"},
        {"speedup": 1},
        {"speedup": 0.5},
        {"speedup": "fast"},
        {"speedup": "2 ms"},
        {"speedup": 1e6},
        {"speedup": True},
        {"speedup": float("inf")},
        {"latency": 0},
        {"latency": "0 ms"},
        {"latency": -5},
        {"latency": "5 kB"},
        {"latency": "5 minutes"},
        {"latency": "ms"},
        {"latency": "1e9 ms"},
        {"latency": "9999999 s"},
        {"latency": float("nan")},
        {"latency": True},
    ],
)
def test_values_that_cannot_be_meant(wrong: dict[str, object]) -> None:
    ((name, _),) = wrong.items()
    with pytest.raises(BudgetError, match=rf"budget: {name}=.*; for example {name}=") as caught:
        Budget.from_dict(wrong)
    assert "\n" not in str(caught.value)


def test_one_budget_at_a_time() -> None:
    with pytest.raises(BudgetError, match=r"size='200 kB' and max_drop=0.5 are both given"):
        Budget(size="200 kB", max_drop=0.5)
    with pytest.raises(BudgetError, match="are all given"):
        Budget(size=1, ratio=2, max_drop=0.5)
    with pytest.raises(BudgetError, match=r"give one of them: time is not budgeted together with anything else yet"):
        Budget(max_drop=0.5, speedup=2)


@pytest.mark.parametrize(
    ("budget", "kind"),
    [
        (Budget(size="64 KiB"), "size"),
        (Budget(ratio="6x"), "ratio"),
        (Budget(max_drop="0.5%"), "max_drop"),
        (Budget(tradeoff=0), "tradeoff"),
        (Budget(macs="40%"), "macs"),
        (Budget(speedup="2x"), "speedup"),
        (Budget(latency="5 ms"), "latency"),
        (Budget(), "default"),
    ],
)
def test_kind_and_json(budget: Budget, kind: str) -> None:
    assert budget.kind == kind
    assert Budget.from_dict(json.loads(json.dumps(budget.to_dict()))) == budget


def test_stored_budgets_are_checked() -> None:
    with pytest.raises(BudgetError, match="'sise' is not one of size"):
        Budget.from_dict({"sise": 3})
    with pytest.raises(BudgetError, match="not a number"):
        Budget.from_dict({"size": [3]})


def test_targets() -> None:
    assert [parse_target(name) for name in TARGETS] == list(TARGETS)
    assert parse_target(" TFLite ") == "tflite"
    with pytest.raises(BudgetError, match=r"did you mean .*onnx-int8"):
        parse_target("onxx-int8")
    with pytest.raises(BudgetError, match=r"target: 'coreml' is not one of archive, onnx"):
        parse_target("coreml")
