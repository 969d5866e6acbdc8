"""A student at least twenty times smaller, taught by the network, beside the same student trained alone.

mnist  the teacher is LeNet-5 (`lenets.py`; 431,080 weights), the student two convolutions and a dense layer
cats   cats and dogs, 128×128: the teacher is the 58,000-weight network, the student a depthwise one of 2,300 weights

Both trainings see the same images, changed in the same ways, for the same steps from the same first weights; a fifth of
the images says which epoch is kept, and the test split is scored once for each. Asked: with all images, and with 10 and
5 % of them, the taught student is at least a point better than the one alone, or at most half as far from the teacher;
and in how many epochs it gets where the one alone ends. Scores are means over the seeds.

    python benchmarks/distil.py --sets mnist         # half an hour on one core, cats and dogs an hour
    python benchmarks/distil.py --sets cats --shares 0.05 --seeds 0 1 2
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lenets
import numpy as np
from claims import RESULTS, Claim, earlier, joined, save, show, told
from sets import CATS, MNIST_TEST, MNIST_TRAIN, data_folder, model, ready
from torch import Tensor, nn

import smidgen
from smidgen.data import Dataset, open_data

TITLE = "Distillation: students more than 20 times smaller"
SHARES = (0.05, 0.1, 1.0)
MIX = 0.9
WAYS = {"alone": 0.0, "taught": MIX}
BETTER, HALF = 1.0, 0.5  # points, and share of the gap to the teacher
SMALLER = 20.0
HOME = RESULTS.parent / "distil"


@dataclass(frozen=True)
class Case:
    """One teacher, one student, one set of images.

    Args:
        teacher: the network, or its file.
        student: name of a function in this file.
        data: inputs of a split, "train" or "test", with labels.
        epochs: by the share of the images; fewer images, more epochs, since a training needs steps more than passes.
        training: its other settings.
        temperature: T.
    """

    teacher: Callable[[], Any]
    student: str
    data: Callable[[str], Dataset]
    epochs: Mapping[float, int]
    training: Mapping[str, Any]
    temperature: float


def digits(split: str) -> Dataset:
    return lenets.digits(MNIST_TRAIN if split == "train" else MNIST_TEST)


def photos(split: str) -> Dataset:
    return ready(open_data(data_folder() / "cats_dogs_128.npz", split=split, preprocess=CATS))


CASES = {
    # As it is: what shifts do to a digit the teacher knows, and its answers tell some of it (Hinton et al.,
    # arXiv:1503.02531, section 3).
    "mnist": Case(
        lambda: lenets.network("lenet_5"), "mnist_student", digits, {1.0: 40, 0.1: 100, 0.05: 100},
        {"batch": 64, "lr": 3e-3, "weight_decay": 1e-2, "average": 0.999}, 4.0,
    ),
    # Two classes have no likeness among wrong answers that a temperature would bring out; at T = 4 the loss is a
    # regression on scores too large for so small a student.
    "cats": Case(
        lambda: str(model("ai85cd_catsdogs.onnx")), "cats_student", photos, {1.0: 75, 0.1: 160, 0.05: 240},
        {"batch": 32, "lr": 1e-2, "weight_decay": 1e-2, "augment": ("shift8", "flip", "zoom20")}, 1.0,
    ),
}  # fmt: skip


def mnist_student() -> nn.Module:
    """15,162 weights for digits of 28×28; seeded by whoever calls."""
    return nn.Sequential(
        nn.Conv2d(1, 12, 5, stride=2), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Conv2d(12, 32, 5, stride=2), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Flatten(), nn.Linear(512, 10),
    )  # fmt: skip


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


def cats_student() -> nn.Module:
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


def run(name: str, way: str, share: float, seed: int, threads: int) -> dict[str, Any]:
    """One training; it goes on where an earlier run of this script was killed."""
    case = CASES[name]
    training = smidgen.Training(epochs=case.epochs[share], **case.training)
    HOME.mkdir(parents=True, exist_ok=True)
    result = smidgen.distil(
        case.teacher(), f"{Path(__file__)}:{case.student}", part(case.data("train"), share), training=training,
        mix=WAYS[way], temperature=case.temperature, test=case.data("test"), seed=seed, threads=threads,
        checkpoint=HOME / f"{name}-{way}-{share:g}-{seed}.checkpoint", progress=told(f"{name}, {way}, {share:.0%}"),
    )  # fmt: skip
    fitted, files = result.record["fitted"], result.record["files"]
    return {
        "set": name, "way": way, "share": share, "seed": seed, "seconds": fitted["seconds"],
        "held": [epoch["held"] for epoch in fitted["history"]], "best_epoch": fitted["best_epoch"],
        "teacher": files["teacher"], "student": files["student"],
    }  # fmt: skip


def epochs_to(held: list[float], aim: float) -> int | None:
    """The first epoch, from 1, that is as good on the held-out images."""
    return next((number for number, score in enumerate(held, 1) if score <= aim), None)


def claim_of(rows: Sequence[Mapping[str, Any]]) -> Claim:
    """Taught beside alone, over all seeds."""
    scores = {way: [100 * row["student"]["test"]["score"] for row in rows if row["way"] == way] for way in WAYS}
    first = rows[0]
    teacher = 100 * first["teacher"]["test"]["score"]
    alone, taught = (float(np.mean(scores[way])) for way in WAYS)
    better, gap = taught - alone, (teacher - taught) / (teacher - alone) if teacher > alone else 0.0
    each = ", ".join(f"{b - a:+.2f}" for a, b in zip(scores["alone"], scores["taught"], strict=True))
    seconds = max(row["seconds"] for row in rows)
    text = (
        f"{taught:.2f} % taught, {alone:.2f} % alone ({better:+.2f}; by seed {each}), teacher {teacher:.2f}; "
        f"{gap:.2f} of the gap; as good as the best alone after {_reached(rows)}; ≤ {seconds:.0f} s each"
    )
    asked = f"≥ {BETTER:g} point better, or ≤ {HALF:g} of the gap to the teacher"
    return Claim(f"{first['set']}, {first['share']:.0%} of the images", asked, text, better >= BETTER or gap <= HALF)


def _reached(rows: Sequence[Mapping[str, Any]]) -> str:
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
    return Claim(f"{row['set']}, student beside teacher", f"≥ {SMALLER:g}× fewer weights", text, weights >= SMALLER)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--shares", nargs="+", type=float, choices=SHARES, default=SHARES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    before = earlier("distil")
    again = {(name, share) for name in options.sets for share in options.shares}
    claims = joined(before, [])
    rows = [row for row in before.get("rows", ()) if (row["set"], row["share"]) not in again]
    for name, share in sorted(again):
        new = [run(name, way, share, seed, options.threads) for seed in options.seeds for way in WAYS]
        rows += new
        claims = joined({"claims": [vars(each) for each in claims]}, [size_claim(new[0]), claim_of(new)])
        save("distil", TITLE, claims, rows=rows)  # what comes next may be killed
    show(TITLE, claims)


if __name__ == "__main__":
    main()
