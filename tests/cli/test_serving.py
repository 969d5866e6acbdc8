"""``smidgen serve`` as a command: what it refuses in one line, and as a process that Ctrl-C ends."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from smidgen.cli import serving
from smidgen.serve import vendor
from smidgen.serve.server import PageServer
from tests.serve.networks import classifier, saved_run

Run = Callable[..., tuple[int, str, str]]
Refused = Callable[..., None]
GRAY = {"scale": 1 / 128, "mean": [1.0], "channels": "gray"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return saved_run(tmp_path / "out", GRAY)


@pytest.fixture
def _runtimes(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins for the browser's runtimes, which the server only hands on."""
    place = tmp_path_factory.mktemp("vendor")
    for package in vendor.PACKAGES:
        for name in package.files:
            (place / package.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (place / package.folder / name).touch()
    found = vendor.vendored(place)
    monkeypatch.setattr(serving, "vendored", lambda: found)


@pytest.fixture
def refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> Refused:
    def never(*_: object) -> None:
        raise AssertionError("it serves what it should refuse")

    monkeypatch.setattr(PageServer, "serve_forever", never)

    def refused(*arguments: str | Path, told: str) -> None:
        code, out, err = run("serve", *arguments)
        assert (code, out) == (2, ""), err
        assert err.startswith("smidgen: error: ")
        assert err.count("\n") == 1
        assert told in err

    return refused


def test_missing_runtimes(refused: Refused, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "vendored", lambda: vendor.vendored(tmp_path / "nothing"))
    refused(folder, told="fetch them: python -m smidgen.serve.vendor")


@pytest.mark.usefixtures("_runtimes")
def test_what_cannot_be_served(refused: Refused, folder: Path, tmp_path: Path) -> None:
    refused(tmp_path / "none", told="there is no folder")
    refused(tmp_path, told="holds no result.json")
    refused(folder, "--against", tmp_path / "none.onnx", told="there is no file")
    refused(folder, "--target", "tflite", told="there is no 'tflite' that a browser runs; there is onnx, onnx-w8")
    refused(folder, "--samples", "0", told="not between 1 and 1000")
    refused("--host", folder, told="is no IP address; name the folder before --host")
    refused(folder, "--port", "70000", told="not between 0 and 65535")
    refused(folder, "--host", "192.0.2.1", "--port", "0", told="is no address of this machine")
    refused(folder, "--scale", "1/255", told="without --data")
    (tmp_path / "names.txt").write_text("ant\nbee\n")
    refused(folder, "--classes", tmp_path / "names.txt", told="names 2 classes, the network gives 4")
    np.save(tmp_path / "wrong.npy", np.zeros((3, 1, 9, 9), np.float32))
    refused(folder, "--data", tmp_path / "wrong.npy", "--scale", "1", told="(1, 9, 9)")
    (folder / "small.onnx").write_bytes(b"noise")
    refused(folder, told="cannot open")
    (folder / "small.onnx").unlink()
    refused(folder, told="the original 'small.onnx' is not in")


@pytest.mark.usefixtures("_runtimes")
def test_a_port_in_use(refused: Refused, folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused(folder, "--port", str(port), told=f"port {port} is in use; give another with --port")


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX")
@pytest.mark.parametrize("more", [[], ["--host"]])
def test_until_ctrl_c(folder: Path, tmp_path: Path, more: list[str]) -> None:
    if more and shutil.which("openssl") is None:
        pytest.importorskip("cryptography", reason="nothing here makes a certificate")
    try:
        vendor.vendored()
    except vendor.LoadError as error:
        pytest.skip(str(error))
    images = tmp_path / "images"
    for name in ("ant", "bee", "cow", "doe"):
        (images / name).mkdir(parents=True)
        pixels = np.random.default_rng(len(name)).integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(images / name / "1.png")
    original = classifier(tmp_path / "mine.onnx")
    command = [sys.executable, "-m", "smidgen", "serve", str(folder), "--against", str(original), "--port", "0",
               "--data", str(images), *more]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    told = process.stdout.readline()
    address = next(word for word in told.split() if "://" in word)
    scheme, _, rest = address.partition("://")
    port = int(rest.rstrip("/").rpartition(":")[2])
    try:
        assert scheme == ("https" if more else "http"), told
        if more:
            assert ":" in process.stdout.readline() + process.stdout.readline(), "the fingerprint"
        else:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            connection.request("GET", "/bench.json")
            bench = json.loads(connection.getresponse().read())
            connection.close()
            assert (bench["original"]["file"], bench["written"][0]["file"]) == ("mine.onnx", "model.onnx")
            assert bench["classes"] == ["ant", "bee", "cow", "doe"]
            assert bench["samples"]["count"] == 4
            assert bench["preprocess"]["mean"] == [1.0], "the run's own, for nothing else was declared"
    finally:
        process.send_signal(signal.SIGINT)
        _, complaints = process.communicate(timeout=60)
    assert process.returncode == 0, complaints
    assert complaints.strip() == ""
