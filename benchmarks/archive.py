"""Archives at a size: five networks, calibration only, scored on the test split through the unpacked ONNX file.

Asked of each network: a whole .smidgen file, graph included, of at most so many kilobytes that loses at most so many
points, from at most 1,000 unlabelled training inputs and without retraining. Every run is the command line in a process
of its own; its time and peak memory are that process's.

    python benchmarks/archive.py
    python benchmarks/archive.py --networks lenet resnet20 --threads 1
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import process
import sets
import torch
from claims import RESULTS, Claim, save, show
from gendernet import WEIGHTS
from gendernet_compress import network
from scipy.stats import spearmanr

from smidgen.export.onnx import write
from smidgen.export.prepare import prepare
from smidgen.model.load import load_network
from smidgen.site import untouched

TITLE = "Whole archives at a size, calibration only, no retraining"
MOST_NBYTES = 2.5e9
EPSILON = 1e-9
GENDERNET_INPUT = (3, 100, 100)
# Where the written files are kept.
ARCHIVES = RESULTS / "archives"


@dataclass(frozen=True)
class Asked:
    """What is asked of a network.

    Args:
        file: the network.
        sizes: kB and most points lost of each budget; the first must be met, the second is aimed at.
        seconds: most time of a run.
        sweep: further sizes in kB, for predicted against measured loss.
    """

    file: str
    sizes: tuple[tuple[float, float], ...]
    seconds: float | None
    sweep: tuple[float, ...]


ASKED = {
    "lenet": Asked("lenet_mnist.onnx", ((32, 0.10), (22, 0.10)), 60, (60, 45, 16, 12, 8)),
    "resnet20": Asked("resnet20_cifar10_jpegft.onnx", ((76, 0.50), (64, 0.50)), 120, (110, 90, 50, 40, 30)),
    "catsdogs": Asked("ai85cd_catsdogs.onnx", ((21, 0.50), (16, 0.50)), None, (30, 26, 12, 9, 7)),
    "squeezenet": Asked("squeezenet1_1_imagenet.onnx", ((570, 1.0), (480, 1.0)), None, (700, 400, 320)),
    "mobilenet_v2": Asked("mobilenet_v2_1.0_224_imagenet.onnx", ((1995, 1.0), (1500, 1.0)), 600, (2500,)),
    # 20 and 30 times smaller than its float file of 45,650 kB.
    "gendernet": Asked("gendernet.onnx", ((2282, 0.5), (1521, 0.5)), None, (3000, 1000, 600, 300)),
}


def runs_of(name: str, args: argparse.Namespace) -> list[process.Run]:
    """One run of the command line for each size."""
    asked = ASKED[name]
    calibration, test = sets.calibration_and_test(name, args.seed)
    sizes = [size for size, _ in asked.sizes] + ([] if args.no_sweep else list(asked.sweep))
    with tempfile.TemporaryDirectory() as folder:
        given, scored = Path(folder, "calibration.npz"), Path(folder, "test.npz")
        np.savez(given, x=np.asarray(calibration))
        np.savez(scored, x=np.asarray(test), y=np.asarray(test.labels))
        runs = []
        for size in sizes:
            arguments = [
                str(_network(name, Path(folder))), "--data", str(given), "--test", str(scored), "--target", "archive",
                "--size", f"{size:g}kB", "--seed", str(args.seed),
            ]  # fmt: skip
            runs.append(process.compress(arguments, args.threads, ARCHIVES / f"{name}-{size:g}kB.smidgen"))
            entry, predicted = runs[-1].record["files"]["archive"], runs[-1].record["predicted"]["loss"]
            print(
                f"{name} {size:g} kB: {entry['nbytes']} bytes, accuracy {100 * entry['accuracy']:.2f} %, lost "
                f"{entry['loss_points']:.2f}, KL {entry['kl']:.4f} (predicted {predicted:.4f}), "
                f"{runs[-1].wall_s:.0f} s, {runs[-1].record['peak_rss_bytes'] / 1e9:.2f} GB",
                flush=True,
            )
    return runs


def _network(name: str, folder: Path) -> Path:
    """The network's file; GenderNet is written from the weights that gendernet.py trained."""
    if name != "gendernet":
        return sets.model(ASKED[name].file)
    path = folder / ASKED[name].file
    if not path.exists():
        prepared = prepare(load_network(network(0, WEIGHTS, 12, 1)), torch.zeros(1, *GENDERNET_INPUT))
        write(prepared.base, prepared.sites, {site.name: untouched(site) for site in prepared.sites}, path)
    return path


def claims_of(name: str, runs: list[process.Run]) -> list[Claim]:
    """What was asked of one network."""
    asked = ASKED[name]
    claims = []
    for (size, points), run, word in zip(asked.sizes, runs, ("", "aim "), strict=False):
        entry = run.record["files"]["archive"]
        met = entry["nbytes"] <= 1000 * size and entry["loss_points"] <= points + EPSILON
        low, high = entry["loss_interval"]
        claims.append(Claim(
            f"{name}: {size:g} kB", f"{word}≤ {size:g} kB at ≤ {points:.2f} points",
            f"{entry['nbytes'] / 1000:.1f} kB, lost {entry['loss_points']:.2f} (95 %: {low:.2f} to {high:.2f}), "
            f"{100 * entry['accuracy']:.2f} %", met,
        ))  # fmt: skip
    slowest = max(run.wall_s for run in runs[: len(asked.sizes)])
    memory = max(run.record["peak_rss_bytes"] for run in runs)
    limit = "" if asked.seconds is None else f"≤ {asked.seconds:g} s"
    claims.append(Claim(f"{name}: time", limit, f"{slowest:.0f} s",
                        None if asked.seconds is None else slowest <= asked.seconds))  # fmt: skip
    claims.append(Claim(f"{name}: peak memory", "≤ 2.5 GB", f"{memory / 1e9:.2f} GB", memory <= MOST_NBYTES))
    if len(runs) > 3:
        pairs = [(run.record["predicted"]["loss"], run.record["files"]["archive"]["kl"]) for run in runs]
        correlation = float(spearmanr(*zip(*pairs, strict=True)).statistic)
        claims.append(Claim(f"{name}: predicted against measured loss, rank correlation over {len(pairs)} sizes",
                            "≥ 0.95", f"{correlation:.3f}", correlation >= 0.95))  # fmt: skip
    return claims


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=list(ASKED), default=list(ASKED))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-sweep", action="store_true", help="only the sizes that are asked for")
    args = parser.parse_args()
    claims: list[Claim] = []
    measured: dict[str, Any] = {}
    for name in args.networks:
        runs = runs_of(name, args)
        claims += claims_of(name, runs)
        measured[name] = [
            {"seconds": run.wall_s, "cpu_s": run.cpu_s, "peak_rss_bytes": run.record["peak_rss_bytes"],
             "predicted": run.record["predicted"], **run.record["files"]["archive"]}
            for run in runs
        ]  # fmt: skip
    show(TITLE, claims)
    print(save("archive", TITLE, claims, threads=args.threads, seed=args.seed, runs=measured))


if __name__ == "__main__":
    main()
