"""Every target for every network of the evaluation set: does the file exist, run, and answer as the original?

Each network goes to each target whole (the trade-off dial at 0; in the middle, without factors, where integers are a
choice beside floats; an eighth of the bytes in an archive), calibrated on at most 200 unlabelled training inputs, and
scored in the target's runtime on at most 500 test inputs: bytes, accuracy or agreement, the largest difference of an
output as a share of the largest output, and time beside the original's. Where there is no file it says why. Networks
without a matching set get noise, on which only differences say something.

    python benchmarks/matrix.py                       # writes docs/targets.md
    python benchmarks/matrix.py --networks lenet resnet8 --targets onnx-int8 tflite
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import sets
from claims import earlier, save

import smidgen
from smidgen.budget import FILES
from smidgen.data import Dataset, Preprocess, open_data
from smidgen.errors import SmidgenError
from smidgen.runtimes.opening import open_file, run_dataset

TITLE = "Every target for every network"
PAGE = Path(__file__).resolve().parents[1] / "docs" / "targets.md"
CALIBRATE, SCORE = 200, 500
CHOSEN = ("onnx-w8", "onnx-w4", "onnx-shared")  # at 0 the dial keeps every layer's floats
Sets = tuple[Dataset, Dataset]


def _known(name: str) -> Callable[[], Sets]:
    def load() -> Sets:
        given, test = sets.calibration_and_test(name, 0, CALIBRATE)
        return given.array(0, min(CALIBRATE, len(given))), test.array(0, min(SCORE, len(test)))

    return load


def _split(file: str, preprocess: Preprocess) -> Callable[[], Sets]:
    def load() -> Sets:
        parts = [open_data(sets.data_folder() / file, split=s, preprocess=preprocess) for s in ("train", "test")]
        rng = np.random.default_rng(0)
        train, test = (
            part.take(rng.permutation(len(part))[:n]) for part, n in zip(parts, (CALIBRATE, SCORE), strict=True)
        )
        return sets.unlabelled(train), sets.ready(test)

    return load


def _imagenet(preprocess: Preprocess) -> Callable[[], Sets]:
    def load() -> Sets:
        whole = open_data(sets.data_folder() / sets.IMAGENET_SAMPLE, preprocess=preprocess)
        order = np.random.default_rng(0).permutation(len(whole))
        test = sets.ready(whole.take(order[300 : 300 + SCORE]))
        assert test.labels is not None
        labelled = Dataset.from_array(
            np.asarray(test), np.asarray(test.labels) + 1
        )  # 1001 outputs, the first for nothing
        return sets.unlabelled(whole.take(order[:CALIBRATE])), labelled

    return load


def _noise(*shape: int) -> Callable[[], Sets]:
    def load() -> Sets:
        values = np.random.default_rng(0).uniform(-1, 1, (60, *shape)).astype(np.float32)
        return Dataset.from_array(values[:40]), Dataset.from_array(values[40:])

    return load


# What the small MobileNet was trained with.
MOBILENET_128 = Preprocess(mean=(127.5,), std=(127.5,), crop=224, crop_first=True, resize=128)
NETWORKS: dict[str, tuple[str, Callable[[], Sets]]] = {
    "lenet": ("lenet_mnist", _known("lenet")),
    "resnet20": ("resnet20_cifar10_jpegft", _known("resnet20")),
    "catsdogs": ("ai85cd_catsdogs", _known("catsdogs")),
    "resnet8": ("resnet8_cifar10_mlperftiny", _split("cifar10_jpeg.npz", Preprocess())),
    "mobilenet_v1_0.25": ("mobilenet_v1_0.25_128_imagenet", _imagenet(MOBILENET_128)),
    "squeezenet": ("squeezenet1_1_imagenet", _known("squeezenet")),
    "mobilenet_v2": ("mobilenet_v2_1.0_224_imagenet", _known("mobilenet_v2")),
    "vww (noise)": ("mobilenet_v1_0.25_96_vww_mlperftiny", _noise(3, 96, 96)),
    "ultraface (noise)": ("ultraface_rfb320", _noise(3, 240, 320)),
}  # fmt: skip


def cell(network: str, target: str, data: Sets, threads: int) -> dict[str, Any]:
    """One file, measured in its runtime; or why there is none."""
    path = sets.model(f"{NETWORKS[network][0]}.onnx")
    settings = {"kmeans": {"bits": 8}} if target == "onnx-shared" else None
    budget = smidgen.Budget(ratio=8) if target == "archive" else smidgen.Budget(tradeoff=0.5 * (target in CHOSEN))
    try:
        result = smidgen.compress(
            path, data[0], test=data[1], target=target, settings=settings, budget=budget,
            methods=[] if target in CHOSEN else "auto", threads=threads,
        )  # fmt: skip
    except SmidgenError as fault:
        return {"why": str(fault)}
    file, original = result.record["files"][target], result.record["original"]
    opened = result.files["onnx" if target == "archive" else target]
    some = data[1].array(0, min(32, len(data[1])))
    with open_file(path, threads) as before, open_file(opened, threads) as after:
        pairs = zip(run_dataset(before, some.batches(1)), run_dataset(after, some.batches(1)), strict=True)
        difference = max(float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-9)) for a, b in pairs)
    return {
        "nbytes": file["nbytes"], "ratio": original["nbytes"] / file["nbytes"], "accuracy": file["accuracy"],
        "original_accuracy": original["accuracy"], "agreement": file["agreement"], "difference": difference,
        "latency_ms": file["latency_ms"], "speedup": file["speedup"],
    }  # fmt: skip


def page(found: dict[str, dict[str, dict[str, Any]]], record: dict[str, Any]) -> str:
    """The table as Markdown."""
    lines = [
        "# Targets and networks", "",
        "Written by `benchmarks/matrix.py`: every network whole in every target's file, calibrated on at most "
        f"{CALIBRATE} training inputs, scored in the target's runtime on at most {SCORE} test inputs. A cell says: "
        "bytes; accuracy, or agreement with the original; the largest difference of an output, as a share of the "
        "largest output; times faster than the original in ONNX Runtime, one thread.", "",
        f"{record['date'][:10]}, {record['machine']['processor']}, load average {record['machine']['load_average']} "
        "when the last cell was measured: both files of a pair are timed in turns, yet ratios are rough.", "",
    ]  # fmt: skip
    targets = [target for target in FILES if any(target in cells for cells in found.values())]
    lines += ["| network | " + " | ".join(f"`{t}`" for t in targets) + " |", "|---" * (len(targets) + 1) + "|"]
    reasons: list[str] = []
    for network, cells in found.items():
        lines.append(f"| {network} | " + " | ".join(_told(cells.get(t), reasons) for t in targets) + " |")
    lines += ["", *(f"{i}. {reason}" for i, reason in enumerate(reasons, 1))]
    return "\n".join(lines).rstrip() + "\n"


def _told(entry: dict[str, Any] | None, reasons: list[str]) -> str:
    if entry is None:
        return "not run"
    if "why" in entry:
        reasons.append(entry["why"]) if entry["why"] not in reasons else None
        return f"none ({reasons.index(entry['why']) + 1})"
    right = f"{100 * entry['accuracy']:.1f} %" if entry["accuracy"] is not None else "–"
    if entry["accuracy"] is None and entry["agreement"] is not None:
        right = f"agrees {100 * entry['agreement']:.0f} %"
    faster = "not timed" if entry["speedup"] is None else f"{entry['speedup']:.1f}×"
    return f"{entry['nbytes'] / 1000:,.0f} kB; {right}; {entry['difference']:.1g}; {faster}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--targets", nargs="+", choices=list(FILES), default=list(FILES))
    parser.add_argument("--missing", action="store_true", help="only cells that no earlier run has")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    found = earlier("matrix").get("networks", {})
    for network in args.networks:
        data = NETWORKS[network][1]()
        known = found.get(network, {}) if args.missing else {}
        for target in (each for each in args.targets if each not in known):
            found.setdefault(network, {})[target] = entry = cell(network, target, data, args.threads)
            print(network, target, _told(entry, []), entry.get("why", ""), flush=True)
            save("matrix", TITLE, [], threads=args.threads, networks=found)
    PAGE.write_text(page(found, earlier("matrix")))
    print(PAGE)


if __name__ == "__main__":
    main()
