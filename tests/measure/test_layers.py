"""Layers timed in turns, on files whose times are far apart."""

from __future__ import annotations

import pytest

from smidgen.errors import LoadError
from smidgen.export.onnx_chain import chain_file, input_shape
from smidgen.forms import Dense, Geometry, Stage, hollow
from smidgen.measure import layers
from smidgen.measure.latency import Latency
from smidgen.measure.layers import time_chains


def conv(channels: int) -> tuple[Stage, ...]:
    g = Geometry("conv", 8, channels, (3, 3), (1, 1), (1, 1), (1, 1), in_size=(24, 24), out_size=(24, 24))
    return (Stage(Dense(hollow()), g),)


LAYER = conv(64)


def test_a_chain_of_an_eighth_of_the_work_takes_less_and_the_layer_itself_as_much() -> None:
    files = {"itself": chain_file(LAYER), "eighth": chain_file(conv(8))}
    ms, shares = time_chains(chain_file(LAYER), files, input_shape(LAYER), 1, 0.5)
    assert ms > 0
    assert shares.keys() == files.keys()
    assert 0 < shares["eighth"] < 0.8 < shares["itself"] < 1.25


def test_many_chains_are_timed_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "TURNS", 2)
    opened: list[int] = []
    measure = layers.measure_latency
    monkeypatch.setattr(
        layers, "measure_latency", lambda runners, *a, **k: opened.append(len(runners)) or measure(runners, *a, **k)
    )
    files = {str(k): chain_file(conv(8)) for k in range(5)}
    _, shares = time_chains(chain_file(LAYER), files, input_shape(LAYER), 1, 0.1)
    assert opened == [3, 3, 2]
    assert shares.keys() == files.keys()
    monkeypatch.setattr(layers, "TURNS_NBYTES", 1)
    opened.clear()
    time_chains(chain_file(LAYER), files, input_shape(LAYER), 1, 0.1)
    assert opened == [2] * 5, "one at a time where they are large"


def test_openings_are_fresh_and_their_median_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    given = iter([2.0, 8.0, 4.0])  # times as fast as the layer: far from it

    def measured(runners: dict[str, object], *_: object, **__: object) -> dict[str, Latency]:
        speedup = next(given)
        return {name: Latency(speedup, 1.0, 1.0, 1, speedup if name else 1.0) for name in runners}

    opened: list[object] = []
    really = layers.open_onnx
    monkeypatch.setattr(layers, "open_onnx", lambda *given: opened.append(given) or really(*given))
    monkeypatch.setattr(layers, "measure_latency", measured)
    found = time_chains(chain_file(LAYER), {"a": chain_file(conv(8))}, input_shape(LAYER), 1, 0.1, openings=3)
    assert found == (4.0, {"a": 0.25})
    assert len(opened) == 6


def test_what_comes_near_to_the_fastest_is_timed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds: list[list[str]] = []

    def measured(runners: dict[str, object], *_: object, **__: object) -> dict[str, Latency]:
        rounds.append(sorted(runners))
        # Before the second look "near" seems faster than "best".
        speedups = {"": 1.0, "far": 1.2, "best": 2.0, "near": 2.1 if len(rounds) <= 2 else 1.8}
        return {name: Latency(1.0, 1.0, 1.0, 1, speedups[name]) for name in runners}

    monkeypatch.setattr(layers, "measure_latency", measured)
    files = {name: chain_file(conv(8)) for name in ("far", "near", "best")}
    _, shares = time_chains(chain_file(LAYER), files, input_shape(LAYER), 1, 0.1, openings=2)
    assert rounds == [["", "best", "far", "near"]] * 2 + [["", "best", "near"]] * 2
    assert shares["best"] < shares["near"] < shares["far"]
    rounds.clear()
    time_chains(chain_file(LAYER), files, input_shape(LAYER), 1, 0.1)
    assert len(rounds) == 1, "of one opening nothing is expected but a first look"


def test_a_layer_alone() -> None:
    ms, shares = time_chains(chain_file(LAYER), {}, input_shape(LAYER), 1, 0.1)
    assert ms > 0
    assert shares == {}


def test_what_no_runtime_opens_is_an_error() -> None:
    with pytest.raises(LoadError, match="cannot open"):
        time_chains(b"no file", {}, (1, 3), 1, 0.1)
