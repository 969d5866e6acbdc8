"""GenderNet: the convolutional network of Levi and Hassner (CVPR Workshops 2015), trained on UTKFace adults.

Layers: conv 96x7x7/4, 256x5x5, 384x3x3, each followed by a 3x3/2 max pool, then dense 512, 512, 2; about 11.4 million
weights (46 MB). Differs from the paper: BatchNorm in place of local response normalisation, because it trains in a few
epochs; images are 100x100 upsampled to the paper's 227x227.

    python benchmarks/gendernet.py --seed 0 --epochs 12
"""

from __future__ import annotations

import argparse
import io
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from sets import FACES, data_folder
from torch import nn

SIDE = 227  # the paper's crop; gives 7x7x384 = 18,816 inputs to the first dense layer
PIXELS = 100  # side of the stored images
WEIGHTS = Path(__file__).resolve().parents[1] / "build" / "gendernet"


class GenderNet(nn.Module):
    """Levi-Hassner network for 100x100 uint8-range RGB input (values 0..255), two classes."""

    def __init__(self) -> None:
        super().__init__()
        self.resize = nn.Upsample(size=(SIDE, SIDE), mode="bilinear", align_corners=False)
        self.features = nn.Sequential(
            *_block(3, 96, 7, stride=4, padding=0),
            *_block(96, 256, 5, stride=1, padding=2),
            *_block(256, 384, 3, stride=1, padding=1),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(384 * 7 * 7, 512),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(512, 512),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(512, 2),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(self.resize(x)))


def _block(cin: int, cout: int, kernel: int, stride: int, padding: int) -> list[nn.Module]:
    return [
        nn.Conv2d(cin, cout, kernel, stride, padding),
        nn.BatchNorm2d(cout),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, ceil_mode=True),
    ]


def load_split(split: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 3, 100, 100) uint8 and labels (N,) of split 0 (train) or 1 (test)."""
    with np.load(data_folder() / FACES, allow_pickle=False) as z:
        jpeg, offsets, labels = z["jpeg"], z["offsets"], z["gender"]
        chosen = np.flatnonzero(z["split"] == split)
    images = [np.asarray(Image.open(io.BytesIO(jpeg[offsets[i] : offsets[i + 1]].tobytes()))) for i in chosen]
    return np.stack(images).transpose(0, 3, 1, 2).copy(), labels[chosen].astype(np.int64)


def normalise(images: torch.Tensor) -> torch.Tensor:
    return (images.float() - 127.5) / 64.0


def accuracy(net: nn.Module, x: np.ndarray, y: np.ndarray) -> float:
    net.eval()
    hits = 0
    with torch.no_grad():
        for i in range(0, len(x), 64):
            hits += int((net(normalise(torch.from_numpy(x[i : i + 64]))).argmax(1).numpy() == y[i : i + 64]).sum())
    return hits / len(x)


def train(seed: int, epochs: int, batch: int = 64) -> tuple[nn.Module, dict]:
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    x, y = load_split(0)
    net = GenderNet().to(memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4, nesterov=True)
    steps = epochs * (len(x) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=0.02, total_steps=steps)
    started = time.time()
    for epoch in range(epochs):
        net.train()
        order, total = rng.permutation(len(x)), 0.0
        for i in range(0, len(x) - batch + 1, batch):
            pick = order[i : i + batch]
            images = normalise(augment(torch.from_numpy(x[pick]), rng)).to(memory_format=torch.channels_last)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = F.cross_entropy(net(images).float(), torch.from_numpy(y[pick]))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.item()
        seconds, mean = time.time() - started, total / (len(x) // batch)
        print(f"seed {seed} epoch {epoch + 1}/{epochs} loss {mean:.4f} {seconds:.0f} s", flush=True)
    xt, yt = load_split(1)
    facts = {"seed": seed, "epochs": epochs, "seconds": time.time() - started, "test_accuracy": accuracy(net, xt, yt)}
    return net, facts


def augment(images: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Mirror half of the images, shift all by up to 6 pixels."""
    if rng.random() < 0.5:
        images = images.flip(3)
    dy, dx = rng.integers(0, 13, 2)
    return F.pad(images, (6, 6, 6, 6))[:, :, dy : dy + PIXELS, dx : dx + PIXELS]


def train_and_save(seed: int, epochs: int, folder: Path, threads: int) -> None:
    """Train one network; write its weights and how well it does."""
    torch.set_num_threads(threads)
    net, facts = train(seed, epochs)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in net.state_dict().items()}, folder / f"seed{seed}.safetensors")
    (folder / f"seed{seed}.json").write_text(json.dumps(facts, indent=1))
    print(json.dumps(facts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    args = parser.parse_args()
    train_and_save(args.seed, args.epochs, args.out, args.threads)


if __name__ == "__main__":
    main()
