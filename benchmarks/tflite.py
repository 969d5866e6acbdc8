"""TFLite files in LiteRT: floats, static int8 by smidgen, and ai-edge-quantizer's own on the same calibration inputs.

Every network whole, every layer of int8 (the trade-off dial at 0), at most 1,000 unlabelled training inputs, no
retraining; scored on the test split. Asked: at most 0.3 points lost on LeNet, ResNet-20 and cats-dogs, at most 1 on
SqueezeNet and MobileNetV2, and at most 0.28 of the bytes of floats. And the gender CNN (see `mobile.py`) in 30 kB at no
more than 0.002 ROC AUC lost and no more milliseconds than the original (published: 36.1 kB).

    python benchmarks/tflite.py
    python benchmarks/tflite.py --networks lenet gender_cnn --threads 1
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import gender_cnn
import numpy as np
import sets
import torch
from claims import RECORDS, Claim, earlier, joined, save, show
from mobile import auc_of
from mobile_peers import write_network

import smidgen
from smidgen.data import Dataset
from smidgen.export.tflite import write_tflite
from smidgen.measure.latency import measure_latency
from smidgen.measure.scores import Judge
from smidgen.model.load import load_network
from smidgen.runtimes.opening import Runner, open_file

TITLE = "TFLite files in LiteRT, calibration only, no retraining"
NETWORKS = {
    "lenet": ("lenet_mnist.onnx", 0.3), "resnet20": ("resnet20_cifar10_jpegft.onnx", 0.3),
    "catsdogs": ("ai85cd_catsdogs.onnx", 0.3), "squeezenet": ("squeezenet1_1_imagenet.onnx", 1.0),
    "mobilenet_v2": ("mobilenet_v2_1.0_224_imagenet.onnx", 1.0), "gender_cnn": ("", 0.002),
}  # fmt: skip
MOST_SHARE = 0.28  # of the bytes of the float file
GENDER_NBYTES = 30_000
PEER_INPUTS = 300  # calibration inputs of the peer at most
FLOATS, OURS, ORIGINAL = "float, LiteRT", "smidgen int8, LiteRT", "original, ONNX Runtime"
PEERS = {"ai-edge-quantizer, least and greatest": True, "ai-edge-quantizer, its default": False}


def peer_file(network: torch.nn.Module, example: torch.Tensor, inputs: Dataset, true_extremes: bool) -> bytes:
    """ai-edge-quantizer's static int8 with float ends.

    Args:
        network: to convert.
        example: one input, channels first.
        inputs: to calibrate on.
        true_extremes: the least and greatest values seen as ranges; else the moving average it takes by default.
    """
    import litert_torch
    from ai_edge_quantizer import calibrator, quantizer, recipe
    from ai_edge_quantizer.utils import qsv_utils

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "float.tflite")
        last = litert_torch.to_channel_last_io(network, args=[0]).eval()
        litert_torch.convert(last, (example.permute(0, 2, 3, 1).contiguous(),)).export(str(path))
        work = quantizer.Quantizer(str(path), recipe.static_wi8_ai8())
        for end in ("INPUT", "OUTPUT"):
            work.update_quantization_recipe(".*", operation_name=end, algorithm_key="no_quantize")
        samples = [
            {"args_0": np.ascontiguousarray(np.moveaxis(batch, 1, -1))}
            for batch in inputs.array(0, min(PEER_INPUTS, len(inputs))).batches(1)
        ]
        update = qsv_utils.min_max_update if true_extremes else qsv_utils.moving_average_update
        seen = calibrator.Calibrator(str(path), num_threads=1, qsv_update_func=update)
        seen.calibrate({"serving_default": samples}, work._recipe_manager)  # the public one takes no other update
        return bytes(work.quantize(seen.get_model_qsvs()).quantized_model)


class ChannelsLast:
    """A file that takes its channels last and does not say so."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner

    def run(self, x: np.ndarray) -> tuple[np.ndarray, ...]:
        return self.runner.run(np.moveaxis(x, 1, -1))


