#!/usr/bin/env python3
"""Run the files of this bundle on this machine: are the answers right, how long do they take, how many joules.

    python3 bench.py                      all files, 1 thread up to all cores, writes results.json
    python3 bench.py --threads 1,4 --name "Pi 4"

Needs Python 3.9, numpy, and onnxruntime for .onnx files or ai-edge-litert for .tflite files; nothing of smidgen. Bring
results.json back and run ``smidgen bundle FOLDER --merge results.json``.

Exit codes: 0 all answers agree, 1 some do not, 2 the bundle or an option is wrong.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

WARM_UP = 3  # rounds; the first calls pay for allocation, page faults and caches
LEAST_ROUNDS = 30
JOULE_SECONDS = 1.0  # of running that a counter is read over; counters step about every millisecond
CLOSE = 1e-4  # largest difference from the reference, as a share of the largest output
ON_GRID = 0.02  # of a step, that numbers on a grid may lie off it in float32
STEPS_SHARE = 0.999  # of outputs that must lie within one step of a quantized output
Run = Callable[[np.ndarray], "list[np.ndarray]"]


class Wrong(Exception):
    """What the user can mend; the message says how."""


def open_onnx(path: Path, threads: int, channels_last: bool = False) -> Run:
    """An ONNX file in ONNX Runtime on the CPU."""
    ort = _package("onnxruntime", path)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4
    content = path.read_bytes()
    if b"DequantizeLinear" in content and b"QuantizeLinear" not in content:
        # Integer weights in a network of floats: made floats of once, not at every call.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    kind = {"tensor(float)": "float32", "tensor(double)": "float64", "tensor(float16)": "float16"}.get(
        session.get_inputs()[0].type, session.get_inputs()[0].type[7:-1]
    )

    def run(x: np.ndarray) -> list[np.ndarray]:
        return session.run(None, {name: x.astype(kind, copy=False)})

    return run


def open_tflite(path: Path, threads: int, channels_last: bool = False) -> Run:
    """A TFLite file in LiteRT; inputs and outputs of integers are quantized and read by the file's own scales."""
    interpreter = _package("ai_edge_litert.interpreter", path).Interpreter(model_path=str(path), num_threads=threads)
    interpreter.allocate_tensors()
    taken, given = interpreter.get_input_details()[0], interpreter.get_output_details()

    def run(x: np.ndarray) -> list[np.ndarray]:
        fed = np.ascontiguousarray(np.moveaxis(x, 1, -1)) if channels_last else x
        interpreter.set_tensor(taken["index"], quantized(fed, taken))
        interpreter.invoke()
        return [unquantized(interpreter.get_tensor(each["index"]), each) for each in given]

    return run


def quantized(x: np.ndarray, details: dict[str, Any]) -> np.ndarray:
    """What a tensor of integers holds for ``x``; floats as they are."""
    scale, zero = details["quantization"]
    if not np.issubdtype(details["dtype"], np.integer) or not scale:
        return x.astype(details["dtype"], copy=False)
    limits = np.iinfo(details["dtype"])
    return np.clip(np.round(x / scale) + zero, limits.min, limits.max).astype(details["dtype"])


def unquantized(q: np.ndarray, details: dict[str, Any]) -> np.ndarray:
    """The numbers that a tensor of integers stands for; floats as they are."""
    scale, zero = details["quantization"]
    if not np.issubdtype(q.dtype, np.integer) or not scale:
        return np.array(q)
    return (q.astype(np.float32) - np.float32(zero)) * np.float32(scale)


OPENERS = {".onnx": open_onnx, ".tflite": open_tflite}


def _package(name: str, path: Path) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0].replace("_", "-")
        raise Wrong(f"'{path.name}' needs {package}: pip install {package} ({error})") from None


def grid_step(values: np.ndarray) -> float | None:
    """The step of a grid that all values lie on, as those of a quantized output do; None where there is no grid.

    >>> grid_step(np.array([0.5, -1.0, 2.0, 0.0])), grid_step(np.sqrt([2.0, 3, 5, 7, 11]))
    (0.5, None)
    """
    distinct = np.unique(values.astype(np.float64))
    if len(distinct) < 3:
        return None
    step = 0.0
    for gap in np.diff(distinct):
        step = _common(max(step, gap), min(step, gap)) if step else float(gap)
    steps = (distinct - distinct[0]) / step
    on_grid = np.abs(steps - np.round(steps)).max() < ON_GRID
    # A smaller step than 16 bits make is the floats' own.
    return float(step) if on_grid and 65535 * step >= np.abs(distinct).max() / 2 else None


def _common(a: float, b: float) -> float:
    """Euclid's common divisor of two lengths that are known to a few parts in a million."""
    while b > 1e-3 * a:
        remainder = a % b
        a, b = b, min(remainder, b - remainder)
    return a


