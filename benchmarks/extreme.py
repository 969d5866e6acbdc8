"""The smallest files: entropy-penalised training (`--recipe extreme`) of four networks for MNIST and of ResNet-20.

Asked and published: LeNet-300-100 8 kB at 1.6 % error (27 kB at 1.58 %, Deep Compression; 8.56 kB at 1.9 %, Oktay et
al.); LeNet-5 3.5 kB at 0.9 % (44 kB at 0.74 %; 2.84 kB at 1.0 %; MIRACLE 3.03 kB at 0.69 %, 1.52 kB at 0.96 %); the
12.5 MB network for MNIST 40 kB without loss (0.57 MB); lenet_mnist as given 9 kB at 99.11 %; ResNet-20 48 kB at half a
point. Bytes are those of whole ``.smidgen`` files, graph included. Some of the training images are held back: weights
are chosen by it, and the test images are scored once, at the end. (The originals were trained on those too, so
what is lost on it looks like more than what is lost on the test images.)

    python benchmarks/extreme.py
    python benchmarks/extreme.py --networks lenet_300_100 --sizes 5kB 3kB
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lenets
import sets
import torch
from claims import RESULTS, Claim, earlier, joined, save, show

import smidgen
from smidgen.budget import parse_size
from smidgen.data import Dataset, open_data

TITLE = "Entropy-penalised training: whole archives"


@dataclass(frozen=True)
class Case:
    """One network.

    Args:
        original: the network, or its file.
        data: inputs of a split, "train" or "test", with labels.
        size, error: bytes and share of errors asked; the error is one beside the original's where it is `beside`.
        aim: bytes aimed at.
        training: settings of the training.
        extreme: settings of the recipe.
    """

    original: Callable[[], Any]
    data: Callable[[str], Dataset]
    size: int
    error: float
    aim: int
    training: dict[str, Any]
    extreme: dict[str, Any]
    beside: bool = False


def digits(split: str) -> Dataset:
    return lenets.digits(sets.MNIST_TRAIN if split == "train" else sets.MNIST_TEST)


def raw_digits(split: str) -> Dataset:
    return sets.mnist(sets.MNIST_TRAIN if split == "train" else sets.MNIST_TEST)


def photos(split: str) -> Dataset:
    return sets.ready(open_data(sets.data_folder() / "cifar10_jpeg.npz", split=split, preprocess=sets.CIFAR))


SHIFTED = {"augment": ["shift2"]}
MIXED = {**SHIFTED, "precision": "mixed"}
ASKED_ONCE = {"live": False}
CASES = {
    "lenet_300_100": Case(
        lambda: lenets.network("lenet_300_100"), digits, 8000, 0.016, 5000, {"epochs": 80, **SHIFTED}, ASKED_ONCE
    ),
    "lenet_5": Case(
        lambda: lenets.network("lenet_5"), digits, 3500, 0.009, 2000, {"epochs": 60, **SHIFTED}, ASKED_ONCE
    ),
    "lenet_mnist": Case(
        lambda: str(sets.model("lenet_mnist.onnx")), raw_digits, 9000, 0.0089, 5000, {"epochs": 40, **MIXED},
        ASKED_ONCE,
    ),
    "mnist_cnn": Case(
        lambda: lenets.network("mnist_cnn"), digits, 40000, 0.0, 15000, {"epochs": 24, **MIXED}, ASKED_ONCE,
        beside=True,
    ),
    "resnet20": Case(
        lambda: str(sets.model("resnet20_cifar10_jpegft.onnx")), photos, 48000, 0.005, 34000,
        {"epochs": 30, "lr": 5e-4, "augment": ["shift4", "flip"], "precision": "mixed"}, {}, beside=True,
    ),
}  # fmt: skip


def run(name: str, size: int, epochs: int | None, threads: int, seed: int) -> dict[str, Any]:
    """One archive: its record, with the seconds that it took in all."""
    case, started = CASES[name], time.perf_counter()
    checkpoint = RESULTS / "extreme" / f"{name}.{size}.{seed}.checkpoint"
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    training = {**case.training, **({} if epochs is None else {"epochs": epochs})}
    result = smidgen.compress(
        case.original(), case.data("train"), test=case.data("test"), recipe="extreme", threads=threads, seed=seed,
        budget=smidgen.Budget(size=size),
        settings={"training": training, "extreme": {**case.extreme, "checkpoint": str(checkpoint)}},
        progress=Told(f"{name} {size}"),
    )  # fmt: skip
    kept = checkpoint.with_name(f"{name}.{size}.{seed}.smidgen")
    kept.write_bytes(result.files["archive"].read_bytes())
    for part in checkpoint.parent.glob(f"{checkpoint.name}.*"):
        part.unlink()
    record = result.record
    archive, original = record["files"]["archive"], record["original"]
    trained = record["training"]
    return {
        "size": size, "nbytes": archive["nbytes"], "accuracy": archive["accuracy"], "met": result.met,
        "original_accuracy": original["accuracy"], "original_nbytes": original["nbytes"], "seed": seed,
        "interval": archive["loss_interval"], "lost": archive["loss_points"],
        "held_lost": record["trials"][-1]["points"], "predicted": record["predicted"]["nbytes"],
        "training_seconds": trained["seconds"], "seconds": time.perf_counter() - started,
        "epochs": len(trained["history"]), "training": training, "bytes": trained["bytes"],
        "history": trained["history"], "layers": [[each["name"], each["shape"], each["nbytes_after"]]
                                                  for each in record["layers"]],
    }  # fmt: skip


class Told:
    """Prints what the recipe says, once every half minute."""

    def __init__(self, name: str) -> None:
        self.name, self.at = name, 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        if time.monotonic() - self.at > 30:
            self.at = time.monotonic()
            print(f"{self.name}: {stage} {done}/{total}", flush=True)


def claims_of(name: str, rows: list[dict[str, Any]], before: dict[str, Any]) -> list[Claim]:
    """The bar, and the aim; each against the run of least loss that is small enough.

    Records of runs are dropped when what trains changes. A run of the one says nothing against the other, so the claim
    made before stays where no run is of its size and those of other sizes do not reach it.
    """
    known = {claim["what"] for claim in before.get("claims", ())}
    run = {row["size"] for row in rows}
    case = CASES[name]
    made = [(size, _claim(name, word, size, rows)) for word, size in (("bar", case.size), ("aim", case.aim))]
    return [claim for size, claim in made if claim.passed or size in run or claim.what not in known]


def _claim(name: str, word: str, size: int, rows: list[dict[str, Any]]) -> Claim:
    case = CASES[name]
    error = f"at no more than {100 * case.error:g} % errors" if not case.beside else (
        f"at most {100 * case.error:g} points lost" if case.error else "no loss")  # fmt: skip
    what, asked = f"{name}: {word} {size / 1000:g} kB", f"{'aim ' * (word == 'aim')}≤ {size / 1000:g} kB {error}"
    small = [row for row in rows if row["nbytes"] <= size]
    if not small:
        return Claim(what, asked, "no run was that small", False)
    best = min(small, key=lambda row: row["held_lost"])  # test images choose nothing
    text = (
        f"{best['nbytes']} bytes, {100 - 100 * best['accuracy']:.2f} % errors, lost {best['lost']:.2f} points "
        f"(95 %: {best['interval'][0]:.2f} to {best['interval'][1]:.2f}), "
        f"{best['original_nbytes'] / best['nbytes']:.0f}x smaller, {best['training_seconds']:.0f} s of training"
    )
    lost = best["lost"] / 100 if case.beside else 1 - best["accuracy"]
    return Claim(what, asked, text, lost <= case.error + 1e-9)


def table_of(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Every run, the smallest file first."""
    heads = ["asked", "file", "smaller", "accuracy", "points lost (95 %)", "predicted", "epochs", "training"]
    return [heads] + [
        [f"{row['size']:,}", f"{row['nbytes']:,}", f"{row['original_nbytes'] / row['nbytes']:.0f}×",
         f"{100 * row['accuracy']:.2f} %", f"{row['lost']:.2f} ({row['interval'][0]:.2f} to {row['interval'][1]:.2f})",
         f"{row['predicted']:,}", str(row["epochs"]), f"{row['training_seconds']:.0f} s"]
        for row in sorted(rows, key=lambda row: row["nbytes"])
    ]  # fmt: skip


