"""ExecuTorch programs: floats and static int8 by smidgen, computed by XNNPACK, beside the original in ONNX Runtime.

Every network whole, every layer of int8 (the trade-off dial at 0), at most 1,000 unlabelled training inputs, no
retraining; scored on the first inputs of the test split, one at a time. Asked: floats that answer as the original, and
with integers at most 0.3 points lost on LeNet, ResNet-20 and cats-dogs, at most 1 on SqueezeNet and MobileNetV2, and at
most 0.28 of the bytes of floats.

    python benchmarks/executorch_programs.py
    python benchmarks/executorch_programs.py --networks lenet --test 10000
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import sets
import torch
from claims import Claim, earlier, joined, save, show

import smidgen
from smidgen.data import Dataset
from smidgen.export.executorch import to_executorch
from smidgen.measure.latency import measure_latency
from smidgen.measure.scores import Judge
from smidgen.model.load import load_network
from smidgen.runtimes.opening import open_file, run_dataset

TITLE = "ExecuTorch programs, XNNPACK, calibration only, no retraining"
NETWORKS = {
    "lenet": ("lenet_mnist.onnx", 0.3), "resnet20": ("resnet20_cifar10_jpegft.onnx", 0.3),
    "catsdogs": ("ai85cd_catsdogs.onnx", 0.3), "squeezenet": ("squeezenet1_1_imagenet.onnx", 1.0),
    "mobilenet_v2": ("mobilenet_v2_1.0_224_imagenet.onnx", 1.0),
}  # fmt: skip
MOST_SHARE = 0.28  # of the bytes of the float program
SAME = 1e-4  # of the largest output, by which a program of floats may differ from the original
ORIGINAL, FLOATS, INTEGERS = "original, ONNX Runtime", "float, ExecuTorch", "smidgen int8, ExecuTorch"


def measured(files: Mapping[str, Path], test: Dataset, threads: int) -> dict[str, dict[str, float]]:
    """Bytes, accuracy, points lost with their interval, agreement, difference and milliseconds of every file."""
    one = next(iter(test.take([0]).batches(1)))
    with ExitStack() as stack:
        opened = {name: stack.enter_context(open_file(path, threads)) for name, path in files.items()}
        answers = {name: run_dataset(runner, test.batches()) for name, runner in opened.items()}
        judge = Judge(answers[ORIGINAL], opened[ORIGINAL].output_names, np.asarray(test.labels))
        times = measure_latency(opened, one, repeats=200, max_seconds=30.0)
    found = {}
    for name, path in files.items():
        loss, scores = judge.loss(answers[name]), judge.judge(answers[name])
        apart = np.abs(answers[name][0] - answers[ORIGINAL][0]).max() / np.abs(answers[ORIGINAL][0]).max()
        found[name] = {
            "nbytes": path.stat().st_size, "accuracy": scores.accuracy or 0.0, "lost": loss.points, "low": loss.low,
            "high": loss.high, "agreement": scores.agreement or 0.0, "apart": float(apart),
            "ms": times[name].median_ms, "speedup": times[name].speedup,
        }  # fmt: skip
    return found


def claims_of(name: str, found: Mapping[str, Mapping[str, float]]) -> list[Claim]:
    """What was asked of each file."""
    floats, integers, most = found[FLOATS], found[INTEGERS], NETWORKS[name][1]
    kept = integers["lost"] <= most and integers["nbytes"] <= MOST_SHARE * floats["nbytes"]
    return [
        Claim(f"{name}: {ORIGINAL}", "", _told(found[ORIGINAL], floats)),
        Claim(f"{name}: {FLOATS}", f"differs ≤ {SAME:g}", _told(floats, floats), floats["apart"] <= SAME),
        Claim(f"{name}: {INTEGERS}", f"≤ {most} points, ≤ {MOST_SHARE}×", _told(integers, floats), kept),
    ]


def _told(one: Mapping[str, float], floats: Mapping[str, float]) -> str:
    return (
        f"{one['nbytes'] / 1000:.1f} kB ({one['nbytes'] / floats['nbytes']:.3f}×), lost {one['lost']:.2f} "
        f"({one['low']:.2f} to {one['high']:.2f}), {100 * one['accuracy']:.2f} %, "
        f"agree {100 * one['agreement']:.2f} %, differs {one['apart']:.1e}, {one['ms']:.3f} ms"
    )


def run(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """A network's files, written and measured."""
    calibration, test = sets.calibration_and_test(name, args.seed, args.inputs)
    original, started = sets.model(NETWORKS[name][0]), time.perf_counter()
    result = smidgen.compress(
        original, calibration, target="executorch-int8", budget=smidgen.Budget(tradeoff=0), seed=args.seed,
        threads=args.threads,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    example = torch.from_numpy(next(iter(calibration.take([0]).batches(1))))
    with tempfile.TemporaryDirectory() as folder:
        floats = Path(folder, "float.pte")
        floats.write_bytes(to_executorch(load_network(original).module, example))
        files = {ORIGINAL: original, FLOATS: floats, INTEGERS: result.files["executorch-int8"]}
        some = test.array(0, min(args.test, len(test)))
        return {"seconds": seconds, "inputs": len(some), "files": measured(files, some, args.threads)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--inputs", type=int, default=1000, help="calibration inputs at most")
    parser.add_argument("--test", type=int, default=500, help="test inputs at most")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--add", action="store_true", help="keep the other networks of the last run's JSON")
    args = parser.parse_args()
    before = earlier("executorch") if args.add else {}
    results = before.get("runs", {})
    for name in args.networks:
        results[name] = run(name, args)
        print(f"{name}: {results[name]['seconds']:.0f} s", flush=True)
        claims = joined(before, claims_of(name, results[name]["files"]))
        before["claims"] = [asdict(claim) for claim in claims]
        path = save("executorch", TITLE, claims, threads=args.threads, seed=args.seed, test=args.test, runs=results)
    show(TITLE, claims)
    print(path)


if __name__ == "__main__":
    main()
