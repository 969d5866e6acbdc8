"""NNCodec (ISO/IEC 15938-17) beside the archive: its coder on the same integers, its files at the same accuracy.

Asked: on the same integer tensors the archive's coder needs no more bytes than NNCodec's; and a whole .smidgen file,
graph included, is at most a given share of NNCodec's bitstream, which holds the weights alone, at equal accuracy on the
test inputs. NNCodec is measured over its steps with several of its options, and the best of all is taken for each
comparison: after the fact, in its favour.

    python benchmarks/nncodec.py --nncodec-python …/bin/python        # README.md says how to make that environment
    python benchmarks/nncodec.py --networks lenet resnet20 --archive-json benchmarks/results/archive.json
    python benchmarks/nncodec.py --reuse                              # only the points that no run before measured
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sets
from archive import ARCHIVES, ASKED, runs_of
from claims import RESULTS, Claim, save, show
from figure import panels
from nncodec_client import Network, Peer, Scored, scored
from nncodec_coder import coded, coder_claims

TITLE = "NNCodec 2.1.3 beside the archive: the same integers, and whole files at equal accuracy"
HOME = RESULTS / "nncodec"
# λ is the price of a bit in NNCodec's quantizer. A bias with the default step costs 19 bits, so the others go coarser.
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "λ 1": {"lambda_scale": 1.0, "nonweight_qp": -50},
    "λ 3": {"lambda_scale": 3.0, "nonweight_qp": -50},
    "opt_qp": {"opt_qp": True, "nonweight_qp": -50},
    "ioq": {"ioq": True, "nonweight_qp": -50},
    "ioq, opt_qp": {"ioq": True, "opt_qp": True, "nonweight_qp": -50},
    "ioq, λ 3": {"ioq": True, "lambda_scale": 3.0, "nonweight_qp": -50},
}


@dataclass(frozen=True)
class Versus:
    """What is asked of a network, and where NNCodec is measured.

    Args:
        most: bytes of the archive, as a share of NNCodec's.
        aim: the share aimed at.
        qps: NNCodec's steps, 2^(qp/4), by option; around the accuracies of the archives.
        inputs: calibration inputs on which ioq compares; each costs it eight runs a layer.
    """

    most: float
    aim: float | None
    qps: dict[str, tuple[int, ...]]
    inputs: int = 300


VERSUS = {
    "lenet": Versus(0.5, None, {
        "default": (-30, -28, -26, -25, -24, -22), "λ 1": (-30, -28, -26, -25, -24), "λ 3": (-32, -30, -28, -27, -26),
        "opt_qp": (-30, -28, -26, -25, -24, -23), "ioq": (-28, -26, -24, -23, -22),
        "ioq, opt_qp": (-28, -26, -24, -23, -22, -21, -20),
    }),
    "resnet20": Versus(0.7, None, {
        "default": (-36, -34, -32, -31, -30, -28), "λ 1": (-36, -34, -32, -31, -30, -28),
        "λ 3": (-38, -36, -34, -33, -32, -30), "opt_qp": (-44, -42, -40, -38, -36, -34),
        "ioq": (-34, -32, -31, -30, -29, -28), "ioq, λ 3": (-33, -32, -31, -30),
    }),
    "squeezenet": Versus(0.9, 0.7, {
        "default": (-32, -30, -29, -28, -27, -26, -25), "λ 1": (-32, -30, -29, -28, -27, -26, -25),
        "λ 3": (-34, -33, -32, -31, -30, -29), "opt_qp": (-48, -44), "ioq": (-28, -27, -26),
    }, inputs=100),
    "mobilenet_v2": Versus(0.9, 0.7, {
        "default": (-36, -34, -33, -32), "λ 1": (-36, -34), "λ 3": (-40, -38, -36),
        "opt_qp": (-48, -46, -44, -42, -40, -38, -36),
    }),
}  # fmt: skip


def theirs(name: str, network: Network, peer: Peer, steps: Sequence[tuple[str, int]], seed: int) -> Iterator[Scored]:
    """NNCodec's points at these options and steps, each decoded, written back into the ONNX file and scored."""
    calibration, test = sets.calibration_and_test(name, seed)
    few = calibration.take(np.arange(min(VERSUS[name].inputs, len(calibration))))
    judge, near = network.judge(test), network.judge(few)

    def quality(values: dict[str, np.ndarray]) -> float:
        """Unlabelled, as smidgen's inputs are: the nearer to the original's answers the better."""
        return -float(near.judge(network.answers(few, values)).kl or 0.0)

    for option, qp in steps:
        made = peer.code(network.weights, {"qp": qp, **OPTIONS[option]}, quality)
        point = scored(step(option, qp), option, made.nbytes, network, judge, network.answers(test, made.values))
        print(f"{name} NNCodec {told(point)}", flush=True)
        yield point