def compare(got: list[np.ndarray], expected: list[np.ndarray]) -> dict[str, Any]:
    """How far answers lie from the references, and whether that is near enough.

    Floats must agree to `CLOSE` of the largest output. Where the references lie on the grid of a quantized output,
    `STEPS_SHARE` of them must lie within one step, and the largest output of a sample in the same place.

    >>> compare([np.array([[0.0, 1.0]])], [np.array([[0.0, 1.00001]])])["agree"]
    True
    """
    worst, largest, within, same, agree, step = 0.0, 0.0, 1.0, 1.0, len(got) == len(expected), None
    for number, want in enumerate(expected[: len(got)]):
        have = got[number]
        if have.shape != want.shape or not np.isfinite(have.astype(np.float64)).all():
            return {"agree": False, "reason": f"output {number} is {list(have.shape)}, or not finite"}
        apart = np.abs(have.astype(np.float64) - want.astype(np.float64))
        size = float(np.abs(want).max())
        worst, largest = max(worst, float(apart.max())), max(largest, size)
        if np.issubdtype(want.dtype, np.integer):
            agree = agree and float(apart.max()) == 0
            continue
        told = step = grid_step(want)
        if apart.max() <= CLOSE * size:
            answers = 1.0
        else:
            answers = float((have.argmax(-1) == want.argmax(-1)).mean())
            near = float((apart <= 1.02 * told).mean()) if told else 0.0
            within = min(within, near)
            agree = agree and near >= STEPS_SHARE and answers == 1
        same = min(same, answers)
    return {
        "agree": bool(agree), "max_abs_error": worst, "max_rel_error": worst / largest if largest else 0.0,
        "same_answers": same, "step": step, "within_one_step": within,
    }  # fmt: skip


