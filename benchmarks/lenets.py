"""Three networks for MNIST that compression papers measure on, trained on all 60,000 training digits.

lenet_300_100   dense 784, 300, 100, 10; 266,610 weights (LeCun et al. 1998)
lenet_5         conv 5x5x20, pool, conv 5x5x50, pool, dense 800, 500, 10; 431,080 weights (as in Caffe)
mnist_cnn       conv 5x5x32, pool, conv 5x5x64, pool, padded, dense 3136, 1024, 10; 3,274,634 weights

Digits are prepared with `DIGITS` and moved by up to two pixels either way in training; ``lenet_300_100_plain`` is the
first of them trained on digits as they are, as the published ones were (1.6 % errors). Nothing is chosen by the test
digits, which are scored once for the record.

    python benchmarks/lenets.py
    python benchmarks/lenets.py --networks lenet_5 --seed 1
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from sets import MNIST_TEST, MNIST_TRAIN, data_folder
from torch import nn
from training import Recipe, answers, checkpoint_of, fit, save_weights

from smidgen.data import Dataset, Preprocess, open_data

DIGITS = Preprocess(scale=1 / 255)
INPUT = (1, 28, 28)
SHIFT, SHIFTS = 2, {"lenet_300_100_plain": 0}  # pixels
RECIPES = {
    "lenet_300_100": Recipe(40, 128, 0.1, 1e-4, 0), "lenet_5": Recipe(16, 128, 0.05, 5e-4, 0),
    "mnist_cnn": Recipe(6, 128, 0.05, 5e-4, 0), "lenet_300_100_plain": Recipe(40, 128, 0.1, 1e-4, 0),
}  # fmt: skip
WEIGHTS = Path(__file__).resolve().parents[1] / "build" / "lenets"


def lenet_300_100() -> nn.Module:
    """Two hidden layers."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
    )


def lenet_5() -> nn.Module:
    """Two convolutions, two dense layers."""
    return nn.Sequential(
        nn.Conv2d(1, 20, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10),
    )  # fmt: skip


def mnist_cnn() -> nn.Module:
    """The 12.5 MB one."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(3136, 1024), nn.ReLU(), nn.Linear(1024, 10),
    )  # fmt: skip


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "lenet_300_100": lenet_300_100, "lenet_5": lenet_5, "mnist_cnn": mnist_cnn, "lenet_300_100_plain": lenet_300_100,
}  # fmt: skip


def digits(name: str) -> Dataset:
    """Prepared digits with labels, of `sets.MNIST_TRAIN` or `sets.MNIST_TEST`."""
    return open_data(data_folder() / name, preprocess=DIGITS)


def tensors(data: Dataset) -> tuple[torch.Tensor, torch.Tensor]:
    """Digits (N, 1, 28, 28) and classes (N,)."""
    return torch.tensor(np.asarray(data)), torch.tensor(np.asarray(data.labels)).long()


def moved(images: torch.Tensor, most: int, random: torch.Generator) -> torch.Tensor:
    """Each image moved by up to `most` pixels either way over a border of zeros."""
    count, _, height, width = images.shape
    padded = torch.nn.functional.pad(images, (most, most, most, most))
    down, right = torch.randint(0, 2 * most + 1, (2, count, 1), generator=random)
    rows, columns = down + torch.arange(height), right + torch.arange(width)
    which = torch.arange(count)[:, None, None]
    # Indices on either side of a slice put the channels last.
    return padded[which, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def train_and_save(
    name: str, seed: int, folder: Path, threads: int, learned: Dataset | None = None, scored: Dataset | None = None
) -> None:
    """Train one network on some digits; write its weights and how well it does on others.

    Args:
        name: of `NETWORKS`.
        seed: of weights, order and moves.
        folder: gets a folder of that name.
        threads: to compute with.
        learned, scored: digits with labels; the training split and the test split when None.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    net, one = NETWORKS[name](), RECIPES[name]
    recipe = Recipe(one.epochs, one.batch, one.rate, one.decay, seed)
    seconds = fit(
        net, *tensors(learned or digits(MNIST_TRAIN)), recipe,
        lambda part, random: moved(part, SHIFTS.get(name, SHIFT), random), checkpoint_of(folder / name, seed),
    )  # fmt: skip
    images, labels = tensors(scored or digits(MNIST_TEST))
    hits = answers(net, images).argmax(1) == labels
    facts = {
        "network": name, "seed": seed, "epochs": recipe.epochs, "seconds": seconds,
        "weights": sum(p.numel() for p in net.parameters()), "test_accuracy": hits.double().mean().item(),
    }  # fmt: skip
    save_weights(net, facts, folder / name)


def network(
    name: str,
    seed: int = 0,
    folder: Path = WEIGHTS,
    threads: int = 1,
    learned: Dataset | None = None,
    scored: Dataset | None = None,
) -> nn.Module:
    """The trained network of a name and seed; `train_and_save` trains it now if its weights are missing."""
    path = folder / name / f"seed{seed}.safetensors"
    if not path.exists():
        train_and_save(name, seed, folder, threads, learned, scored)
    net = NETWORKS[name]()
    net.load_state_dict(load_file(path))
    return net.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    args = parser.parse_args()
    for name in args.networks:
        train_and_save(name, args.seed, args.out, args.threads)


if __name__ == "__main__":
    main()
