"""`smidgen.sweep` on ResNet-20: how long a front of 12 points takes, and whether a single method is above it anywhere.

From 5,000 labelled training images of CIFAR-10 (1,000 calibrate, 1,000 choose), every written file scored once on the
first 4,000 test images. Asked: 12 points of the joint plan, a third as many of each method alone, in at most six
minutes on two cores; at the bytes of each point of a method the joint curve, a straight line between its points over
the logarithm of bytes, is not below it by more than 0.1 point.

    python benchmarks/sweep_front.py
    python benchmarks/sweep_front.py --points 6 --test-inputs 2000

Killed, it goes on from build/benchmarks/sweep_front; the time asked for is then not known, and the record says so.
"""

from __future__ import annotations

import argparse
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import sets
from claims import RESULTS, Claim, save, show

from smidgen.data import open_data
from smidgen.pipeline.sweep import sweep
from smidgen.planning.front import JOINT, score_at
from smidgen.report.front import curves_of
from smidgen.report.sweep import Sweep

TITLE = "A front in one run: ResNet-20 on CIFAR-10"
RESNET = "resnet20_cifar10_jpegft.onnx"
MOST_SECONDS, SLACK = 360.0, 0.1
END = 0.98  # of the smallest joint file's bytes, down to which a single method is held against it
SLOW = 0.5  # processes that wait for each processor, above which a time says little


def worst(found: Sweep, part: str) -> tuple[float, str, int]:
    """Points by which the joint curve is below a single method where it is most, the method's point, and how many."""
    curves = curves_of(found.record)
    joint = [(float(p["nbytes"]), 100 * p[part]["score"]) for p in curves[JOINT]]
    gaps = []
    for name, points in curves.items():
        for point in points:
            if name == JOINT or JOINT in point["curves"]:
                continue
            line = score_at(joint, point["nbytes"])
            if line is None and END * min(joint)[0] <= point["nbytes"] < min(joint)[0]:
                line = min(joint)[1]  # a little smaller than the smallest joint file: that one must be as good
            if line is not None:
                gaps.append((100 * point[part]["score"] - line, point["name"]))
    gap, name = max(gaps, default=(0.0, "nothing"))
    return gap, name, len(gaps)


def claims_of(found: Sweep, seconds: float | None, points: int, load: float) -> list[Claim]:
    """Asked against measured."""
    record = found.record
    joint = sum(JOINT in point["curves"] for point in record["points"])
    told = "not known: it went on from an earlier run" if seconds is None else f"{seconds:.0f} s"
    busy = f", the machine busy with other work (load {load:.1f} before it)" if load > SLOW else ""
    claims = [
        Claim(
            f"a front of {joint} joint points and {len(record['points']) - joint} of single methods on ResNet-20, "
            f"{record['jobs']} processes", f"at most {MOST_SECONDS:.0f} s for 12 joint points; these are of {points}",
            told + busy,
            None if seconds is None else seconds <= MOST_SECONDS,
        )
    ]  # fmt: skip
    for part, words in (("test", "on the test images"), ("selection", "on the images that choose")):
        gap, name, count = worst(found, part)
        claims.append(Claim(
            f"the joint curve at the bytes of {count} points of single methods, {words}",
            f"never more than {SLACK} points below" if part == "test" else "",
            f"at most {gap:.2f} below, at {name}" if gap > 0 else f"above everywhere, by {-gap:.2f} at {name}",
            gap <= SLACK if part == "test" else None,
        ))  # fmt: skip
    return claims


def main() -> None:
    """Run, print and save."""
    parser = argparse.ArgumentParser(description=TITLE)
    parser.add_argument("--points", type=int, default=12)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2, help="of the calibration; one where others compute too")
    parser.add_argument("--test-inputs", type=int, default=4_000)
    parser.add_argument("--afresh", action="store_true", help="forget the points of an earlier run")
    args = parser.parse_args()
    folder = RESULTS / "sweep_front"
    if args.afresh:
        shutil.rmtree(folder, ignore_errors=True)
    fresh = not (folder / "run.json").is_file()
    load = os.getloadavg()[0]
    parts = {
        split: open_data(sets.data_folder() / "cifar10_jpeg.npz", split=split, preprocess=sets.CIFAR)
        for split in ("train", "test")
    }
    order = np.random.default_rng(0).permutation(len(parts["train"]))[:5000]
    data, test = sets.ready(parts["train"].take(order)), sets.ready(parts["test"].array(0, args.test_inputs))
    started = time.monotonic()

    def tell(stage: str, done: int, total: int) -> None:
        print(f"{time.monotonic() - started:6.0f} s  {stage} {done}/{total}", flush=True)

    found = sweep(
        sets.model(RESNET), data, test=test, folder=folder, points=args.points, jobs=args.jobs, threads=args.threads,
        progress=tell,
    )  # fmt: skip
    seconds = time.monotonic() - started if fresh else None
    found.save(folder)
    claims = claims_of(found, seconds, args.points, load)
    show(TITLE, claims)
    print(found.table())
    kept: dict[str, Any] = {name: found.record[name] for name in ("original", "chosen", "measure", "data")}
    points = [{k: v for k, v in point.items() if k != "layers"} for point in found.record["points"]]
    path: Path = save("sweep_front", TITLE, claims, seconds=seconds, load_before=load, points=points, **kept)
    print(f"record: {path}")


if __name__ == "__main__":
    main()
