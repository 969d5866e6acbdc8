"""Report pages: whole in one file, escaped, legible for people and screen readers, and open to no one else's words."""

from __future__ import annotations

import json
import os
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from smidgen.cli import main
from smidgen.data import Dataset, Preprocess
from smidgen.data.items import PixelItems
from smidgen.measure.changed import changed_answers
from smidgen.report.folder import made_of, read_record
from smidgen.report.html import tag, text
from smidgen.report.page import comparison_page, in_notebook, result_page, sweep_page
from smidgen.report.thumbnails import thumbnails
from tests.serve.chromium import Browser

SHOTS = Path(__file__).resolve().parents[2] / "build" / "screenshots"
LARGEST = 1_500_000
HOSTILE = "</title><script>alert(1)</script>\"'&\x00\u202e"
DATA = {"count": 10, "sha256": "0" * 64, "source": "set.npz"}


def file(nbytes: int, **more: Any) -> dict[str, Any]:
    return {
        "path": "a.onnx", "nbytes": nbytes, "params": 100, "macs": 1000, "accuracy": 0.9, "agreement": 0.95, "kl": 0.01,
        "latency_ms": 1.0, "speedup": 1.5, "loss_points": 0.5, "loss_interval": [0.1, 0.9], "why": {}, **more,
    }  # fmt: skip


def result(name: str = "net", layers: int = 3) -> dict[str, Any]:
    changed = {"count": 2, "of": 10, "inputs": [{"place": i, "before": 0, "after": 1, "label": i % 2} for i in (3, 7)]}
    entries = [
        {"name": f"{name}.{i}", "form": "low-rank", "rank": 3, "bits": None, "nbytes_before": 4000 * (i + 1),
         "nbytes_after": 500, "predicted_loss": 0.01, "measured_loss": 0.02, "reason": None}
        for i in range(layers - 1)
    ]  # fmt: skip
    left = {
        "name": "last",
        "form": "dense",
        "rank": None,
        "nbytes_before": 99,
        "nbytes_after": 99,
        "reason": "too small",
    }
    stored = {"nbytes": 10, "zipped_nbytes": 9, "memory_nbytes": 10}
    return {
        "name": name, "mode": "calibration", "target": "onnx", "seed": 0, "threads": 1, "seconds": 2.5,
        "original": file(20_000), "files": {"onnx": file(4_000, changed=changed)}, "layers": [*entries, left],
        "budget": {"kind": "ratio", "value": 5.0, "met": True, "note": ""}, "versions": {"torch": "2"},
        "machine": {"processor": name}, "data": {"calibration": DATA, "selection": DATA, "test": DATA},
        "command": f"smidgen compress '{name}'",
        "ledger": {"files": {"original": {**stored, "peak_activation_bytes": 5}, "onnx": stored},
                   "layers": [{"name": name, "files": {"original": stored, "onnx": stored}}]},
    }  # fmt: skip


def front(name: str = "net") -> dict[str, Any]:
    def point(which: str, curves: list[str], nbytes: int, score: float) -> dict[str, Any]:
        return {
            "name": which, "curves": curves, "nbytes": nbytes, "ratio": 20_000 / nbytes, "macs": 5, "latency_ms": 0.5,
            "speedup": 2.0, "front": True, "selection": {"score": score, "points": 1.0, "error": 0.1},
            "test": {"score": score, "points": 1.0, "interval": [0.5, 1.5], "agreement": 0.9, "kl": 0.1},
            "layers": [{"site": name, "method": "svd", "rank": 3, "step": None, "bits": 8}],
        }  # fmt: skip

    return {
        "name": name, "measure": "accuracy", "chosen": "joint-2", "met": True, "seed": 0, "threads": 1, "seconds": 1.0,
        "budget": {"kind": "knee", "value": None}, "versions": {}, "data": {"test": DATA},
        "original": {"nbytes": 20_000, "test_score": 0.95, "selection_score": 0.95, "macs": 9, "latency_ms": 1.0},
        "marks": [{"name": name, "nbytes": 3000, "score": 0.8}],
        "points": [point("joint-1", ["joint", "svd"], 9000, 0.94), point("joint-2", ["joint"], 4000, 0.93),
                   point("svd-2", ["svd"], 4000, 0.7)],
    }  # fmt: skip