def step(option: str, qp: int) -> str:
    """A point's name."""
    return f"{option}, qp {qp}"


def ours(name: str, network: Network, args: argparse.Namespace) -> list[Scored]:
    """The archives at the sizes of archive.py, from its record or from runs of the command line."""
    files: list[dict[str, Any]] = []
    if args.archive_json is not None:
        files = json.loads(args.archive_json.read_text(encoding="utf-8"))["runs"].get(name, [])
    if not files:
        files = [
            run.record["files"]["archive"] for run in runs_of(name, "archive", sizes_of(name), args.threads, args.seed)
        ]
    points = [
        Scored(
            f"{size:g} kB", "smidgen", file["nbytes"], network.nbytes / file["nbytes"], file["accuracy"],
            file["agreement"], file["loss_points"], *file["loss_interval"], file["kl"],
        )
        for file, size in zip(files, sizes(name), strict=False)
    ]  # fmt: skip
    for point in points:
        print(f"{name} smidgen {told(point)}", flush=True)
    return points


def sizes(name: str) -> list[float]:
    """kB asked for in archive.py, in its order."""
    return [size for size, _ in ASKED[name].sizes]


def told(point: Scored) -> str:
    """One line."""
    return (
        f"{point.asked}: {point.nbytes} bytes, accuracy {100 * point.accuracy:.2f} %, lost {point.lost:.2f}, "
        f"KL {point.kl:.4f}"
    )


def file_claims(name: str, archives: Sequence[Scored], rivals: Sequence[Scored]) -> list[Claim]:
    """Each archive against NNCodec's smallest file that is no worse: on the test inputs, and by KL."""
    asked, claims = VERSUS[name], []
    for number, point in enumerate(archives):
        what = f"{name}: archive of {point.nbytes / 1000:.1f} kB, {100 * point.accuracy:.2f} %"
        limit = "" if number >= len(ASKED[name].sizes) else f"≤ {asked.most:g}×"
        limit += f", aim {asked.aim:g}×" if limit and asked.aim else ""
        best = smallest([r for r in rivals if r.accuracy >= point.accuracy])
        share = None if best is None else point.nbytes / best.nbytes
        passed = share <= asked.most if limit and share is not None else None
        claims.append(Claim(f"{what}, against NNCodec no less accurate (best option, after the fact)", limit,
                            against(share, best), passed))  # fmt: skip
        alike = smallest([r for r in rivals if None not in (r.kl, point.kl) and r.kl <= point.kl])
        share = None if alike is None else point.nbytes / alike.nbytes
        claims.append(Claim(f"{what}, KL {point.kl:.4f}: against NNCodec of no larger KL", "", against(share, alike)))
    return claims


def smallest(points: Sequence[Scored]) -> Scored | None:
    """The one of fewest bytes."""
    return min(points, key=lambda point: point.nbytes, default=None)


def against(share: float | None, rival: Scored | None) -> str:
    """A comparison in words."""
    if share is None or rival is None:
        return "none of NNCodec's files is"
    kl = "" if rival.kl is None else f", KL {rival.kl:.4f}"
    return f"{share:.2f}× of {rival.nbytes / 1000:.1f} kB ({rival.asked}; {100 * rival.accuracy:.2f} %{kl})"


def best_of(points: Sequence[Scored]) -> list[Scored]:
    """Those to which no other is both smaller and as accurate."""
    return [p for p in points if not any(q.nbytes < p.nbytes and q.accuracy >= p.accuracy for q in points)]


