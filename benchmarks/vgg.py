"""A small VGG for CIFAR-10: six 3x3 convolutions and a dense head, 551k weights, trained on one core in an hour.

Layers: conv 32, 32, pool, conv 64, 64, pool, conv 128, 128, pool, dense 2048 to 128 to 10 (after Simonyan and
Zisserman, ICLR 2015, with BatchNorm); about 39 million multiply-adds an image. The pixels are prepared as
ResNet-20's are.

    python benchmarks/vgg.py --seed 0
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import numpy as np
import torch
from mobile_peers import write_network
from PIL import Image
from safetensors.torch import load_file
from sets import CIFAR, data_folder
from torch import nn
from training import Recipe, answers, checkpoint_of, fit, save_weights, shifted

IMAGES = "cifar10_jpeg.npz"
WIDTHS, HIDDEN, CLASSES, SIDE = (32, 64, 128), 128, 10, 32
EPOCHS, BATCH, RATE, DECAY, SHIFT = 16, 128, 0.1, 5e-4, 4
WEIGHTS = Path(__file__).resolve().parents[1] / "build" / "vgg"


class Vgg(nn.Module):
    """For 32x32 RGB prepared with `sets.CIFAR`; ten classes."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for width in WIDTHS:
            layers += [*_block(before, width), *_block(width, width), nn.MaxPool2d(2)]
            before = width
        self.features = nn.Sequential(*layers)
        side = SIDE // 2 ** len(WIDTHS)
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(before * side * side, HIDDEN),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(HIDDEN, CLASSES),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x))


def _block(before: int, width: int) -> list[nn.Module]:
    return [nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]


def load_split(split: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (N, 3, 32, 32) uint8 and classes (N,) of split 0 (train) or 1 (test)."""
    with np.load(data_folder() / IMAGES, allow_pickle=False) as file:
        jpeg, offsets, labels = file["jpeg"], file["offsets"], file["labels"]
        chosen = np.flatnonzero(file["split"] == split)
    images = [np.asarray(Image.open(io.BytesIO(jpeg[offsets[i] : offsets[i + 1]].tobytes()))) for i in chosen]
    return torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2).copy()), torch.from_numpy(labels[chosen]).long()


def normalise(images: torch.Tensor) -> torch.Tensor:
    """Pixels 0..255 as `sets.CIFAR` prepares them."""
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (CIFAR.mean, CIFAR.std))
    return (images.float() * float(CIFAR.scale) - mean) / std


def train_and_save(seed: int, epochs: int, folder: Path, threads: int) -> None:
    """Train one network on the training split; write its weights and how well it does."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    net = Vgg()
    recipe = Recipe(epochs, BATCH, RATE, DECAY, seed)
    seconds = fit(
        net, *load_split(0), recipe, lambda part, random: normalise(shifted(part, SHIFT, random)),
        checkpoint_of(folder, seed),
    )  # fmt: skip
    images, labels = load_split(1)
    hits = answers(net, images, normalise).argmax(1) == labels
    facts = {"seed": seed, "epochs": epochs, "seconds": seconds, "test_accuracy": hits.double().mean().item()}
    save_weights(net, facts, folder)


def network(seed: int = 0, folder: Path = WEIGHTS, epochs: int = EPOCHS, threads: int = 1) -> Vgg:
    """The trained network of a seed, trained now if its weights are missing."""
    path = folder / f"seed{seed}.safetensors"
    if not path.exists():
        train_and_save(seed, epochs, folder, threads)
    net = Vgg()
    net.load_state_dict(load_file(path))
    return net.eval()


def network_file(folder: Path, weights: Path = WEIGHTS, threads: int = 1) -> Path:
    """The trained network of seed 0 as ONNX, written into a folder."""
    file = folder / "vgg.onnx"
    write_network(network(0, weights, threads=threads), file, (3, SIDE, SIDE))
    return file


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