def pages(name: str = "net") -> dict[str, str]:
    image = thumbnails(Dataset.from_array(np.random.default_rng(0).random((8, 3, 8, 8), np.float32)), [3, 7])
    return {
        "result": result_page(result(name), image), "sweep": sweep_page(front(name)),
        "comparison": comparison_page(result(name), result("other", 5), (name, "b/")),
    }  # fmt: skip


class Elements(HTMLParser):
    """What a page is made of."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("kind", ["result", "sweep", "comparison"])
def test_names_of_files_are_text_and_nothing_else(kind: str) -> None:
    plain, hostile = (Elements(pages(name)[kind]) for name in ("net", HOSTILE))
    assert not hostile.open, "every element is closed"
    assert [each for each, _ in hostile.found] == [each for each, _ in plain.found]
    assert [set(attrs) for _, attrs in hostile.found] == [set(attrs) for _, attrs in plain.found]


@pytest.mark.parametrize("kind", ["result", "sweep", "comparison"])
def test_a_page_names_no_other_file(kind: str) -> None:
    page = Elements(pages()[kind])
    for name, attrs in page.found:
        assert name not in ("link", "iframe", "object", "embed", "base", "form")
        for key in ("src", "href", "action", "srcset"):
            assert (attrs.get(key) or "data:").startswith("data:")


def test_a_page_of_a_large_network_is_small() -> None:
    record = result(layers=900)
    noise = Dataset.from_array(np.random.default_rng(0).random((24, 3, 300, 300), np.float32))
    page = result_page(record, thumbnails(noise, range(24)))
    assert len(page.encode()) < LARGEST
    assert "300 more" in page


def test_a_notebook_shows_the_page_in_a_frame_of_its_own() -> None:
    (frame,) = Elements(in_notebook(pages()["result"])).found
    assert frame[0] == "iframe"
    assert frame[1]["sandbox"] == "allow-scripts"
    assert frame[1]["srcdoc"] == pages()["result"]


def test_text_is_what_a_document_may_hold() -> None:
    assert tag("p", text("\ud800\x01a"), title='"') == '<p title="&quot;">a</p>'


def test_an_image_is_shown_as_it_was() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 9, 7, 3), dtype=np.uint8)
    declared = Preprocess(scale=1 / 255, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.2), channels="bgr")
    data = Dataset(PixelItems(pixels, declared), np.arange(2), None, "set")
    from io import BytesIO

    from PIL import Image

    shown = np.asarray(Image.open(BytesIO(thumbnails(data, [1, 5])[1])))
    assert np.abs(shown.astype(int) - pixels[1]).max() <= 1
    assert thumbnails(Dataset.from_array(np.zeros((2, 5), np.float32)), [0]) == {}


def test_the_surest_changes_come_first() -> None:
    before = np.array([[3.0, 0.0], [9.0, 0.0], [0.0, 1.0], [5.0, 0.0]])
    after = np.array([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    found = changed_answers((before,), (after,), np.array([0, 1, 1, 0]), most=2)
    assert found is not None
    assert (found["count"], found["of"]) == (3, 4)
    assert [each["place"] for each in found["inputs"]] == [1, 3]
    assert changed_answers((before[:, :1],), (after[:, :1],), None) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda r: r.pop("original"), lambda r: r.update(files={"onnx": 3}), lambda r: r["original"].update(nbytes="x"),
        lambda r: r.update(budget=[]), lambda r: r.update(ledger={"files": {"a": None}, "layers": 1}),
        lambda r: r.update(layers={"a": 1}), lambda r: r["files"]["onnx"].update(changed={"inputs": [1], "count": 1}),
        lambda r: r["files"]["onnx"].update(loss_interval=[1]),
    ],
)  # fmt: skip
def test_a_damaged_record_is_one_clear_line(damage: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = result()
    damage(record)
    (tmp_path / "result.json").write_text(json.dumps(record))
    code = main(["report", str(tmp_path)])
    told = capsys.readouterr().err
    if code:  # a field that the page can do without may hold anything
        assert code == 2, told
        assert told.startswith("smidgen: error: report: ")
        assert told.count("\n") == 1
        assert not (tmp_path / "report.html").exists()


def test_an_unknown_field_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(json.dumps({**result(), "later": {"x": 1}}))
    assert main(["report", str(tmp_path), "-q"]) == 0
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == result_page(result())


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"points": 1}', "[" * 100_000])
def test_a_folder_that_holds_no_result(content: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if content is not None:
        (tmp_path / "result.json").write_text(content)
    assert main(["report", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_two_results_and_one_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    for name in ("a", "b"):
        (tmp_path / name / "result.json").write_text(json.dumps(result(name)))
    (tmp_path / "c" / "sweep.json").write_text(json.dumps(front()))
    a, b, c = (str(tmp_path / name) for name in ("a", "b", "c"))
    assert main(["report", a, b, "-o", str(tmp_path / "both.html")]) == 0
    assert "a.0" in (tmp_path / "both.html").read_text(encoding="utf-8")
    assert main(["report", c]) == 0
    assert made_of(sweep_page, read_record(c), where="c") == (tmp_path / "c" / "report.html").read_text("utf-8")
    assert main(["report", a, c]) == 2
    assert main(["report", a, b, c]) == 2
    assert main(["report", a, "-o", str(tmp_path / "none" / "x.html")]) == 2


SIZES = {"desktop": (1280, 900, False), "phone": (390, 844, False), "dark": (1280, 900, True)}


@pytest.mark.parametrize("kind", ["result", "sweep", "comparison"])
@pytest.mark.parametrize("size", SIZES)
def test_in_a_browser(browser: Browser, tmp_path: Path, kind: str, size: str) -> None:
    path = tmp_path / "report.html"
    path.write_text(pages()[kind], encoding="utf-8")
    width, height, dark = SIZES[size]
    browser.size(width, height, dark)
    browser.open(path.as_uri(), until="document.readyState === 'complete'")
    browser.screenshot(SHOTS / f"report_{kind}_{size}.png", full=True)
    assert browser.complaints() == []
    assert {address for address in browser.requested() if not address.startswith("data:")} == {path.as_uri()}
    assert browser.run("document.documentElement.scrollWidth") <= width, "nothing sticks out"
    assert browser.run("[...document.images].every(image => image.naturalWidth > 0)")
    if kind == "sweep":
        browser.run("document.querySelectorAll('.point')[1].dispatchEvent(new MouseEvent('click', {bubbles: true}))")
        assert "net: svd 3 8 bits" in browser.run("document.getElementById('told').textContent")


@pytest.mark.parametrize("kind", ["result", "sweep", "comparison"])
@pytest.mark.parametrize("dark", [False, True])
def test_axe_finds_no_serious_fault(browser: Browser, tmp_path: Path, kind: str, dark: bool) -> None:
    axe = Path(os.environ.get("AXE_CORE", Path(__file__).resolve().parents[2] / "build" / "axe-core" / "axe.min.js"))
    if not axe.is_file():
        pytest.skip("no axe-core here: make axe fetches it")
    path = tmp_path / "report.html"
    path.write_text(pages()[kind], encoding="utf-8")
    browser.size(1280, 900, dark)
    browser.open(path.as_uri(), until="document.readyState === 'complete'")
    browser.run(axe.read_text(encoding="utf-8") + "; 0")
    told = browser.run(
        "axe.run().then(found => JSON.stringify(found.violations.map(v => [v.impact, v.id, v.nodes[0].html])))"
    )
    assert [each for each in json.loads(told) if each[0] in ("serious", "critical")] == []
