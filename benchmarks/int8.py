"""Static int8 in ONNX against onnxruntime's own and NNCF's: the same training inputs, the same test split, one run.

All files run in onnxruntime; what each loses and how fast it is is measured there. The best setting of a peer is taken
after the fact, in its favour. NNCF runs in an environment of its own: benchmarks/README.md says how to make it.

    python benchmarks/int8.py --nncf-python …/bin/python
    python benchmarks/int8.py --networks lenet resnet20
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import process
import sets
from archive import write_data
from claims import RESULTS, Claim, earlier, joined, save, show

from smidgen.data import Dataset
from smidgen.measure.scores import Judge
from smidgen.measure.speed import compare_speed
from smidgen.runtimes.onnxruntime import open_onnx
from smidgen.runtimes.opening import open_file, run_dataset

TITLE = "Static int8 in ONNX, calibration only, in onnxruntime, against onnxruntime's own and NNCF's"
SHARE = 0.28  # of the float file's bytes
PEER_INPUTS = 300  # onnxruntime keeps every activation of every input
FASTER = 1.5  # asked of the two ImageNet networks
NOISE = 0.97  # of a ratio of times, measured three times each


@dataclass(frozen=True)
class Asked:
    file: str
    points: float
    faster: float | None = None


ASKED = {
    "lenet": Asked("lenet_mnist.onnx", 0.3),
    "resnet20": Asked("resnet20_cifar10_jpegft.onnx", 0.3),
    "catsdogs": Asked("ai85cd_catsdogs.onnx", 0.3),
    "squeezenet": Asked("squeezenet1_1_imagenet.onnx", 1.0, FASTER),
    "mobilenet_v2": Asked("mobilenet_v2_1.0_224_imagenet.onnx", 1.0, FASTER),
}


def ours(name: str, folder: Path, threads: int, seed: int) -> Path:
    """smidgen's file at the size that is asked for."""
    out = folder / "smidgen.onnx"
    nbytes = int(SHARE * sets.model(ASKED[name].file).stat().st_size)
    arguments = [
        str(sets.model(ASKED[name].file)), *write_data(name, seed, folder), "--target", "onnx-int8",
        "--size", str(nbytes), "--seed", str(seed),
    ]  # fmt: skip
    run = process.compress(arguments, threads, out, "onnx-int8")
    print(f"{name}: smidgen took {run.wall_s:.0f} s, {run.record['peak_rss_bytes'] / 1e9:.2f} GB", flush=True)
    return out


def onnxruntimes(name: str, inputs: np.ndarray, folder: Path) -> dict[str, Path]:
    """onnxruntime's own files: u8s8, QDQ, per channel, after its pre-processing, by each way to choose ranges."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self, input_name: str) -> None:
            self.left = iter([{input_name: x[None]} for x in inputs])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.left, None)

    ready = folder / "ready.onnx"
    quant_pre_process(str(sets.model(ASKED[name].file)), str(ready))
    with open_onnx(sets.model(ASKED[name].file)) as runner:
        input_name = runner.input_name
    files = {}
    for method in (CalibrationMethod.MinMax, CalibrationMethod.Percentile):
        files[f"onnxruntime {method.name}"] = out = folder / f"ort-{method.name}.onnx"
        quantize_static(
            str(ready), str(out), Reader(input_name), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, calibrate_method=method,
        )  # fmt: skip
    return files


def nncfs(name: str, inputs: np.ndarray, folder: Path, python: str | None) -> dict[str, Path]:
    """NNCF's file; none without its environment."""
    if python is None:
        return {}
    given, out = folder / "calibration.npy", folder / "nncf.onnx"
    np.save(given, inputs)
    script = Path(__file__).with_name("int8_peer.py")
    command = [python, "-I", str(script), str(sets.model(ASKED[name].file)), str(given), str(out)]
    subprocess.run(command, check=True, capture_output=True)
    return {"NNCF": out}


def measure(name: str, files: dict[str, Path], test: Dataset, threads: int) -> dict[str, dict[str, Any]]:
    """Each file's bytes, loss on the test split, and time beside the original's; ours against each peer's answers."""
    original = sets.model(ASKED[name].file)
    with open_file(original, threads) as runner:
        names = runner.output_names
        judge = Judge(run_dataset(runner, test.batches()), names, test.labels)
    one = next(iter(test.take([0]).batches(1)))
    answers = {}
    for label, path in files.items():
        with open_file(path, threads) as runner:
            answers[label] = run_dataset(runner, test.batches())
    found = {}
    for label, path in files.items():
        loss, scores = judge.loss(answers[label]), judge.judge(answers[label])
        beside = Judge(answers[label], names, test.labels).loss(answers["smidgen"])
        before, after = compare_speed(original, path, one, threads, 3)
        found[label] = {
            "nbytes": path.stat().st_size, "share": path.stat().st_size / original.stat().st_size,
            "points": loss.points, "interval": [loss.low, loss.high], "kl": scores.as_dict()["kl"],
            "accuracy": scores.as_dict()["accuracy"], "original_ms": before.median_ms, "latency_ms": after.median_ms,
            "speedup": after.speedup, "speedup_error": after.error, "ours_beside": [beside.low, beside.high],
        }  # fmt: skip
        entry = found[label]
        print(f"{name}, {label}: {entry['nbytes']} bytes, lost {loss.points:.2f}, KL {entry['kl']:.2g}, "
              f"{after.speedup:.2f} ± {after.error:.2f} times as fast", flush=True)  # fmt: skip
    return found


