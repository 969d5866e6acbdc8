"""Carry out a plan: build each site's form and refit it on what the compressed layers before it produce.

The last layer U of a factored site is refitted by least squares from its own inputs z in the compressed network to the
original's outputs y, with intercept:

    U = (E[(y − ȳ)(z − z̄)ᵀ] + ρ U₀) (E[(z − z̄)(z − z̄)ᵀ] + ρ I)⁻¹,   b = ȳ − U z̄

Sites are taken in running order, so what one layer loses the next can make good, dense layers too: a dense layer after
a changed one is refitted where the sample determines it well, at no byte's cost. U₀, the calibrated start, is what the
ridge ρ pulls towards. Where the plan asks for integers, the refitted weight is rounded under the same moments, so that
rounding too aims at the original's outputs on the compressed network's own inputs. (Asymmetric reconstruction, Zhang et
al. 2015, arXiv:1505.06798.)
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from smidgen.calibrate.columns import choose_positions, input_rows, output_rows
from smidgen.calibrate.ranges import Activations
from smidgen.forms import Geometry, stages
from smidgen.model.replace import place
from smidgen.model.replay import Enough, Replay
from smidgen.planning.candidates import Options
from smidgen.planning.plan import Choice, Plan
from smidgen.planning.precision import Precision
from smidgen.planning.refit import Moments, refitted, rounded, with_bias
from smidgen.site import Site, Stored, untouched

# Most forward passes of the compressed network a refit takes; layers in between are refitted together.
PASSES = 8
# … where layers are rounded: each makes good what those before it lost, and two that are refitted together make it good
# twice. MobileNetV2 (53 layers) at 2.0 MB: KL 0.037 with biases moved in 24 passes, 0.013 in one a layer, 0.015 if not.
ROUNDING_PASSES = 64
MOST_COLUMNS = 2304  # widest dense layer that is refitted
ROWS_PER_COLUMN = 8  # a refit of a dense layer on fewer rows learns the sample
ROWS_NBYTES = 256 << 20  # memory for the original's outputs at all sites
MOST_POSITIONS = 64  # output positions of one sample that enter a refit at most; neighbours tell nearly the same


@dataclass(frozen=True, eq=False)
class Realised:
    """A plan carried out.

    Args:
        model: the smaller network.
        stored: form and bias of every site that the file holds separately.
        refitted: names of the sites whose values a refit moved, dense ones among them.
        activations: that it was trained with, which its file of integers has to keep; None for those that suit it.
    """

    model: nn.Module
    stored: Mapping[str, Stored]
    refitted: frozenset[str] = frozenset()
    activations: Activations | None = None


@dataclass(frozen=True, eq=False)
class References:
    """What the original answers at every site on the calibration inputs; computed once, used by every refit.

    Args:
        batches: the inputs.
        rows: outputs by site name, ``[groups, n · positions, out]`` for each batch.
        positions: the output positions taken, by site name; None for all.
    """

    batches: Sequence[np.ndarray]
    rows: Mapping[str, list[Tensor]]
    positions: Mapping[str, Tensor | None]


Refit = Literal["weights", "biases", "nothing"]
REFITS: tuple[Refit, ...] = get_args(Refit)


def references(
    model: nn.Module, sites: Sequence[Site], batches: Sequence[np.ndarray], *, device: str = "cpu", seed: int = 0
) -> References:
    """Run the original once and keep its outputs at some positions of every site.

    Args:
        model: the original, in evaluation mode.
        sites: the sites that may change.
        batches: calibration inputs.
        device: where the model lies.
        seed: of the positions drawn.
    """
    samples = sum(len(batch) for batch in batches)
    width = sum(site.geometry.out_channels for site in sites)
    most = int(np.clip(ROWS_NBYTES / max(1, 4 * samples * width), 4, MOST_POSITIONS))
    generator = torch.Generator().manual_seed(seed)
    positions = {site.name: choose_positions(site.geometry, most, generator) for site in sites}
    rows: dict[str, list[Tensor]] = {site.name: [] for site in sites}

    def keep(site: Site) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, result: Tensor) -> None:
            # A copy: a later in-place activation must not change what is kept.
            rows[site.name].append(_rows(result, site.geometry, positions[site.name]).clone())

        return hook

    handles = [model.get_submodule(site.name).register_forward_hook(keep(site)) for site in sites]
    with _removing(handles):
        Replay(model, batches, device=device).run(())
    return References(batches, rows, positions)


def realise(
    model: nn.Module,
    options: Sequence[Options],
    plan: Plan,
    known: References | None = None,
    *,
    refit: Refit = "weights",
    device: str = "cpu",
    tick: Callable[[str], None] = lambda name: None,
) -> Realised:
    """Build the network a plan describes.

    Args:
        model: the original, in evaluation mode; not changed.
        options: of every site, in running order.
        plan: one choice a site.
        known: the original's outputs, for the refit; None leaves the forms as the methods made them.
        refit: what a refit may move in layers of integers.
        device: where the model lies.
        tick: called with each changed site's name when it is done.
    """
    smaller = copy.deepcopy(model)
    jobs = _jobs(options, plan, known, refit)
    stored = {o.site.name: untouched(o.site) for o in options}
    replay = None if known is None else Replay(smaller, known.batches, device=device)
    changing = {job.site.name for job in jobs}
    for block in _blocks(jobs, ROUNDING_PASSES if any(job.whole for job in jobs) else PASSES):
        for job in block:
            stored[job.site.name] = job.start()
            place(smaller, job.site, stored[job.site.name])
        moved = [job for job in block if job.refitted]
        if replay is not None and known is not None and moved:
            stored.update(_refit(replay, changing, moved, stored, known))
            for job in moved:
                place(smaller, job.site, stored[job.site.name])
        for job in block:
            changing.discard(job.site.name)
            tick(job.site.name)
    return Realised(smaller, stored, frozenset(job.site.name for job in jobs if job.refitted))


@dataclass(frozen=True, eq=False)
class _Job:
    """A site to be changed or refitted.

    Args:
        option, choice: what it takes.
        refitted: whether a refit follows.
        determined: whether that refit rests on many more rows than the layer has columns.
    """

    option: Options
    choice: Choice
    refitted: bool
    determined: bool

    @property
    def site(self) -> Site:
        return self.option.site

    @property
    def products(self) -> bool:
        """Whether the refit moves weights, not the bias alone."""
        return self.determined or self.choice.factored

    @property
    def whole(self) -> bool:
        """Whether it is the layer's own inputs that are wanted, not those of its last factor."""
        return self.choice.rounded

    def start(self) -> Stored:
        """The form before its refit: floats where the refit rounds."""
        method, rank, step, bits = self.choice.taken
        later = self.refitted and (self.determined or method is not None)
        form = self.option.form(method, rank) if later else self.option.form(method, rank, step, bits)
        stored = Stored(form, self.site.bias)
        return stored if step is None or self.refitted else with_bias(stored, self.precision, step)

    @property
    def precision(self) -> Precision:
        assert isinstance(self.option.precision, Precision)
        return self.option.precision


