"""Channels in the one plan: the same budget with and without them among the methods, calibration only.

LeNet and ResNet-20 with at most 1,000 unlabelled training inputs, SqueezeNet and the small VGG as in `speedup.py`: a
budget of bytes (ONNX of floats, archive) and one of time. `smidgen` keeps the better of the two files by its selection
inputs; here both are scored on the test split. Nothing is asked but that the joint plan is no worse.

    python benchmarks/pruning_joint.py
    python benchmarks/pruning_joint.py --cells lenet:onnx:ratio=8 resnet20:archive:size=64kB
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import sets
import vgg
from claims import RECORDS, RESULTS, Claim, earlier, joined, save, show

import smidgen

TITLE = "Channels in the one plan: the same budget with and without them"
CELLS = (
    "lenet:onnx:ratio=8", "lenet:archive:size=24kB", "resnet20:onnx:ratio=2", "resnet20:archive:size=64kB",
    "resnet20:onnx:speedup=1.3", "vgg:onnx:speedup=1.5",
)  # fmt: skip
FILES = {"lenet": "lenet_mnist.onnx", "resnet20": "resnet20_cifar10_jpegft.onnx",
         "squeezenet": "squeezenet1_1_imagenet.onnx"}  # fmt: skip
HEADS = ["cell", "methods", "bytes", "points lost", "KL", "times faster", "channels", "seconds"]
WORSE = 0.1  # points that are no difference


def run(cell: str, channels: bool, args: argparse.Namespace) -> dict[str, Any]:
    """One file, written and scored."""
    name, target, wanted = cell.split(":")
    kind, _, value = wanted.partition("=")
    folder = RESULTS / "pruning_joint"
    folder.mkdir(parents=True, exist_ok=True)
    file = vgg.network_file(folder) if name == "vgg" else sets.model(FILES[name])
    given, test = sets.calibration_and_test(name, args.seed)
    given_budget: dict[str, Any] = {kind: value if kind == "size" else float(value)}
    budget = smidgen.Budget(**given_budget)
    started = time.perf_counter()
    result = smidgen.compress(
        file, given, test=test, budget=budget, target=target, threads=args.threads, seed=args.seed,
        methods=["auto", "channels"] if channels else "auto",
    )  # fmt: skip
    told = {**result.record["files"][target], "met": result.met, "seconds": time.perf_counter() - started}
    return {**told, "channels": result.record.get("channels", {})}


def row(cell: str, name: str, told: dict[str, Any]) -> list[str]:
    """A line of the table."""
    cut = told["channels"]
    outputs = [sum(layer[end] for layer in cut.get("layers", [])) for end in ("before", "after")]
    words = "" if not cut else f"{outputs[1]} of {outputs[0]}" if cut["taken"] else f"none: {cut['why']}"
    return [cell, name, f"{told['nbytes']:,}" + ("" if told["met"] else " (not met)"), f"{told['loss_points']:.2f}",
            f"{told['kl']:.4f}", f"{told['speedup']:.2f}", words, f"{told['seconds']:.0f}"]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="+", default=CELLS, help="network:target:budget")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    claims: list[Claim] = []
    rows: list[list[str]] = []
    for cell in args.cells:
        alone, joint = (run(cell, channels, args) for channels in (False, True))
        rows += [row(cell, "auto", alone), row(cell, "auto, channels", joint)]
        print("\n".join(" | ".join(each) for each in rows[-2:]), flush=True)
        told = f"{joint['loss_points']:.2f} points, {alone['loss_points']:.2f} without channels"
        passed = joint["loss_points"] <= alone["loss_points"] + WORSE
        claims.append(Claim(cell, f"≤ {WORSE:g} point worse than without", told, passed))
        before = earlier("pruning_joint")
        old = before.get("tables", {}).get("with and without", [HEADS])[1:]
        kept = [each for each in old if each[0] not in {r[0] for r in rows}]
        save("pruning_joint", TITLE, joined(before, claims), threads=args.threads, seed=args.seed,
             tables={"with and without": [HEADS, *kept, *rows]})  # fmt: skip
    show(TITLE, claims)
    print(RECORDS / "pruning_joint.json")


if __name__ == "__main__":
    main()
