"""The gender CNN of "Compression of Neural Networks for Usage in Mobile Devices": weights, bytes, ROC AUC, latency.

Compared on the test split of the adult faces, all as written files in ONNX Runtime: the original; the published form,
three factors of rank 5 in the place of three dense layers; smidgen's own plans as an archive, as 8-bit weights and as
floats, from at most 1,000 unlabelled training faces and without retraining; and the network without dense layers.

Asked: an archive of at most 12 kB and 8-bit weights in at most 40 kB, each at no more than 0.002 ROC AUC lost
(published: 2.7 MB to 36.1 kB at 0.002), and no more milliseconds than the original (published: 4 more).

    python benchmarks/mobile.py
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gender_cnn
import numpy as np
import process
import sets
from claims import RESULTS, Claim, save, show
from gender_cnn import DENSE, FLAT, load_split
from mobile_peers import dense_weights, without_dense, write_low_rank, write_network

from smidgen import unpack
from smidgen.data import Dataset
from smidgen.measure.cost import onnx_cost
from smidgen.measure.latency import Latency, measure_latency
from smidgen.measure.scores import Judge
from smidgen.numerics.metrics import roc_auc
from smidgen.runtimes.onnxruntime import open_onnx
from smidgen.runtimes.opening import run_dataset

TITLE = "The gender CNN for mobile devices: calibration only, no retraining"
FILES = RESULTS / "mobile"
RANK = 5
SIZES = {"archive": 12_000, "onnx-w8": 40_000}  # asked, in bytes
MOST_LOST = 0.002  # of ROC AUC
SLOWEST = 0.98  # of the original's speed: two runs of one file differ by as much
PUBLISHED_NBYTES, PUBLISHED_WEIGHTS = 36_100, 41_909
REPEATS, MOST_SECONDS = 1500, 120.0
ORIGINAL, TWIN = "original", "original, timed twice"
PLAIN, CALIBRATED = f"rank {RANK}, three factors", f"rank {RANK}, three factors, calibrated and refitted"


@dataclass(frozen=True)
class Measured:
    """One file.

    Args:
        weights, macs: of what the runtime opens.
        nbytes: of the file.
        auc, accuracy: on the test split, fractions.
        lost, low, high: ROC AUC lost against the original, and the paired 95 % interval.
        latency: of one face.
    """

    weights: int
    macs: int | None
    nbytes: int
    auc: float
    accuracy: float
    lost: float
    low: float
    high: float
    latency: Latency


def auc_of(outputs: np.ndarray, labels: np.ndarray) -> float:
    """ROC AUC of two classes' outputs."""
    return roc_auc(outputs[:, 1] - outputs[:, 0], labels)


def write_files(args: argparse.Namespace) -> tuple[dict[str, Path], dict[str, Any], Dataset]:
    """Every file by name, the records of the automatic ones, and the test split."""
    FILES.mkdir(parents=True, exist_ok=True)
    net = gender_cnn.network(args.seed, args.weights, threads=args.threads)
    calibration, test = sets.calibration_and_test("gender_cnn", args.seed)
    names = {ORIGINAL: "original", PLAIN: "low_rank", CALIBRATED: "low_rank_calibrated"}
    files = {name: FILES / f"{stem}.onnx" for name, stem in names.items()}
    write_network(net, files[ORIGINAL])
    write_low_rank(files[ORIGINAL], None, RANK, args.threads, args.seed, files[PLAIN])
    write_low_rank(files[ORIGINAL], calibration, RANK, args.threads, args.seed, files[CALIBRATED])
    # Floats get the bytes that the published form takes as floats.
    sizes = {**SIZES, "onnx": files[PLAIN].stat().st_size}
    runs = _automatic(files[ORIGINAL], calibration, test, sizes, args)
    files |= {automatic(target): _kept(target) for target in sizes}
    images, labels = load_split("train")
    for name, pooled in (("no dense layers: pooled, linear", True), ("no dense layers: linear", False)):
        files[name] = FILES / f"readout{'_pooled' * pooled}.onnx"
        write_network(without_dense(net, images, labels, args.seed, pooled=pooled), files[name])
    return files, runs, test


def automatic(target: str) -> str:
    """The name of smidgen's own plan for a target."""
    return f"automatic, {target}"


def _kept(target: str) -> Path:
    return FILES / ("automatic.smidgen" if target == "archive" else f"automatic.{target}.onnx")


def _automatic(
    network: Path, calibration: Dataset, test: Dataset, sizes: Mapping[str, int], args: argparse.Namespace
) -> dict[str, Any]:
    """A run of the command line for each target; their records."""
    records = {}
    with tempfile.TemporaryDirectory() as folder:
        given, scored = Path(folder, "calibration.npz"), Path(folder, "test.npz")
        np.savez(given, x=np.asarray(calibration))
        np.savez(scored, x=np.asarray(test), y=np.asarray(test.labels))
        for target, size in sizes.items():
            run = process.compress(
                [
                    str(network), "--data", str(given), "--test", str(scored), "--target", target, "--size", f"{size}B",
                    "--seed", str(args.seed),
                ],
                args.threads, _kept(target), target,
            )  # fmt: skip
            records[target] = {
                "seconds": run.wall_s, "cpu_s": run.cpu_s, "peak_rss_bytes": run.record["peak_rss_bytes"],
                "predicted": run.record["predicted"], "layers": run.record["layers"],
            }  # fmt: skip
            print(f"{target}: {run.wall_s:.0f} s", flush=True)
    return records


