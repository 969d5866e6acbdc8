"""Decomposed layers, fine-tuned: Tucker-2 with the ranks of VBMF (Kim et al., arXiv:1511.06530) and ranks by price.

The small VGG on CIFAR-10 (`vgg.py`). Asked: what decomposition loses before and after fine-tuning; ranks by price no
worse than those of VBMF at equal multiply-adds; and at least three times fewer multiply-adds without loss. The forms
are found by calibration on unlabelled training images, then trained to answer as the original did, with labels mixed
in; 5,000 of the training images say which epoch is kept and the test images are scored once for each file. Ranks by
price have as their budget the multiply-adds that VBMF's leave, or a third of all.

    python benchmarks/finetuning.py               # an hour on one core, the network's training apart
    python benchmarks/finetuning.py --ways vbmf
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import sets
import torch
import vgg
from claims import RESULTS, Claim, earlier, joined, save, show, told

import smidgen
from smidgen.data import Dataset, open_data

NAME, TITLE = "finetuning", "Decomposition and fine-tuning: the small VGG, before and after"
HOME = RESULTS / NAME
LABELS = 0.5  # of what is learned from; the rest are the original's answers
TRAINING = {
    "epochs": 12, "batch": 128, "lr": 1e-3, "augment": ("shift4", "flip"), "precision": "mixed", "average": 0.999,
}  # fmt: skip
FEWER = 3.0  # times
# Methods, their settings, and the share of multiply-adds that is left: that of another way, or as many as come out.
WAYS: dict[str, tuple[tuple[str, ...], dict[str, Any], str | float | None]] = {
    "vbmf": (("tucker2",), {"tucker2": {"ranks": "vbmf"}}, None),
    "price": (("tucker2",), {}, "vbmf"),
    "price, all methods": (("svd", "spatial", "tucker2"), {}, "vbmf"),
    "price, all methods, a third": (("svd", "spatial", "tucker2"), {}, 1 / FEWER),
}


def photos(split: str) -> Dataset:
    return sets.ready(open_data(sets.data_folder() / vgg.IMAGES, split=split, preprocess=sets.CIFAR))


def macs_of(result: smidgen.Result) -> int:
    return sum(layer["macs_after"] for layer in result.record["layers"])


def found(file: Path, way: str, macs: float | None, data: Dataset, threads: int, **given: Any) -> smidgen.Result:
    """The network decomposed: to a share of its multiply-adds, or with the ranks that the method says."""
    methods, settings, _ = WAYS[way]
    budget = None if macs is None else smidgen.Budget(macs=macs)
    return smidgen.compress(
        str(file), data, budget=budget, methods=methods, settings=settings, threads=threads, guard=False, **given
    )


def run(way: str, threads: int, seed: int, before: Mapping[str, Any]) -> dict[str, Any]:
    """One way: its files before and after training."""
    HOME.mkdir(parents=True, exist_ok=True)
    started, file, test = time.perf_counter(), vgg.network_file(HOME, threads=threads), photos("test")
    share = WAYS[way][2]
    if isinstance(share, str):
        if share not in before.get("runs", {}):
            raise SystemExit(f"run the way '{share}' first: '{way}' has as many multiply-adds as it leaves")
        share = before["runs"][share]["macs"] / before["original_macs"]
    plain = found(file, way, share, sets.calibration_and_test("vgg", seed)[0], threads, test=test, seed=seed)
    tuned = found(
        file, way, share, photos("train"), threads, test=test, seed=seed, train=smidgen.Training(**TRAINING),
        mix=1 - LABELS, checkpoint=HOME / f"{way}.{seed}.checkpoint", progress=told(way),
    )  # fmt: skip
    layers = plain.record["layers"]
    return {
        "way": way, "share": share, "macs": macs_of(plain), "tuned_macs": macs_of(tuned),
        "original_macs": sum(layer["macs_before"] for layer in layers),
        "ranks": {layer["name"]: [layer["form"], layer["rank"]] for layer in layers},
        "original": plain.record["original"]["accuracy"], "training": tuned.record["training"]["why"],
        "seconds": time.perf_counter() - started,
        **{key: _scores(result.record["files"]["onnx"]) for key, result in (("before", plain), ("after", tuned))},
    }  # fmt: skip


def _scores(file: Mapping[str, Any]) -> dict[str, Any]:
    return {key: file[key] for key in ("nbytes", "accuracy", "loss_points", "loss_interval", "latency_ms", "speedup")}


def claims_of(runs: Mapping[str, Mapping[str, Any]]) -> list[Claim]:
    """Each way, and the price beside VBMF."""
    claims = []
    for way, row in runs.items():
        low, high = row["after"]["loss_interval"]
        fewer = row["original_macs"] / row["tuned_macs"]
        text = (
            f"{fewer:.2f}× fewer multiply-adds; {100 * row['original']:.2f} %, lost {row['before']['loss_points']:.2f} "
            f"before and {row['after']['loss_points']:.2f} after fine-tuning (95 %: {low:.2f} to {high:.2f}); "
            f"{row['after']['speedup']:.2f}× as fast"
        )
        third = isinstance(WAYS[way][2], float)
        passed = fewer >= FEWER and row["after"]["loss_points"] <= 0 if third else None
        asked = f"aim ≥ {FEWER:g}× fewer multiply-adds, no loss" if third else "before and after"
        claims.append(Claim(f"vgg, ranks by {way}", asked, text, passed))
    if {"vbmf", "price"} <= runs.keys():
        ours, theirs = (runs[way]["after"]["loss_points"] for way in ("price", "vbmf"))
        text = f"lost {ours:.2f} beside {theirs:.2f}"
        claims.append(Claim("vgg, Tucker-2: ranks by price beside VBMF's, fine-tuned, at equal multiply-adds",
                            "no worse", text, ours <= theirs))  # fmt: skip
    return claims


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for way in args.ways:
        before = earlier(NAME)
        row = run(way, args.threads, args.seed, before)
        runs = {**before.get("runs", {}), way: row}
        save(NAME, TITLE, joined(before, claims_of(runs)), threads=args.threads, seed=args.seed,
             original_macs=row["original_macs"], runs=runs)  # fmt: skip
    show(TITLE, joined(earlier(NAME), []))


if __name__ == "__main__":
    main()