def files_of(name: str, calibration: Dataset, folder: Path, args: argparse.Namespace) -> tuple[dict[str, Path], float]:
    """Every file by name, the original first, and the seconds that ours took."""
    original = folder / "original.onnx"
    if name == "gender_cnn":
        write_network(gender_cnn.network(args.seed, args.weights, threads=args.threads), original)
        budget = smidgen.Budget(size=GENDER_NBYTES)
    else:
        original, budget = sets.model(NETWORKS[name][0]), smidgen.Budget(tradeoff=0)
    started = time.perf_counter()
    result = smidgen.compress(
        original, calibration, target="tflite-int8", budget=budget, seed=args.seed, threads=args.threads
    )
    seconds = time.perf_counter() - started
    loaded = load_network(original)
    example = torch.from_numpy(next(iter(calibration.take([0]).batches(1))))
    files = {ORIGINAL: original, FLOATS: folder / "float.tflite", OURS: folder / "ours.tflite"}
    write_tflite(loaded.module, example, files[FLOATS])
    files[OURS].write_bytes(result.files["tflite-int8"].read_bytes())
    for peer, extremes in PEERS.items():
        try:
            files[peer] = folder / f"peer{extremes:d}.tflite"
            files[peer].write_bytes(peer_file(loaded.module, example, calibration, extremes))
        except Exception as fault:  # a peer that fails is told, and the others go on
            del files[peer]
            print(f"{name}: {peer}: {type(fault).__name__}: {' '.join(str(fault).split())[:200]}", flush=True)
    return files, seconds


def measured(files: Mapping[str, Path], test: Dataset, metric: Any, threads: int) -> dict[str, dict[str, float]]:
    """Bytes, score, points lost with their interval, agreement and milliseconds of every file."""
    one = next(iter(test.take([0]).batches(1)))
    with ExitStack() as stack:
        opened = {name: stack.enter_context(open_file(path, threads)) for name, path in files.items()}
        runners = {name: ChannelsLast(runner) if name in PEERS else runner for name, runner in opened.items()}
        answers = {
            name: tuple(np.concatenate(parts) for parts in zip(*map(runner.run, test.batches()), strict=True))
            for name, runner in runners.items()
        }  # fmt: skip
        names, labels = opened[ORIGINAL].output_names, np.asarray(test.labels)
        judge, plain = Judge(answers[ORIGINAL], names, labels, metric), Judge(answers[ORIGINAL], names, labels)
        times = measure_latency(runners, one, repeats=200, max_seconds=30.0)
    found = {}
    for name, path in files.items():
        loss, scores = judge.loss(answers[name]), plain.judge(answers[name])
        found[name] = {
            "nbytes": path.stat().st_size, "accuracy": scores.accuracy or 0.0, "lost": loss.points, "low": loss.low,
            "high": loss.high, "agreement": scores.agreement or 0.0, "ms": times[name].median_ms,
            "speedup": times[name].speedup,
        }  # fmt: skip
    return found


def claims_of(name: str, found: Mapping[str, Mapping[str, float]]) -> list[Claim]:
    """What was asked of our file, and every other beside it."""
    ours, most = found[OURS], NETWORKS[name][1]
    if name == "gender_cnn":
        asked, share = f"≤ {GENDER_NBYTES / 1000:g} kB, ≤ {most} ROC AUC", ours["nbytes"] <= GENDER_NBYTES
        kept = ours["lost"] / 100 <= most and ours["ms"] <= found[ORIGINAL]["ms"]
    else:
        asked = f"≤ {most} points, ≤ {MOST_SHARE}×"
        share, kept = ours["nbytes"] <= MOST_SHARE * found[FLOATS]["nbytes"], ours["lost"] <= most
    claims = [Claim(f"{name}: {file}", "", _told(one, found)) for file, one in found.items() if file != OURS]
    return [*claims, Claim(f"{name}: {OURS}", asked, _told(ours, found), share and kept)]


def _told(one: Mapping[str, float], found: Mapping[str, Mapping[str, float]]) -> str:
    return (
        f"{one['nbytes'] / 1000:.1f} kB ({one['nbytes'] / found[FLOATS]['nbytes']:.3f}×), lost {one['lost']:.2f} "
        f"({one['low']:.2f} to {one['high']:.2f}), {100 * one['accuracy']:.2f} %, "
        f"agree {100 * one['agreement']:.2f} %, {one['ms']:.3f} ms"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--weights", type=Path, default=gender_cnn.WEIGHTS)
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    claims: list[Claim] = []
    results: dict[str, Any] = {}
    for name in args.networks:
        calibration, test = sets.calibration_and_test(name, args.seed, args.inputs)
        with tempfile.TemporaryDirectory() as folder:
            files, seconds = files_of(name, calibration, Path(folder), args)
            metric = auc_of if name == "gender_cnn" else None
            results[name] = {"seconds": seconds, **measured(files, test, metric, args.threads)}
        claims += claims_of(name, {file: one for file, one in results[name].items() if file != "seconds"})
        print(f"{name}: {seconds:.0f} s", flush=True)
        # After each network: a run that is cut short keeps what it has measured, and what was measured before it.
        before = earlier("tflite")
        runs = {**before.get("runs", {}), **results}
        save("tflite", TITLE, joined(before, claims), threads=args.threads, seed=args.seed, runs=runs)
    show(TITLE, claims)
    print(RECORDS / "tflite.json")


if __name__ == "__main__":
    main()
