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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import process
import sets
import torch
from claims import RESULTS, Claim, earlier, save, show
from figure import draw
from gendernet import WEIGHTS
from gendernet_compress import network
from scipy.stats import spearmanr
from sweep import Bench, Point

from smidgen.export.onnx import write
from smidgen.export.prepare import prepare
from smidgen.model.load import load_network
from smidgen.pipeline import open_task
from smidgen.site import untouched

TITLE = "Whole archives at a size, calibration only, no retraining"
MOST_NBYTES = 2.5e9
EPSILON = 1e-9
CORRELATION = 0.95
MIDDLE = 0.15
DIAL = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.65)  # from hardly rounded to worthless
GENDERNET_INPUT = (3, 100, 100)
PHOTOS = ("squeezenet", "mobilenet_v2", "gendernet")  # given as JPEG files
# Where the written files are kept.
ARCHIVES = RESULTS / "archives"


@dataclass(frozen=True)
class Asked:
    """What is asked of a network.

    Args:
        file: the network.
        sizes: kB and most points lost of each budget; the first must be met, the second is aimed at.
        seconds: most time of a run.
    """

    file: str
    sizes: tuple[tuple[float, float], ...]
    seconds: float | None


ASKED = {
    "lenet": Asked("lenet_mnist.onnx", ((32, 0.10), (22, 0.10)), 60),
    "resnet20": Asked("resnet20_cifar10_jpegft.onnx", ((76, 0.50), (64, 0.50)), 120),
    "catsdogs": Asked("ai85cd_catsdogs.onnx", ((21, 0.50), (16, 0.50)), None),
    "squeezenet": Asked("squeezenet1_1_imagenet.onnx", ((570, 1.0), (480, 1.0)), None),
    "mobilenet_v2": Asked("mobilenet_v2_1.0_224_imagenet.onnx", ((1995, 1.0), (1500, 1.0)), 600),
    # 20 and 30 times smaller than its float file of 45,650 kB.
    "gendernet": Asked("gendernet.onnx", ((2282, 0.5), (1521, 0.5)), None),
}


def runs_of(name: str, target: str, sizes: Sequence[float], threads: int, seed: int) -> list[process.Run]:
    """One run of the command line for each size, in kB."""
    asked = {f"{size:g}kB": ["--size", f"{size:g}kB"] for size in sizes}
    return runs_asked(name, target, asked, threads, seed)


def runs_asked(
    name: str, target: str, asked: Mapping[str, Sequence[str]], threads: int, seed: int
) -> list[process.Run]:
    """One run of the command line for each set of options, by what it is called."""
    with tempfile.TemporaryDirectory() as folder:
        data, runs = write_data(name, seed, Path(folder)), []
        for called, options in asked.items():
            arguments = [
                str(_network(name, Path(folder))), *data, "--target", target, *options, "--seed", str(seed),
            ]  # fmt: skip
            kept = ARCHIVES / f"{name}-{called}.smidgen" if target == "archive" else None
            runs.append(process.compress(arguments, threads, kept))
            entry, predicted = runs[-1].record["files"][target], runs[-1].record["predicted"]["loss"]
            print(
                f"{name} {target} {called}: {entry['nbytes']} bytes, accuracy {100 * entry['accuracy']:.2f} %, lost "
                f"{entry['loss_points']:.2f}, KL {entry['kl']:.2g} (predicted {predicted:.2g}), "
                f"{runs[-1].wall_s:.0f} s, {runs[-1].record['peak_rss_bytes'] / 1e9:.2f} GB",
                flush=True,
            )
    return runs


def write_data(name: str, seed: int, folder: Path) -> list[str]:
    """Calibration inputs and test split as files, and the arguments that name them."""
    given, scored = folder / "calibration.npz", folder / "test.npz"
    named = ["--data", str(given), "--test", str(scored)]
    if name in PHOTOS:
        return named + sets.write_photos(name, seed, folder)
    calibration, test = sets.calibration_and_test(name, seed)
    np.savez(given, x=np.asarray(calibration))
    np.savez(scored, x=np.asarray(test), y=np.asarray(test.labels))
    return named


def measured(run: process.Run, target: str) -> dict[str, Any]:
    """What a run leaves in the JSON."""
    return {
        "seconds": run.wall_s, "cpu_s": run.cpu_s, "peak_rss_bytes": run.record["peak_rss_bytes"],
        "predicted": run.record["predicted"], **run.record["files"][target],
    }  # fmt: skip


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
    return claims


def sweep_of(name: str, args: argparse.Namespace) -> tuple[Bench, list[Point]]:
    """The archives over the dial, calibrated once, each scored on the test split."""
    calibration, test = sets.calibration_and_test(name, args.seed)
    with tempfile.TemporaryDirectory() as folder:
        task = open_task(
            _network(name, Path(folder)), calibration, test, None, None, None, args.threads, "cpu", args.seed
        )
        bench = Bench(task, "auto", test, target="archive")
    print(f"{name}, over the dial", flush=True)
    bench.at_dial(MIDDLE)  # the first plan decides what refits may move: one of the middle, not a lossless one
    return bench, [bench.at_dial(position) for position in DIAL]


def claim_of_sweep(name: str, points: list[Point]) -> Claim:
    """Whether the plans that are predicted to lose more do lose more."""
    plans = list({point.nbytes: point for point in points if point.kl is not None}.values())
    correlation = float(spearmanr([p.predicted for p in plans], [p.kl for p in plans]).statistic)
    return Claim(f"{name}: predicted against measured loss, rank correlation over {len(plans)} plans", "≥ 0.95",
                 f"{correlation:.3f}", correlation >= CORRELATION)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=list(ASKED), default=list(ASKED))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-sweep", action="store_true", help="only the sizes that are asked for, no dial")
    parser.add_argument("--add", action="store_true", help="keep what the last run left of other networks")
    args = parser.parse_args()
    kept = _earlier(args.networks) if args.add else {"claims": [], "runs": {}, "sweep": {}}
    claims: list[Claim] = [Claim(c["what"], c["asked"], c["measured"], c["passed"]) for c in kept["claims"]]
    found, sweeps = kept["runs"], kept["sweep"]
    for name in args.networks:
        runs = runs_of(name, "archive", [size for size, _ in ASKED[name].sizes], args.threads, args.seed)
        claims += claims_of(name, runs)
        found[name] = [measured(run, "archive") for run in runs]
        if not args.no_sweep:
            bench, points = sweep_of(name, args)
            claims.append(claim_of_sweep(name, points))
            sweeps[name] = [point.as_dict() for point in points]
            draw(RESULTS / f"archive_{name}.png", f"Archives of {name}, calibration only", {name: points},
                 {name: (bench.nbytes, bench.baseline.accuracy or 0.0)}, zoom=2, file="archive")  # fmt: skip
        # After each network: an hour's run that is stopped leaves what it has.
        save("archive", TITLE, claims, threads=args.threads, seed=args.seed, runs=found, sweep=sweeps)
    show(TITLE, claims)


def _earlier(networks: Sequence[str]) -> dict[str, Any]:
    """What the last runs left of other networks than these."""
    last = earlier("archive")
    return {
        "claims": [c for c in last.get("claims", []) if c["what"].split(":")[0] not in networks],
        **{key: {n: v for n, v in last.get(key, {}).items() if n not in networks} for key in ("runs", "sweep")},
    }


if __name__ == "__main__":
    main()