def claims_of(name: str, found: dict[str, dict[str, Any]], against: float | None) -> list[Claim]:
    """What was asked of one network."""
    asked, mine = ASKED[name], found["smidgen"]
    peers = {label: entry for label, entry in found.items() if label != "smidgen"}
    best = min(peers, key=lambda label: peers[label]["points"])
    low, high = mine["interval"]
    less, more = peers[best]["ours_beside"]
    claims = [
        Claim(f"{name}: loss", f"≤ {asked.points:g} points",
              f"{mine['points']:.2f} (95 %: {low:.2f} to {high:.2f}), KL {mine['kl']:.2g}",
              mine["points"] <= asked.points + 1e-9),
        Claim(f"{name}: bytes", f"≤ {SHARE:g} of floats", f"{mine['share']:.3f} ({mine['nbytes']} bytes)",
              mine["share"] <= SHARE),
        Claim(f"{name}: against the best peer", f"≤ {peers[best]['points']:.2f} points ({best})",
              f"{mine['points']:.2f} points (95 % of the difference, input by input: {less:.2f} to {more:.2f}); "
              f"KL {mine['kl']:.2g} against {min(p['kl'] for p in peers.values()):.2g}",
              mine["points"] <= peers[best]["points"] + 1e-9),
    ]  # fmt: skip
    if asked.faster is not None:
        claims.append(Claim(f"{name}: speed", f"≥ {asked.faster:g} times floats", f"{mine['speedup']:.2f}",
                            mine["speedup"] >= asked.faster))  # fmt: skip
    if against is not None:
        claims.append(Claim(f"{name}: speed against onnxruntime's fastest", f"≥ 1 (noise: {NOISE})",
                            f"{against:.2f}", against >= NOISE))  # fmt: skip
    return claims


def table_of(networks: dict[str, dict[str, dict[str, Any]]]) -> list[list[str]]:
    """Bytes, points lost and times as fast as floats, a row a network and a column a file."""
    files = list(dict.fromkeys(label for found in networks.values() for label in found))
    cells = [
        [name, *(_cell(found[label]) if label in found else "–" for label in files)] for name, found in networks.items()
    ]
    return [["network", *files], *cells]


def _cell(entry: dict[str, Any]) -> str:
    return f"{entry['nbytes'] / 1000:,.0f} kB, {entry['points']:.2f}, {entry['speedup']:.2f}×"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=list(ASKED), default=list(ASKED))
    parser.add_argument("--nncf-python", default=os.environ.get("NNCF_PYTHON"), help="default: $NNCF_PYTHON")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    claims: list[Claim] = []
    before = earlier("int8")
    networks: dict[str, Any] = dict(before.get("networks", {}))
    for name in args.networks:
        kept = RESULTS / "int8"
        kept.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            calibration, test = sets.calibration_and_test(name, args.seed)
            inputs = np.asarray(calibration)[:PEER_INPUTS]
            files = {"smidgen": ours(name, folder, args.threads, args.seed)}
            files |= onnxruntimes(name, inputs, folder) | nncfs(name, inputs, folder, args.nncf_python)
            networks[name] = measure(name, files, test, args.threads)
            theirs = [label for label in files if label.startswith("onnxruntime")]
            fastest = max(theirs, key=lambda label: networks[name][label]["speedup"])
            one = next(iter(test.take([0]).batches(1)))
            against = compare_speed(files[fastest], files["smidgen"], one, args.threads, 3)[1].speedup
            claims += claims_of(name, networks[name], against)
            (kept / f"{name}.onnx").write_bytes(files["smidgen"].read_bytes())
        # After each network: a run that is cut short keeps what it has measured.
        saved = save("int8", TITLE, joined(before, claims), threads=args.threads, seed=args.seed, networks=networks,
                     tables={"files": table_of(networks)})  # fmt: skip
    show(TITLE, claims)
    print(saved)


if __name__ == "__main__":
    main()
