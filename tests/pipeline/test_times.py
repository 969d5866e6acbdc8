"""Milliseconds of options: few are measured, all have one, and a second run measures nothing."""

from __future__ import annotations

import numpy as np
import pytest

import smidgen.pipeline.times as times
from smidgen.forms import Geometry, stages
from smidgen.measure.time_table import TimeTable
from smidgen.methods import methods
from smidgen.pipeline.times import with_times
from smidgen.planning.candidates import gather
from smidgen.planning.pace import guarded
from smidgen.site import Site

CONV = Geometry("conv", 24, 32, (3, 3), (1, 1), (1, 1), (1, 1), in_size=(8, 8), out_size=(8, 8))
DENSE = Geometry("linear", 96, 64)
SHAPES = {CONV: (32, 24, 3, 3), DENSE: (64, 96)}


def silent(stage, done, total):
    pass


def made(*geometries, refusal=None):
    rng = np.random.default_rng(0)
    sites = [
        Site(f"s{k}", g, rng.normal(size=SHAPES[g]).astype("f4"), refusal=refusal) for k, g in enumerate(geometries)
    ]
    return gather(sites, {}, methods())


@pytest.fixture
def clock(monkeypatch):
    """Instead of the runtime: a chain's share is told by its files' order, and every call is written down."""
    calls = []

    def timed(layer, chains, shape, threads, seconds):
        calls.append((len(chains), threads, shape))
        return 2.0, {name: 0.25 + 0.1 * k for k, name in enumerate(chains)}

    monkeypatch.setattr(times, "time_chains", timed)
    return calls


def test_every_option_has_a_time_from_few_measurements(clock):
    options = with_times(made(CONV, CONV, DENSE), 3, silent, TimeTable(None))
    for option in options:
        assert option.times is not None
        assert option.times.shape == option.losses.shape
        assert option.times[0] == 2.0
        assert (option.times > 0).all()
    assert options[0].times.tolist() == options[1].times.tolist(), "layers alike are timed once"
    assert [count for count, _, _ in clock] == [0, clock[1][0], 0, clock[3][0]], "the layer alone, then its forms"
    assert max(count for count, _, _ in clock) <= max(len(o.families) for o in options) * (times.GRID + 1)
    assert {shape for _, _, shape in clock} == {(1, 24, 8, 8), (1, 96)}
    assert {threads for _, threads, _ in clock} == {3}


def test_what_is_known_is_not_measured_again(clock):
    table = TimeTable(None)
    first = with_times(made(CONV), 1, silent, table)
    count = len(clock)
    again = with_times(made(CONV), 1, silent, table)
    assert len(clock) == count
    assert first[0].times.tolist() == again[0].times.tolist()
    with_times(made(CONV), 2, silent, table)
    assert len(clock) > count, "another number of threads is another time"


def test_a_rank_between_costs_what_the_next_timed_one_costs(clock, monkeypatch):
    monkeypatch.setattr(times, "GRID", 4)
    (option,) = with_times(made(DENSE), 1, silent, TimeTable(None))
    ranks = [label.rank for label in option.labels[1:]]
    ms = dict(zip(ranks, option.times[1:].tolist(), strict=True))
    # The made-up clock tells a rising share, so time never falls with the rank.
    assert [ms[r] for r in sorted(ranks)] == sorted(ms.values())
    assert ms[16] < ms[17] == ms[24] == ms[32] < ms[33], "up to the next rank that was timed"
    assert len(set(ms.values())) <= times.GRID + 1


def test_sites_without_a_choice_and_huge_ones_are_not_timed(clock, monkeypatch):
    refused = made(DENSE, refusal="runs twice")
    assert with_times(refused, 1, silent, TimeTable(None))[0].times is None
    monkeypatch.setattr(times, "LARGEST_NBYTES", 1000)
    assert with_times(made(DENSE), 1, silent, TimeTable(None))[0].times is None
    assert clock == []


def test_a_slow_layer_is_timed_at_fewer_ranks(monkeypatch):
    counts = []

    def timed(layer, chains, shape, threads, seconds):
        counts.append(len(chains))
        return 500.0, dict.fromkeys(chains, 0.5)

    monkeypatch.setattr(times, "time_chains", timed)
    with_times(made(DENSE), 1, silent, TimeTable(None))
    assert counts == [0, times.LEAST_GRID + 1]


def test_what_was_measured_before_ctrl_c_is_kept(monkeypatch, tmp_path):
    def timed(layer, chains, shape, threads, seconds):
        if chains:
            raise KeyboardInterrupt
        return 1.0, {}

    monkeypatch.setattr(times, "time_chains", timed)
    with pytest.raises(KeyboardInterrupt):
        with_times(made(DENSE), 1, silent, TimeTable(tmp_path / "t.json"))
    assert (tmp_path / "t.json").is_file()


def test_progress_counts_the_layers(clock):
    told = []
    with_times(made(CONV, DENSE, DENSE), 1, lambda *said: told.append(said), TimeTable(None))
    assert told == [("times", 1, 2), ("times", 2, 2)]


@pytest.mark.slow
def test_measured_here_a_tenth_of_the_work_is_faster_and_nothing_slower_is_left():
    big = Geometry("conv", 64, 64, (3, 3), (1, 1), (1, 1), (1, 1), in_size=(32, 32), out_size=(32, 32))
    site = Site("s", big, np.random.default_rng(0).normal(size=(64, 64, 3, 3)).astype("f4"))
    (option,) = with_times(gather([site], {}, {"svd": methods()["svd"]}), 1, silent, TimeTable(None))
    assert option.times is not None
    macs = [sum(s.macs for s in stages(option.outline(label.method, label.rank), big)) for label in option.labels]
    assert option.times[int(np.argmin(macs))] < 0.9 * option.times[0]
    (kept,) = guarded([option])
    assert len(kept.labels) > 1