def curve(name: str, network: Network, peer: Peer, args: argparse.Namespace) -> dict[str, Any]:
    """NNCodec's curve, kept point by point in build/benchmarks/nncodec; with --reuse only the rest is measured."""
    path, entry = HOME / f"{name}.json", {"nncodec": peer.version, "date": "", "curve": []}
    if args.reuse and path.is_file():
        kept = json.loads(path.read_text(encoding="utf-8"))
        entry = kept if kept["nncodec"] == peer.version else entry
        print(f"{name}: {len(entry['curve'])} points of NNCodec's curve as of {entry['date']}", flush=True)
    known = {point["asked"] for point in entry["curve"]}
    missing = [(o, qp) for o, qps in VERSUS[name].qps.items() for qp in qps if step(o, qp) not in known]
    for point in theirs(name, network, peer, missing, args.seed) if missing and not args.coder_only else ():
        entry["curve"].append(point.as_dict())
        entry["date"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        HOME.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(entry, indent=1) + "\n", encoding="utf-8")
    return entry


def archives_of(name: str) -> list[Path]:
    """Archives of this network that archive.py, or a run of this script, left."""
    return sorted(ARCHIVES.glob(f"{name}-*.smidgen"))


def interpreter(args: argparse.Namespace) -> str:
    """Python of NNCodec's environment.

    Raises:
        SystemExit: there is none.
    """
    found = shutil.which(args.nncodec_python) if args.nncodec_python else None
    if found is None:
        raise SystemExit("name NNCodec's python: --nncodec-python or $NNCODEC_PYTHON; README.md tells how to make one")
    return found


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=list(VERSUS), default=list(VERSUS))
    parser.add_argument("--nncodec-python", default=os.environ.get("NNCODEC_PYTHON"), help="default: $NNCODEC_PYTHON")
    parser.add_argument("--archive-json", type=Path, help="archive.py's record; networks in it are not run again")
    parser.add_argument("--reuse", action="store_true", help="keep the points of NNCodec that earlier runs measured")
    parser.add_argument("--coder-only", action="store_true", help="integers alone, no files")
    parser.add_argument("--no-smidgen", action="store_true", help="NNCodec's curves alone, nothing to compare")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    return args


def main() -> None:
    args = arguments()
    claims: list[Claim] = []
    measured: dict[str, Any] = {}
    curves: dict[str, tuple[list[Scored], list[Scored]]] = {}
    for name in args.networks:
        network = Network(sets.model(ASKED[name].file), args.threads)
        archives = [] if args.no_smidgen or args.coder_only else ours(name, network, args)
        with Peer(interpreter(args), args.threads) as peer:
            entries = coded(name, network, peer, archives_of(name))
            known = curve(name, network, peer, args)
        rivals = [Scored(**point) for point in known["curve"]]
        claims += [*coder_claims(name, entries), *file_claims(name, archives, rivals)]
        measured[name] = {"nncodec": known["nncodec"], "date": known["date"], "coder": entries}
        if rivals:
            curves[name] = rivals, archives
    show(TITLE, claims)
    picture = {"picture": draw(curves)} if curves else {}
    tables = {
        name: {"NNCodec, weights alone": by_size(rivals), "smidgen, whole file": by_size(archives)}
        for name, (rivals, archives) in curves.items()
    }
    print(save("nncodec", TITLE, claims, threads=args.threads, seed=args.seed, measured=measured, sweep=tables,
               **picture))  # fmt: skip


def draw(curves: Mapping[str, tuple[list[Scored], list[Scored]]]) -> str:
    """A panel for each network; the picture's name."""
    networks, originals, zoom = {}, {}, {}
    for name, (rivals, archives) in curves.items():
        default = [point for point in rivals if point.option == "default"]
        networks[name] = {"smidgen: whole file": archives, "NNCodec, best option: weights alone": best_of(rivals),
                          "NNCodec, default": default}  # fmt: skip
        originals[name] = 100 * rivals[0].accuracy + rivals[0].lost
        # All archives well inside, and enough of NNCodec's slope to see where it goes.
        zoom[name] = max([0.6, *(2.5 * point.lost for point in archives)]) if archives else 4.0
    panels(
        RESULTS / "nncodec.png", "Bytes at an accuracy: NNCodec and smidgen, no retraining", networks, originals, zoom
    )
    return "nncodec.png"


def by_size(points: Sequence[Scored]) -> list[dict[str, Any]]:
    """For the report's tables."""
    return [point.as_dict() for point in sorted(points, key=lambda point: -point.nbytes)]


if __name__ == "__main__":
    main()
