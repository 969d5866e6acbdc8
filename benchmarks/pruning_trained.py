"""Pruning with fine-tuning and nothing else: how few weights LeNet-300-100 and LeNet-5 need, trained on MNIST.

Asked: at least 14 times fewer weights (aim 20) with no loss, where pruning and fine-tuning alone are published with 12
times fewer for LeNet (Han et al. 2015, arXiv:1506.02626), whose LeNet-300-100 has 1.6 % errors. Ours has half of them,
since its digits were moved while it learned; one trained on digits as they are, and pruned so, stands beside it.

The smallest weights of all layers together go, little by little (arXiv:1710.01878), while the network learns from
training digits to answer as it did and as their labels say; then what is left trains on at falling rates
(arXiv:2003.02389). Some of the training digits choose the epoch, and which of some trainings is taken (`--trainings`):
the test digits are scored once for each file and choose nothing. Where asked for, the same with all weights removed at
once before the fine-tuning, and with no training.

A run that was stopped goes on where it was; `python benchmarks/lenets.py` trains the networks that are missing.

    python benchmarks/pruning_trained.py
    python benchmarks/pruning_trained.py --networks lenet_300_100 --times 20 --ways gradual --trainings shift1
"""

from __future__ import annotations

import argparse
import time
from itertools import product
from pathlib import Path
from typing import Any

import torch
from claims import RESULTS, Claim, earlier, joined, save, show
from lenets import digits, network
from sets import MNIST_TEST, MNIST_TRAIN

import smidgen
from smidgen.recover.training import Training

NAME, TITLE = "pruning_trained", "Pruning and fine-tuning alone, MNIST"
NETWORKS = ("lenet_300_100", "lenet_300_100_plain", "lenet_5")
TIMES, AIM = (14, 20), 20  # times fewer weights
# More epochs where they are short: five times those of the original, and one and a half times.
TRAININGS = {
    "lenet_300_100": Training(epochs=200, batch=128, lr=1e-3, schedule="rewind"),
    "lenet_300_100_plain": Training(epochs=60, batch=128, lr=1e-3, schedule="rewind"),
    "lenet_5": Training(epochs=24, batch=128, lr=1e-3, schedule="rewind", precision="mixed"),
}
# A network of few weights learns fewer changes of a digit: moved by one pixel it does better on held digits than by the
# two that its original was trained with (LeNet-300-100, 60 epochs: cross-entropy 0.0205 and 0.0228 on 5,000 of them).
VARIANTS: dict[str, dict[str, Any]] = {
    "shift1": {"augment": ("shift1",), "average": 0.999},
    "shift1-cosine": {"augment": ("shift1",), "average": 0.999, "schedule": "cosine", "lr": 2e-3},
    "shift2": {"augment": ("shift2",), "average": 0.999},
    "turned": {"augment": ("turn10", "zoom10"), "average": 0.999},
    "unmoved": {"average": 0.999},
}
ALIKE = {"lenet_300_100_plain": ["unmoved"]}  # trained as its original was
MIX = 0.5  # the original's answers, and the labels
# Way by name: the method that chooses weights, whether it is trained, and whether little by little.
WAYS = {"gradual": ("magnitude", True, True), "at once": ("obs", True, False), "untrained": ("obs", False, False)}