def measure(files: Mapping[str, Path], test: Dataset, threads: int) -> dict[str, Measured]:
    """Every file scored on the test split, and all timed in turn."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        opened = {name: _opened(path, Path(folder)) for name, path in files.items()}
        opened[TWIN] = opened[ORIGINAL]
        runners = {name: stack.enter_context(open_onnx(path, threads)) for name, path in opened.items()}
        one = next(iter(test.take([0]).batches(1)))
        timed = measure_latency(runners, one, repeats=REPEATS, max_seconds=MOST_SECONDS)
        answers = {name: run_dataset(runner, test.batches()) for name, runner in runners.items()}
        names, labels = runners[ORIGINAL].output_names, np.asarray(test.labels)
        judge = Judge(answers[ORIGINAL], names, labels, auc_of)
        plain = Judge(answers[ORIGINAL], names, labels)
        found = {}
        for name, path in opened.items():
            loss, scores = judge.loss(answers[name]), plain.judge(answers[name])
            weights, macs = onnx_cost(path)
            found[name] = Measured(
                weights, macs, files.get(name, path).stat().st_size, scores.roc_auc or 0.0, scores.accuracy or 0.0,
                loss.points / 100, loss.low / 100, loss.high / 100, timed[name],
            )  # fmt: skip
    return found


def _opened(path: Path, folder: Path) -> Path:
    """The file that a runtime opens: what an archive unpacks to."""
    if path.suffix != ".smidgen":
        return path
    place = folder / f"{path.stem}.onnx"
    place.write_bytes(unpack(path))
    return place


def claims_of(found: Mapping[str, Measured]) -> list[Claim]:
    """What was asked, and what the published form takes."""
    claims = []
    for target, size in SIZES.items():
        one = found[automatic(target)]
        claims.append(Claim(
            f"{target}: bytes and ROC AUC", f"≤ {size / 1000:g} kB at ≤ {MOST_LOST} lost",
            f"{one.nbytes / 1000:.1f} kB, lost {one.lost:.4f} (95 %: {one.low:.4f} to {one.high:.4f}), {one.auc:.4f}",
            one.nbytes <= size and one.lost <= MOST_LOST,
        ))  # fmt: skip
    floats, peer = found[automatic("onnx")], found[PLAIN]
    claims.append(Claim(
        f"onnx: ROC AUC lost in the {peer.nbytes / 1000:.1f} kB that rank {RANK} takes", "",
        f"{floats.lost:.4f} in {floats.nbytes / 1000:.1f} kB; rank {RANK}: {peer.lost:.4f}, calibrated "
        f"{found[CALIBRATED].lost:.4f}",
    ))  # fmt: skip
    claims += [_latency_claim(target, found) for target in (*SIZES, "onnx")]
    return [*claims, *_published(found)]


def _latency_claim(target: str, found: Mapping[str, Measured]) -> Claim:
    before, after = found[ORIGINAL].latency, found[automatic(target)].latency
    return Claim(
        f"{target}: latency of one face, one run with the original's", f"≥ {SLOWEST}× as fast as the original",
        f"{after.median_ms:.3f} ms, original {before.median_ms:.3f} ms: {after.speedup:.2f}× as fast",
        after.speedup >= SLOWEST,
    )  # fmt: skip


def _published(found: Mapping[str, Measured]) -> list[Claim]:
    """The published figures against what they would take."""
    sizes = list(zip((FLAT, *DENSE), DENSE, strict=False))
    dense = dense_weights(RANK, sizes)
    peer, whole = found[PLAIN], sum(dense)
    others = peer.weights - whole
    kilobytes, bits = PUBLISHED_NBYTES / 1000, 8 * PUBLISHED_NBYTES
    takes = {r: 4 * (sum(dense_weights(r, sizes)) + others) for r in range(1, RANK + 1)}
    fitting = max((r for r, nbytes in takes.items() if nbytes <= PUBLISHED_NBYTES), default=0)
    return [
        Claim(
            f"rank {RANK} of three dense layers", "",
            f"{' + '.join(f'{n:,}' for n in dense)} = {whole:,} weights, {peer.weights:,} with convolutions and output",
        ),
        Claim(
            f"rank {RANK} as float32 (published: {kilobytes} kB)", "",
            f"{takes[RANK] / 1000:.1f} kB of weights, {peer.nbytes / 1000:.1f} kB as ONNX; {kilobytes} kB leave "
            f"{bits / peer.weights:.1f} bits a weight ({bits / PUBLISHED_WEIGHTS:.1f} if there were "
            f"{PUBLISHED_WEIGHTS:,}), and hold rank {fitting} as float32",
        ),
    ]  # fmt: skip


def table_of(found: Mapping[str, Measured]) -> list[list[str]]:
    """Heads and rows."""
    rows = [["file", "weights", "MACs", "bytes", "ROC AUC", "lost (95 %)", "accuracy", "latency", "as fast"]]
    for name, one in found.items():
        rows.append([
            name, f"{one.weights:,}", f"{one.macs:,}", f"{one.nbytes:,}", f"{one.auc:.4f}",
            f"{one.lost:.4f} ({one.low:.4f} to {one.high:.4f})", f"{100 * one.accuracy:.2f} %",
            f"{one.latency.median_ms:.3f} ms", f"{one.latency.speedup:.2f}×",
        ])  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=gender_cnn.WEIGHTS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    files, runs, test = write_files(args)
    found = measure(files, test, args.threads)
    claims, rows = claims_of(found), table_of(found)
    show(TITLE, claims)
    print("\n".join("  ".join(row) for row in rows))
    print(save(
        "mobile", TITLE, claims, threads=args.threads, seed=args.seed, runs=runs, tables={"files": rows},
        measured={name: asdict(one) for name, one in found.items()},
    ))  # fmt: skip


if __name__ == "__main__":
    main()
