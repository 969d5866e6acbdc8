"""How to change digits while LeNet-300-100 is pruned and trained, and how long: judged on digits that it never saw.

What a network was trained on says little about what its pruned form will do elsewhere: on such digits the least changed
training looks best, since that keeps best what was learned by heart. So the choice for `pruning_trained.py` is made
beside it: the same network from 50,000 of the training digits, pruned by each training here, and judged on the other
10,000. No test digit is touched. Means are over seeds of the training.

    python benchmarks/pruning_choice.py                    # two minutes a training of 40 epochs
    python benchmarks/pruning_choice.py --changes shift1 elastic4,shift1 --epochs 40 200 --seeds 0
"""

from __future__ import annotations

import argparse
from itertools import product
from statistics import mean
from typing import Any

import numpy as np
import torch
from claims import RESULTS, Claim, earlier, joined, save, show
from lenets import digits, network
from pruning_trained import asked_training, pruned
from sets import MNIST_TRAIN

from smidgen.data import Dataset

NAME, TITLE = "pruning_choice", "Changes of digits for pruning, judged on training digits that were never seen"
NETWORK, TIMES, EPOCHS, SEEDS = "lenet_300_100", 14, (40,), (0, 1, 2)
LEARNED, ORDER = 50_000, 7  # digits that are learned from, and the seed of the order that says which
CHANGES = ("shift1", "shift2", "elastic2,shift1", "elastic4,shift1", "elastic4,shift2", "elastic6,shift1")


def divided() -> tuple[Dataset, Dataset]:
    """Training digits to learn from, and to judge by."""
    data = digits(MNIST_TRAIN)
    order = np.random.default_rng(ORDER).permutation(len(data))
    return data.take(np.sort(order[:LEARNED])), data.take(np.sort(order[LEARNED:]))


def claim_of(changes: str, epochs: int, rows: list[dict[str, Any]]) -> Claim:
    """One training, over its seeds."""
    lost = [row["files"]["onnx-sparse"]["loss_points"] for row in rows]
    held = [row["training"]["after"]["points"] for row in rows]
    each = ", ".join(f"{one:.2f}" for one in lost)
    text = (
        f"{100 * rows[0]['original']['accuracy']:.2f} %, lost {mean(lost):.2f} (of each seed: {each}); on 5,000 digits "
        f"that the original had learned from, lost {mean(held):.2f}"
    )
    return Claim(f"{NETWORK}, {TIMES}x fewer weights, {epochs} epochs, {changes}", "", text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--changes", nargs="+", default=list(CHANGES), help="of digits, as --augment takes them")
    parser.add_argument("--epochs", nargs="+", type=int, default=list(EPOCHS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    learned, judges = divided()
    net = network(NETWORK, folder=RESULTS / NAME, threads=args.threads, learned=learned, scored=judges)
    for changes, epochs, seed in product(args.changes, args.epochs, args.seeds):
        before = earlier(NAME)
        runs: dict[str, dict[str, Any]] = dict(before.get("runs", {}))
        key = f"{changes} {epochs} {seed}"
        if key not in runs:
            checkpoint = RESULTS / NAME / f"{key.replace(' ', '.')}.checkpoint"
            training = asked_training(NETWORK, epochs, changes, seed)
            runs[key] = pruned(net, TIMES, "gradual", training, learned, judges, args.threads, checkpoint)
            checkpoint.unlink(missing_ok=True)
        same = [row for row in runs.values() if (row["changed"], row["epochs"]) == (changes, epochs)]
        claims = joined(before, [claim_of(changes, epochs, same)])
        save(NAME, TITLE, claims, threads=args.threads, runs=runs)
        print(claims[-1].what, claims[-1].measured, flush=True)
    show(TITLE, joined(earlier(NAME), []))


if __name__ == "__main__":
    main()