def pruned(
    name: str, times: float, way: str, variant: str, epochs: int | None, threads: int, seed: int, checkpoint: Path
) -> dict[str, Any]:
    """One network with so many times fewer weights: written, and scored on the test digits."""
    method, trains, gradual = WAYS[way]
    training = TRAININGS[name]
    epochs = epochs or training.epochs
    values = {**training.plain(), "epochs": epochs, "seed": seed, **VARIANTS[variant]}
    result = smidgen.compress(
        network(name, threads=threads), digits(MNIST_TRAIN), test=digits(MNIST_TEST), target="onnx-sparse",
        settings={method: {"sparsity": 1 - 1 / times}}, threads=threads, seed=seed,
        train=Training.from_plain(values) if trains else None, gradual=gradual, mix=MIX if trains else 1.0,
        checkpoint=checkpoint,
    )  # fmt: skip
    record, told = result.record, result.record.get("training", {})
    keys = ("nbytes", "accuracy", "loss_points", "loss_interval", "agreement", "kl")
    return {
        "network": name, "times": record["pruning"]["weights"] / record["pruning"]["survivors"], "way": way,
        "variant": variant, "asked": times, "epochs": epochs, "seed": seed,
        "weights": record["pruning"]["weights"], "survivors": record["pruning"]["survivors"],
        "original": {key: record["original"][key] for key in ("nbytes", "accuracy")},
        "files": {t: {key: record["files"][t][key] for key in keys} for t in ("onnx-sparse", "archive")},
        "layers": {layer["name"]: layer["sparsity"] for layer in record["layers"]},
        "training": {key: told.get(key) for key in ("settings", "kept", "why", "before", "after", "best_epoch")},
        "seconds": told.get("seconds", 0.0),
    }  # fmt: skip


def held(row: dict[str, Any]) -> tuple[float, float]:
    """Points that the written network loses on the digits that were held back, and its loss; of one that was not
    trained none is known."""
    told = row["training"]
    best = told["after" if told["kept"] else "before"] or {}
    return best.get("points", float("inf")), best.get("loss", float("inf"))


def claim_of(rows: list[dict[str, Any]]) -> Claim:
    """One line: how much was lost by the run that the held digits choose."""
    row = min(rows, key=held)
    file = row["files"]["onnx-sparse"]
    low, high = file["loss_interval"]
    asks = row["way"] == "gradual" and row["asked"] in TIMES  # others say what the training alone does
    asked = f"{'aim ' * (row['asked'] >= AIM)}no loss" if asks else ""
    return Claim(
        f"{row['network']}, {row['times']:.1f}x fewer weights, {row['way']}", asked,
        f"{row['survivors']} of {row['weights']} weights; {100 * row['original']['accuracy']:.2f} % → "
        f"{100 * file['accuracy']:.2f} %, lost {file['loss_points']:.2f} (95 %: {low:.2f} to {high:.2f}); "
        f"{file['nbytes'] / 1000:.1f} kB sparse, archive {row['files']['archive']['nbytes'] / 1000:.1f} kB; "
        f"trained {row['seconds']:.0f} s, {row['variant']}, chosen of {len(rows)}",
        file["loss_points"] <= 1e-9 if asked else None,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--times", nargs="+", type=float, default=list(TIMES), help="fewer weights")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["gradual"])
    parser.add_argument("--trainings", nargs="+", choices=VARIANTS, help="(shift1; unmoved, as the plain original's)")
    parser.add_argument("--epochs", type=int, help="of training, instead of those of each network")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    before = earlier(NAME)
    runs: dict[str, dict[str, Any]] = dict(before.get("runs", {}))
    claims = joined(before, [])
    for name, times, way in product(args.networks, args.times, args.ways):
        variants = args.trainings or ALIKE.get(name, ["shift1"])
        for variant in variants if WAYS[way][1] else variants[:1]:  # or nothing is trained
            key = f"{name} {times:g} {way} {variant} {args.epochs or 'as usual'} {args.seed}"
            checkpoint = RESULTS / NAME / f"{key.replace(' ', '-')}.checkpoint"
            if key not in runs:
                started = time.perf_counter()
                runs[key] = pruned(name, times, way, variant, args.epochs, args.threads, args.seed, checkpoint)
                print(f"{key}: {time.perf_counter() - started:.0f} s in all", flush=True)
            alike = {"network": name, "asked": times, "way": way, "epochs": runs[key]["epochs"], "seed": args.seed}
            same = [row for row in runs.values() if all(row[each] == value for each, value in alike.items())]
            claims = joined({"claims": [vars(each) for each in claims]}, [claim_of(same)])
            save(NAME, TITLE, claims, threads=args.threads, seed=args.seed, runs=runs)
            checkpoint.unlink(missing_ok=True)
    show(TITLE, claims)


if __name__ == "__main__":
    main()
