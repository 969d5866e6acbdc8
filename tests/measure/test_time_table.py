"""Times kept between runs, whatever became of the file."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from smidgen.forms import Dense, Geometry, Stage, hollow
from smidgen.measure import time_table
from smidgen.measure.time_table import FILE, TimeTable, cache_folder, chain_key, open_table

G = Geometry("conv", 8, 8, (3, 3), (1, 1), (1, 1), (1, 1), in_size=(6, 6), out_size=(6, 6))


def chain(geometry: Geometry = G) -> tuple[Stage, ...]:
    return (Stage(Dense(hollow()), geometry),)


@pytest.fixture(autouse=True)
def _afresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new process."""
    monkeypatch.setattr(time_table, "_opened", {})


def test_what_one_run_measured_the_next_one_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = open_table(tmp_path / "deep")
    assert table.get("layer") is None
    table.put(0.25, "layer")
    table.put(0.5, "layer", "chain")
    table.save()
    assert open_table(tmp_path / "deep") is table, "one table in one process"
    monkeypatch.setattr(time_table, "_opened", {})
    again = open_table(tmp_path / "deep")
    assert (again.get("layer"), again.get("layer", "chain"), again.get("chain")) == (0.25, 0.5, None)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == [FILE]


def test_runs_side_by_side_keep_each_others_times(tmp_path: Path) -> None:
    first, second = TimeTable(tmp_path / FILE), TimeTable(tmp_path / FILE)
    first.put(1.0, "a")
    second.put(2.0, "b")
    first.save()
    second.save()
    assert json.loads((tmp_path / FILE).read_text())["entries"] == {"a:": 1.0, "b:": 2.0}


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"\xff\xfe", b"[]", b'{"version": 3}', b'{"version": 3, "entries": {"a:": "fast"}}',
        b'{"version": 3, "entries": {"a:": -1}}', b'{"version": 3, "entries": {"a:": NaN}}', b"[" * 100_000,
        b'{"version": 3, "entries": {"a:": true}}',
    ],
)  # fmt: skip
def test_a_damaged_file_is_left_out_with_one_line_and_written_anew(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    with pytest.warns(UserWarning, match=r"times: '.*' cannot be read \(.*\); layers are timed anew") as told:
        table = open_table(tmp_path)
    assert len(told) == 1
    assert "\n" not in str(told[0].message)
    assert table.entries == {}
    table.put(1.0, "a")
    table.save()
    assert json.loads((tmp_path / FILE).read_text())["entries"] == {"a:": 1.0}


def test_a_table_of_another_version_is_not_read(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('{"version": 0, "entries": {"a:": 1.0}}')
    assert open_table(tmp_path).entries == {}


def test_a_file_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time_table, "LARGEST_NBYTES", 10)
    (tmp_path / FILE).write_text('{"version": 3, "entries": {"a:": 1.0}}')
    with pytest.warns(UserWarning, match="too large"):
        assert open_table(tmp_path).entries == {}


def test_a_folder_that_cannot_be_written_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    table = TimeTable(tmp_path / "file" / FILE)
    table.put(1.0, "a")
    table.save()
    assert table.get("a") == 1.0
    assert (tmp_path / "file").read_text() == "in the way"


def test_the_folder_is_where_the_system_keeps_such_things(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMIDGEN_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("SMIDGEN_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    places = {
        "linux": tmp_path / "cache" / "smidgen",
        "darwin": tmp_path / "Library" / "Caches" / "smidgen",
        "win32": tmp_path / "local" / "smidgen" / "Cache",
    }
    for system, place in places.items():
        monkeypatch.setattr(time_table.sys, "platform", system)
        assert cache_folder() == place
    monkeypatch.setattr(time_table.sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == tmp_path / ".cache" / "smidgen", "the standard wants a relative one left out"


def test_a_time_is_of_its_shapes_threads_runtime_and_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [chain_key(chain(), 1), chain_key(chain(), 2), chain_key(chain(G.with_(in_channels=16)), 1)]
    keys.append(chain_key(chain() * 2, 1))
    monkeypatch.setattr(time_table.onnxruntime, "__version__", "0.0")
    keys.append(chain_key(chain(), 1))
    monkeypatch.setattr(time_table, "processor", lambda: "abacus")
    keys.append(chain_key(chain(), 1))
    assert len(set(keys)) == len(keys)
    assert chain_key(chain(), 1) == keys[-1]


@pytest.mark.skipif(os.name == "nt", reason="no process is killed half-way through a rename there")
def test_a_file_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = TimeTable(tmp_path / FILE)
    table.put(1.0, "a")
    table.save()
    monkeypatch.setattr(Path, "replace", lambda self, target: (_ for _ in ()).throw(OSError("full")))
    table.put(2.0, "b")
    table.save()
    assert json.loads((tmp_path / FILE).read_text())["entries"] == {"a:": 1.0}
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
