"""The gender CNN of "Compression of Neural Networks for Usage in Mobile Devices", trained on UTKFace adults.

Layers: conv 5x5x8, conv 5x5x16, each with a ReLU and a 2x2 max pool, then dense 2288, 256, 256, 32 and two classes;
663,890 weights. The paper tells the 2,288 inputs of the first dense layer and not how they come about: 2,288 = 16x13x11
is what 64x56 pixels leave after two unpadded 5x5 convolutions of stride 1 and two pools of stride 2 (64, 60, 30, 26, 13
rows and 56, 52, 26, 22, 11 columns). So the middle 100x88 pixels of each face are scaled to 64x56, in colour. Two
classes, whose difference is the logit that the ROC curve is of.

Epochs and rate were chosen on a fifth of the training split, held back; the network is then trained on all of it.

    python benchmarks/gender_cnn.py --seed 0
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from sets import GENDER_CNN, faces
from torch import nn
from training import Recipe, answers, checkpoint_of, fit, save_weights, shifted

from smidgen.measure.scores import score

INPUT = (3, 64, 56)
CHANNELS, FLAT, DENSE = (8, 16), 16 * 13 * 11, (256, 256, 32)
EPOCHS, BATCH, RATE, DECAY, SHIFT = 30, 64, 0.05, 5e-4, 4
WEIGHTS = Path(__file__).resolve().parents[1] / "build" / "gender_cnn"


class GenderCnn(nn.Module):
    """For 64x56 RGB prepared with `sets.GENDER_CNN`; two classes, 0 male and 1 female."""

    def __init__(self) -> None:
        super().__init__()
        first, second = CHANNELS
        self.features = nn.Sequential(
            nn.Conv2d(3, first, 5), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(first, second, 5), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        one, two, three = DENSE
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(FLAT, one), nn.ReLU(), nn.Dropout(0.5),
            nn.Linear(one, two), nn.ReLU(), nn.Dropout(0.5),
            nn.Linear(two, three), nn.ReLU(),
            nn.Linear(three, 2),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x))


def load_split(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Prepared faces (N, 3, 64, 56) and classes (N,) of "train" or "test"."""
    data = faces(name, GENDER_CNN)
    return torch.tensor(np.asarray(data)), torch.tensor(np.asarray(data.labels)).long()


def train(seed: int, epochs: int, images: torch.Tensor, labels: torch.Tensor, folder: Path) -> tuple[GenderCnn, float]:
    """A network trained on these prepared faces, and the seconds it took."""
    torch.manual_seed(seed)
    net = GenderCnn()
    recipe = Recipe(epochs, BATCH, RATE, DECAY, seed)
    seconds = fit(
        net, images, labels, recipe, lambda part, random: shifted(part, SHIFT, random), checkpoint_of(folder, seed)
    )
    return net, seconds


def train_and_save(seed: int, epochs: int, folder: Path, threads: int) -> None:
    """Train one network on the training split; write its weights and how well it does."""
    torch.set_num_threads(threads)
    net, seconds = train(seed, epochs, *load_split("train"), folder)
    images, labels = load_split("test")
    found = score((answers(net, images).numpy(),), reference=None, labels=labels.numpy(), output_names=["classes"])
    facts = {
        "seed": seed, "epochs": epochs, "seconds": seconds, "weights": sum(p.numel() for p in net.parameters()),
        "test_accuracy": found.accuracy, "test_roc_auc": found.roc_auc,
    }  # fmt: skip
    save_weights(net, facts, folder)


def network(seed: int = 0, folder: Path = WEIGHTS, epochs: int = EPOCHS, threads: int = 1) -> GenderCnn:
    """The trained network of a seed, trained now if its weights are missing."""
    path = folder / f"seed{seed}.safetensors"
    if not path.exists():
        train_and_save(seed, epochs, folder, threads)
    net = GenderCnn()
    net.load_state_dict(load_file(path))
    return net.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    args = parser.parse_args()
    train_and_save(args.seed, args.epochs, args.out, args.threads)


if __name__ == "__main__":
    main()
