"""Which weights of a whole network go: one threshold for all layers, one a layer or a row, or N of every M.

Scores that count with the price (`smidgen.methods.obs`) are asked again at the threshold that the last ones gave, until
it stands. Exactly the share that was asked for goes, of the weights of the layers that are not left alone; each keeps
one at least.

Where there are inputs, scores in nats are held against the truth: each layer's g is multiplied by the root of its true
loss over the predicted one (removing many weights is no small change, and how far the prediction is off differs from
layer to layer), and of all ways tried the one is kept whose network has the least true loss. ResNet-20 at 70 %: a KL of
0.25 with the predicted losses, 0.11 so, 0.14 without the root.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from math import inf

import numpy as np
import torch
from torch import Tensor

from smidgen.errors import PlanError, Refusal
from smidgen.forms import Masked, nbytes
from smidgen.methods import AnyMethod, Family, Pruning
from smidgen.numerics.cancellation import Factor
from smidgen.planning.allocate import choice_of
from smidgen.planning.candidates import Label, Options, weights_only
from smidgen.planning.metric import DAMP, Metric, metric_of
from smidgen.planning.plan import Plan, fingerprint
from smidgen.site import Curvature, Site, stacked, unstacked

# True loss and predicted one of a layer, by their forms; of all layers together, by all forms.
Alone = Callable[[Mapping[str, Masked]], Mapping[str, float]]
Together = Callable[[Mapping[str, Masked]], float]

MOST_FACTOR = 100.0  # of a layer's true loss over its predicted one, beside the others': beyond, it is noise
ROUNDS = 4  # the price stands after two or three
LEAST = 1e-12  # nats
NEVER = 1e9  # nats; what no price pays
ENOUGH = 1e-3  # nats; a network that loses less is not worth another try
START = 0.3  # of the price without compensation: most of what goes is made good


@dataclass(frozen=True, eq=False)
class _Layer:
    """A layer that is pruned.

    Args:
        site: the layer.
        weight: rows of each group over the same inputs, float64 (`smidgen.site.stacked`).
        metric: its A and G.
        factors: of A.
        rows: g.
    """

    site: Site
    weight: Tensor
    metric: Metric
    factors: list[Factor] | Tensor
    rows: Tensor

    @property
    def channels(self) -> int:
        """Input channels that a row reads."""
        g = self.site.geometry
        return g.in_channels // g.groups

    @property
    def moment(self) -> Tensor | None:
        """A + δI, damped as its factors are; None where A is not known whole."""
        whole = self.metric.inputs.matrix
        if whole is None:
            return None
        a = whole.to(self.weight)
        mean = a.diagonal(dim1=1, dim2=2).mean(1).clamp_min(torch.finfo(torch.float64).tiny)
        return a + torch.diag_embed((DAMP * mean)[:, None].expand(a.shape[:2]))


def with_pruned(
    options: Sequence[Options],
    curvatures: Mapping[str, Curvature],
    pruning: Pruning,
    allowed: Mapping[str, Sequence[str]],
    target: str = "onnx",
    truth: tuple[Alone, Together] | None = None,
) -> list[Options]:
    """Every site's options with its pruned form, all at one sparsity.

    Args:
        options: from `gather`, of every site in running order.
        curvatures: by site name.
        pruning: what goes first, and its settings.
        allowed: names of the methods that may touch each layer kind.
        target: the file whose bytes count.
        truth: tells true losses of forms, alone and together; None where there are no inputs.

    Raises:
        PlanError: no sparsity is named, a protected layer is not there, or too few weights would be left.
    """
    settings, name = pruning.settings, pruning.name
    if not settings.share:
        raise PlanError(f"{name}: no sparsity is named; give settings={{'{name}': {{'sparsity': 0.7}}}}, "
                        "or a pattern such as '2:4'")  # fmt: skip
    _check_protected(settings.protect, [option.site.name for option in options])
    layers: dict[str, _Layer] = {}
    refusals: dict[str, str] = {}
    for option in options:
        site = option.site
        try:
            _check(site, pruning, allowed)
            layers[site.name] = _layer(site, curvatures.get(site.name, weights_only(site)))
        except Refusal as refusal:
            refusals[site.name] = str(refusal)
    forms = _best(layers, pruning, truth) if layers else {}
    result = []
    for option in options:
        site = option.site
        if site.name not in layers:
            result.append(replace(option, refusals={**option.refusals, name: refusals[site.name]}))
            continue
        curvature = curvatures.get(site.name, weights_only(site))
        result.append(_offering(option, forms[site.name], name, curvature, target))
    return result


def without_whole(option: Options, name: str) -> Options:
    """The site with no price at which a layer that is to be pruned stays whole.

    Args:
        option: of a site.
        name: of the pruning.
    """
    if all(label.method != name for label in option.labels):
        return option
    return replace(option, losses=np.where([label.method == name for label in option.labels], option.losses, NEVER))


def pruned_plan(options: Sequence[Options], chosen: Mapping[str, AnyMethod]) -> Plan:
    """The plan in which every layer that can be pruned is, each in its smallest form.

    Args:
        options: from `with_pruned`, with integers perhaps.
        chosen: the methods the options came from.
    """
    name = next(method.name for method in chosen.values() if isinstance(method, Pruning))
    choices = []
    for option in options:
        mine = [i for i, label in enumerate(option.labels) if label.method == name]
        mine.sort(key=lambda i: (int(option.sizes[i]), float(option.losses[i])))
        choices.append(choice_of(option, mine[0] if mine else 0))
    settings = {each.name: asdict(each.settings) for each in chosen.values()}
    return Plan(tuple(choices), inf, fingerprint([o.site for o in options]), settings)


def _offering(option: Options, form: Masked, name: str, curvature: Curvature, target: str) -> Options:
    site, count = option.site, form.survivors
    loss = curvature.loss_as_stored(site.weight.astype(np.float64) - form.values, site.geometry)
    family = Family(name, (count,), (loss,), lambda _: form, lambda _: form)
    return replace(
        option, families={**option.families, name: family},
        losses=np.append(option.losses, loss), sizes=np.append(option.sizes, nbytes(form, site.geometry, target)),
        labels=(*option.labels, Label(name, count)), worth=curvature.loss_as_stored(site.weight, site.geometry),
    )  # fmt: skip


def _check_protected(patterns: Sequence[str], names: Sequence[str]) -> None:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.4)
            hint = f"; did you mean {' or '.join(near)}?" if near else f"; there are: {', '.join(names[:8])}"
            raise PlanError(f"protect: no layer is called {pattern!r}{hint}")


def _check(site: Site, pruning: Pruning, allowed: Mapping[str, Sequence[str]]) -> None:
    """Refusal with the reason why a layer is left alone."""
    settings, name = pruning.settings, pruning.name
    if site.refusal is not None:
        raise Refusal(site.refusal)
    if any(fnmatchcase(site.name, pattern) for pattern in settings.protect):
        raise Refusal(f"{name}: it is protected")
    if name not in allowed.get(site.geometry.kind, ()):
        raise Refusal(f"{name}: it was not asked for this kind of layer")
    channels = site.geometry.in_channels // site.geometry.groups
    if settings.kept_of and channels < settings.kept_of[1]:
        raise Refusal(f"{name}: {channels} input channels have no pattern of {settings.pattern}")


def _layer(site: Site, curvature: Curvature) -> _Layer:
    g = site.geometry
    weight = torch.as_tensor(stacked(site.weight, g), dtype=torch.float64)
    if not bool(torch.isfinite(weight).all()):
        raise Refusal("pruning: the weight holds nan or inf")
    metric = metric_of(site, curvature)
    out = g.out_channels // g.groups
    taps = weight.shape[1] // out  # of a transposed convolution, else one: all rows of an output count alike
    return _Layer(site, weight, metric, metric.factors, metric.rows(g.groups, out).repeat(1, taps))


def _best(
    layers: Mapping[str, _Layer], pruning: Pruning, truth: tuple[Alone, Together] | None
) -> dict[str, Masked]:  # fmt: skip
    """The forms of the way that loses least, of those that are tried."""
    ways = pruning.variants()
    if truth is None or (len(ways) == 1 and not _counts_loss(pruning)):
        return _forms(layers, ways[0])
    alone, together = truth
    best, least = dict[str, Masked](), inf
    for way in ways:
        forms = _forms(layers, way)
        loss = together(forms)
        if loss < ENOUGH:
            return forms
        tried = [(loss, forms)]
        if _counts_loss(way):
            factors = _factors(layers, forms, alone(forms))
            scaled = {name: replace(each, rows=factors[name] * each.rows) for name, each in layers.items()}
            again = _forms(scaled, way)
            tried.append((together(again), again))
        for loss, forms in tried:
            if loss < least or not best:
                best, least = forms, loss
    return best


def _counts_loss(pruning: Pruning) -> bool:
    """Whether its scores are losses that several layers share a threshold of."""
    return hasattr(pruning.settings, "ahead") and pruning.settings.scope == "global" and not pruning.settings.kept_of


def _factors(layers: Mapping[str, _Layer], forms: Mapping[str, Masked], true: Mapping[str, float]) -> dict[str, float]:
    """√(true loss / predicted one) of each layer, beside the mean of all."""
    ratios = {}
    for name, layer in layers.items():
        change = layer.weight - torch.as_tensor(stacked(forms[name].values, layer.site.geometry)).to(layer.weight)
        gram = layer.metric.inputs.between(change, change).diagonal(dim1=1, dim2=2)
        predicted = 0.5 * float((layer.rows * gram).sum())
        ratios[name] = max(true[name], LEAST) / max(predicted, LEAST)
    middle = float(np.exp(np.mean(np.log(list(ratios.values())))))
    return {name: float(np.clip(each / middle, 1 / MOST_FACTOR, MOST_FACTOR)) ** 0.5 for name, each in ratios.items()}


def _forms(layers: Mapping[str, _Layer], pruning: Pruning) -> dict[str, Masked]:
    kept = _chosen(layers, pruning)
    return {name: _form(layer, pruning, kept[name]) for name, layer in layers.items()}


def _form(layer: _Layer, pruning: Pruning, kept: Tensor) -> Masked:
    values = pruning.values(layer.weight, layer.moment, layer.factors, kept)
    left = torch.where(kept, values, 0.0).float().cpu().numpy()
    return Masked(unstacked(left, layer.site.geometry).reshape(layer.site.weight.shape))


def _chosen(layers: Mapping[str, _Layer], pruning: Pruning) -> dict[str, Tensor]:
    """What is kept of each layer."""
    settings = pruning.settings
    if settings.scope != "global" or settings.kept_of:
        return {name: _masks({name: layer}, pruning)[name] for name, layer in layers.items()}
    return _masks(layers, pruning)


def _masks(layers: Mapping[str, _Layer], pruning: Pruning) -> dict[str, Tensor]:
    """What is kept of layers that share a threshold, once the price stands."""
    settings, price = pruning.settings, 0.0
    kept: dict[str, Tensor] = {}
    for turn in range(ROUNDS):
        scores = {n: pruning.scores(each.weight, each.factors, each.rows, price) for n, each in layers.items()}
        before, kept = kept, _kept(scores, {n: each.channels for n, each in layers.items()}, settings)
        if turn and all(torch.equal(before[name], kept[name]) for name in kept):
            break
        gone = [scores[name][~kept[name]] for name in kept]
        largest = max((float(each.max()) for each in gone if len(each)), default=0.0)
        price = largest * (1.0 if turn else START)
    return kept


def _kept(scores: Mapping[str, Tensor], channels: Mapping[str, int], settings: object) -> dict[str, Tensor]:
    share, scope, kept_of = (getattr(settings, each) for each in ("share", "scope", "kept_of"))
    if kept_of:
        return {name: pattern_kept(score, channels[name], *kept_of) for name, score in scores.items()}
    if scope == "row":
        return {name: _rows_kept(score, share) for name, score in scores.items()}
    return largest_kept(scores, share)


def largest_kept(scores: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Exactly the share of the least scores goes, over all layers together; each keeps its largest.

    >>> largest_kept({"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([1.0, 2.0])}, 0.5)["b"].tolist()
    [False, True]

    Raises:
        PlanError: not even one weight a layer would be left.
    """
    flat = [score.flatten().clone() for score in scores.values()]
    for each in flat:
        each[each.argmax()] = torch.inf
    joined = torch.cat(flat)
    count = round(share * len(joined))
    if count > len(joined) - len(flat):
        raise PlanError(f"sparsity: {100 * share:g} % of {len(joined)} weights would leave a layer empty; "
                        f"at most {100 * (1 - len(flat) / len(joined)):.4g} %")  # fmt: skip
    kept = torch.ones(len(joined), dtype=torch.bool, device=joined.device)
    kept[torch.argsort(joined, stable=True)[:count]] = False
    parts = kept.split([len(each) for each in flat])
    return {name: part.reshape(scores[name].shape) for name, part in zip(scores, parts, strict=True)}


def _rows_kept(score: Tensor, share: float) -> Tensor:
    """The same share of each row; one of it is kept."""
    count = min(round(share * score.shape[-1]), score.shape[-1] - 1)
    return torch.argsort(torch.argsort(score, dim=-1, stable=True), dim=-1) >= count


def pattern_kept(score: Tensor, inp: int, kept: int, of: int) -> Tensor:
    """N of every M neighbouring input channels at each place of the window; of fewer at the end, N at most.

    Args:
        score: ``[groups, out, n]``.
        inp: input channels of a row.
        kept, of: N and M.

    >>> pattern_kept(torch.tensor([[[4.0, 1.0, 2.0, 3.0]]]), 4, 2, 4).tolist()
    [[[True, False, False, True]]]
    """
    places = score.reshape(*score.shape[:2], inp, -1).mT  # groups, out, place, channel
    spare = -inp % of
    filled = torch.nn.functional.pad(places, (0, spare), value=-torch.inf).unflatten(-1, (-1, of))
    # A stable order of the falling scores: of equals the first stay.
    order = torch.argsort(torch.argsort(filled, dim=-1, descending=True, stable=True), dim=-1)
    mask = (order < kept).flatten(-2)[..., :inp]
    return mask.mT.reshape(score.shape)
