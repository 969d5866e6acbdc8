"""Convolutions computed otherwise: Winograd's and Fourier's beside the direct one, layer by layer and in whole files.

About 30 layers over kernels of 3 to 31 taps, 16 to 512 channels and maps of 14 to 224: milliseconds of each algorithm
in onnxruntime and in torch. The chooser's pick is timed again, apart from the timing it was picked by. Whole networks
go through `smidgen.fastconv`: what a file gains is less than what its layers gain alone.

    python benchmarks/fastconv.py                    # one thread, ten minutes on one core; goes on where it was stopped
    python benchmarks/fastconv.py --threads 2        # added to the same record
    python benchmarks/fastconv.py --draw             # the picture and the claims from the record alone
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sets
import torch
from claims import RESULTS, Claim, earlier, machine, save, show
from figure import layer_times
from torch import nn
from torch.nn import functional as F

import smidgen
from smidgen.errors import Refusal
from smidgen.export.onnx_chain import chain_file
from smidgen.forms import Dense, Geometry, Stage, hollow
from smidgen.measure.fastconv import Way, choose, direct_outputs, relative_error
from smidgen.measure.latency import measure_latency
from smidgen.measure.layers import time_chains
from smidgen.model.fastconv import ALGORITHMS, DIRECT, FastConv2d, geometry_of, plan_layer
from smidgen.pipeline.fastconv import LAYER_SECONDS, OPENINGS
from smidgen.runtimes.onnxruntime import open_onnx

TITLE = "Fast convolution: Winograd's and Fourier's beside the direct one, in onnxruntime and torch"
KERNELS, SIZES, CHANNELS = (3, 5, 7, 15, 31), (14, 28, 56, 112, 224), (16, 32, 64, 128, 256, 512)
# The widest layer of a kernel and a map that stays below this; one of 16 channels may take twice as much.
MOST_MACS = 2.0e9
ORT_SECONDS, TORCH_SECONDS = 4.0, 1.0  # … of which the first in as many openings as the chooser's own
LEAST_TURNS, MOST_TURNS = 5, 200
FASTER, SLOWER, EXACT, LOOSE = 3.0, 0.05, 1e-5, 1e-4
NETWORKS = {
    "resnet20": "resnet20_cifar10_jpegft.onnx", "catsdogs": "ai85cd_catsdogs.onnx",
    "squeezenet": "squeezenet1_1_imagenet.onnx", "mobilenet_v2": "mobilenet_v2_1.0_224_imagenet.onnx",
}  # fmt: skip
PAGE = Path(__file__).resolve().parents[1] / "docs" / "fast-convolution.md"
MARKS = "<!-- figures -->", "<!-- end of figures -->"
STATE = RESULTS / "fastconv-cells.json"


@dataclass(frozen=True)
class Cell:
    """One layer: as many channels in as out, as large a map out as in."""

    kernel: int
    channels: int
    size: int

    @property
    def macs(self) -> int:
        """Multiplications of the direct convolution."""
        return self.kernel**2 * self.channels**2 * self.size**2

    @property
    def name(self) -> str:
        """In words."""
        return f"{self.kernel}×{self.kernel}, {self.channels} channels, {self.size}×{self.size}"

    def conv(self) -> nn.Conv2d:
        """The layer, its weights drawn as torch draws them."""
        torch.manual_seed(0)
        return nn.Conv2d(self.channels, self.channels, self.kernel, padding=self.kernel // 2)


def cells() -> list[Cell]:
    """The widest layer that is not too large for each kernel and map; for 3×3 one a quarter as wide too."""
    found = []
    for kernel in KERNELS:
        for size in SIZES:
            fits = [c for c in CHANNELS if Cell(kernel, c, size).macs <= MOST_MACS]
            if not fits and Cell(kernel, CHANNELS[0], size).macs <= 2 * MOST_MACS:
                fits = [CHANNELS[0]]
            widths = fits[-1:] if kernel > 3 else sorted({*fits[-1:], *fits[-3:-2]})
            found += [Cell(kernel, width, size) for width in widths]
    return found


class TorchRunner:
    """A torch function as a runner."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.function = function

    def run(self, x: np.ndarray) -> tuple[np.ndarray, ...]:
        """The answer."""
        with torch.no_grad():
            return (self.function(torch.from_numpy(x)).numpy(),)


