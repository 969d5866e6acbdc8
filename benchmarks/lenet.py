"""LeNet on MNIST, compressed after training with a thousand calibration digits and without retraining.

Asked: an ONNX file at least 6x smaller (aim 9x) at no more than 0.10 points lost on the test set, in 60 s and 1 GB with
one thread; and the trade-off dial as a picture of accuracy against bytes.

The timed runs are `smidgen compress`, each in a process of its own. Calibration and selection come from the training
digits alone; the test digits are scored once for each file, and nothing is chosen by them.

    python benchmarks/lenet.py
    python benchmarks/lenet.py --ratios 6 9 12 --no-sweep
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import process
import sets
from claims import RESULTS, Claim, save, show
from process import Run

NETWORK = "lenet_mnist.onnx"
TITLE = "LeNet on MNIST: calibration only, no retraining"
ASKED_RATIO, AIMED_RATIO, ASKED_LOST, ASKED_SECONDS, ASKED_NBYTES = 6, 9, 0.10, 60, 10**9
DIAL = tuple(i / 20 for i in range(21))


def timed(budget: tuple[str, float], threads: int, seed: int) -> Run:
    """One run of the command line."""
    folder = sets.data_folder()
    run = process.compress(
        [
            str(sets.model(NETWORK)), "--data", str(folder / sets.MNIST_TRAIN), "--test", str(folder / sets.MNIST_TEST),
            f"--{budget[0]}", str(budget[1]), "--seed", str(seed),
        ],
        threads,
    )  # fmt: skip
    entry = run.record["files"]["onnx"]
    told = f"{entry['nbytes']} bytes, lost {entry['loss_points']:.2f} points, {run.wall_s:.1f} s"
    print(f"{budget[0]} {budget[1]:g}: {told}", flush=True)
    return run


def claims_of(budget: tuple[str, float], run: Run) -> list[Claim]:
    """What was asked of one run."""
    entry = run.record["files"]["onnx"]
    ratio = run.record["original"]["nbytes"] / entry["nbytes"]
    lost, (low, high) = entry["loss_points"], entry["loss_interval"]
    aim = budget == ("ratio", AIMED_RATIO)
    name = f"{budget[0]} {budget[1]:g}"
    size = f"{ratio:.2f}x, {entry['nbytes']} bytes"
    points = f"{lost:.2f} points (95 %: {low:.2f} to {high:.2f}), accuracy {100 * entry['accuracy']:.2f} %"
    if budget[0] == "ratio":
        word = "aim " if aim else ""
        return [
            Claim(f"{name}: size", f"{word}≥ {budget[1]:g}x", size, ratio >= budget[1]),
            Claim(f"{name}: accuracy lost", f"{word}≤ {ASKED_LOST:.2f} points", points, lost <= ASKED_LOST + 1e-9),
            *_costs(name, run),
        ]
    return [Claim(f"{name}: size", "", size), Claim(f"{name}: accuracy lost", "", points), *_costs(name, run)]


def _costs(name: str, run: Run) -> list[Claim]:
    memory = run.record["peak_rss_bytes"]
    return [
        Claim(f"{name}: time", f"≤ {ASKED_SECONDS} s", f"{run.wall_s:.1f} s wall, {run.cpu_s:.1f} s processor",
              run.wall_s <= ASKED_SECONDS),
        Claim(f"{name}: peak memory", "≤ 1 GB", f"{memory / 1e9:.2f} GB", memory <= ASKED_NBYTES),
    ]  # fmt: skip


def sweep(threads: int, seed: int) -> tuple[list[Claim], dict[str, Any]]:
    """The dial's curve, its claims and its picture."""
    # Imported here: the process that starts the timed runs stays small.
    import torch
    from figure import draw
    from sweep import Bench, falls

    from smidgen.pipeline import open_task

    torch.set_num_threads(threads)
    test = sets.mnist(sets.MNIST_TEST)
    started = time.perf_counter()
    task = open_task(
        sets.model(NETWORK), sets.mnist(sets.MNIST_TRAIN), test, None, None, None, threads, "cpu", seed
    )  # fmt: skip
    bench = Bench(task, "auto", test)
    points = [bench.at_dial(t) for t in DIAL]
    seconds = time.perf_counter() - started
    accuracy = bench.baseline.accuracy or 0.0
    draw(
        RESULTS / "lenet.png", "LeNet on MNIST over the trade-off dial, no retraining",
        {f"dial 0 to 1, {len(DIAL)} points": points}, {"original": (bench.nbytes, accuracy)}, zoom=1.0,
        asked=(bench.nbytes / ASKED_RATIO, f"asked: {ASKED_RATIO}x smaller"),
    )  # fmt: skip
    never_rise, _ = falls(points)
    kept = [p for p in points if p.lost <= ASKED_LOST + 1e-9]
    claims = [
        Claim("dial: points drawn", "≥ 8", str(len({p.nbytes for p in points})) + " different files",
              len({p.nbytes for p in points}) >= 8),
        Claim("dial: bytes never rise", "yes", "yes" if never_rise else "no", never_rise),
        Claim(f"dial: smallest file of the curve that lost ≤ {ASKED_LOST:.2f} points (after the fact)", "",
              f"{max(p.ratio for p in kept):.2f}x" if kept else "none"),
    ]  # fmt: skip
    curve = {"dial": [p.as_dict() for p in points], "seconds": seconds,
             "original": {"nbytes": bench.nbytes, "accuracy": accuracy}}  # fmt: skip
    return claims, curve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ratios", type=float, nargs="*", default=[ASKED_RATIO, AIMED_RATIO])
    parser.add_argument("--max-drop", type=float, default=ASKED_LOST, help="points that the last timed run may lose")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-sweep", action="store_true", help="timed runs only")
    args = parser.parse_args()
    budgets = [*(("ratio", r) for r in args.ratios), ("max-drop", args.max_drop)]
    runs = {budget: timed(budget, args.threads, args.seed) for budget in budgets}
    claims = [claim for budget, run in runs.items() for claim in claims_of(budget, run)]
    measured: dict[str, Any] = {
        "runs": [
            {"budget": list(budget), "wall_s": run.wall_s, "cpu_s": run.cpu_s, "code": run.code, "record": run.record}
            for budget, run in runs.items()
        ]
    }
    if not args.no_sweep:
        more, measured["sweep"] = sweep(args.threads, args.seed)
        claims += more
    show(TITLE, claims)
    print(save("lenet", TITLE, claims, picture="lenet.png", threads=args.threads, seed=args.seed, **measured))


if __name__ == "__main__":
    main()
