"""Budgets of time and slower layers at the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import smidgen.cli.layers
import smidgen.pipeline.running
import smidgen.pipeline.times as times
from smidgen.measure import time_table

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Layers are timed after all, and remembered in the folder that is given back."""
    monkeypatch.setenv("SMIDGEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(time_table, "_opened", {})
    for module in (smidgen.pipeline.running, smidgen.cli.layers):
        monkeypatch.setattr(module, "with_times", times.with_times)
    return tmp_path / "cache"


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (("--speedup", "0.5"), "budget: speedup='0.5' is not above 1; for example speedup=2"),
        (("--speedup", "fast"), "is not a number"),
        (("--latency", "5kB"), "has the unknown unit 'kB'; use us, µs, ms or s"),
        (("--latency", "-5ms"), "is not positive"),
        (("--speedup", "2", "--latency", "5ms"), "are both given; give one of them"),
        (("--max-drop", "1", "--speedup", "2"), "time is not budgeted together with anything else yet"),
        (("--allow-slower", "--refuse-slower"), "not allowed with argument --allow-slower"),
    ],
)
def test_what_cannot_be_meant(run: Run, tmp_path: Path, network: Path, asked: tuple[str, ...], told: str) -> None:
    code, out, err = run("compress", network, *asked, "-o", tmp_path / "out")
    assert (code, out) == (2, "")
    assert err.startswith("smidgen: error: ")
    assert told in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_latency_in_reach(run: Run, tmp_path: Path, network: Path, data: Path, timed: Path) -> None:
    asked = ("--latency", "2 s", "--threads", "1", "--json", "-q")
    code, told, err = run("compress", network, "--data", data, *asked, "-o", tmp_path / "out")
    record = json.loads(told)
    assert (code, err) == (0, "")
    assert (record["budget"]["kind"], record["budget"]["value"], record["budget"]["met"]) == ("latency", 2000.0, True)
    assert record["files"]["onnx"]["latency_ms"] < 2000
    assert [path.name for path in timed.iterdir()] == [time_table.FILE]


def test_a_latency_out_of_reach_is_exit_code_3(
    run: Run, tmp_path: Path, network: Path, data: Path, timed: Path
) -> None:
    code, told, err = run(
        "compress", network, "--data", data, "--latency", "1 us", "--threads", "1", "-q", "-o", tmp_path / "out"
    )
    assert code == 3
    assert "NOT met" in told
    assert "the budget was not met: the fastest file found takes" in err
    assert (tmp_path / "out" / "model.onnx").is_file()


def test_a_damaged_table_of_times_is_one_line(run: Run, network: Path, timed: Path) -> None:
    timed.mkdir()
    (timed / time_table.FILE).write_text("{")
    code, _, err = run("inspect", network, "--threads", "1", "-q")
    assert code == 0
    assert err.startswith("smidgen: times: ")
    assert "layers are timed anew" in err
    assert err.count("\n") == 1
    assert json.loads((timed / time_table.FILE).read_text())["entries"]


def test_inspect_tells_what_would_be_slower(
    run: Run, network: Path, timed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(times, "time_chains", lambda layer, chains, *rest: (0.22, dict.fromkeys(chains, 1.5)))
    _, told, _ = run("inspect", network, "-q", "--json")
    layer = json.loads(told)["layers"][0]
    assert layer["refusals"]["svd"] == "svd: would be slower: 0.33 ms against 0.22 ms"
    assert layer["latency_ms"] == 0.22
    _, table, _ = run("inspect", network, "-q")
    assert "would be slower" in table
    _, told, _ = run("inspect", network, "-q", "--json", "--allow-slower")
    assert "svd" in json.loads(told)["layers"][0]["savings"]
