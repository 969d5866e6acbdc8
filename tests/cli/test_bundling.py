"""``smidgen bundle``: what travels, what the scripts do with it, and what comes back."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from smidgen.cli import main
from smidgen.report.result import Result
from smidgen.report.table import to_text

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, network: Path) -> Path:
    """A finished run of two targets."""
    out = tmp_path_factory.mktemp("made") / "out"
    targets = "onnx-w8,onnx"
    assert main(["compress", str(network), "--ratio", "1.5", "--target", targets, "-o", str(out), "-q"]) == 0
    return out


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    """A copy of it, to write into."""
    return Path(shutil.copytree(made, tmp_path / "out"))


def on_the_device(bundle: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """bench.py where smidgen cannot be imported."""
    trap = bundle.parent / "trap"
    trap.mkdir(exist_ok=True)
    (trap / "smidgen.py").write_text("raise ImportError('smidgen was imported')")
    return subprocess.run(
        [sys.executable, str(bundle / "bench.py"), *arguments], capture_output=True, text=True, check=False,
        cwd=trap, env={**os.environ, "PYTHONPATH": str(trap)},
    )  # fmt: skip


def test_there_and_back(run: Run, out: Path, tmp_path: Path, network: Path, data: Path) -> None:
    bundle = tmp_path / "bundle"
    code, told, err = run("bundle", out, "-o", bundle, "--against", network, "--data", data, "--samples", "5", "-q")
    assert (code, err) == (0, "")
    assert "left out: archive: 'model.smidgen'" in told
    assert sorted(path.name for path in bundle.iterdir()) == sorted([
        "android.sh", "bench.py", "bundle.json", "inputs.npy", "model.onnx", "model.onnx.reference0.npy",
        "model.w8.onnx", "model.w8.onnx.reference0.npy", "original.onnx", "original.onnx.reference0.npy",
    ])  # fmt: skip
    np.testing.assert_array_equal(np.load(bundle / "inputs.npy"), np.load(data)["x"][:5])
    assert (bundle / "original.onnx").read_bytes() == network.read_bytes()

    done = on_the_device(bundle, "--seconds", "0.05", "--threads", "1,2", "--name", "a Pi")
    assert done.returncode == 0, done.stderr
    assert "as on x86" in done.stdout
    results = bundle / "results.json"
    code, told, err = run("bundle", out, "--merge", results, "-q")
    assert (code, err) == (0, "")
    assert "a Pi" in told
    device = json.loads((out / "result.json").read_text())["devices"][0]
    assert list(device["files"]) == ["original", "onnx-w8", "onnx"]
    for file in device["files"].values():
        assert file["outputs"]["agree"]
        assert [timing["threads"] for timing in file["timings"]] == [1, 2]
        assert all(timing["latency_ms"] > 0 for timing in file["timings"])
        assert file["energy_estimate"]["joules"] > 0
        assert file["energy_estimate"]["source"].startswith("estimate")
    for timing in device["files"]["onnx"]["timings"]:
        assert (timing["joules"] is None) == (timing["joules_reason"] is not None)
    assert "On devices" in to_text(json.loads((out / "result.json").read_text()))

    # Measured again it is one device still.
    assert run("bundle", out, "--merge", results, results, "-q")[0] == 0
    assert len(json.loads((out / "result.json").read_text())["devices"]) == 1


def test_wrong_answers_are_told(run: Run, out: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    assert run("bundle", out, "-o", bundle, "-q")[0] == 0
    place = bundle / "model.onnx.reference0.npy"
    wrong = np.load(place)
    wrong[0, 0] += 0.01 * np.abs(wrong).max()
    np.save(place, wrong)
    done = on_the_device(bundle, "--outputs-only")
    assert done.returncode == 1
    assert done.stdout.count("DIFFER") == 1
    assert run("bundle", out, "--merge", bundle / "results.json", "-q")[1].count("DIFFER by") == 1


def test_a_bundle_that_was_not_copied_whole(run: Run, out: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    assert run("bundle", out, "-o", bundle, "-q")[0] == 0
    path = bundle / "model.onnx"
    path.write_bytes(path.read_bytes()[:-3])
    done = on_the_device(bundle)
    assert (done.returncode, done.stdout) == (2, "")
    assert "'model.onnx' is not the file that was bundled" in done.stderr
    (bundle / "bundle.json").unlink()
    assert "is no whole bundle" in on_the_device(bundle).stderr


FAKE_ADB = r"""#!/bin/sh
echo "$@" >> "$ADB_LOG"
case "$*" in
  *get-state) echo device ;;
  *"getprop ro.product.model") printf 'Pixel "7"\r\n' ;;
  *"getprop ro.product.cpu.abi") echo arm64-v8a ;;
  *"getprop "*) echo 14 ;;
  *--num_threads=*)
    threads=$(echo "$*" | sed 's/.*--num_threads=\([0-9]*\).*/\1/')
    echo "INFO: [./benchmark_model.h:1] Inference timings in us: Init: 9, First inference: 99, \
Warmup (avg): 88, Inference (avg): $((6000 / threads))" ;;
esac
"""


@pytest.fixture
def phone(run: Run, out: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """android.sh of a bundle with a .tflite file, beside an adb that only says what it was asked."""
    assert run("bundle", out, "-o", tmp_path / "bundle", "-q")[0] == 0
    adb = tmp_path / "bin" / "adb"
    adb.parent.mkdir()
    adb.write_text(FAKE_ADB)
    adb.chmod(0o755)

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", str(tmp_path / "bundle" / "android.sh"), *arguments], capture_output=True, text=True, check=False,
            cwd=tmp_path,
            env={**os.environ, "PATH": f"{adb.parent}:{os.environ['PATH']}", "ADB_LOG": str(tmp_path / "adb.log")},
        )  # fmt: skip

    return call


def test_android_pushes_times_and_writes_results(
    phone: Callable[..., subprocess.CompletedProcess[str]], run: Run, out: Path, tmp_path: Path
) -> None:
    record: dict[str, Any] = json.loads((out / "result.json").read_text())
    record["files"]["tflite"] = {"path": "model.tflite"}
    (out / "result.json").write_text(json.dumps(record))
    for folder in (out, tmp_path / "bundle"):
        (folder / "model.tflite").write_bytes(b"a network, for all that adb knows")
    tool = tmp_path / "benchmark_model"
    tool.write_text("a program")
    done = phone("--threads", "1 4", "--runs", "20", "--benchmark", str(tool), "--serial", "XYZ")
    assert (done.returncode, done.stderr) == (0, "")
    place = "/data/local/tmp/smidgen"
    timed = f"-s XYZ shell {place}/benchmark_model --graph={place}/model.tflite --num_threads={{}} --num_runs=20 "
    asked = (tmp_path / "adb.log").read_text().splitlines()
    assert asked[:5] == [
        "-s XYZ get-state", f"-s XYZ shell mkdir -p {place}", f"-s XYZ push {tool} {place}/benchmark_model",
        f"-s XYZ shell chmod 755 {place}/benchmark_model",
        f"-s XYZ push {tmp_path / 'bundle' / 'model.tflite'} {place}/model.tflite",
    ]  # fmt: skip
    runs = [timed.format(count) + "--warmup_runs=5 --use_xnnpack=true" for count in (1, 4)]
    assert asked[5:11] == runs * 3
    code, told, err = run("bundle", out, "--merge", tmp_path / "android.json", "-q")
    assert (code, err) == (0, "")
    device = json.loads((out / "result.json").read_text())["devices"][0]
    assert (device["name"], device["machine"], device["system"]) == ("Pixel 7", "arm64-v8a", "Android 14")
    timings = device["files"]["tflite"]["timings"]
    assert [(each["threads"], each["latency_ms"], each["runs"]) for each in timings] == [(1, 6.0, 60), (4, 1.5, 60)]
    assert "Pixel 7" in told


def test_android_says_what_is_missing(phone: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    assert "no .tflite file" in phone().stderr
    (tmp_path / "bundle" / "model.tflite").write_bytes(b"a network")
    assert "whole numbers" in phone("--threads", "two").stderr
    assert "no option '--thread'" in phone("--thread", "2").stderr
    assert "there is no file 'none'" in phone("--benchmark", "none").stderr
    adb = tmp_path / "bin" / "adb"
    adb.write_text("#!/bin/sh\nexit 1\n")
    told = phone()
    assert (told.returncode, "no device answers" in told.stderr) == (2, True)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("not json", "is not JSON"),
        ("[1]", "is no JSON object"),
        ("{}", "holds no results"),
        (
            '{"schema_version": 1, "device": {}, "files": [{"path": "model.onnx", "sha256": "00"}]}',
            "another 'model.onnx'",
        ),
    ],
)
def test_damaged_results(run: Run, out: Path, tmp_path: Path, content: str, told: str) -> None:
    before = (out / "result.json").read_bytes()
    (tmp_path / "results.json").write_text(content)
    code, _, err = run("bundle", out, "--merge", tmp_path / "results.json", "-q")
    assert code == 2
    assert told in err
    assert err.count("\n") == 1
    assert (out / "result.json").read_bytes() == before


def test_only_what_is_expected_gets_into_the_record(run: Run, out: Path, tmp_path: Path) -> None:
    timing = {"threads": 1, "latency_ms": float("nan"), "joules": "many", "speedup": -1, "evil": 1}
    files = [{"path": "original.onnx", "timings": [timing, "no"], "outputs": {"agree": "yes"}, "nbytes": True}]
    device = {"name": "\x1b[31mred", "model": {"a": 1}}
    (tmp_path / "r.json").write_text(json.dumps({"schema_version": 1, "device": device, "files": files}))
    code, told, _ = run("bundle", out, "--merge", tmp_path / "r.json", "-q")
    assert code == 0
    assert "\x1b" not in told
    merged = json.loads((out / "result.json").read_text())["devices"][0]
    assert merged["name"] == "[31mred"
    kept = merged["files"]["original"]
    assert kept["outputs"]["agree"] is False
    assert kept["nbytes"] is None
    assert len(kept["timings"]) == 1
    assert {each for each in kept["timings"][0].values() if not isinstance(each, list)} == {1, None}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["{out}"], "name one with -o"),
        (["none", "-o", "{new}"], "cannot be read"),
        (["{out}", "-o", "{out}"], "holds the run itself"),
        (["{out}", "-o", "{new}", "--samples", "0"], "samples=0"),
        (["{out}", "-o", "{new}", "--against", "none.onnx"], "none.onnx"),
        (["{out}", "--merge", "none.json"], "cannot be read"),
        (["{out}", "--merge", "{out}/result.json", "-o", "{new}"], "leave -o"),
    ],
)
def test_mistakes_are_one_line(run: Run, out: Path, tmp_path: Path, arguments: list[str], told: str) -> None:
    code, said, err = run("bundle", *[each.format(out=out, new=tmp_path / "new") for each in arguments], "-q")
    assert (code, said) == (2, "")
    assert err.count("\n") == 1
    assert told in err


def test_python_does_the_same(out: Path, tmp_path: Path) -> None:
    import smidgen

    record = smidgen.bundle(out, tmp_path / "bundle", data=np.zeros((3, 1, 8, 8), np.float32))
    assert record["count"] == 3
    assert Result is smidgen.Result
    assert on_the_device(tmp_path / "bundle", "--outputs-only").returncode == 0
    merged = smidgen.merge(tmp_path / "bundle" / "results.json", out)
    assert len(merged["devices"]) == 1