def _jobs(options: Sequence[Options], plan: Plan, known: References | None, refit: Refit) -> list[_Job]:
    """Changed sites, and dense ones after them that can make good for free what was lost before them."""
    result: list[_Job] = []
    for option, choice in zip(options, plan.choices, strict=True):
        fixed = choice.rounded and refit != "weights"
        determined = known is not None and not fixed and _well_determined(option.site, known, _unknowns(option, choice))
        # A fast convolution answers as the layer did: it makes nothing to make good.
        free = determined and any(not job.choice.fast for job in result)
        if choice.changed or free:
            possible = known is not None and _has_rows(option.site, known) and (free or not choice.fast)
            result.append(_Job(option, choice, possible and not (fixed and refit == "nothing"), determined))
    return result


def _unknowns(option: Options, choice: Choice) -> int:
    """What a refit of one row of a dense layer solves for: its columns, or those that pruning left."""
    columns = option.site.geometry.columns
    if choice.rank is None or not choice.pruned:
        return columns
    return min(columns, -(-choice.rank // option.site.geometry.out_channels))


def _well_determined(site: Site, known: References, unknowns: int) -> bool:
    """Whether a dense layer's refit rests on many more rows than it solves for."""
    g = site.geometry
    if not _has_rows(site, known):
        return False
    rows = sum(batch.shape[1] for batch in known.rows[site.name])
    return g.columns <= MOST_COLUMNS and rows >= ROWS_PER_COLUMN * unknowns


def _has_rows(site: Site, known: References) -> bool:
    """Whether each row of a site's outputs comes from one row of its inputs; windows of a transposed one overlap."""
    return site.name in known.rows and site.geometry.kind != "conv_transpose"


def _blocks(jobs: list[_Job], passes: int) -> list[list[_Job]]:
    """Jobs in running order, in at most so many blocks."""
    each = -(-len(jobs) // passes)
    return [jobs[i : i + each] for i in range(0, len(jobs), max(each, 1))]


def _refit(
    replay: Replay, changing: set[str], block: list[_Job], stored: Mapping[str, Stored], known: References
) -> dict[str, Stored]:
    """Least squares for the last layer of every site of a block, or for all of it where it is rounded."""
    seen_by = {job.site.name: _seen_by(job, stored[job.site.name]) for job in block}
    sums = {job.site.name: Moments(products=job.products) for job in block}
    seen = dict.fromkeys(seen_by, 0)

    def gather(job: _Job) -> Callable[..., None]:
        name = job.site.name

        def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            z = input_rows(args[0], seen_by[name], known.positions[name])
            y = known.rows[name][seen[name]]
            seen[name] += 1
            sums[name].add(y, z)
            if job is block[-1]:
                raise Enough

        return hook

    handles = []
    for job in block:
        layer: Any = replay.model.get_submodule(job.site.name)
        layer = layer if job.whole or not isinstance(layer, nn.Sequential) else layer[-1]
        handles.append(layer.register_forward_pre_hook(gather(job)))
    with _removing(handles):
        replay.run(changing)
    return {job.site.name: _solved(job, stored[job.site.name], sums[job.site.name]) for job in block}


def _seen_by(job: _Job, stored: Stored) -> Geometry:
    """The layer whose inputs a job's moments are of."""
    return job.site.geometry if job.whole else stages(stored.form, job.site.geometry)[-1].geometry


def _solved(job: _Job, stored: Stored, sums: Moments) -> Stored:
    if not job.whole:
        return refitted(stored, stages(stored.form, job.site.geometry)[-1].geometry, sums)
    _, _, step, bits = job.choice.taken
    return rounded(stored, job.precision, step, sums, determined=job.determined, bits=bits)


@contextlib.contextmanager
def _removing(handles: list[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _rows(values: Tensor, geometry: Geometry, picked: Tensor | None) -> Tensor:
    if picked is not None:
        picked = picked.to(values.device)
        values = values.flatten(2)[:, :, picked] if geometry.kind != "linear" else _positions(values, picked)
    return output_rows(values, geometry)


def _positions(values: Tensor, picked: Tensor) -> Tensor:
    return values.reshape(values.shape[0], -1, values.shape[-1])[:, picked]
