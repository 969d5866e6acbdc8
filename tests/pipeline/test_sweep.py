"""A front in one run: points that can be replayed, and a run that goes on where it stopped."""

from __future__ import annotations

import csv
import io
import json
from concurrent.futures import Executor, Future, ThreadPoolExecutor

import numpy as np
import pytest

import smidgen
from smidgen.budget import Budget
from smidgen.errors import BudgetError, DataError, OutputError, SmidgenError, UserError
from smidgen.pipeline import sweep as module
from smidgen.pipeline.sweep_book import choice
from smidgen.pipeline.sweep_jobs import evaluate
from smidgen.planning.front import JOINT
from smidgen.report.front import curves_of
from smidgen.report.sweep import Mark, read_mark, read_marks
from tests.pipeline.pictures import pictures

SETTINGS = {"points": 4, "methods": ["svd", "tucker2"], "threads": 1, "seed": 1}


class Counted(Executor):
    """Runs at once and remembers what it was given."""

    def __init__(self):
        self.calls = []

    def submit(self, fn, /, *args, **kwargs):
        self.calls.append(fn)
        done: Future = Future()
        done.set_result(fn(*args, **kwargs))
        return done


@pytest.fixture(scope="module")
def found(trained, prepare_once, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("smidgen.pipeline.task.prepare", prepare_once)
        folder = tmp_path_factory.mktemp("sweep")
        x, y = pictures()
        done = smidgen.sweep(trained, (x, y), folder=folder, marks=[Mark("paper", 5000, 0.9)], **SETTINGS)
        done.save(folder)
        return done


def test_every_point_is_replayed_to_the_bit(found, trained):
    for point in (found.chosen(), found.record["points"][-1]):
        again = smidgen.apply(trained, found.plan(point["name"]), pictures(), threads=1)
        assert again.files["onnx"].read_bytes() == (found.folder / point["file"]).read_bytes()
        assert again.record["files"]["onnx"]["accuracy"] == pytest.approx(point["test"]["score"])
        assert again.record["budget"]["note"] == ""


def test_points_are_what_their_files_are(found):
    record = found.record
    curves = curves_of(record)
    assert next(iter(curves)) == JOINT
    assert len(curves[JOINT]) == 4
    assert {"svd", "tucker2"} >= curves.keys() - {JOINT}
    for point in record["points"]:
        assert (found.folder / point["file"]).stat().st_size == point["nbytes"]
        assert point["latency_ms"] > 0
        assert point["macs"] <= record["original"]["macs"]
    assert record["original"]["test_score"] > 0.9
    json.dumps(record, allow_nan=False)


def test_the_choice_reads_nothing_of_the_test_part(found):
    entries = [{k: v for k, v in point.items() if k not in ("test", "latency_ms")} for point in found.record["points"]]
    places = [i for i, point in enumerate(entries) if point["front"]]
    again = choice(entries, places, None, found.record["original"]["nbytes"])
    assert again == {"chosen": found.record["chosen"], "met": True}


@pytest.mark.parametrize(
    ("budget", "met"), [(Budget(ratio=2), True), (Budget(size=10), False), (Budget(max_drop=99), True)]
)
def test_a_point_by_what_was_asked(found, budget, met):
    entries, before = found.record["points"], found.record["original"]["nbytes"]
    places = [i for i, point in enumerate(entries) if point["front"]]
    got = choice(entries, places, budget, before)
    assert got["met"] is met
    nbytes = next(point["nbytes"] for point in entries if point["name"] == got["chosen"])
    on = [entries[i]["nbytes"] for i in places]
    assert nbytes <= before / 2 if budget.kind == "ratio" else nbytes == min(on)


def test_a_killed_run_goes_on_and_a_finer_one_adds(found, trained, tmp_path):
    names = sorted(path.name for path in (found.folder / "points").glob("*.json"))
    lost, torn = (found.folder / "points" / name for name in names[:2])
    lost.unlink()
    torn.write_text(torn.read_text()[:100])
    crew = Counted()
    again = smidgen.sweep(trained, pictures(), folder=found.folder, executor=crew, **SETTINGS)
    assert crew.calls.count(evaluate) == 2, "the missing one and the half-written one"
    kept = ("name", "nbytes", "selection", "test", "curves")
    assert [{k: p[k] for k in kept} for p in again.record["points"]] == [
        {k: p[k] for k in kept} for p in found.record["points"]
    ]


def test_a_folder_of_something_else_is_refused(found, trained):
    x, y = pictures()
    with pytest.raises(OutputError, match="a sweep of other data"):
        smidgen.sweep(trained, (x + 1, y), folder=found.folder, **SETTINGS)
    with pytest.raises(OutputError, match="a sweep of other settings"):
        smidgen.sweep(trained, (x, y), folder=found.folder, **{**SETTINGS, "refit": False})
    (found.folder / "run.json").rename(found.folder / "kept")
    with pytest.raises(OutputError, match="does not say of what"):
        smidgen.sweep(trained, (x, y), folder=found.folder, **SETTINGS)
    (found.folder / "run.json").write_text("{")
    with pytest.raises(OutputError, match="damaged"):
        smidgen.sweep(trained, (x, y), folder=found.folder, **SETTINGS)
    (found.folder / "kept").rename(found.folder / "run.json")


def test_any_executor_gives_the_same_points(found, trained):
    with ThreadPoolExecutor(1) as threads:
        other = smidgen.sweep(trained, pictures(), executor=threads, **SETTINGS)
    assert [p["nbytes"] for p in other.record["points"]] == [p["nbytes"] for p in found.record["points"]]
    assert other.record["chosen"] == found.record["chosen"]


def test_dask_gives_the_same_points(found, trained):
    distributed = pytest.importorskip("distributed")
    with distributed.Client(processes=False, dashboard_address=None, n_workers=1, threads_per_worker=1) as client:
        other = smidgen.sweep(trained, pictures(), executor=client.get_executor(), **SETTINGS)
    assert [p["nbytes"] for p in other.record["points"]] == [p["nbytes"] for p in found.record["points"]]


def test_integers_are_swept_with_one_kind_of_refit(trained):
    done = smidgen.sweep(trained, pictures(), points=2, target="onnx-w8", threads=1)
    plans = [json.loads(done.plan(point["name"])) for point in done.record["points"]]
    assert len({plan["moved"] for plan in plans}) == 1
    assert all(point["file"].endswith(".w8.onnx") for point in done.record["points"])


def test_without_time_nothing_is_kept_and_with_little_something(trained, monkeypatch):
    with pytest.raises(SmidgenError, match="no point was finished"):
        smidgen.sweep(trained, pictures(), time_limit=1e-9, **SETTINGS)
    clock = iter([0.0, 0.0, 0.0, *[100.0] * 1000])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    done = smidgen.sweep(trained, pictures(), time_limit=50.0, **SETTINGS)
    assert done.record["left"] > 0
    assert done.record["points"]
    assert "left for want of time" in done.table()


def test_pictures_and_tables_are_written(found):
    assert {"sweep.png", "sweep.svg", "sweep.csv", "sweep.json", "report.html"} <= {
        path.name for path in found.folder.iterdir()
    }
    rows = list(csv.DictReader(io.StringIO((found.folder / "sweep.csv").read_text())))
    assert [row["name"] for row in rows] == [point["name"] for point in found.record["points"]]
    assert sum(row["chosen"] == "True" for row in rows) == 1
    assert found.record["chosen"] in found.verdict()
    assert "<iframe" in found._repr_html_()


@pytest.mark.parametrize(
    ("given", "error", "told"),
    [
        ({"points": 1}, UserError, "between 2 and 1000"), ({"jobs": 0}, UserError, "between 1 and 256"),
        ({"time_limit": 0.0}, UserError, "leaves no time"), ({"budget": Budget(tradeoff=0.5)}, BudgetError, "tradeoff"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant(trained, given, error, told):
    with pytest.raises(error, match=told):
        smidgen.sweep(trained, pictures(), **{**SETTINGS, **given})


def test_no_data_is_refused_at_once(trained):
    with pytest.raises(DataError, match="give --data"):
        smidgen.sweep(trained)


def test_marks_are_read(tmp_path):
    path = tmp_path / "marks.csv"
    path.write_text("name,bytes,accuracy\nHan 2016,27 kB,0.9926\n\nours,1000,98%\n")
    assert read_marks(path) == [Mark("Han 2016", 27000, 0.9926), Mark("ours", 1000, 0.98)]
    for text in ("paper", "a:b", ":1kB:0.5", "a:1kB:x", "a:1kB:-1", "a:1kB:nan", "a:many:0.5"):
        with pytest.raises(UserError):
            read_mark(text)
    path.write_text("a,b\n")
    with pytest.raises(UserError, match="row 1"):
        read_marks(path)
    path.write_bytes(np.arange(256, dtype=np.uint8).tobytes())
    with pytest.raises(UserError, match="cannot be read"):
        read_marks(path)
