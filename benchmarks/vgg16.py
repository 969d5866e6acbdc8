"""VGG-16 or VGG-19 on cats and dogs: 50 to 95 % of the weights removed while it trains, the rest in 8 bits.

Published: ten times smaller at 70 % sparsity and 8 bits with little loss. Aimed at: 30 times at 0.5 points. No trained
weights are at hand, so the network (Simonyan and Zisserman, arXiv:1409.1556, with BatchNorm, its dense layers of 4,096)
is trained from scratch on 2,000 photos of 128×128, a fifth of which says which epoch is kept; then comes Deep
Compression with training: the smallest weights go by the cubic schedule, 256 values a layer are shared and trained, and
all is coded in an archive. It wants a graphics card, which is used
where there is one; on a processor give it a part of the width. The record says what was measured where.

    python benchmarks/vgg16.py
    python benchmarks/vgg16.py --layers 19 --width 0.25 --epochs 20
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from typing import Any

import sets
import torch
import torch.nn.functional as F
from claims import RESULTS, Claim, earlier, joined, save, show
from mobile_peers import write_network
from torch import Tensor, nn

import smidgen
from smidgen.data import Dataset, Preprocess, open_data
from smidgen.recover.loop import fit
from smidgen.recover.scoring import labelled_score

NAME, TITLE = "vgg16", "VGG-16 and VGG-19 on cats and dogs: pruned while training, 8 bits"
HOME = RESULTS.parent / NAME
PHOTOS = Preprocess(mean=(127.5,), std=(64,))
SIDE, CLASSES, HIDDEN = 128, 2, 4096
BLOCKS = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
WIDTHS = (64, 128, 256, 512, 512)
SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95)
AUGMENT = ("shift8", "flip", "zoom20")
GOAL, POINTS = 30.0, 0.5
SCRATCH = {"batch": 32, "lr": 0.02, "optimizer": "sgd", "weight_decay": 5e-4, "augment": AUGMENT, "precision": "mixed"}
TUNED = {"batch": 32, "lr": 1e-4, "augment": AUGMENT, "precision": "mixed"}


def network(layers: int, width: float) -> nn.Module:
    """VGG with BatchNorm, every layer of that share of its width."""
    modules: list[nn.Module] = []
    before = 3
    for count, full in zip(BLOCKS[layers], WIDTHS, strict=True):
        for _ in range(count):
            after = max(8, round(full * width))
            modules += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
            before = after
        modules.append(nn.MaxPool2d(2))
    hidden = max(8, round(HIDDEN * width))
    flat = before * (SIDE // 2 ** len(WIDTHS)) ** 2
    head = [nn.Flatten(), nn.Linear(flat, hidden), nn.ReLU(), nn.Dropout(0.5), nn.Linear(hidden, hidden), nn.ReLU()]
    net = nn.Sequential(*modules, *head, nn.Dropout(0.5), nn.Linear(hidden, CLASSES))
    for each in net.modules():
        if isinstance(each, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(each.weight)
    return net


def photos(split: str) -> Dataset:
    return sets.ready(open_data(sets.data_folder() / "cats_dogs_128.npz", split=split, preprocess=PHOTOS))


def trained(args: argparse.Namespace, train: Dataset, device: str) -> nn.Module:
    """The network from scratch; it goes on where it was killed."""
    HOME.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    net = network(args.layers, args.width)
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(args.seed)).numpy()
    fifth = len(order) // 5
    held, learned = train.take(order[:fifth]), train.take(order[fifth:])

    def loss(x: Tensor, labels: Tensor | None) -> Tensor:
        assert labels is not None
        return F.cross_entropy(net(x).float(), labels)

    training = smidgen.Training(epochs=args.epochs, seed=args.seed, **SCRATCH)
    fitted = fit(
        net, learned, loss, training, held=partial(labelled_score, net, held), device=device,
        checkpoint=HOME / f"vgg{args.layers}.{args.width:g}.{args.seed}.checkpoint",
        progress=lambda *told: print(*told, flush=True) if told[1] == told[2] else None,
    )  # fmt: skip
    print(f"from scratch: epoch {fitted.best_epoch} of {fitted.epochs}, {fitted.seconds:.0f} s", flush=True)
    return net.cpu().eval()


def pruned(
    net: nn.Module, sparsity: float, train: Dataset, test: Dataset, args: argparse.Namespace, device: str
) -> dict[str, Any]:
    """One archive."""
    started, file = time.perf_counter(), HOME / f"vgg{args.layers}.{args.width:g}.onnx"
    write_network(net, file, (3, SIDE, SIDE))
    result = smidgen.compress(
        str(file), train, test=test, recipe="deep-compression",
        settings={"obs": {"sparsity": sparsity}, "kmeans": {"bits": 8}},
        train=smidgen.Training(epochs=args.tune, seed=args.seed, **TUNED), mix=0.5,
        threads=args.threads, seed=args.seed, device=device,
    )  # fmt: skip
    written, original = result.record["files"]["archive"], result.record["original"]
    return {
        "layers": args.layers, "width": args.width, "sparsity": sparsity, "nbytes": written["nbytes"],
        "original_nbytes": original["nbytes"], "accuracy": written["accuracy"], "device": device,
        "original_accuracy": original["accuracy"], "lost": written["loss_points"], "interval": written["loss_interval"],
        "seconds": time.perf_counter() - started,
    }  # fmt: skip


def claim_of(row: dict[str, Any]) -> Claim:
    ratio = row["original_nbytes"] / row["nbytes"]
    low, high = row["interval"]
    text = (
        f"{row['original_nbytes'] / 1e6:.1f} MB → {row['nbytes'] / 1e6:.2f} MB, {ratio:.1f}×; "
        f"{100 * row['original_accuracy']:.2f} %, lost {row['lost']:.2f} (95 %: {low:.2f} to {high:.2f}); "
        f"on {row['device']}, {row['seconds']:.0f} s"
    )
    what = f"VGG-{row['layers']}, width {row['width']:g}, {100 * row['sparsity']:g} % removed, 8 bits"
    asked = f"goal ≥ {GOAL:g}× at ≤ {POINTS:g} points, at one sparsity"
    return Claim(what, asked, text, True if ratio >= GOAL and row["lost"] <= POINTS else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, choices=BLOCKS, default=16)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--sparsities", nargs="+", type=float, default=list(SPARSITIES))
    parser.add_argument("--epochs", type=int, default=60, help="from scratch")
    parser.add_argument("--tune", type=int, default=15, help="epochs of pruning and fine-tuning")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    train, test = photos("train"), photos("test")
    net = trained(args, train, device)
    for sparsity in args.sparsities:
        row = pruned(net, sparsity, train, test, args, device)
        before = earlier(NAME)
        claims = joined(before, [claim_of(row)])
        save(NAME, TITLE, claims, threads=args.threads, runs=[*before.get("runs", []), row])
        print(claim_of(row).measured, flush=True)
    show(TITLE, joined(earlier(NAME), []))


if __name__ == "__main__":
    main()