def time_pair(first: Run, second: Run, x: np.ndarray, seconds: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """Two files in turns: median, quartiles, and how many times faster the second is in the same round."""
    for _ in range(WARM_UP):
        first(x)
        second(x)
    rounds: list[tuple[float, float]] = []
    begun = time.perf_counter()
    while len(rounds) < LEAST_ROUNDS or time.perf_counter() - begun < seconds:
        if len(rounds) % 2:  # the second begins
            after, before = _ms(second, x), _ms(first, x)
        else:
            before, after = _ms(first, x), _ms(second, x)
        rounds.append((before, after))
        if time.perf_counter() - begun > 10 * seconds:
            break  # a slow network
    times = np.array(rounds)
    return _timing(times[:, 0], times[:, 0]), _timing(times[:, 1], times[:, 0])


def _ms(run: Run, x: np.ndarray) -> float:
    start = time.perf_counter_ns()
    run(x)
    return max(time.perf_counter_ns() - start, 1) / 1e6


def _timing(times: np.ndarray, beside: np.ndarray) -> dict[str, Any]:
    low, median, high = (float(q) for q in np.quantile(times, (0.25, 0.5, 0.75)))
    least, speedup, most = (float(q) for q in np.quantile(beside / times, (0.25, 0.5, 0.75)))
    # One standard error of a median, √(π/2) σ / √n; 1.349 σ lie between the quartiles of a normal distribution.
    error = math.sqrt(math.pi / 2) * (most - least) / 1.349 / math.sqrt(len(times))
    return {
        "latency_ms": median, "latency_quartiles_ms": [low, high], "runs": len(times), "speedup": speedup,
        "speedup_error": error,
    }  # fmt: skip


class Counters:
    """The energy counters of the processor packages, as Linux' powercap shows them (µJ, wrapping round)."""

    def __init__(self, root: Path) -> None:
        self.files = []
        self.reason: str | None = "this machine has no energy counters"
        for zone in sorted(root.glob("*")) if root.is_dir() else []:
            name = _text(zone / "name")
            if name is None or not name.startswith("package"):
                continue  # cores and memory are parts of their package
            if _text(zone / "energy_uj") is None:
                self.reason = f"the energy counters cannot be read ({zone / 'energy_uj'}); run it as root"
                continue
            self.files.append((zone / "energy_uj", int(_text(zone / "max_energy_range_uj") or 0)))
        if self.files:
            self.reason = None

    def read(self) -> list[int]:
        return [int(_text(path) or 0) for path, _ in self.files]

    def joules(self, before: list[int], after: list[int]) -> float:
        """Joules between two readings."""
        total = 0
        for number, (_, span) in enumerate(self.files):
            gone = after[number] - before[number]
            total += gone if gone >= 0 else gone + span + 1
        return total / 1e6

    def measure(self, run: Run, x: np.ndarray) -> float:
        """Joules of one call, all that the package draws meanwhile included."""
        calls, before, begun = 0, self.read(), time.perf_counter()
        while time.perf_counter() - begun < JOULE_SECONDS or calls < WARM_UP:
            run(x)
            calls += 1
        return self.joules(before, self.read()) / calls


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\x00 \n")
    except OSError:
        return None


def device(name: str | None) -> dict[str, Any]:
    """What this machine says of itself."""
    told = {
        "machine": platform.machine(), "system": platform.platform(), "cores": os.cpu_count(),
        "model": _text(Path("/proc/device-tree/model")), "python": platform.python_version(), "numpy": np.__version__,
        "governor": _text(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
    }  # fmt: skip
    for package in ("onnxruntime", "ai_edge_litert"):
        module = sys.modules.get(package)
        if module is not None:
            told[package] = str(getattr(module, "__version__", "unknown"))
    return {"name": name or told["model"] or f"{platform.node()} ({told['machine']})", **told}


def read_bundle(folder: Path) -> dict[str, Any]:
    """bundle.json, once it is certain that the files are those it speaks of."""
    try:
        bundle = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
        for entry in bundle["files"]:
            if hashlib.sha256((folder / entry["path"]).read_bytes()).hexdigest() != entry["sha256"]:
                raise Wrong(f"'{entry['path']}' is not the file that was bundled; copy the bundle again")
        return bundle
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Wrong(f"'{folder}' is no whole bundle ({error}); copy it again") from None


def measure(folder: Path, bundle: dict[str, Any], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every file: its answers, and its times beside the first that runs."""
    inputs = np.load(folder / bundle["inputs"], allow_pickle=False)
    counters = Counters(Path(options.powercap))
    results = []
    first = None
    for entry in bundle["files"]:
        result: dict[str, Any] = {key: entry[key] for key in ("path", "nbytes", "sha256")}
        result.update(timings=[], outputs=None, error=None, energy_estimate=entry.get("energy_estimate"))
        results.append(result)
        path = folder / entry["path"]
        try:
            last = bool(entry.get("channels_last"))
            opener = OPENERS[path.suffix]
            run = opener(path, 1, last)
            each = [run(inputs[i : i + 1]) for i in range(len(inputs))]
        except Exception as error:  # of a runtime: told for this file, the others still run
            result["error"] = " ".join(str(error).split())[:300]
            continue
        got = [np.concatenate(parts) for parts in zip(*each)]  # noqa: B905 - Python 3.9 has no strict
        expected = [np.load(folder / name, allow_pickle=False) for name in entry["references"]]
        result["outputs"] = compare(got, expected)
        first = first or (path, last)
        for threads in [] if options.outputs_only else options.threads:
            before, after = OPENERS[first[0].suffix](first[0], threads, first[1]), opener(path, threads, last)
            timing = {"threads": threads, **time_pair(before, after, inputs[:1], options.seconds)[path != first[0]]}
            timing["joules"] = counters.measure(after, inputs[:1]) if counters.files else None
            timing["joules_reason"] = counters.reason
            result["timings"].append(timing)
            print(f"{entry['path']}: {threads} thread(s), {timing['latency_ms']:.3g} ms", file=sys.stderr, flush=True)
    return results


def show(results: list[dict[str, Any]]) -> None:
    """A line for each file and thread count."""
    print(f"{'file':<28}{'bytes':>12}{'threads':>9}{'ms':>10}{'times faster':>16}{'mJ':>9}  answers")
    for result in results:
        outputs = result["outputs"]
        answers = f"not run: {result['error']}" if outputs is None else "as on x86" if outputs["agree"] else "DIFFER"
        lines = result["timings"] or [None]
        for number, timing in enumerate(lines):
            about = f"{result['path']:<28}{result['nbytes']:>12}" if number == 0 else " " * 40
            told = " " * 44
            if timing is not None:
                joules = "" if timing["joules"] is None else f"{1e3 * timing['joules']:.3g}"
                faster = "" if result is results[0] else f"{timing['speedup']:.2f} ± {timing['speedup_error']:.2f}"
                told = f"{timing['threads']:>9}{timing['latency_ms']:>10.3g}{faster:>16}{joules:>9}"
            print(f"{about}{told}  {answers if number == 0 else ''}".rstrip())


def _counts(text: str) -> list[int]:
    counts = [int(part) for part in text.split(",")]
    if not all(1 <= count <= 1024 for count in counts):
        raise ValueError
    return counts


def main(argv: list[str] | None = None) -> int:
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cores = os.cpu_count() or 1
    usual = sorted({count for count in (1, 2, 4, 8, cores) if count <= cores})
    parser.add_argument("--threads", type=_counts, default=usual, metavar="COUNTS", help="1,2,4 (up to all cores)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of timing for each file and thread count (2)")
    parser.add_argument("--name", help="of this device, for the report")
    parser.add_argument("--outputs-only", action="store_true", help="compare answers, time nothing")
    parser.add_argument("--powercap", default="/sys/class/powercap", help=argparse.SUPPRESS)
    parser.add_argument("-o", "--output", type=Path, default=here / "results.json", help="(results.json)")
    options = parser.parse_args(argv)
    try:
        bundle = read_bundle(here)
        results = measure(here, bundle, options)
        record = {"schema_version": 1, "device": device(options.name), "files": results}
        partial = options.output.with_name(options.output.name + ".part")
        partial.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        partial.replace(options.output)
    except (Wrong, OSError) as error:
        print(f"bench.py: {error}", file=sys.stderr)
        return 2
    show(results)
    print(f"written: {options.output}")
    if all(each["outputs"] is None for each in results):
        print("bench.py: no file could be run", file=sys.stderr)
        return 2
    return 0 if all(each["outputs"] is None or each["outputs"]["agree"] for each in results) else 1


if __name__ == "__main__":
    sys.exit(main())