def library_fft(conv: nn.Conv2d, size: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Fourier convolution of the whole map by torch.fft, its kernel transformed once."""
    pad, taps = conv.kernel_size[0] // 2, conv.kernel_size[0]
    length = 1 << (size + taps - 2).bit_length()
    spectrum = torch.fft.rfft2(conv.weight.detach(), s=(length, length)).conj().permute(2, 3, 0, 1).contiguous()

    def run(x: torch.Tensor) -> torch.Tensor:
        found = torch.fft.rfft2(F.pad(x, (pad, pad, pad, pad)), s=(length, length)).permute(2, 3, 1, 0)
        y = torch.fft.irfft2((spectrum @ found).permute(3, 2, 0, 1), s=(length, length))
        return y[:, :, :size, :size]

    return run


def measured(cell: Cell, threads: int) -> dict[str, Any]:
    """Everything about one layer."""
    torch.set_num_threads(threads)
    conv = cell.conv().eval()
    geometry = geometry_of(conv, (cell.size, cell.size))
    x = np.random.default_rng(0).normal(size=(1, cell.channels, cell.size, cell.size)).astype(np.float32)
    direct = chain_file((Stage(Dense(hollow()), geometry),))
    files, functions, reasons = {}, {DIRECT: conv}, {}
    modules: dict[str, FastConv2d] = {}
    for name in ALGORITHMS:
        try:
            plan = plan_layer(geometry, name)
        except Refusal as reason:
            reasons[name] = str(reason)
            continue
        files[name], modules[name] = (
            chain_file((Stage(Dense(hollow(), name), geometry),)),
            FastConv2d(conv, plan).eval(),
        )
    functions |= modules
    functions["torch.fft"] = library_fft(conv, cell.size)
    ways = _ways(direct, files, modules, geometry, threads)
    pick = ways[choose([ways])[0]].algorithm
    wanted = direct_outputs(conv.weight.detach().numpy(), geometry, x)
    # The file holds noise as weights; torch computes the same with the layer's own.
    bias = conv.bias.detach().numpy()[:, None, None] if conv.bias is not None else 0.0
    errors = {
        name: relative_error(TorchRunner(function).run(x)[0] - bias * (name != "torch.fft"), wanted)
        for name, function in functions.items()
    }
    ort = _again({DIRECT: direct, **files}, x, threads)
    torch_ms = _in_turns({n: TorchRunner(function) for n, function in functions.items()}, x, threads, TORCH_SECONDS)
    return {
        "cell": asdict(cell), "threads": threads, "picked": pick, "onnxruntime_ms": ort, "errors": errors,
        "torch_ms": torch_ms, "reasons": reasons,
        "nbytes": {way.algorithm: way.nbytes for way in ways}, "chooser_ms": {w.algorithm: w.ms for w in ways},
    }  # fmt: skip


def _ways(
    direct: bytes, files: Mapping[str, bytes], modules: Mapping[str, FastConv2d], geometry: Geometry, threads: int
) -> list[Way]:
    """The chooser's own timing."""
    shape = (1, geometry.in_channels, *geometry.in_size)
    ms, shares = time_chains(direct, files, shape, threads, LAYER_SECONDS, OPENINGS)
    taps = geometry.columns * geometry.out_channels
    found = [Way(DIRECT, ms, 4 * taps, 0.0)]
    return [*found, *(Way(n, ms * shares[n], 4 * modules[n].kernel.numel(), 0.0) for n in files)]


def _again(files: Mapping[str, bytes], x: np.ndarray, threads: int) -> dict[str, float]:
    """Opened afresh and timed in turns, some times: medians in milliseconds."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder) / f"{number}.onnx" for number, name in enumerate(files)}
        for name, path in paths.items():
            path.write_bytes(files[name])
        for _ in range(OPENINGS):
            with ExitStack() as opened:
                runners = {name: opened.enter_context(open_onnx(path, threads)) for name, path in paths.items()}
                found.append(_in_turns(runners, x, threads, ORT_SECONDS / OPENINGS))
    return {name: float(np.median([each[name] for each in found])) for name in files}


def _in_turns(runners: Mapping[str, Any], x: np.ndarray, threads: int, seconds: float) -> dict[str, float]:
    """Medians in milliseconds; of one thread its time on the processor, which neighbours on the core hardly touch."""
    if threads > 1:
        found = measure_latency(runners, x, max_seconds=seconds)
        return {name: each.median_ms for name, each in found.items()}
    times: dict[str, list[float]] = {name: [] for name in runners}
    for runner in runners.values():
        runner.run(x)
    start = time.thread_time()
    for turn in range(MOST_TURNS):
        for name in list(runners)[turn % len(runners) :] + list(runners)[: turn % len(runners)]:
            before = time.thread_time_ns()
            runners[name].run(x)
            times[name].append((time.thread_time_ns() - before) / 1e6)
        if turn >= LEAST_TURNS and time.thread_time() - start > seconds:
            break
    return {name: float(np.median(each)) for name, each in times.items()}


def whole_files(threads: int) -> list[dict[str, Any]]:
    """`smidgen.fastconv` on networks, and on two that are made for it."""
    found = []
    for name, file in NETWORKS.items():
        result = smidgen.fastconv(sets.model(file), threads=threads)
        found.append({"network": name, **_told(result)})
        print(name, result.verdict(), flush=True)
    torch.manual_seed(0)
    for name, net, shape in (("wide", wide(), (3, 56, 56)), ("large kernels", large_kernels(), (3, 56, 56))):
        result = smidgen.fastconv(net, example=torch.randn(1, *shape), threads=threads)
        found.append({"network": name, **_told(result)})
        print(name, result.verdict(), flush=True)
    return found


def wide() -> nn.Module:
    """The widths of VGG-16's later stages, weights as drawn: what decides is shapes."""
    widths = [(3, 128), (128, 128), (0, 0), (128, 256), (256, 256), (0, 0), (256, 512), (512, 512), (512, 512)]
    layers: list[nn.Module] = []
    for inp, out in widths:
        layers += [nn.Conv2d(inp, out, 3, padding=1), nn.ReLU()] if inp else [nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10)).eval()


