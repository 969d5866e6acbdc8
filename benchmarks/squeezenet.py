"""SqueezeNet 1.1 on 1,000 ImageNet images, compressed with 300 of them and scored on the other 700.

Asked: bytes fall over the 11 positions of the trade-off dial, the file never grows, and one position is at least 1.15x
smaller at no less than 90 % agreement with the original.

The images are divided by a fixed permutation; calibration and selection are within the 300. They are probably training
images of the network, so agreement and loss count, not accuracy as such.

    python benchmarks/squeezenet.py
    python benchmarks/squeezenet.py --methods svd
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from typing import Any

import sets
import torch
from claims import RESULTS, Claim, save, show
from figure import draw
from sweep import DIAL, Bench, Point, falls

from smidgen.pipeline import open_task

NETWORK = "squeezenet1_1_imagenet.onnx"
TITLE = "SqueezeNet 1.1 on 1,000 ImageNet images: calibration only, no retraining"
ASKED_RATIO, ASKED_AGREEMENT = 1.15, 0.90


def curve_of(methods: str, args: argparse.Namespace) -> tuple[Bench, list[Point], float]:
    """The dial's curve with these methods, and the seconds it took."""
    started = time.perf_counter()
    data, test = sets.imagenet_sample(args.calibrate, args.seed)
    task = open_task(sets.model(NETWORK), data, test, None, None, None, args.threads, "cpu", args.seed)
    bench = Bench(task, methods if methods == "auto" else [methods], test)
    return bench, [bench.at_dial(t) for t in args.dial], time.perf_counter() - started


def claims_of(methods: str, bench: Bench, points: list[Point]) -> list[Claim]:
    """What was asked of one curve."""
    never_rise, strictly = falls(points)
    largest = max(p.nbytes for p in points)
    agreeing = max((p for p in points if p.agreement >= ASKED_AGREEMENT), key=lambda p: p.ratio)
    smaller = [p for p in points if p.ratio >= ASKED_RATIO]
    best = max(smaller, key=lambda p: p.agreement, default=points[-1])
    return [
        Claim(f"{methods}: bytes fall over the dial", "never rise", _fall(never_rise, strictly, points), never_rise),
        Claim(f"{methods}: largest file", f"≤ {bench.nbytes} bytes, the original", f"{largest} bytes",
              largest <= bench.nbytes),
        Claim(f"{methods}: positions where the rewritten file would have grown and the original is kept", "",
              str(sum(p.kept_original for p in points))),
        Claim(f"{methods}: smallest file with ≥ {ASKED_AGREEMENT:.0%} agreement", f"≥ {ASKED_RATIO}x",
              f"{agreeing.ratio:.3f}x at {agreeing.agreement:.1%} ({agreeing.asked})", agreeing.ratio >= ASKED_RATIO),
        Claim(f"{methods}: best agreement of a file ≥ {ASKED_RATIO}x smaller", f"≥ {ASKED_AGREEMENT:.0%}",
              f"{best.agreement:.1%} at {best.ratio:.3f}x, {best.lost:.1f} points of accuracy lost ({best.asked})",
              best.ratio >= ASKED_RATIO and best.agreement >= ASKED_AGREEMENT),
    ]  # fmt: skip


def _fall(never_rise: bool, strictly: bool, points: list[Point]) -> str:
    different = f"{len({p.nbytes for p in points})} different files at {len(points)} positions"
    return f"{'fall at every step' if strictly else 'never rise' if never_rise else 'rise somewhere'}, {different}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["svd", "auto"], help="one curve each; auto is all of them")
    parser.add_argument("--dial", type=float, nargs="+", default=DIAL, help="rising positions")
    parser.add_argument("--calibrate", type=int, default=300)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    claims: list[Claim] = []
    measured: dict[str, Any] = {}
    curves: dict[str, list[Point]] = {}
    for methods in args.methods:
        print(f"methods: {methods}", flush=True)
        bench, curves[methods], seconds = curve_of(methods, args)
        told = claims_of(methods, bench, curves[methods])
        # What is asked is asked of all methods together; the others' curves are there to compare.
        claims += told if methods == "auto" else [replace(claim, asked="", passed=None) for claim in told]
        measured[methods] = {"dial": [p.as_dict() for p in curves[methods]], "seconds": seconds}
    measured["original"] = {"nbytes": bench.nbytes, "accuracy": bench.baseline.accuracy, "top5": bench.baseline.top5}
    draw(
        RESULTS / "squeezenet.png", "SqueezeNet 1.1 over the trade-off dial, no retraining",
        {"all methods" if name == "auto" else name: points for name, points in curves.items()},
        {"original": (bench.nbytes, 1.0)}, measure="agreement", zoom=20,
        asked=(bench.nbytes / ASKED_RATIO, f"asked: {ASKED_RATIO}x smaller"),
    )  # fmt: skip
    show(TITLE, claims)
    sizes = {"calibrate": args.calibrate, "scored": len(bench.test), "threads": args.threads, "seed": args.seed}
    print(save("squeezenet", TITLE, claims, picture="squeezenet.png", sizes=sizes, sweep=measured))


if __name__ == "__main__":
    main()
