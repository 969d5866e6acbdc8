"""Selective attention on scenes: a digit somewhere on a large cluttered canvas, and faces, which fill their frame.

Scenes are built from MNIST's own splits: a digit of 28×28 on 320×320, among pieces of other digits (6×6 pixels, which
tell no class) and noise. The network that is given reads the whole canvas; it is trained here first. Asked:
`smidgen.glimpse` needs at least 4 times fewer multiply-adds, expected over the test scenes, and 2.5 times less time an
image, at half a point lost at most. The other row, which asks nothing: the gender network on faces that fill the frame.

    python benchmarks/glimpse.py                 # half an hour on one core; goes on where it was killed
    python benchmarks/glimpse.py --scenes 2000 --epochs 2    # a try
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import gender_cnn
import numpy as np
import sets
import torch
import torch.nn.functional as F
from claims import RESULTS, Claim, earlier, joined, save, show
from torch import Tensor, nn

import smidgen
from smidgen.data import Dataset
from smidgen.recover.loop import fit
from smidgen.recover.scoring import labelled_score

NAME, TITLE = "glimpse", "Selective attention: a look at a crop before the whole image"
HOME = RESULTS.parent / NAME
SIDE, DIGIT, PIECES, PIECE = 320, 28, 40, 6
CROP = 36
FEWER, FASTER, POINTS = 4.0, 2.5, 0.5
WIDTHS = (8, 16, 32, 48, 64)


def canvas_network() -> nn.Module:
    """Five strided convolutions and the strongest answer anywhere: 20 million multiply-adds a scene."""
    layers: list[nn.Module] = []
    before = 1
    for width in WIDTHS:
        layers += [nn.Conv2d(before, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        layers += [nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        before = width
    return nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(before, 10))


def crop_network() -> nn.Module:
    """Reads 36×36 pixels; seeded by whoever calls."""
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(12, 24, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(24, 32, 3, 1, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(288, 10),
    )  # fmt: skip


def scenes(name: str, count: int, seed: int) -> tuple[Dataset, np.ndarray]:
    """So many scenes of a split, and where the digit is: x, y of its centre in −1 … 1, and the side of a box."""
    digits = sets.mnist(name)
    rng = np.random.default_rng(seed)
    images, labels = np.asarray(digits)[:, 0] / 255, np.asarray(digits.labels)
    chosen = rng.permutation(len(images))[:count]
    x, boxes = np.empty((count, 1, SIDE, SIDE), np.float32), np.empty((count, 3), np.float32)
    for scene, box, at in zip(x, boxes, chosen, strict=True):
        scene[0] = rng.normal(0, 0.05, (SIDE, SIDE))
        for _ in range(PIECES):
            other = images[rng.integers(len(images))]
            (a, b), (r, c) = rng.integers(4, DIGIT - PIECE - 4, 2), rng.integers(0, SIDE - PIECE, 2)
            scene[0, r : r + PIECE, c : c + PIECE] += other[a : a + PIECE, b : b + PIECE]
        r, c = rng.integers(0, SIDE - DIGIT, 2)
        scene[0, r : r + DIGIT, c : c + DIGIT] = np.maximum(scene[0, r : r + DIGIT, c : c + DIGIT], images[at])
        box[:] = 2 * (c + DIGIT / 2) / SIDE - 1, 2 * (r + DIGIT / 2) / SIDE - 1, CROP / SIDE
    return Dataset.from_array(x, labels[chosen]), boxes


def trained(data: Dataset, epochs: int, seed: int) -> nn.Module:
    """The network for whole canvases; it goes on where it was killed."""
    HOME.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    net, fifth = canvas_network(), len(data) // 5
    held, learned = data.take(range(fifth)), data.take(range(fifth, len(data)))

    def loss(x: Tensor, labels: Tensor | None) -> Tensor:
        assert labels is not None
        return F.cross_entropy(net(x).float(), labels)

    training = smidgen.Training(epochs=epochs, batch=32, lr=2e-3, seed=seed)
    fitted = fit(
        net, learned, loss, training, held=partial(labelled_score, net, held),
        checkpoint=HOME / f"canvas.{len(data)}.{seed}.checkpoint",
    )  # fmt: skip
    print(f"whole canvas: epoch {fitted.best_epoch} of {fitted.epochs}, {fitted.seconds:.0f} s", flush=True)
    return net.eval()


def row_of(result: Any, seconds: float, boxes: str) -> dict[str, Any]:
    """What the record says."""
    told, file = result.record["glimpse"], result.record["files"]["glimpse"]
    return {
        "boxes": boxes, "epochs": result.record["training"]["epochs"],
        "macs": told["macs"], "test": told["test"], "selection": told["selection"],
        "latency": told["latency"], "warning": told["warning"], "score": file["test"]["score"],
        "lost": file["test"]["lost"], "interval": [file["test"]["low"], file["test"]["high"]], "seconds": seconds,
    }  # fmt: skip


def claim_of(what: str, row: Mapping[str, Any], asked: bool) -> Claim:
    fewer, faster = row["macs"]["full"] / row["test"]["expected_macs"], row["latency"]["speedup"]
    low, high = row["interval"]
    ends = ", ".join(f"{100 * share:.1f} %" for share in row["test"]["shares"])
    text = (
        f"{fewer:.1f}× fewer multiply-adds, {faster:.1f}× as fast; {100 * row['score']:.2f} %, lost {row['lost']:.2f} "
        f"(95 %: {low:.2f} to {high:.2f}); ends at glance, crop, whole: {ends}; {row['warning'] or 'boxes move'}"
    )
    passed = fewer >= FEWER and faster >= FASTER and row["lost"] <= POINTS if asked else None
    return Claim(what, f"≥ {FEWER:g}× fewer, ≥ {FASTER:g}× as fast, ≤ {POINTS:g} points" if asked else "", text, passed)


def on_scenes(args: argparse.Namespace, taught: bool) -> Claim:
    """Boxes given, or from the network's own maps."""
    data, boxes = scenes(sets.MNIST_TRAIN, args.scenes, args.seed)
    test, _ = scenes(sets.MNIST_TEST, args.scenes // 5, args.seed)
    net, started = trained(data, args.epochs, args.seed), time.perf_counter()
    torch.manual_seed(args.seed)
    result = smidgen.glimpse(
        net, data, CROP, classifier=crop_network(), boxes=boxes if taught else None, test=test, seed=args.seed,
        training=smidgen.Training(epochs=args.look_epochs, batch=32, lr=2e-3), threads=args.threads,
        checkpoint=HOME / f"glimpse.{len(data)}.{'boxes' if taught else 'maps'}.{args.seed}.checkpoint",
    )  # fmt: skip
    row = row_of(result, time.perf_counter() - started, "given" if taught else "from maps")
    keep(f"scenes, boxes {row['boxes']}", row)
    return claim_of(f"a digit on {SIDE}×{SIDE}, boxes {row['boxes']}", row, True)


def on_faces(args: argparse.Namespace) -> Claim:
    """The object fills the frame."""
    net = gender_cnn.network(args.seed, threads=args.threads)
    started = time.perf_counter()
    torch.manual_seed(args.seed)
    result = smidgen.glimpse(
        net, sets.faces("train", sets.GENDER_CNN), (32, 28), classifier=face_network(), seed=args.seed,
        test=sets.faces("test", sets.GENDER_CNN), threads=args.threads,
        training=smidgen.Training(epochs=args.look_epochs, batch=32, lr=2e-3),
    )  # fmt: skip
    row = row_of(result, time.perf_counter() - started, "from maps")
    keep("faces", row)
    return claim_of("gender of faces that fill the frame", row, False)


def face_network() -> nn.Module:
    """Reads 32×28 pixels of a face."""
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(12, 24, 3, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24 * 8 * 7, 2),
    )


def keep(name: str, row: dict[str, Any]) -> None:
    HOME.mkdir(parents=True, exist_ok=True)
    before = earlier(NAME)
    save(NAME, TITLE, joined(before, []), runs={**before.get("runs", {}), name: row})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=("boxes", "maps", "faces"), default=["boxes", "maps", "faces"])
    parser.add_argument("--scenes", type=int, default=5000, help="of the training split; a fifth as many to test")
    parser.add_argument("--epochs", type=int, default=8, help="of the network that reads whole canvases")
    parser.add_argument("--look-epochs", type=int, default=16, help="of localizer and classifier")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for row in args.rows:
        claim = on_faces(args) if row == "faces" else on_scenes(args, row == "boxes")
        before = earlier(NAME)
        save(NAME, TITLE, joined(before, [claim]), runs=before.get("runs", {}), threads=args.threads)
    show(TITLE, joined(earlier(NAME), []))


if __name__ == "__main__":
    main()