def large_kernels() -> nn.Module:
    """Three layers of 15×15 and 31×31 on 28×28."""
    layers = [nn.Conv2d(3, 32, 7, stride=2, padding=3), nn.ReLU()]
    for kernel in (15, 31, 31):
        layers += [nn.Conv2d(32, 32, kernel, padding=kernel // 2), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)).eval()


def _told(result: Any) -> dict[str, Any]:
    first, best = result.trials[0], result.trials[result.taken]
    return {
        "convolutions": len(result.layers), "changed": best.layers, "latency_ms": [first.latency_ms, best.latency_ms],
        "speedup": best.speedup, "error": best.error, "nbytes": [first.nbytes, best.nbytes],
        "chosen": {row.name: row.chosen for row in result.layers if row.chosen != DIRECT},
    }  # fmt: skip


def claims_of(rows: list[dict[str, Any]], networks: list[dict[str, Any]]) -> list[Claim]:
    """What was asked, at each number of threads, and what whole files gained."""
    claims = []
    for threads in sorted({row["threads"] for row in rows}):
        mine = [row for row in rows if row["threads"] == threads]
        told = f"{threads} thread{'s' * (threads > 1)}"
        large = {_name(row): row["onnxruntime_ms"][DIRECT] / row["onnxruntime_ms"]["fft"]
                 for row in mine if row["cell"]["kernel"] == 31}  # fmt: skip
        if large:
            claims.append(Claim(
                f"31×31 layers, Fourier's over direct, {told}", f"≥ {FASTER:g}× as fast",
                ", ".join(f"{ratio:.1f}× ({name})" for name, ratio in large.items()), min(large.values()) >= FASTER,
            ))  # fmt: skip
        behind = {_name(row): _behind(row) for row in mine}
        worst = max(behind, key=lambda name: behind[name])
        late = sum(share > SLOWER for share in behind.values())
        claims.append(Claim(
            f"the chooser's pick, timed again, against the best column, {told}", f"≤ {100 * SLOWER:g} % slower",
            f"{100 * behind[worst]:.1f} % at most ({worst}); {late} of {len(mine)} cells beyond",
            behind[worst] <= SLOWER,
        ))  # fmt: skip
        gains = {row["picked"] for row in mine}
        counts = ", ".join(f"{name} {sum(row['picked'] == name for row in mine)}" for name in sorted(gains))
        claims.append(Claim(f"cells by what was picked, {told}", "", counts))
    for name, most in (("winograd2", EXACT), ("fft", EXACT), ("winograd4", LOOSE)):
        errors = {_name(row): row["errors"][name] for row in rows if name in row["errors"]}
        worst = max(errors, key=lambda n: errors[n])
        claims.append(Claim(
            f"{name}: largest difference from float64, as a share of the largest output", f"≤ {most:g}",
            f"{errors[worst]:.1e} ({worst})", errors[worst] <= most,
        ))  # fmt: skip
    claims += [
        Claim(
            f"whole file, {each['network']}", "never slower",
            f"{each['speedup']:.2f}×, {each['changed']} of {each['convolutions']} convolutions changed",
            each["speedup"] >= 1,
        )
        for each in networks
    ]  # fmt: skip
    return claims


def _behind(row: dict[str, Any]) -> float:
    times = row["onnxruntime_ms"]
    return times[row["picked"]] / min(times.values()) - 1


def _name(row: dict[str, Any]) -> str:
    return Cell(**row["cell"]).name


def tables(rows: list[dict[str, Any]]) -> dict[str, list[list[str]]]:
    """Milliseconds of every cell, by threads."""
    names = [DIRECT, *ALGORITHMS]
    heads = ["layer", *names, "picked", "behind", *(f"torch: {n}" for n in (*names, "torch.fft"))]
    found: dict[str, list[list[str]]] = {}
    for row in rows:
        key = f"{row['threads']} thread{'s' * (row['threads'] > 1)}: milliseconds in onnxruntime, and in torch"
        ort = [_ms(row["onnxruntime_ms"].get(name)) for name in names]
        torch_ms = [_ms(row["torch_ms"].get(name)) for name in (*names, "torch.fft")]
        line = [_name(row), *ort, row["picked"], f"{100 * _behind(row):.1f} %", *torch_ms]
        found.setdefault(key, [heads]).append(line)
    return found


def write_page(rows: list[dict[str, Any]], networks: list[dict[str, Any]], processor: str) -> None:
    """The figures of docs/fast-convolution.md, between its two marks."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    names = [DIRECT, *ALGORITHMS]
    lines = [
        f"Written by `benchmarks/fastconv.py`: milliseconds in ONNX Runtime, one thread, {processor}; bold is what the "
        "chooser took.",
        "", "| layer | direct | F(2×2) | F(4×4) | Fourier |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for row in (row for row in rows if row["threads"] == 1):
        cells = {name: _ms(row["onnxruntime_ms"].get(name)) for name in names}
        cells[row["picked"]] = f"**{cells[row['picked']]}**"
        lines.append(" | ".join([f"| {_name(row)}", *(cells[name] for name in names)]) + " |")
    lines += ["", "| whole file | convolutions changed | milliseconds | as fast | bytes |", "|---|---|---|---|---|"]
    for each in networks:
        shown = 2 if each["changed"] else 1
        ms = " → ".join(f"{value:.4g}" for value in each["latency_ms"][:shown])
        size = " → ".join(f"{value / 1e6:.2f} MB" for value in each["nbytes"][:shown])
        gain = f"{each['speedup']:.2f}×" if each["changed"] else "the original"
        lines.append(f"| {each['network']} | {each['changed']} of {each['convolutions']} | {ms} | {gain} | {size} |")
    PAGE.write_text(before + MARKS[0] + "\n" + "\n".join(lines) + "\n" + MARKS[1] + after, encoding="utf-8")


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--every", metavar="N", type=int, default=1, help="one layer of N alone")
    parser.add_argument("--conditions", metavar="TEXT", default="", help="what else ran on the machine, for the record")
    parser.add_argument("--draw", action="store_true", help="measure nothing")
    parser.add_argument("--no-networks", action="store_true", help="layers alone")
    args = parser.parse_args()
    before = earlier("fastconv")
    rows = {(_name(row), row["threads"]): row for row in before.get("cells", ())}
    networks = before.get("networks", [])
    if not args.draw:
        state = json.loads(STATE.read_text()) if STATE.is_file() else []
        done = {(_name(row), row["threads"]): row for row in state}
        for number, cell in enumerate(cells()[:: args.every]):
            if (cell.name, args.threads) not in done:
                done[cell.name, args.threads] = measured(cell, args.threads)
                STATE.parent.mkdir(parents=True, exist_ok=True)
                STATE.write_text(json.dumps(list(done.values())))
            row = done[cell.name, args.threads]
            times = {name: round(ms, 3) for name, ms in row["onnxruntime_ms"].items()}
            print(number, cell.name, row["picked"], f"{100 * _behind(row):.1f} % behind", times, flush=True)
        rows |= done
        if not args.no_networks and args.threads == 1:
            networks = whole_files(1)
        STATE.unlink(missing_ok=True)
    order = {cell.name: place for place, cell in enumerate(cells())}
    listed = sorted(rows.values(), key=lambda row: (row["threads"], order.get(_name(row), -1)))
    claims = claims_of(listed, networks)
    layer_times(RESULTS / "fastconv.png", TITLE, [row for row in listed if row["threads"] == 1])
    show(TITLE, claims)
    write_page(listed, networks, machine()["processor"])
    told = {"conditions": args.conditions or before.get("conditions", "")}
    print(save("fastconv", TITLE, claims, tables=tables(listed), cells=listed, networks=networks, **told))


if __name__ == "__main__":
    main()
