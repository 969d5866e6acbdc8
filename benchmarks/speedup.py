"""Networks made faster: `--speedup` on the command line, measured on the written file beside the original, in turns.

Asked of the small VGG: half the multiply-adds at no more than one point lost without retraining, and a file that
onnxruntime really runs 1.4 times as fast. From at most 1,000 unlabelled training inputs, scored on the test split.

    python benchmarks/speedup.py
    python benchmarks/speedup.py --networks vgg --threads 1
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import process
import sets
import vgg
from claims import Claim, save, show

TITLE = "Faster by a factor, calibration only, no retraining: multiply-adds, latency and points lost"
FILES = {"lenet": "lenet_mnist.onnx", "resnet20": "resnet20_cifar10_jpegft.onnx"}
FACTORS = {"vgg": (1.4, 1.6, 2.0), "lenet": (1.5,), "resnet20": (1.25, 1.5)}
# Of the VGG: the factor that is held to what was asked, and that.
JUDGED, FEWER, FASTER, MOST_LOST = 1.6, 2.0, 1.4, 1.0
HEADS = ["network", "asked", "MACs", "fewer", "latency", "as fast", "bytes", "accuracy", "points lost (95 %)", "forms"]


def network_file(name: str, folder: Path) -> Path:
    """The network as ONNX; the VGG is written from the weights that vgg.py trained."""
    return vgg.network_file(folder) if name == "vgg" else sets.model(FILES[name])


def runs_of(name: str, threads: int, seed: int) -> dict[float, process.Run]:
    """One run of the command line for each factor."""
    with tempfile.TemporaryDirectory() as written:
        folder = Path(written)
        calibration, test = sets.calibration_and_test(name, seed)
        np.savez(folder / "calibration.npz", x=np.asarray(calibration))
        np.savez(folder / "test.npz", x=np.asarray(test), y=np.asarray(test.labels))
        data = ["--data", str(folder / "calibration.npz"), "--test", str(folder / "test.npz"), "--seed", str(seed)]
        file, runs = network_file(name, folder), {}
        for factor in FACTORS[name]:
            runs[factor] = process.compress([str(file), *data, "--speedup", f"{factor:g}"], threads)
            print(" | ".join(row_of(name, factor, runs[factor])), flush=True)
    return runs


def row_of(name: str, factor: float, run: process.Run) -> list[str]:
    """A line of the table."""
    before, after = run.record["original"], run.record["files"]["onnx"]
    low, high = after["loss_interval"]
    forms = ", ".join(sorted({layer["form"] for layer in run.record["layers"] if layer["form"] != "dense"}))
    return [
        name, f"{factor:g}×" + ("" if run.record["budget"]["met"] else " (not met)"),
        f"{before['macs']:,} → {after['macs']:,}", f"{before['macs'] / after['macs']:.2f}×",
        f"{before['latency_ms']:.3f} → {after['latency_ms']:.3f} ms", f"{after['speedup']:.2f}×",
        f"{before['nbytes']:,} → {after['nbytes']:,}", f"{100 * after['accuracy']:.2f} %",
        f"{after['loss_points']:.2f} ({low:.2f} to {high:.2f})", forms,
    ]  # fmt: skip


def claims_of(name: str, runs: dict[float, process.Run]) -> list[Claim]:
    """What was asked of the VGG; of the others, whether the factor was reached."""
    claims = []
    for factor, run in runs.items():
        before, after = run.record["original"], run.record["files"]["onnx"]
        fewer, lost = before["macs"] / after["macs"], after["loss_points"]
        claims.append(Claim(
            f"{name}: --speedup {factor:g}", f"≥ {factor:g}× as fast", f"{after['speedup']:.2f}×, {lost:.2f} points "
            f"lost, {fewer:.2f}× fewer MACs, in {run.wall_s:.0f} s", after["speedup"] >= factor,
        ))  # fmt: skip
        if name == "vgg" and factor == JUDGED:
            claims.append(Claim(
                "vgg: multiply-adds", f"≥ {FEWER:g}× fewer at ≤ {MOST_LOST:g} point lost",
                f"{fewer:.2f}× at {lost:.2f} points lost", fewer >= FEWER and lost <= MOST_LOST,
            ))  # fmt: skip
            claims.append(Claim(
                "vgg: latency of that file in onnxruntime", f"≥ {FASTER:g}× as fast",
                f"{after['speedup']:.2f}× ({before['latency_ms']:.3f} → {after['latency_ms']:.3f} ms)",
                after["speedup"] >= FASTER,
            ))  # fmt: skip
    return claims


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=list(FACTORS), default=list(FACTORS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    claims: list[Claim] = []
    rows: list[list[str]] = [HEADS]
    records: dict[str, Any] = {}
    for name in args.networks:
        runs = runs_of(name, args.threads, args.seed)
        claims += claims_of(name, runs)
        rows += [row_of(name, factor, run) for factor, run in runs.items()]
        records[name] = {f"{factor:g}": run.record for factor, run in runs.items()}
    show(TITLE, claims)
    print(
        save(
            "speedup", TITLE, claims, threads=args.threads, seed=args.seed, tables={"by factor": rows}, records=records
        )
    )


if __name__ == "__main__":
    main()
