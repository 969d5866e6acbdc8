"""Pruning with fine-tuning and nothing else: how few weights LeNet-300-100 and LeNet-5 need, trained on MNIST.

Asked: at least 14 times fewer weights (aim 20) with no loss, where pruning and fine-tuning alone are published with 12
times fewer for LeNet (Han et al. 2015, arXiv:1506.02626), whose LeNet-300-100 has 1.6 % errors. Ours has half of them,
since its digits were moved while it learned; one trained on digits as they are, with 1.6 %, stands beside it. That one
is pruned with moved digits too, which makes it better than it was, and with digits as they are: `--augment ""`.

The smallest weights of all layers together go, little by little (arXiv:1710.01878), while the network learns from
training digits to answer as it did and as their labels say; then what is left trains on at falling rates
(arXiv:2003.02389). Some of the training digits choose the epoch; how digits are changed was chosen by
`pruning_choice.py`. The test digits are scored once for each file and choose nothing. Where asked for, the same with
all weights removed at once before the fine-tuning, and with no training.

A run that was stopped goes on where it was; `python benchmarks/lenets.py` trains the networks that are missing.

    python benchmarks/pruning_trained.py
    python benchmarks/pruning_trained.py --networks lenet_300_100 --times 20 --ways gradual --augment shift1
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from claims import RESULTS, Claim, earlier, joined, save, show
from lenets import digits, network
from sets import MNIST_TEST, MNIST_TRAIN
from torch import nn

import smidgen
from smidgen.data import Dataset
from smidgen.recover.training import Training

NAME, TITLE = "pruning_trained", "Pruning and fine-tuning alone, MNIST"
NETWORKS = ("lenet_300_100", "lenet_300_100_plain", "lenet_5")
TIMES, AIM = (14, 20), 20  # times fewer weights
COMMON = Training(batch=128, lr=1e-3, schedule="rewind", average=0.999)
# More epochs where they are short: five times those of the original, and one and a half times.
TRAININGS = {
    "lenet_300_100": replace(COMMON, epochs=200, augment=("elastic4", "shift1")),
    "lenet_300_100_plain": replace(COMMON, epochs=60, augment=("shift1",)),
    "lenet_5": replace(COMMON, epochs=24, augment=("shift1",), precision="mixed"),
}
MIX = 0.5  # the original's answers, and the labels
# Way by name: the method that chooses weights, whether it is trained, and whether little by little.
WAYS = {"gradual": ("magnitude", True, True), "at once": ("obs", True, False), "untrained": ("obs", False, False)}


def pruned(
    net: nn.Module,
    times: float,
    way: str,
    training: Training,
    learned: Dataset,
    scored: Dataset,
    threads: int,
    checkpoint: Path,
) -> dict[str, Any]:
    """One network with so many times fewer weights: trained on some digits, written, and scored on others."""
    method, trains, gradual = WAYS[way]
    result = smidgen.compress(
        net, learned, test=scored, target="onnx-sparse", settings={method: {"sparsity": 1 - 1 / times}},
        threads=threads, seed=training.seed, train=training if trains else None, gradual=gradual,
        mix=MIX if trains else 1.0, checkpoint=checkpoint,
    )  # fmt: skip
    record, told = result.record, result.record.get("training", {})
    keys = ("nbytes", "accuracy", "loss_points", "loss_interval", "agreement", "kl")
    return {
        "times": record["pruning"]["weights"] / record["pruning"]["survivors"], "way": way, "asked": times,
        "changed": changed(training), "epochs": training.epochs, "seed": training.seed,
        "weights": record["pruning"]["weights"], "survivors": record["pruning"]["survivors"],
        "original": {key: record["original"][key] for key in ("nbytes", "accuracy")},
        "files": {t: {key: record["files"][t][key] for key in keys} for t in ("onnx-sparse", "archive")},
        "layers": {layer["name"]: layer["sparsity"] for layer in record["layers"]},
        "training": {key: told.get(key) for key in ("settings", "kept", "why", "before", "after", "best_epoch")},
        "seconds": told.get("seconds", 0.0),
    }  # fmt: skip


def changed(training: Training) -> str:
    """How digits were changed, in a word."""
    return ",".join(training.augment) or "unmoved"


def claim_of(name: str, row: dict[str, Any]) -> Claim:
    """One line: how much was lost."""
    file = row["files"]["onnx-sparse"]
    low, high = file["loss_interval"]
    usual = changed(TRAININGS[name]) == row["changed"]
    asks = row["way"] == "gradual" and row["asked"] in TIMES and usual  # others say what the training alone does
    asked = f"{'aim ' * (row['asked'] >= AIM)}no loss" if asks else ""
    return Claim(
        f"{name}, {row['times']:.1f}x fewer weights, {row['way']}" + f", {row['changed']}" * (not usual), asked,
        f"{row['survivors']} of {row['weights']} weights; {100 * row['original']['accuracy']:.2f} % → "
        f"{100 * file['accuracy']:.2f} %, lost {file['loss_points']:.2f} (95 %: {low:.2f} to {high:.2f}); "
        f"{file['nbytes'] / 1000:.1f} kB sparse, archive {row['files']['archive']['nbytes'] / 1000:.1f} kB; "
        f"trained {row['seconds']:.0f} s" + f", {row['changed']}" * usual,
        file["loss_points"] <= 1e-9 if asked else None,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--times", nargs="+", type=float, default=list(TIMES), help="fewer weights")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["gradual"])
    parser.add_argument(
        "--augment", help="changes of digits, comma-separated, instead of those of each network; '' for none"
    )
    parser.add_argument("--epochs", type=int, help="of training, instead of those of each network")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    before = earlier(NAME)
    runs: dict[str, dict[str, Any]] = dict(before.get("runs", {}))
    claims = joined(before, [])
    learned, scored = digits(MNIST_TRAIN), digits(MNIST_TEST)
    for name, times, way in product(args.networks, args.times, args.ways):
        training = asked_training(name, args.epochs, args.augment, args.seed)
        key = f"{name} {times:g} {way} {changed(training)} {args.epochs or 'as usual'} {args.seed}"
        checkpoint = RESULTS / NAME / f"{key.replace(' ', '-')}.checkpoint"
        if key not in runs:
            net, started = network(name, threads=args.threads), time.perf_counter()
            runs[key] = pruned(net, times, way, training, learned, scored, args.threads, checkpoint)
            print(f"{key}: {time.perf_counter() - started:.0f} s in all", flush=True)
        claims = joined({"claims": [vars(each) for each in claims]}, [claim_of(name, runs[key])])
        save(NAME, TITLE, claims, threads=args.threads, seed=args.seed, runs=runs)
        checkpoint.unlink(missing_ok=True)
    show(TITLE, claims)


def asked_training(name: str, epochs: int | None, augment: str | None, seed: int) -> Training:
    """A network's training, with what the command line says otherwise."""
    training = replace(TRAININGS[name], seed=seed)
    if epochs is not None:
        training = replace(training, epochs=epochs)
    return training if augment is None else replace(training, augment=tuple(filter(None, augment.split(","))))


if __name__ == "__main__":
    main()
