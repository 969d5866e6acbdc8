"""Find the layers of a network whose weights can be stored in another form."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from smidgen.errors import LoadError
from smidgen.forms import Geometry
from smidgen.site import Site

LINEAR = (nn.Linear,)
CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
READ_ELSEWHERE = "other code reads its weight or its sizes"

FORWARD = LINEAR + CONV  # each row of a weight makes one output
LAYERS = FORWARD + TRANSPOSED


def contained(model: nn.Module) -> nn.Module:
    """The network, in an ``nn.Sequential`` where it is a single layer: replacing a layer needs a place around it.

    >>> [name for name, _ in contained(nn.Linear(3, 2)).named_parameters()]
    ['0.weight', '0.bias']
    """
    return nn.Sequential(model).train(model.training) if isinstance(model, LAYERS) else model


def find_sites(model: nn.Module, example: Tensor) -> list[Site]:
    """Every layer with a weight matrix, in the order a forward pass runs them.

    Args:
        model: the network, in evaluation mode.
        example: one batch of inputs, ``[n, …]``.

    Returns:
        One `Site` a layer; those that must be left alone carry the reason in ``refusal``.

    Raises:
        LoadError: when the network cannot run on the example, answers with anything but tensors, or holds NaN or
            infinite weights.

    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> [site.name for site in find_sites(model, torch.zeros(1, 4))]
    ['0', '2']
    """
    special = {
        n: "it has a forward hook of its own"
        for n, m in _named_layers(model).items()
        if m._forward_hooks or m._forward_pre_hooks
    }
    calls = _trace(model, example, special)
    owners = Counter(id(m.weight) for m in _named_layers(model).values())
    sites = []
    for name, seen in calls.items():
        module: Any = model.get_submodule(name)
        geometry = _geometry(module, *seen[0])
        weight, bias = _array(name, "weight", module.weight), _array(name, "bias", module.bias)
        assert weight is not None  # layers of these kinds always have one
        shared = owners[id(module.weight)] > 1
        refusal = special.get(name) or _refusal(module, len(seen), shared)
        sites.append(Site(name, geometry, weight, bias, refusal))
    return _replaceable(model, sites, example)


def _replaceable(model: nn.Module, sites: list[Site], example: Tensor) -> list[Site]:
    """Sites that a chain of layers can stand in for: some code reads a layer's own weight or sizes."""
    if _runs(model, [s.name for s in sites if s.refusal is None], example):
        return sites
    return [
        s if s.refusal is not None or _runs(model, [s.name], example) else replace(s, refusal=READ_ELSEWHERE)
        for s in sites
    ]


def _runs(model: nn.Module, wrapped: list[str], example: Tensor) -> bool:
    """Whether the network runs when each of these layers is inside an ``nn.Sequential``."""
    # Modules are copied, what they hold is not: it is only read.
    held = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    trial = copy.deepcopy(model, held)
    for name in wrapped:
        parent, _, leaf = name.rpartition(".")
        if not leaf:
            return False
        setattr(trial.get_submodule(parent), leaf, nn.Sequential(trial.get_submodule(name)))
    try:
        with torch.no_grad():
            trial(example)
    except Exception:  # whatever it is, such a layer cannot be replaced
        return False
    return True


def _named_layers(model: nn.Module) -> dict[str, Any]:
    return {name: m for name, m in model.named_modules() if isinstance(m, LAYERS)}


Shapes = tuple[tuple[int, ...], tuple[int, ...]]


def _trace(model: nn.Module, example: Tensor, special: dict[str, str]) -> dict[str, list[Shapes]]:
    """Input and output shapes of every call of every layer, in calling order; odd calls are added to ``special``."""
    calls: dict[str, list[Shapes]] = {}

    def watch(name: str) -> Any:
        def hook(_module: nn.Module, args: tuple[Tensor, ...], named: dict[str, Tensor], out: Tensor) -> None:
            if not args:
                special[name] = "it is called by keyword"
            given = args[0] if args else named["input"]
            calls.setdefault(name, []).append((tuple(given.shape), tuple(out.shape)))

        return hook

    handles = [m.register_forward_hook(watch(n), with_kwargs=True) for n, m in _named_layers(model).items()]
    try:
        with torch.no_grad():
            answer = model(example)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise LoadError(
            f"load: the network cannot run on an input of shape {tuple(example.shape)}: {reason}; "
            "check the example's shape, layout and type"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    _check_answer(answer)
    return calls


def _check_answer(answer: Any) -> None:
    """A tensor or a flat sequence of them: what a written file can answer, and what curvature and scores read."""
    parts = answer if isinstance(answer, (tuple, list)) else [answer]
    odd = next((type(part).__name__ for part in parts if not isinstance(part, Tensor)), None)
    if odd is not None or not parts:
        held = f" in a {type(answer).__name__}" if parts is answer else ""
        raise LoadError(
            f"load: the network returns {f'a value of type {odd}{held}' if odd else 'nothing'}; "
            "make forward return a tensor, or a tuple of tensors"
        )


def _geometry(module: Any, in_shape: tuple[int, ...], out_shape: tuple[int, ...]) -> Geometry:
    if isinstance(module, LINEAR):
        middle = in_shape[1:-1]
        return Geometry("linear", module.in_features, module.out_features, in_size=middle, out_size=middle)
    spatial = len(module.kernel_size)
    transposed = isinstance(module, TRANSPOSED)
    return Geometry(
        "conv_transpose" if transposed else "conv",
        module.in_channels,
        module.out_channels,
        kernel=tuple(module.kernel_size),
        stride=tuple(module.stride),
        padding=_padding(module, spatial),
        dilation=tuple(module.dilation),
        groups=module.groups,
        in_size=in_shape[-spatial:],
        out_size=out_shape[-spatial:],
        output_padding=tuple(module.output_padding) if transposed else (),
    )


def _padding(module: Any, spatial: int) -> tuple[int, ...]:
    if module.padding == "valid":
        return (0,) * spatial
    if module.padding == "same":
        return tuple(d * (k - 1) // 2 for k, d in zip(module.kernel_size, module.dilation, strict=True))
    return tuple(module.padding)


def _refusal(module: Any, calls: int, shared: bool) -> str | None:
    if type(module) not in LAYERS:
        return f"a {type(module).__name__} does more than its base class"
    if calls > 1:
        return f"runs {calls} times in one forward pass"
    if shared:
        return "its weight is shared with another layer"
    if isinstance(module, (nn.Conv3d, nn.ConvTranspose3d)):
        return "three-dimensional convolution"
    if getattr(module, "padding_mode", "zeros") != "zeros":
        return f"padding mode {module.padding_mode!r}"
    if getattr(module, "padding", 0) == "same" and any(
        d * (k - 1) % 2 for k, d in zip(module.kernel_size, module.dilation, strict=True)
    ):
        return "asymmetric 'same' padding"
    return None


def _array(name: str, what: str, parameter: Tensor | None) -> np.ndarray | None:
    if parameter is None:
        return None
    values = parameter.detach().to("cpu", torch.float32).numpy()
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).sum())
        raise LoadError(f"load: {name}.{what} holds {bad} NaN or infinite values; repair or retrain the network")
    return values
