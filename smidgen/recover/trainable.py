"""A compressed network as one that trains: each form as plain layers that cannot leave what the form can hold.

    dense, factors     ordinary layers in a chain; their ranks are their shapes
    pruned             what is gone stays zero                                    `smidgen.recover.masks`
    shared             the values train, each weight keeps which one it has       `smidgen.recover.centroids`
    integers           straight-through rounding, learned steps, on the grid      `smidgen.recover.steps`

The constraints are torch parametrizations of plain layers, so any optimizer and any loop trains the network, and what
it computes at any moment is what `read_back` gives: ``dense(form)`` is the layer's weight, to the bit.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrize as torch_parametrize

from smidgen.errors import PlanError
from smidgen.forms import Codebook, Dense, Form, Leaf, Masked, Quantized, dense, leaves, stages, width, with_leaves
from smidgen.model.fold import NORMS
from smidgen.model.replace import place
from smidgen.recover.centroids import Shared
from smidgen.recover.masks import Kept
from smidgen.recover.steps import Stepped
from smidgen.site import Site, Stored


def trainable(
    model: nn.Module,
    sites: list[Site],
    stored: Mapping[str, Stored],
    *,
    target: str = "onnx",
    fixed: Collection[str] = (),
    keep_zeros: Collection[str] = (),
    learned_steps: bool = True,
    reassign: bool = False,
) -> nn.Module:
    """A copy of a network in which the stored forms train within their constraints.

    Everything else in it stands still: what is no site's weight or bias is not part of a plan, and the statistics of
    BatchNorms that were not folded do not follow the batches.

    Args:
        model: the original, or the network that was realised; not changed.
        sites: its sites.
        stored: form and bias of each site that trains.
        target: the file whose widths the integers keep to (``onnx-w4``: eight bits or four, as they have now).
        fixed: names of sites that stand still too.
        keep_zeros: names of sites whose integers that are zero stay zero.
        learned_steps: whether the steps of integers are trained.
        reassign: whether shared weights may take other values (`smidgen.recover.centroids.Reassigning`).

    Raises:
        PlanError: a form has factors within factors.

    >>> from smidgen.model.sites import find_sites
    >>> net = nn.Sequential(nn.Linear(2, 1, bias=False))
    >>> sites, form = find_sites(net, torch.zeros(1, 2)), Masked(np.array([[0.0, 3.0]], np.float32))
    >>> training = trainable(net, sites, {"0": Stored(form)})
    >>> step = torch.optim.SGD(training.parameters(), lr=0.5, weight_decay=0.25)
    >>> training(torch.tensor([[1.0, 1.0]])).sum().backward()
    >>> step.step()
    >>> read_back(training, sites, {"0": Stored(form)})["0"].form.values.tolist()
    [[0.0, 2.125]]
    """
    for site in sites:
        if site.name in stored:
            _check(site, stored[site.name].form)
    result = filled(model, sites, stored)
    for parameter in result.parameters():
        parameter.requires_grad_(False)
    for module in result.modules():
        if isinstance(module, NORMS):
            module.register_forward_pre_hook(_still)
    for site in sites:
        if site.name not in stored:
            continue
        entry = stored[site.name]
        chain = layers_at(result, site.name)
        trains = site.name not in fixed
        for layer, stage in zip(chain, stages(entry.form, site.geometry), strict=True):
            leaf: Any = stage.weight
            bits = width(leaf, target)
            hold(
                layer, leaf, bits=bits, keep_zeros=site.name in keep_zeros, learned_steps=learned_steps,
                reassign=reassign,
            )  # fmt: skip
        if entry.bias_form is not None:
            hold(chain[-1], entry.bias_form, name="bias", learned_steps=False)
        for layer in chain:
            layer.requires_grad_(trains)
            _fix_steps(layer)
    return result


def read_back(module: nn.Module, sites: list[Site], stored: Mapping[str, Stored]) -> dict[str, Stored]:
    """The forms of a network that was trained.

    Args:
        module: from `trainable`.
        sites, stored: what it was made from.

    Returns:
        Form and bias of each site, alike in kind, ranks, masks, indices and grids; what was not trained is as it was.
    """
    found: dict[str, Stored] = {}
    for site in sites:
        if site.name not in stored:
            continue
        entry, chain = stored[site.name], layers_at(module, site.name)
        given = zip(chain, leaves(entry.form), strict=True)
        form = with_leaves(entry.form, [leaf_of(layer, leaf) for layer, leaf in given])
        bias: Any = None if entry.bias is None else leaf_of(chain[-1], entry.bias_form or Dense(entry.bias), "bias")
        bias_form = bias if isinstance(bias, Quantized) else None
        found[site.name] = Stored(form, None if bias is None else dense(bias), bias_form)
    return found


def filled(model: nn.Module, sites: list[Site], stored: Mapping[str, Stored]) -> nn.Module:
    """A copy of a network with the stored weights, in the layers it has where they fit.

    Unlike `smidgen.model.replace.with_forms` it keeps what a plain layer of the form's geometry would lose, such as
    another padding of a layer that no method may touch.

    Args:
        model: the original, or the network that was realised; not changed.
        sites, stored: as of `trainable`.
    """
    result = copy.deepcopy(model)
    for site in sites:
        if site.name in stored:
            _fill(result, site, stored[site.name])
    return result


def hold(
    layer: nn.Module,
    leaf: Leaf,
    *,
    name: str = "weight",
    bits: int | None = None,
    keep_zeros: bool = False,
    learned_steps: bool = True,
    reassign: bool = False,
) -> None:
    """Keep a layer's weight within what a leaf can hold, in place.

    Args:
        layer: a plain layer whose weight the leaf is of.
        leaf: pruned floats, a codebook or integers; floats need nothing.
        name: of the parameter.
        bits: width of integers, None for any size.
        keep_zeros: integers that are zero stay zero.
        learned_steps: whether the steps of integers are trained.
        reassign: whether shared weights may take other values.
    """
    weight = getattr(layer, name)
    shape, made = tuple(weight.shape), None
    match leaf:
        case Dense():
            return
        case Masked():
            made = Kept(torch.from_numpy(leaf.kept).reshape(shape))
        case Codebook():
            made = Shared(leaf, shape, moves=reassign)
        case Quantized():
            made = Stepped(leaf, shape, bits, keep_zeros=keep_zeros, learned=learned_steps)
    torch_parametrize.register_parametrization(layer, name, made.to(weight.device))


def leaf_of(layer: nn.Module, leaf: Leaf, name: str = "weight") -> Leaf:
    """What a layer's weight has become, as a leaf of the same kind and shape.

    Args:
        layer: as `hold` left it, trained since.
        leaf: what it was made from.
        name: of the parameter.
    """
    match leaf:
        case Dense(values):
            return Dense(_array(getattr(layer, name), values.shape, values.dtype))
        case Masked(values):
            return Masked(_array(getattr(layer, name), values.shape, values.dtype))
        case Codebook() | Quantized():
            parametrized: Any = layer.parametrizations
            held = parametrized[name]
            shape = leaf.indices.shape if isinstance(leaf, Codebook) else leaf.integers.shape
            return held[0].form(held.original, shape)


def _array(weight: torch.Tensor, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    # A copy: on a CPU the array would go on changing with the parameter.
    return weight.detach().cpu().numpy().astype(dtype).reshape(shape)


def _check(site: Site, form: Form) -> None:
    if any(not isinstance(stage.weight, Leaf) for stage in stages(form, site.geometry)):
        raise PlanError(f"train: {site.name!r} has factors within factors, which are not trained; leave it out")


def _fill(model: nn.Module, site: Site, entry: Stored) -> None:
    """The values of a site: into the layers that are there, where they fit."""
    chain, wanted = layers_at(model, site.name), [stage.values for stage in stages(entry.form, site.geometry)]
    biased = getattr(chain[-1], "bias", None) is not None
    if [tuple(layer.weight.shape) for layer in chain] != [v.shape for v in wanted] or biased != (
        entry.bias is not None
    ):
        place(model, site, entry)
        return
    with torch.no_grad():
        for layer, values in zip(chain, wanted, strict=True):
            layer.weight.copy_(torch.from_numpy(np.ascontiguousarray(values)))
        if entry.bias is not None:
            chain[-1].bias.copy_(torch.from_numpy(entry.bias))


def layers_at(model: nn.Module, name: str) -> list[Any]:
    """The plain layers at a site, in the order they run.

    Args:
        model: from `trainable`, or any with stored forms.
        name: of the site.
    """
    found = model.get_submodule(name)
    return list(found) if isinstance(found, nn.Sequential) else [found]


def _fix_steps(layer: nn.Module) -> None:
    for module in layer.modules():
        if isinstance(module, Stepped) and not module.learned:
            module.octaves.requires_grad_(False)


def _still(module: nn.Module, _args: object) -> None:
    """Before a BatchNorm runs: with the statistics it has, whatever mode its network is in."""
    module.training = False


def steps_of(model: nn.Module) -> Iterator[nn.Parameter]:
    """The learned steps in a network, for an optimizer that treats them apart."""
    for module in model.modules():
        if isinstance(module, Stepped):
            yield module.octaves
