"""Milliseconds of every option: the layers' chains are written, timed here, and what was not timed lies between.

A runtime computes channels in blocks (8 or 16 on x86), so time rises with the rank in steps, and a rank between two
blocks costs at least the next block: on one machine a 3×3 convolution of 64 channels in two factors takes 0.173 ms at
rank 16, 0.243 ms at 17 and 0.241 ms at 32. So an option takes the time of the fastest one that was timed and is
nowhere narrower. Ranks are timed on a rising grid, those that fill whole blocks before others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import gcd

import numpy as np

from smidgen.export.onnx_chain import chain_file, input_shape
from smidgen.forms import Dense, Geometry, Stage, hollow, stages
from smidgen.measure.layers import time_chains
from smidgen.measure.time_table import TimeTable, chain_key, open_table
from smidgen.pipeline.task import Progress
from smidgen.planning.candidates import Options

BLOCK = 16  # channels that x86 with AVX-512 computes at once; what other machines take divides it
GRID, LEAST_GRID = 16, 3  # forms of one method that are timed at a layer, at most and where the layer is slow
SECONDS = 15.0  # for all layers of a network, about …
LAYER_SECONDS = 1.0  # … and for one of them
ROUNDS = 5  # calls of each form that are waited for where a layer is slow
LARGEST_NBYTES = 512 << 20  # of a layer that is timed; a file of more than 2 GB no ONNX reader takes

Name = tuple[str, int]  # of a form: method and rank


@dataclass(frozen=True, eq=False)
class _Chain:
    """What a form runs: its stages, the widths between them and its multiplications."""

    stages: tuple[Stage, ...]
    widths: tuple[int, ...]
    macs: int


def with_times(
    options: Sequence[Options], threads: int, progress: Progress, table: TimeTable | None = None
) -> list[Options]:
    """Options with the time of each form, measured in ONNX Runtime on this machine or known from an earlier run.

    Args:
        options: of every site.
        threads: of the runtime.
        progress: called with (stage, done, total).
        table: what is known; this machine's when None.

    Returns:
        Options; layers with no other chain to choose, and those too large to time, without times.
    """
    table = table or open_table()
    chains: dict[Geometry, dict[Name, _Chain]] = {}
    for option in options:
        forms = _chains(option)
        if forms and option.site.weight.nbytes <= LARGEST_NBYTES:
            chains.setdefault(option.site.geometry, {}).update(forms)
    shares: dict[Geometry, tuple[float, dict[Name, float]]] = {}
    try:
        for done, (geometry, forms) in enumerate(chains.items()):
            shares[geometry] = _timed(geometry, forms, threads, SECONDS / len(chains), table)
            progress("times", done + 1, len(chains))
    finally:
        table.save()
    return [
        _with_times(option, *shares[option.site.geometry]) if option.site.geometry in chains else option
        for option in options
    ]


def _with_times(option: Options, layer_ms: float, shares: Mapping[Name, float]) -> Options:
    # A form without a share is the layer as it is, or its integers, which a runtime unpacks on opening.
    told = [shares.get((str(label.method), label.rank or 0), 1.0) for label in option.labels]
    return replace(option, times=layer_ms * np.array(told))


def _chains(option: Options) -> dict[Name, _Chain]:
    found = {}
    for label in option.labels:
        if label.method is not None and label.rank is not None:
            chain = stages(option.outline(label.method, label.rank), option.site.geometry)
            widths = tuple(stage.geometry.out_channels for stage in chain[:-1])
            found[label.method, label.rank] = _Chain(chain, widths, sum(stage.macs for stage in chain))
    return found


def _timed(
    geometry: Geometry, forms: Mapping[Name, _Chain], threads: int, seconds: float, table: TimeTable
) -> tuple[float, dict[Name, float]]:
    """Milliseconds of a layer, and every form's time as a share of it."""
    whole = (Stage(Dense(hollow()), geometry),)
    layer = chain_key(whole, threads)
    layer_ms = table.get(layer)
    if layer_ms is None:
        layer_ms, _ = time_chains(chain_file(whole), {}, input_shape(whole), threads, LAYER_SECONDS / 2)
        table.put(layer_ms, layer)
    seconds = min(seconds, LAYER_SECONDS)
    by_method: dict[str, dict[Name, _Chain]] = {}
    for name, chain in forms.items():
        by_method.setdefault(name[0], {})[name] = chain
    most = int(np.clip(seconds * 1e3 / (ROUNDS * layer_ms * len(by_method)), LEAST_GRID, GRID))
    grid = {name: chain_key(forms[name].stages, threads) for of in by_method.values() for name in _grid(of, most)}
    missing = {key: chain_file(forms[name].stages) for name, key in grid.items() if table.get(layer, key) is None}
    if missing:
        seconds = max(seconds, ROUNDS * layer_ms / 1e3 * (1 + len(missing)))
        _, found = time_chains(chain_file(whole), missing, input_shape(whole), threads, seconds)
        for key, share in found.items():
            table.put(share, layer, key)
    known = {name: table.get(layer, key) or 1.0 for name, key in grid.items()}
    return layer_ms, {
        name: share for of in by_method.values() for name, share in _between(of, known).items()
    }  # fmt: skip


def _grid(forms: Mapping[Name, _Chain], most: int) -> list[Name]:
    """Forms of one method to time: the widest, and one in each of some equal steps of the root of its size.

    >>> forms = {("svd", r): _Chain((), (r,), 100 * r) for r in range(1, 60)}
    >>> [rank for _, rank in _grid(forms, 10)]
    [2, 4, 8, 12, 16, 24, 32, 40, 48, 56, 59]
    """
    # Equal steps of the ranks would be too wide for the small ones, of their logarithms for the large ones.
    roots = np.sqrt([chain.macs for chain in forms.values()])
    step = np.floor((roots - roots.min()) / max(1e-9, float(np.ptp(roots))) * most * (1 - 1e-9))
    picked: dict[int, Name] = {}
    for name, place in sorted(zip(forms, step.astype(int).tolist(), strict=True), key=lambda p: forms[p[0]].macs):
        if place not in picked or _filled(forms[name]) >= _filled(forms[picked[place]]):
            picked[place] = name  # of two that fill their blocks alike the wider one covers both
    widest = max(forms, key=lambda name: forms[name].macs)
    return list(dict.fromkeys([*picked.values(), widest]))


def _filled(chain: _Chain) -> int:
    """The largest part of a block that divides all widths."""
    return min((gcd(width, BLOCK) for width in chain.widths), default=BLOCK)


def _between(forms: Mapping[Name, _Chain], known: Mapping[Name, float]) -> dict[Name, float]:
    """The share of every form of one method: that of the fastest timed one that is nowhere narrower.

    A form wider than all that were timed takes the share of the largest, in proportion to its multiplications.
    """
    timed = [(np.array(forms[name].widths), forms[name].macs, known[name]) for name in known if name in forms]
    found = {}
    for name, chain in forms.items():
        widths = np.array(chain.widths)
        covering = [share for wide, _, share in timed if len(wide) == len(widths) and (wide >= widths).all()]
        _, macs, share = max(timed, key=lambda each: each[1])
        found[name] = known[name] if name in known else min(covering, default=share * chain.macs / macs)
    return found
