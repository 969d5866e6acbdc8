"""The page in a browser at a phone's size: what it computes is what Python computes, and it asks nobody else."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from smidgen.data import Preprocess, open_data
from smidgen.runtimes.opening import open_file
from smidgen.serve.certificate import own_names, secure_context
from smidgen.serve.folder import read_run
from smidgen.serve.routes import build_routes
from smidgen.serve.samples import Samples, noise, take_samples
from smidgen.serve.server import open_server
from smidgen.serve.vendor import FOLDER, vendored
from tests.serve.chromium import Browser
from tests.serve.conftest import Serving
from tests.serve.networks import CLASSES, saved_run, write_record

SHOTS = Path(__file__).resolve().parents[2] / "build" / "screenshots"
GRAY = {"scale": 1 / 128, "mean": [1.0], "channels": "gray"}
Show = Callable[..., str]


@pytest.fixture
def show() -> Iterator[Show]:
    """Serves a run's folder for the time of a test; the page's address."""
    with ExitStack() as stack:

        def show(folder: Path, samples: Samples, classes: tuple[str, ...] = (), tls: Any = None, **more: Any) -> str:
            routes = build_routes(read_run(folder, **more), samples, vendored(), classes)
            return stack.enter_context(Serving(open_server(routes, port=0, tls=tls))).url()

        yield show


def pictures(channels: int = 1, count: int = 12) -> Samples:
    declared = Preprocess.from_dict(GRAY) if channels == 1 else Preprocess(scale=1 / 255)
    samples = noise((None, channels, 8, 8), declared, count)
    return replace(samples, labels=np.arange(count) % CLASSES, source="set")


def answers(path: Path, x: np.ndarray) -> np.ndarray:
    with open_file(path) as runner:
        return runner.run(x)[0]


def quiet(browser: Browser, url: str) -> None:
    """Nothing was asked of anybody else, and nothing went wrong."""
    assert browser.complaints() == []
    asked = [address for address in browser.requested() if not address.startswith(("blob:", "data:", "about:"))]
    assert len(asked) > 10
    assert {address for address in asked if not address.startswith(url)} == set()


def test_both_networks_answer_as_in_python(browser: Browser, show: Show, tmp_path: Path) -> None:
    folder, samples = saved_run(tmp_path / "out", GRAY), pictures()
    url = show(folder, samples, ("ant", "bee", "cow", "doe"))
    browser.open(url)
    assert browser.run("document.documentElement.dataset.state") == "ready", browser.run("document.body.innerText")
    original, written = (answers(folder / name, samples.x) for name in ("small.onnx", "model.onnx"))
    found = np.array(browser.run("smidgen.answers().map(all => all.map(outputs => Array.from(outputs[0])))"))
    assert np.abs(found[0] - original).max() < 1e-5
    assert np.abs(found[1] - written).max() < 1e-5
    record = json.loads(browser.run("JSON.stringify(smidgen.record())"))
    same = int((original.argmax(1) == written.argmax(1)).sum())
    assert record["agreeing"] == same < 12, "the change is large enough to be seen"
    for which, outputs in (("original", original), ("written", written)):
        assert record[which]["right"] == int((outputs.argmax(1) == samples.labels).sum())
        low, high = record[which]["latency_quartiles_ms"]
        assert 0 < low <= record[which]["latency_ms"] <= high
    low, high = record["speedup_quartiles"]
    assert 0 < low <= record["speedup"] <= high
    error = np.linalg.norm(written - original) / np.linalg.norm(original)
    assert record["output_error"] == pytest.approx(error, rel=1e-4)
    assert record["isolated"] is True
    text = browser.run("document.body.innerText")
    assert f"{same}/12" in text
    assert "doe" in text
    assert re.search(r"75\.00 %\s+50\.00 %", text), "what the report says of both"
    assert browser.run("document.querySelectorAll('.tile.differ').length") == 12 - same
    quiet(browser, url)


def test_another_smaller_network_and_threads(browser: Browser, show: Show, tmp_path: Path) -> None:
    url = show(saved_run(tmp_path / "out", GRAY), pictures())
    browser.open(f"{url}?target=onnx-w8&threads=2")
    assert json.loads(browser.run("JSON.stringify(smidgen.record())"))["agreeing"] == 12, "that one is the original"
    assert json.loads(browser.run("JSON.stringify(smidgen.record())"))["written"]["file"] == "model.w8.onnx"
    if browser.run("navigator.hardwareConcurrency") > 1:
        assert json.loads(browser.run("JSON.stringify(smidgen.record())"))["written"]["threads"] == 2
    browser.run("(s => { s.value = '0'; s.dispatchEvent(new Event('change')); })(document.getElementById('written'))")
    browser.wait("document.documentElement.dataset.state === 'ready' && smidgen.record().agreeing < 12")
    quiet(browser, url)


DECLARED = [
    {}, {"resize": 24}, {"resize": [9, 31]}, {"crop": 21}, {"resize": 40, "crop": [30, 20]}, {"resize": 90},
    {"crop": 25, "resize": [12, 7], "crop_first": True}, {"channels": "gray", "resize": 11},
    {"channels": "bgr", "mean": [104.0, 117.0, 123.0], "crop": [20, 21]},
    {"layout": "nhwc", "scale": 1 / 255, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "resize": 16},
    {"scale": 1 / 127.5, "mean": [1.0], "std": [0.7]},
]  # fmt: skip


@pytest.mark.parametrize("size", [(37, 53), (53, 36), (3, 40)])
def test_preprocessing_is_pythons(browser: Browser, show: Show, tmp_path: Path, size: tuple[int, int]) -> None:
    browser.open(show(saved_run(tmp_path / "out", GRAY), pictures()))
    image = np.random.default_rng(3).integers(0, 256, (*size, 3), dtype=np.uint8)
    rgba = np.dstack([image, np.full(size, 255, np.uint8)])
    checked = 0
    for declared in (Preprocess.from_dict(each) for each in DECLARED):
        if declared.crop is not None and min(size) < 40:
            continue
        expected = declared(image)
        call = f"prepare(new ImageData(new Uint8ClampedArray({rgba.ravel().tolist()}), {size[1]}, {size[0]}), " \
               f"{json.dumps(declared.to_dict())}, {list(expected.shape)})"  # fmt: skip
        got = browser.run(f"import('/preprocess.js').then(({{prepare}}) => {{ const made = {call}; "
                          "return [made.adapted, Array.from(made.x)]; })")  # fmt: skip
        assert got[0] is False
        apart = np.abs(np.array(got[1], np.float32) - expected.ravel())
        # Pillow from 13 on resizes tall images rows first, which may round a pixel to its neighbour.
        level = 0.0 if size[0] <= size[1] else 1.001 * declared.scale / min(declared.std or (1.0,))
        assert apart.max() <= level, declared
        assert (apart > 0).mean() < 0.25
        checked += 1
    assert checked >= 7


def test_a_chosen_picture(browser: Browser, show: Show, tmp_path: Path) -> None:
    folder = saved_run(tmp_path / "out", GRAY)
    url = show(folder, pictures(), ("ant", "bee", "cow", "doe"))
    browser.open(url)
    pixels = np.random.default_rng(4).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "mine.png")
    (tmp_path / "none.png").write_text("no picture")

    def choose(name: str) -> None:
        field = browser.send("Runtime.evaluate", expression="document.getElementById('choose')")["result"]["objectId"]
        browser.send("DOM.setFileInputFiles", files=[str(tmp_path / name)], objectId=field)

    choose("mine.png")
    browser.wait("document.getElementById('viewer-title').textContent === 'mine.png'")
    x = Preprocess.from_dict(GRAY)(pixels)[None]
    for which, name in (("original", "small.onnx"), ("written", "model.onnx")):
        first = ["ant", "bee", "cow", "doe"][int(answers(folder / name, x)[0].argmax())]
        assert browser.run(f"document.querySelector('#answer-{which} .class').textContent") == first
    choose("none.png")
    browser.wait("document.getElementById('own-note').textContent.includes('cannot be read as a picture')")
    quiet(browser, url)


def test_the_camera(browser: Browser, show: Show, tmp_path: Path) -> None:
    url = show(saved_run(tmp_path / "out", {"scale": 1 / 255}, channels=3), pictures(3))
    browser.open(url)
    browser.run("document.getElementById('camera').click()")
    browser.wait("document.getElementById('viewer-title').textContent === 'Camera'")
    assert browser.run("document.getElementById('camera').getAttribute('aria-pressed')") == "true"
    assert "8 × 8" in browser.run("document.getElementById('own-note').textContent")
    browser.run("document.querySelector('.tile').click()")
    browser.wait("document.getElementById('viewer-title').textContent.startsWith('Sample 1')")
    assert browser.run("document.getElementById('video').srcObject") is None, "and it is off"
    quiet(browser, url)


def test_a_browser_without_simd(browser: Browser, show: Show, tmp_path: Path) -> None:
    lacking = browser.send("Page.addScriptToEvaluateOnNewDocument", source="WebAssembly.validate = () => false")
    try:
        browser.open(show(saved_run(tmp_path / "out", GRAY), pictures()))
        assert browser.run("document.documentElement.dataset.state") == "failed"
        assert "no WebAssembly SIMD" in browser.run("document.querySelector('[role=alert]').textContent")
        assert browser.run("document.getElementById('status').hidden"), "nothing turns"
    finally:
        browser.send("Page.removeScriptToEvaluateOnNewDocument", identifier=lacking["identifier"])


def test_files_that_are_missing_or_damaged(browser: Browser, show: Show, tmp_path: Path) -> None:
    folder = saved_run(tmp_path / "out", GRAY)
    url = show(folder, pictures())
    whole = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").unlink()
    browser.open(url)
    assert browser.run("document.querySelector('[role=alert]').textContent") == (
        "model.onnx could not be loaded (404). Was it removed from the folder?"
    )
    (folder / "model.onnx").write_bytes(whole[:500])
    browser.open(f"{url}?again")
    assert browser.run("document.documentElement.dataset.state") == "failed"
    told = browser.run("document.querySelector('[role=alert]').textContent")
    assert re.match(r"ONNX Runtime Web 1[.\d]+ cannot open model\.onnx: ", told)
    # Another smaller network is still to be had.
    browser.run("(s => { s.value = '1'; s.dispatchEvent(new Event('change')); })(document.getElementById('written'))")
    browser.wait("document.documentElement.dataset.state === 'ready'")
    assert browser.run("document.querySelector('[role=alert]').hidden")


def test_inputs_that_are_no_pictures(browser: Browser, show: Show, tmp_path: Path) -> None:
    folder = saved_run(tmp_path / "out")
    x = np.random.default_rng(0).normal(size=(3, 1, 8, 8)).astype(np.float32)
    browser.open(show(folder, Samples(x, None, None, None)))
    assert browser.run("document.documentElement.dataset.state") == "ready"
    assert browser.run("document.getElementById('camera').disabled")
    assert "not declared" in browser.run("document.getElementById('own-note').textContent")
    assert "random noise" in browser.run("document.body.innerText")


def test_over_https_the_page_is_isolated_too(browser: Browser, show: Show, tmp_path: Path) -> None:
    context, _ = secure_context(own_names(None))
    url = show(saved_run(tmp_path / "out", GRAY), pictures(), tls=context)
    browser.open(url)
    assert url.startswith("https://")
    assert browser.run("[isSecureContext, crossOriginIsolated, document.documentElement.dataset.state].join()") == (
        "true,true,ready"
    )


@pytest.mark.slow
def test_lenet_on_digits(browser: Browser, show: Show, tmp_path: Path, data_dir: Path) -> None:
    import smidgen

    digits = open_data(data_dir / "mnist" / "t10k-images-idx3-ubyte.gz")
    train = open_data(data_dir / "mnist" / "train-images-idx3-ubyte.gz").take(range(200))
    lenet = data_dir / "models" / "lenet_mnist.onnx"
    budget = smidgen.Budget(ratio=12)
    result = smidgen.compress(lenet, train, budget=budget, test=digits.take(range(200)), methods="svd", refit=False)
    result.save(tmp_path / "out")
    samples = take_samples(digits, (None, 1, 28, 28), Preprocess(channels="gray"))
    url = show(tmp_path / "out", samples, against=lenet)
    browser.open(url)
    assert browser.run("document.documentElement.dataset.state") == "ready", browser.run("document.body.innerText")
    original, written = (answers(path, samples.x) for path in (lenet, tmp_path / "out" / "model.onnx"))
    found = np.array(browser.run("smidgen.answers().map(all => all.map(outputs => Array.from(outputs[0])))"))
    for got, expected in zip(found, (original, written), strict=True):
        assert np.abs(got - expected).max() <= 1e-4 * np.abs(expected).max()
    record = json.loads(browser.run("JSON.stringify(smidgen.record())"))
    assert record["agreeing"] == int((original.argmax(1) == written.argmax(1)).sum()) >= 18
    assert record["original"]["nbytes"] >= 12 * record["written"]["nbytes"]
    for name, (width, height, dark) in {
        "phone": (390, 844, False), "phone-dark": (390, 844, True),
        "desktop": (1280, 800, False), "desktop-dark": (1280, 800, True),
    }.items():  # fmt: skip
        browser.size(width, height, dark)
        assert browser.run("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out"
        browser.screenshot(SHOTS / f"serve-{name}.png", full=True)
    with Image.open(SHOTS / "serve-phone.png") as shot:
        assert shot.width == 780
    assert FOLDER.is_dir()
    quiet(browser, url)


@pytest.mark.slow
def test_tflite_beside_onnx(browser: Browser, show: Show, tmp_path: Path) -> None:
    litert_torch = pytest.importorskip("litert_torch", reason="the extra 'tflite' is not installed")
    import torch
    from torch import nn

    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 6, CLASSES)).eval()
    samples, folder = pictures(3), saved_run(tmp_path / "out", channels=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # notices of the converter
        made = litert_torch.convert(
            litert_torch.to_channel_last_io(net, args=[0]), (torch.from_numpy(samples.x[:1].transpose(0, 2, 3, 1)),)
        )
        made.export(str(folder / "model.tflite"))
    record = json.loads((folder / "result.json").read_text())
    write_record(folder, {**record, "target": "tflite", "files": {"tflite": {"path": "model.tflite"}}})
    url = show(folder, samples)
    browser.open(url)
    assert browser.run("document.documentElement.dataset.state") == "ready", browser.run("document.body.innerText")
    found = np.array(browser.run("smidgen.answers()[1].map(outputs => Array.from(outputs[0]))"))
    with torch.no_grad():
        expected = net(torch.from_numpy(samples.x)).numpy()
    assert np.abs(found - expected).max() < 1e-5, "channels first became channels last"
    assert "LiteRT.js" in browser.run("document.body.innerText")
    quiet(browser, url)


WORDS = {
    "bytes(999)": "999 bytes", "bytes(74900)": "74.9 kB", "bytes(3253851)": "3.25 MB", "bytes(999600)": "1.00 MB",
    "milliseconds(0.02281)": "0.0228 ms", "milliseconds(148.3)": "148 ms", "times(8.1)": "8.1×", "times(27.4)": "27×",
    "times(0.914)": "0.91×", "percent(1)": "100 %", "percent(0.51)": "51.0 %", "error(0)": "0 %",
    "error(7.9e-7)": "< 0.01 %", "error(0.0123)": "1.2 %", "plural(1, 'thread')": "1 thread",
    "plural(4, 'thread')": "4 threads",
}  # fmt: skip


def test_numbers_in_words(browser: Browser, show: Show, tmp_path: Path) -> None:
    browser.open(show(saved_run(tmp_path / "out", GRAY), pictures()))
    told = browser.run(f"import('/words.js').then(w => {{ return {json.dumps(list(WORDS))}.map(call => "
                       "{ const [, name, rest] = call.match(/(\\w+)\\((.*)\\)/); "
                       "return w[name](...JSON.parse('[' + rest.replaceAll(\"'\", '\"') + ']')); }); })")  # fmt: skip
    assert dict(zip(WORDS, told, strict=True)) == WORDS


def test_latency_of_calls_that_take_known_times(browser: Browser, show: Show, tmp_path: Path) -> None:
    browser.open(show(saved_run(tmp_path / "out", GRAY), pictures()))
    # The clock moves by what the calls take, and by nothing else.
    clock = (
        "let now = 0; performance.now = () => now; const calls = [8, 2].map(ms => () => { now += ms; order.push(ms) })"
    )
    found = browser.run(f"import('/measure.js').then(async ({{latencies}}) => {{ const order = []; {clock}; "
                        "return { ...await latencies(calls), order }; })")  # fmt: skip
    assert [each["median"] for each in found["times"]] == pytest.approx([8, 2])
    assert found["speedup"] == pytest.approx({"median": 4, "low": 4, "high": 4})
    assert found["rounds"] >= 15
    turns = [call for call, before in zip(found["order"], [None, *found["order"]], strict=False) if call != before]
    assert len(turns) > found["rounds"], "in turns"
