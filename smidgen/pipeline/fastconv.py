"""fastconv(): the same network, each convolution computed the way that is fastest here.

    load → prepare → time every way of every convolution → choose → write → reopen, verify and time the whole file

A layer timed alone says too much: in its network the runtime joins a convolution with the activation behind it and
keeps its own order of channels between convolutions. So the whole file decides, and a slower one is never kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from smidgen.budget import parse_size
from smidgen.errors import BudgetError, Refusal, UserError
from smidgen.export.onnx import write
from smidgen.export.onnx_chain import chain_file, input_shape
from smidgen.export.verify import verify
from smidgen.forms import DIRECT, Dense, Form, Stage, dense, hollow, stages
from smidgen.forms.fastconv import ALGORITHMS
from smidgen.measure.fastconv import Way, choose, direct_outputs, relative_error
from smidgen.measure.layers import time_chains
from smidgen.measure.speed import compare_speed
from smidgen.methods import methods
from smidgen.model.fastconv import check_algorithm, plan_site, with_fast_convs
from smidgen.model.replace import with_forms
from smidgen.numerics.fastconv import convolve, transform_kernel
from smidgen.pipeline.fast_files import TIMES, halves, surely_fastest
from smidgen.pipeline.task import Data, Progress, Task, Threads, one_input, open_task
from smidgen.report.fastconv import FastConvs, LayerRow, Trial
from smidgen.report.record import versions
from smidgen.report.result import Scratch
from smidgen.site import Curvature, Site, Stored, untouched

LAYER_SECONDS = 3.0  # for all ways of one layer
OPENINGS = 5  # … in so many openings of their files
SPATIAL = "spatial"  # factors of the kernel, where some loss is allowed
RANKS = 12  # of them that are tried, in closed form


def fastconv(
    model: nn.Module | str | Path,
    data: Data = None,
    *,
    algorithms: Sequence[str] | None = None,
    max_size: int | str | None = None,
    low_rank: float | None = None,
    weights: str | Path | None = None,
    example: torch.Tensor | None = None,
    threads: int | None = None,
    seed: int = 0,
    progress: Progress = lambda stage, done, total: None,
) -> FastConvs:
    """Compute each convolution the way that is fastest on this machine, in ONNX Runtime.

    Args:
        model: a module, an ``.onnx`` or ``.pt2`` file, or ``file.py:factory``.
        data: inputs, one of which is timed; a random one when None.
        algorithms: ``winograd2``, ``winograd4``, ``fft``; all when None.
        max_size: bytes of the file, or text such as ``"45 MB"``: transformed kernels are larger.
        low_rank: squared error, relative, that a kernel's two one-sided factors may make (they change the network's
            answers, nothing else here does); None to leave them out.
        weights: ``.safetensors`` or weights-only ``.pth`` for a factory.
        example: one batch of inputs, needed where neither data nor the file tell the shape.
        threads: of the runtime; what torch uses when None.
        seed: of the input that is drawn.
        progress: called with (stage, done, total).

    Returns:
        Every convolution with its times, and the fastest file that was written; the original where nothing gains.

    Raises:
        UserError: for anything wrong with what was given.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, stride=2))
    >>> found = fastconv(net, torch.randn(20, 3, 8, 8), algorithms=["winograd2"])
    >>> [[way.algorithm for way in row.ways] for row in found.layers]
    [['direct', 'winograd2'], ['direct']]
    """
    asked = list(ALGORITHMS if algorithms is None else algorithms)
    for name in asked:
        check_algorithm(name)
    most = None if max_size is None else parse_size(max_size) if isinstance(max_size, str) else max_size
    if low_rank is not None and not 0 < low_rank < 1:
        raise UserError(f"fastconv: low_rank={low_rank!r} is no share of a kernel; give one between 0 and 1, as 0.01")
    if not isinstance(model, nn.Module) and _holds_integers(Path(model)):
        raise UserError(f"fastconv: '{model}' holds integers, which this would make floats of; give the file of floats")
    task = open_task(model, data, None, weights, example, None, threads, "cpu", seed)
    if not any(_two_axes(site) for site in task.prepared.sites):
        raise UserError(f"fastconv: '{task.network.name}' has no convolution of two axes; there is nothing to choose")
    with Threads(task.threads):
        work = _Work(task, [name for name in asked if name != DIRECT], low_rank, progress)
        return work.finish(most)


@dataclass(frozen=True, eq=False)
class _Layer:
    """A convolution, and every way to compute it.

    Args:
        site: the layer.
        ways: timed, the direct one first.
        form: its factors, where they are among the ways.
        reasons: why an algorithm is not among them.
    """

    site: Site
    ways: tuple[Way, ...]
    form: Form | None = None
    reasons: tuple[str, ...] = ()


Ways = dict[str, tuple[_Layer, Way]]  # what was chosen, by layer name


@dataclass(frozen=True, eq=False)
class _File:
    """A written network: where, what it measured, and what is not direct in it."""

    path: Path
    trial: Trial
    chosen: Ways


class _Work:
    """Times, chooses, writes and measures for one network."""

    def __init__(self, task: Task, algorithms: list[str], low_rank: float | None, progress: Progress) -> None:
        self.task, self.algorithms, self.low_rank, self.progress = task, algorithms, low_rank, progress
        self.folder, self.sites = Scratch(), task.prepared.sites
        self.stored = {site.name: untouched(site) for site in self.sites}
        self.original = task.network.source or self.folder.path / "original.onnx"
        self.direct = self.folder.path / "original.onnx"
        write(task.prepared.base, self.sites, self.stored, self.direct)
        self.times: dict[str, tuple[float, dict[str, float]]] = {}

    def finish(self, most: int | None) -> FastConvs:
        """The fastest file whose bytes fit."""
        nbytes = self.original.stat().st_size
        if most is not None and most < nbytes:
            raise BudgetError(
                f"fastconv: max_size={most} B is less than the {nbytes} B that the network takes as it is; "
                "compress it first"
            )
        convolutions = [site for site in self.sites if _two_axes(site)]
        layers = []
        for done, site in enumerate(convolutions):
            layers.append(self._layer(site))
            self.progress("layers", done + 1, len(convolutions))
        spare = None if most is None else most - self.direct.stat().st_size
        taken = choose([layer.ways for layer in layers], spare)
        chosen = {layer.site.name: (layer, layer.ways[i]) for layer, i in zip(layers, taken, strict=True) if i}
        files = self._files(chosen, most)
        return self._told(
            layers, files, surely_fastest([(file.trial.speedup, file.trial.error) for file in files]), most
        )

    def _files(self, chosen: Ways, most: int | None) -> list[_File]:
        """The original, a file with all that was chosen, with the half of it that gains most alone, …"""
        latency, _ = compare_speed(self.original, self.original, one_input(self.task), self.task.threads)
        first = Trial(0, self.original.stat().st_size, latency.median_ms, 1.0, 0.0)
        files = [_File(self.original, first, {})]
        for names in halves(sorted(chosen, key=lambda name: chosen[name][1].ms - chosen[name][0].ways[0].ms)):
            self.progress(f"file with {len(names)} changed", 0, 0)
            file = self._file({name: chosen[name] for name in names}, len(files))
            if most is None or file.trial.nbytes <= most:
                files.append(file)
        return files

    def _layer(self, site: Site) -> _Layer:
        """All ways of a layer, timed in turns."""
        plans, reasons, files = {}, [], {}
        for name in self.algorithms:
            try:
                plans[name] = plan_site(site, name)
                files[name] = chain_file((Stage(Dense(hollow(), name), site.geometry),))
            except Refusal as reason:
                reasons.append(f"not {name}: {reason}")
        form = None if self.low_rank is None else _factors(site, self.low_rank, reasons)
        if form is not None:
            files[SPATIAL] = chain_file(stages(form, site.geometry))
        whole = (Stage(Dense(hollow()), site.geometry),)
        key = (
            f"{site.geometry}{sorted(files)}{None if form is None else [s.shape for s in stages(form, site.geometry)]}"
        )
        if key not in self.times:
            seconds = LAYER_SECONDS if files else LAYER_SECONDS / 4
            self.times[key] = time_chains(
                chain_file(whole), files, input_shape(whole), self.task.threads, seconds, OPENINGS
            )
        ms, shares = self.times[key]
        x = np.random.default_rng(self.task.seed).normal(size=input_shape(whole)).astype(np.float32)
        wanted = direct_outputs(site.weight, site.geometry, x)
        plain = direct_outputs(site.weight, site.geometry, x, np.float32)
        ways = [Way(DIRECT, ms, site.weight.nbytes, relative_error(plain, wanted))]
        for name, plan in plans.items():
            kernel = transform_kernel(plan, torch.from_numpy(site.weight))
            found = convolve(torch.from_numpy(x), kernel, plan).numpy()
            ways.append(Way(name, ms * shares[name], 4 * kernel.numel(), relative_error(found, wanted)))
        if form is not None:
            found = direct_outputs(dense(form).reshape(site.weight.shape), site.geometry, x)
            nbytes = 4 * sum(stage.params for stage in stages(form, site.geometry))
            ways.append(Way(SPATIAL, ms * shares[SPATIAL], nbytes, relative_error(found, wanted)))
        return _Layer(site, tuple(ways), form, tuple(dict.fromkeys(reasons)))

    def _file(self, chosen: Ways, number: int) -> _File:
        """Write a network, open it again, hold it against torch and time it beside the original."""
        task, path = self.task, self.folder.path / f"trial{number}.onnx"
        write(task.prepared.base, self.sites, self.stored | self._stored(chosen), path)
        verify(self._module(chosen), path, one_input(task), task.threads)
        _, speed = compare_speed(self.original, path, one_input(task), task.threads, times=TIMES)
        trial = Trial(len(chosen), path.stat().st_size, speed.median_ms, speed.speedup, speed.error)
        return _File(path, trial, chosen)

    def _stored(self, chosen: Ways) -> dict[str, Stored]:
        """Forms of the sites that are not direct."""
        return {
            name: Stored(layer.form if way.algorithm == SPATIAL and layer.form is not None
                         else Dense(layer.site.weight, way.algorithm), layer.site.bias)
            for name, (layer, way) in chosen.items()
        }  # fmt: skip

    def _module(self, chosen: Ways) -> nn.Module:
        """The same in torch."""
        model = with_forms(self.task.prepared.module, self.sites, self._stored(chosen))
        algorithms = {name: way.algorithm for name, (_, way) in chosen.items() if way.algorithm != SPATIAL}
        return with_fast_convs(model, self.task.example[:1], algorithms)[0]

    def _told(self, layers: list[_Layer], files: list[_File], best: int, most: int | None) -> FastConvs:
        """The record, and all that belongs to it."""
        taken, task, trials = files[best], self.task, tuple(file.trial for file in files)
        names = {name: way.algorithm for name, (_, way) in taken.chosen.items()}
        rows = tuple(
            LayerRow(each.site.name, _shape(each.site), each.ways, names.get(each.site.name, DIRECT), each.reasons)
            for each in layers
        )
        record = {
            "schema_version": 1, "name": task.network.name, "threads": task.threads, "seed": task.seed,
            "asked": {"algorithms": self.algorithms, "max_size": most, "low_rank": self.low_rank},
            "versions": versions(), "taken": best, "trials": [asdict(trial) for trial in trials],
            "layers": [row.plain() for row in rows],
        }  # fmt: skip
        return FastConvs(self._module(taken.chosen), rows, trials, best, record, taken.path, self.folder)


def _two_axes(site: Site) -> bool:
    return site.geometry.kind == "conv" and len(site.geometry.kernel) == 2


def _holds_integers(path: Path) -> bool:
    if path.suffix != ".onnx" or not path.is_file():
        return False  # what else is wrong with it, loading tells
    content = path.read_bytes()
    return b"DequantizeLinear" in content or b"QuantizeLinear" in content


def _factors(site: Site, share: float, reasons: list[str]) -> Form | None:
    """The kernel in two one-sided factors, of the smallest rank whose error is within the share."""
    try:
        family = methods()[SPATIAL].with_settings(points=RANKS).family(site, Curvature())
    except Refusal as reason:
        reasons.append(f"not {reason}")
        return None
    rank = next((r for r, loss in zip(family.ranks, family.losses, strict=True) if loss <= share), None)
    if rank is None:
        reasons.append(f"not {SPATIAL}: no smaller rank stays within {share:g} of the kernel")
        return None
    return family.build(rank)


def _shape(site: Site) -> str:
    g = site.geometry
    window = "×".join(map(str, g.kernel))
    told = f"{g.in_channels}→{g.out_channels}, {window}, {'×'.join(map(str, g.in_size))}"
    return told + (f", stride {g.stride[0]}" if max(g.stride) > 1 else "")