def with_earlier(table: list[list[str]], before: dict[str, Any], name: str) -> list[list[str]]:
    """The rows of an earlier record for sizes that were not asked for again."""
    again = {row[0] for row in table}
    rows = [*table[1:], *(row for row in before.get("tables", {}).get(name, [])[1:] if row[0] not in again)]
    return [table[0], *sorted(rows, key=lambda row: int(row[1].replace(",", "")))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--sizes", nargs="+", help="bytes of archives; the aim and the bar when not given")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", default="extreme", help="of the file in benchmarks/results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for name in args.networks:
        case = CASES[name]
        for size in [parse_size(s) for s in args.sizes] if args.sizes else [case.aim, case.size]:
            before = earlier(args.name)
            runs: dict[str, list[dict[str, Any]]] = before.get("runs", {})
            row = run(name, size, args.epochs, args.threads, args.seed)
            same = [each for each in runs.get(name, []) if (each["size"], each["seed"]) != (size, args.seed)]
            runs[name] = [*same, row]
            told = {k: v for k, v in row.items() if k not in ("history", "bytes", "layers")}
            print(told, flush=True)
            claims = joined(before, claims_of(name, runs[name], before))
            tables = before.get("tables", {}) | {name: with_earlier(table_of(runs[name]), before, name)}
            note = {key: before[key] for key in ("note",) if key in before}
            save(args.name, TITLE, claims, tables=tables, runs=runs, threads=args.threads, **note)
    show(TITLE, joined(earlier(args.name), []))


if __name__ == "__main__":
    main()
