"""MobileNetV2 learns cats and dogs, and is made 12 and 20 times smaller.

The published row: MobileNet 12.48 → 2.91 MB, 0.9556 → 0.9516. Asked: at least 12 times smaller than the two-class file
of floats at 0.4 points lost at most (aim: 20 times). The photos are 128×128, and so is the network's input here: it
takes any size. The ImageNet network learns the two classes from 2,000 photos, less a fifth that says which epoch is
kept; its file is then compressed by calibration alone (`calibrated`), by calibration and training of what that found
(`trained`), and by entropy-penalised training from the same photos (`extreme`), which prunes and rounds. Nothing is
chosen by the test photos; each file is scored on them once.

    python benchmarks/transfer.py                      # an hour on one core, two without bfloat16; goes on where killed
    python benchmarks/transfer.py --ways calibrated
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import sets
import torch
from claims import RESULTS, Claim, earlier, joined, save, show, told

import smidgen
from smidgen.data import Dataset, Preprocess, open_data
from smidgen.pipeline.recover import TRAINING

TITLE = "Transfer: MobileNetV2 learns cats and dogs, then 12 and 20 times smaller"
NETWORK = "mobilenet_v2_1.0_224_imagenet.onnx"
PHOTOS = Preprocess(mean=(127.5,), std=(127.5,))  # as the network was trained
SMALLER = {12: "≥ 12× smaller at ≤ 0.4 points", 20: "aim ≥ 20× smaller at ≤ 0.4 points"}
POINTS = 0.4
AUGMENT = ("shift8", "flip", "zoom20")
HEAD_EPOCHS, EPOCHS, BATCH, RATE = 2, 6, 32, 2e-3
EXTREME_EPOCHS, EXTREME_RATE = 24, 5e-4
# Of what calibration found; chosen by photos that an original never saw, see `transfer_choice.py`.
TRAINED: dict[str, Any] = {"epochs": 8, "lr": 1e-4, "augment": (*AUGMENT, "mixup")}
PRECISION = "mixed"  # half the time where the processor multiplies bfloat16, and float32 elsewhere
WAYS = ("calibrated", "trained", "extreme")
HOME = RESULTS.parent / "transfer"


def photos(split: str) -> Dataset:
    return sets.ready(open_data(sets.data_folder() / "cats_dogs_128.npz", split=split, preprocess=PHOTOS))


def two_classes(
    train: Dataset, test: Dataset, threads: int, seed: int, home: Path = HOME
) -> tuple[Path, dict[str, Any]]:
    """The float file of two classes, trained now if it is not there."""
    file, facts = home / f"two_classes.{seed}.onnx", home / f"two_classes.{seed}.json"
    if file.is_file() and facts.is_file():
        return file, json.loads(facts.read_text())
    home.mkdir(parents=True, exist_ok=True)
    result = smidgen.transfer(
        str(sets.model(NETWORK)), train, 2, test=test, seed=seed, threads=threads, freeze_epochs=HEAD_EPOCHS,
        training=smidgen.Training(epochs=EPOCHS, batch=BATCH, lr=RATE, augment=AUGMENT, precision=PRECISION),
        checkpoint=home / f"two_classes.{PRECISION}.{seed}.checkpoint", progress=told("transfer"),
    )  # fmt: skip
    folder = result.save(home / f"two_classes.{seed}")
    file.write_bytes((folder / "model.onnx").read_bytes())
    told_of = {"seconds": result.record["fitted"]["seconds"], **result.record["files"]["transferred"]}
    facts.write_text(json.dumps(told_of))
    return file, told_of


def smaller(
    way: str, file: Path, times: int, train: Dataset, test: Dataset, threads: int, seed: int,
    trained: dict[str, Any] = TRAINED,
) -> dict[str, Any]:  # fmt: skip
    """One archive and what it scores."""
    size, checkpoint = file.stat().st_size // times, file.with_name(f"{way}.{times}.{PRECISION}.{seed}.checkpoint")
    alike: dict[str, Any] = {"batch": BATCH, "augment": AUGMENT, "precision": PRECISION}
    given: dict[str, Any] = {
        "calibrated": {"target": "archive"},
        "trained": {
            "target": "archive", "train": replace(TRAINING, **{**alike, **trained}), "checkpoint": checkpoint,
        },
        "extreme": {"recipe": "extreme", "settings": {
            "training": {"epochs": EXTREME_EPOCHS, "lr": EXTREME_RATE, **alike},
            "extreme": {"checkpoint": str(checkpoint)},
        }},
    }[way]  # fmt: skip
    started = time.perf_counter()
    result = smidgen.compress(
        str(file), train, test=test, budget=smidgen.Budget(size=size), threads=threads, seed=seed,
        progress=told(f"{way}, {times}×"), **given,
    )  # fmt: skip
    written, original = result.record["files"]["archive"], result.record["original"]
    return {
        "way": way, "times": times, "seed": seed, "size": size, "nbytes": written["nbytes"], "met": result.met,
        "original_nbytes": original["nbytes"], "original_accuracy": original["accuracy"],
        "accuracy": written["accuracy"], "lost": written["loss_points"], "interval": written["loss_interval"],
        "agreement": written["agreement"], "kl": written["kl"],
        "seconds": time.perf_counter() - started,
    }  # fmt: skip


def claim_of(row: dict[str, Any]) -> Claim:
    """One archive beside the float file."""
    low, high = row["interval"]
    ratio = row["original_nbytes"] / row["nbytes"]
    text = (
        f"{row['original_nbytes'] / 1e6:.2f} MB → {row['nbytes'] / 1e3:.1f} kB, {ratio:.1f}×; "
        f"{100 * row['original_accuracy']:.2f} → {100 * row['accuracy']:.2f} %, lost {row['lost']:.2f} "
        f"(95 %: {low:.2f} to {high:.2f}); {row['seconds']:.0f} s"
    )
    passed = ratio >= row["times"] and row["lost"] <= POINTS
    return Claim(
        f"cats and dogs, {row['way']}, {row['times']}×{_seeded(row['seed'])}", SMALLER[row["times"]], text, passed
    )


def _seeded(seed: int) -> str:
    """Another seed is another network of two classes, too."""
    return f", seed {seed}" if seed else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--times", nargs="+", type=int, choices=SMALLER, default=list(SMALLER))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    train, test = photos("train"), photos("test")
    file, facts = two_classes(train, test, args.threads, args.seed)
    score = facts["test"]["score"]
    text = f"{file.stat().st_size / 1e6:.2f} MB, {100 * score:.2f} %, trained {facts['seconds']:.0f} s"
    claims = [Claim(f"two classes, floats{_seeded(args.seed)}", "", text)]
    before = earlier("transfer")
    rows: list[dict[str, Any]] = before.get("rows", [])
    originals = {**before.get("originals", {}), str(args.seed): facts}
    save("transfer", TITLE, joined(before, claims), originals=originals, rows=rows, threads=args.threads)
    for way, times in product(args.ways, args.times):
        row = smaller(way, file, times, train, test, args.threads, args.seed)
        claims.append(claim_of(row))
        rows = [
            *(known for known in rows if (known["way"], known["times"], known["seed"]) != (way, times, args.seed)),
            row,
        ]
        save("transfer", TITLE, joined(before, claims), originals=originals, rows=rows, threads=args.threads)
    show(TITLE, joined(earlier("transfer"), []))


if __name__ == "__main__":
    main()
