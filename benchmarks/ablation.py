"""What each ingredient of entropy-penalised training brings: LeNet-300-100 at one size, one thing changed at a time.

Every row is a whole archive of the same bytes at most, from the same training digits; 5,000 of them say which epoch
is kept, and the test digits are scored once for each file. Nothing is chosen by this table.

    python benchmarks/ablation.py                     # an hour on one core; rows that are there already are kept
    python benchmarks/ablation.py --rows whole "no price"
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from typing import Any

import extreme
import torch
from claims import Claim, earlier, save, show

import smidgen

NAME, TITLE = "ablation", "What each ingredient of training on bits brings: LeNet-300-100 in 5 kB"
CASE = extreme.CASES["lenet_300_100"]
SIZE, EPOCHS = 5000, 40
HEADS = ["what", "bytes", "errors", "points lost (95 %)", "seconds"]
# Changes of the recipe's settings, of the training's; None: another way to the same size.
ROWS: dict[str, tuple[dict[str, Any], dict[str, Any]] | None] = {
    "whole": ({}, {}),
    "answers of the original alone, no labels": ({"labels": 0.0}, {}),
    "labels alone, nothing of the original": ({"labels": 1.0}, {}),
    "no shifted images": ({}, {"augment": []}),
    "silent channels stay": ({"cut": False}, {}),
    "steps that learn at half the rate": ({"step_scale": 0.5}, {}),
    "calibration, then training within its integers": None,
    "calibration alone": None,
}


def run(row: str, threads: int, seed: int) -> dict[str, Any]:
    """One archive."""
    started, changed = time.perf_counter(), ROWS[row]
    given: dict[str, Any]
    if changed is not None:
        own, training = changed
        training = {**CASE.training, "epochs": EPOCHS, **training}
        given = {"recipe": "extreme", "settings": {"training": training, "extreme": {**CASE.extreme, **own}}}
    else:
        given = {"target": "archive"}
        if row != "calibration alone":
            given |= {"train": smidgen.Training(**{**CASE.training, "epochs": EPOCHS}), "mix": 0.5}
    result = smidgen.compress(
        CASE.original(), CASE.data("train"), test=CASE.data("test"), budget=smidgen.Budget(size=SIZE), threads=threads,
        seed=seed, **given,
    )  # fmt: skip
    file = result.record["files"]["archive"]
    return {
        "row": row, "nbytes": file["nbytes"], "accuracy": file["accuracy"], "lost": file["loss_points"],
        "interval": file["loss_interval"], "met": result.met, "seconds": time.perf_counter() - started,
    }  # fmt: skip


def cells(row: Mapping[str, Any]) -> list[str]:
    low, high = row["interval"]
    return [
        row["row"], f"{row['nbytes']:,}", f"{100 * (1 - row['accuracy']):.2f} %",
        f"{row['lost']:.2f} ({low:.2f} to {high:.2f})", f"{row['seconds']:.0f}",
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--again", action="store_true", help="measure rows that are there, too")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    claims: list[Claim] = []
    for row in args.rows:
        runs = dict(earlier(NAME).get("runs", {}))
        if args.again or row not in runs:
            runs[row] = run(row, args.threads, args.seed)
            print(cells(runs[row]), flush=True)
        runs = {each: runs[each] for each in ROWS if each in runs}
        claims = [
            Claim(f"lenet_300_100 in {SIZE / 1000:g} kB: {name}", "", f"{cells(one)[2]} errors, {cells(one)[1]} B")
            for name, one in runs.items()
        ]
        save(NAME, TITLE, claims, threads=args.threads, seed=args.seed, runs=runs,
             tables={"ingredients": [HEADS, *(cells(each) for each in runs.values())]})  # fmt: skip
    show(TITLE, claims)


if __name__ == "__main__":
    main()
