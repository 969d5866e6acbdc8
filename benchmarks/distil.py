"""A student twenty times smaller, taught by the network, beside the same student trained alone.

Cats and dogs, 128×128: the teacher is the 58,000-weight network, the student a depthwise one of 2,300 weights with
BatchNorm. Both trainings see the same images, changed in the same ways, for the same steps from the same first weights;
a fifth of the images says which epoch is kept, and the test split is scored once for each. Asked: with all images, and
with 10 and 5 % of them, the taught student is at least a point better than the one alone, or at most half as far from
the teacher; and in how many epochs it gets where the one alone ends.

    python benchmarks/distil.py
    python benchmarks/distil.py --shares 0.05 --seeds 0 1 2
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from claims import RESULTS, Claim, earlier, joined, save, show, told
from sets import CATS, data_folder, model, ready
from torch import Tensor, nn

import smidgen
from smidgen.data import Dataset, open_data

TITLE = "Distillation: a student 20 times smaller, cats and dogs"
TEACHER = "ai85cd_catsdogs.onnx"
# Fewer images, more epochs: a training needs steps more than it needs passes.
EPOCHS = {1.0: 75, 0.1: 160, 0.05: 240}
BATCH, RATE, DECAY = 32, 1e-2, 1e-2
AUGMENT = ("shift8", "flip", "zoom20")
# Two classes have no likeness among wrong answers that a temperature would bring out; at T = 4 the loss is a regression
# on scores too large for so small a student. On 1,000 training images that no training saw, with 10 % of the images and
# 160 epochs: 64.2 % at T = 1, 60.4 at T = 2 with features beside, 60.3 alone.
TEMPERATURE, MIX = 1.0, 0.9
WAYS = {"alone": 0.0, "taught": MIX}
BETTER, HALF = 1.0, 0.5  # points, and share of the gap to the teacher
SMALLER = 20.0


class Separable(nn.Module):
    """A depthwise 3×3 and a 1×1, each with BatchNorm and ReLU."""

    def __init__(self, given: int, wanted: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(given, given, 3, stride=2, padding=1, groups=given, bias=False), nn.BatchNorm2d(given), nn.ReLU(),
            nn.Conv2d(given, wanted, 1, bias=False), nn.BatchNorm2d(wanted), nn.ReLU(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def student() -> nn.Module:
    """2,300 weights for 128×128 RGB images; seeded by whoever calls."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        Separable(8, 16), Separable(16, 24), Separable(24, 40),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(40, 2),
    )  # fmt: skip


def part(train: Dataset, share: float) -> Dataset:
    """The first of a fixed permutation: a smaller share is part of a larger one."""
    order = np.random.default_rng(0).permutation(len(train))
    return train.take(order[: round(share * len(train))])


def run(train: Dataset, test: Dataset, way: str, share: float, seed: int, threads: int, place: Path) -> dict[str, Any]:
    """One training; it goes on where an earlier run of this script was killed."""
    training = smidgen.Training(epochs=EPOCHS[share], batch=BATCH, lr=RATE, weight_decay=DECAY, augment=AUGMENT)
    place.mkdir(parents=True, exist_ok=True)
    result = smidgen.distil(
        str(model(TEACHER)), f"{Path(__file__)}:student", part(train, share), training=training, mix=WAYS[way],
        temperature=TEMPERATURE, test=test, seed=seed, threads=threads,
        checkpoint=place / f"{way}-{share:g}-{seed}.checkpoint", progress=told(f"{way}, {100 * share:g} %"),
    )  # fmt: skip
    fitted, files = result.record["fitted"], result.record["files"]
    return {
        "way": way, "share": share, "seed": seed, "seconds": fitted["seconds"],
        "held": [epoch["held"] for epoch in fitted["history"]],
        "teacher": files["teacher"], "student": files["student"],
    }  # fmt: skip


def epochs_to(held: list[float], aim: float) -> int | None:
    """The first epoch, from 1, that is as good on the held-out images."""
    return next((number for number, score in enumerate(held, 1) if score <= aim), None)


def claim_of(share: float, rows: list[Mapping[str, Any]]) -> Claim:
    """Taught beside alone, over all seeds."""
    scores = {way: [100 * row["student"]["test"]["score"] for row in rows if row["way"] == way] for way in WAYS}
    teacher = 100 * rows[0]["teacher"]["test"]["score"]
    alone, taught = (float(np.mean(scores[way])) for way in WAYS)
    better, gap = taught - alone, (teacher - taught) / (teacher - alone) if teacher > alone else 0.0
    seconds = max(row["seconds"] for row in rows)
    text = f"{taught:.2f} % taught, {alone:.2f} % alone ({better:+.2f}), teacher {teacher:.2f}; {gap:.2f} of the gap"
    reached = _reached(rows)
    text += f"; as good as the best alone after {reached}; ≤ {seconds:.0f} s each"
    asked = f"≥ {BETTER:g} point better, or ≤ {HALF:g} of the gap to the teacher"
    return Claim(f"student, {100 * share:g} % of the images", asked, text, better >= BETTER or gap <= HALF)


def _reached(rows: list[Mapping[str, Any]]) -> str:
    """In how many epochs each way is as good, on held-out images, as the one alone becomes."""
    told = []
    for seed in sorted({row["seed"] for row in rows}):
        held = {row["way"]: row["held"] for row in rows if row["seed"] == seed}
        aim = min(held["alone"])
        first = {way: epochs_to(held[way], aim) for way in WAYS}
        told.append(f"{first['taught'] or '–'} of {len(held['taught'])} epochs (alone: {first['alone']})")
    return ", ".join(told)


def size_claim(row: Mapping[str, Any]) -> Claim:
    """What twenty times means."""
    teacher, small = row["teacher"], row["student"]
    weights, nbytes = teacher["params"] / small["params"], teacher["nbytes"] / small["nbytes"]
    text = f"{weights:.1f}× fewer weights, {nbytes:.1f}× smaller as a file ({small['nbytes'] / 1000:.1f} kB), "
    text += f"{teacher['macs'] / small['macs']:.1f}× fewer multiply-adds"
    return Claim("student beside teacher", f"≥ {SMALLER:g}× fewer weights", text, weights >= SMALLER)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shares", nargs="+", type=float, choices=EPOCHS, default=sorted(EPOCHS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--add", action="store_true", help="keep what an earlier run found of other shares")
    options = parser.parse_args()
    train, test = (
        ready(open_data(data_folder() / "cats_dogs_128.npz", split=split, preprocess=CATS))
        for split in ("train", "test")
    )
    place = RESULTS.parent / "distil"
    rows = [
        run(train, test, way, share, seed, options.threads, place)
        for share in options.shares
        for seed in options.seeds
        for way in WAYS
    ]
    claims = [claim_of(share, [row for row in rows if row["share"] == share]) for share in options.shares]
    claims = [size_claim(rows[0]), *claims]
    if options.add:
        before = earlier("distil")
        claims = joined(before, claims)
        rows = [row for row in before.get("rows", ()) if row["share"] not in options.shares] + rows
    show(TITLE, claims)
    print(save("distil", TITLE, claims, rows=rows))


if __name__ == "__main__":
    main()
