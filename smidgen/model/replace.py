"""Put stored forms into a network as ordinary torch layers, save it, and rebuild it from its file."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from smidgen.errors import LoadError
from smidgen.forms import Dense, Geometry, stages
from smidgen.model.sites import contained
from smidgen.site import Site, Stored

FORMAT = "smidgen-modules-2"
HEADERS = ("chains", "biased", "identities")
_CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def with_forms(model: nn.Module, sites: list[Site], stored: Mapping[str, Stored]) -> nn.Module:
    """A copy of the network in which the given sites hold the given forms.

    A factored site becomes an ``nn.Sequential`` of plain layers in the same place, with the same input and output, so
    the result trains, saves and exports like any network.

    Args:
        model: the original; not changed.
        sites: its sites, from `smidgen.model.sites.find_sites`.
        stored: form and bias by site name; sites not named stay as they are.

    >>> model = nn.Sequential(nn.Linear(4, 3))
    >>> from smidgen.forms import LowRank
    >>> from smidgen.model.sites import find_sites
    >>> u, v = Dense(np.ones((3, 1), "f4")), Dense(np.ones((1, 4), "f4"))
    >>> small = with_forms(model, find_sites(model, torch.zeros(1, 4)), {"0": Stored(LowRank(v, u), np.zeros(3, "f4"))})
    >>> small(torch.ones(1, 4)).tolist()
    [[4.0, 4.0, 4.0]]
    """
    result = copy.deepcopy(model)
    for site in sites:
        if site.name in stored:
            place(result, site, stored[site.name])
    return result


def place(model: nn.Module, site: Site, stored: Stored) -> None:
    """Replace one site of a network, in place (the caller owns the copy)."""
    old = model.get_submodule(site.name)
    like = next(old.parameters())
    chain = stages(stored.form, site.geometry)
    layers = []
    for i, stage in enumerate(chain):
        bias = stored.bias if i == len(chain) - 1 else None
        layer = build_layer(stage.geometry, bias is not None)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(np.ascontiguousarray(stage.values)))
            if bias is not None:
                layer.bias.copy_(torch.from_numpy(bias))
        layers.append(layer.to(like.device, like.dtype).train(old.training))
    put(model, site.name, layers[0] if len(layers) == 1 else nn.Sequential(*layers))


def build_layer(g: Geometry, bias: bool) -> Any:
    """The plain torch layer of a geometry, uninitialised weights included."""
    if g.kind == "linear":
        return nn.Linear(g.in_channels, g.out_channels, bias=bias)
    window: Any = {"stride": g.stride, "padding": g.padding, "dilation": g.dilation, "groups": g.groups, "bias": bias}
    if g.kind == "conv_transpose":
        kind = _TRANSPOSED[len(g.kernel)]
        return kind(g.in_channels, g.out_channels, g.kernel, output_padding=g.output_padding, **window)
    return _CONV[len(g.kernel)](g.in_channels, g.out_channels, g.kernel, **window)


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Set a submodule by its dotted name, in place."""
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)


def save_network(model: nn.Module, sites: list[Site], stored: Mapping[str, Stored], path: Path) -> None:
    """Write a network's weights and the structure of its factored sites as safetensors (no pickle).

    Args:
        model: the network as `with_forms` made it, perhaps trained since.
        sites, stored: what it was made from.
        path: file to write.
    """
    chains = {
        site.name: [stage.geometry.to_dict() for stage in stages(stored[site.name].form, site.geometry)]
        for site in sites
        if site.name in stored and not isinstance(stored[site.name].form, Dense)
    }
    biased = {
        site.name: site.bias is not None or stored[site.name].bias is not None for site in sites if site.name in chains
    }
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}
    # What a folded BatchNorm left behind: the user's class still makes the BatchNorm.
    identities = [name for name, module in model.named_modules() if type(module) is nn.Identity]
    header = {
        "format": FORMAT, "chains": json.dumps(chains), "biased": json.dumps(biased),
        "identities": json.dumps(identities),
    }  # fmt: skip
    partial = path.with_name(path.name + ".part")
    save_file(tensors, partial, metadata=header)
    partial.chmod(0o644)  # the library makes it private; the files beside it are not
    partial.replace(path)


def rebuild_network(model: nn.Module, path: Path) -> nn.Module:
    """A copy of a freshly made network with the factored layers and weights of a file from `save_network`.

    Args:
        model: the user's network, built by the user's unchanged class.
        path: the safetensors file.

    Returns:
        The smaller network, ready to run, train and export; an ``nn.Sequential`` where the given one is one layer.

    Raises:
        LoadError: when the file is damaged or belongs to another network.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        if header.get("format") != FORMAT:
            raise LoadError(f"load: '{path}' was not written by smidgen's save (format {header.get('format')!r})")
        missing = [name for name in HEADERS if name not in header]
        if missing:
            raise LoadError(f"load: '{path}' lacks the header '{missing[0]}'; write it again with Result.save")
        chains, biased = json.loads(header["chains"]), json.loads(header["biased"])
        result = contained(copy.deepcopy(model))
        for name, chain in chains.items():
            last = len(chain) - 1
            keys = [f"{name}.weight"] if last == 0 else [f"{name}.{i}.weight" for i in range(len(chain))]
            geometries = [_checked(entry, tensors[key]) for entry, key in zip(chain, keys, strict=True)]
            layers = [build_layer(g, biased[name] and i == last) for i, g in enumerate(geometries)]
            result.get_submodule(name)
            put(result, name, layers[0] if last == 0 else nn.Sequential(*layers))
        _unfold(result, json.loads(header["identities"]), tensors)
        result.load_state_dict(tensors)
    except LoadError:
        raise
    except Exception as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise LoadError(f"load: '{path}' does not fit this network: {first}") from error
    return result


def _unfold(model: nn.Module, identities: list[str], tensors: Mapping[str, torch.Tensor]) -> None:
    """Take out the BatchNorms that were folded, and give the layers before them the bias they got."""
    for name in identities:
        model.get_submodule(name)
        put(model, name, nn.Identity())
    for name, module in model.named_modules():
        added = tensors.get(f"{name}.bias")
        if added is not None and "bias" in module._parameters and module._parameters["bias"] is None:
            module.bias = nn.Parameter(torch.zeros_like(added))


def _checked(entry: dict[str, Any], weight: torch.Tensor) -> Geometry:
    """A stored geometry, once it is certain that its layer is as large as the weight that fills it."""
    geometry = Geometry.from_dict(entry)
    if geometry.kind == "linear":
        expected = [geometry.out_channels, geometry.in_channels]
    elif geometry.kind == "conv":
        expected = [geometry.out_channels, geometry.in_channels // geometry.groups, *geometry.kernel]
    else:
        expected = [geometry.in_channels, geometry.out_channels // geometry.groups, *geometry.kernel]
    if list(weight.shape) != expected:
        raise ValueError(f"a layer of shape {expected} has a weight of shape {list(weight.shape)}")
    return geometry
