"""How to change digits while LeNet-300-100 is pruned and trained: judged on training digits that it never saw.

What a network was trained on says little about what its pruned form will do elsewhere: on such digits the least changed
training looks best, since that keeps best what was learned by heart. So the choice for `pruning_trained.py` is made
beside it: the same network from 50,000 of the training digits, pruned by each training here, shorter than there, and
judged on the other 10,000. No test digit is touched.

    python benchmarks/pruning_choice.py                    # two minutes a training
    python benchmarks/pruning_choice.py --changes shift1 elastic4,shift1
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from claims import RESULTS, Claim, earlier, joined, save, show
from lenets import digits, network
from pruning_trained import TRAININGS, asked_training, changed, pruned
from sets import MNIST_TRAIN

from smidgen.data import Dataset

NAME, TITLE = "pruning_choice", "Changes of digits for pruning, judged on training digits that were never seen"
NETWORK, TIMES, EPOCHS = "lenet_300_100", 14, 40
LEARNED, SEED = 50_000, 7  # digits that are learned from, and of the order that says which
CHANGES = (
    "shift1", "shift2", "elastic3", "elastic2,shift1", "elastic3,shift1", "elastic4,shift1", "elastic5,shift1",
    "elastic6,shift1", "elastic4,shift2", "elastic5,shift2",
)  # fmt: skip


def divided() -> tuple[Dataset, Dataset]:
    """Training digits to learn from, and to judge by."""
    data = digits(MNIST_TRAIN)
    order = np.random.default_rng(SEED).permutation(len(data))
    return data.take(np.sort(order[:LEARNED])), data.take(np.sort(order[LEARNED:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--changes", nargs="+", default=list(CHANGES), help="of digits, as --augment takes them")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    learned, judges = divided()
    net = network(NETWORK, folder=RESULTS / NAME, threads=args.threads, learned=learned, scored=judges)
    for changes in args.changes:
        training = asked_training(NETWORK, args.epochs, changes, 0)
        checkpoint = RESULTS / NAME / f"{changes}.{args.epochs}.checkpoint"
        row = pruned(net, TIMES, "gradual", training, learned, judges, args.threads, checkpoint)
        checkpoint.unlink(missing_ok=True)
        file, held = row["files"]["onnx-sparse"], row["training"]["after"]
        taken = " (taken)" * (changed(training) == changed(TRAININGS[NETWORK]))
        text = (
            f"{100 * row['original']['accuracy']:.2f} % → {100 * file['accuracy']:.2f} %, lost "
            f"{file['loss_points']:.2f} (95 %: {file['loss_interval'][0]:.2f} to {file['loss_interval'][1]:.2f}); "
            f"on 5,000 that the original had learned from, lost {held['points']:.2f}"
        )
        before = earlier(NAME)
        claim = Claim(f"{NETWORK}, {TIMES}x fewer weights, {args.epochs} epochs, {changes}{taken}", "", text)
        save(NAME, TITLE, joined(before, [claim]), threads=args.threads, runs={**before.get("runs", {}), changes: row})
    show(TITLE, joined(earlier(NAME), []))


if __name__ == "__main__":
    main()
