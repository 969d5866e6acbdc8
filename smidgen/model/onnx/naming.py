"""ONNX names, which may hold anything, as unique Python identifiers."""

from __future__ import annotations

import keyword
import re

from torch import fx, nn

from .limits import MAX_NAME

# Names nn.Module or GraphModule already use: a child of that name would hide a method.
_TAKEN = frozenset(dir(nn.Module())) | frozenset(dir(fx.GraphModule)) | {"self", "graph", "code"}
_SUFFIXES = (".weight", ".bias", ".gamma", ".beta", ".kernel", "/kernel", "_weight", ".in_proj_weight")


class Names:
    """Hands out identifiers, each once.

    >>> names = Names()
    >>> names.unique("layer1.0.conv1"), names.unique("layer1.0.conv1"), names.unique("class")
    ('layer1_0_conv1', 'layer1_0_conv1_1', 'class_')
    """

    def __init__(self) -> None:
        self._used: set[str] = set()
        self._next: dict[str, int] = {}

    def unique(self, wanted: str) -> str:
        """`wanted` as an identifier that was not given before."""
        base = identifier(wanted)
        name = base
        while name in self._used:
            self._next[base] = self._next.get(base, 0) + 1
            name = f"{base}_{self._next[base]}"
        self._used.add(name)
        return name


def identifier(name: str) -> str:
    """`name` with everything but ASCII letters, digits and underscores replaced.

    >>> identifier("model/conv2d:0"), identifier("3x"), identifier("")
    ('model_conv2d_0', '_3x', '_')
    """
    clean = re.sub(r"_*[^0-9A-Za-z_]+_*", "_", name)[:MAX_NAME].rstrip("_")
    if not clean or clean[0].isdigit():
        return "_" + clean
    return clean + "_" if keyword.iskeyword(clean) or clean in _TAKEN else clean


def layer_name(op: str, node_name: str, weight_name: str) -> str:
    """A readable name for the layer of a node: from its weight, else from its path, else its operator.

    >>> layer_name("Conv", "/layer1/layer1.0/conv1/Conv", "onnx::Conv_300")
    'layer1.0.conv1'
    >>> layer_name("Conv", "", "backbone.stem.weight")
    'backbone.stem'
    >>> layer_name("Gemm", "", "487")
    'gemm'
    """
    telling = re.search(r"[A-Za-z]", weight_name) and "::" not in weight_name
    if telling:
        for suffix in _SUFFIXES:
            if weight_name.lower().endswith(suffix) and len(weight_name) > len(suffix):
                return weight_name[: -len(suffix)].strip("/")
        if "/" in weight_name or "." in weight_name:
            return weight_name.strip("/")
    parts: list[str] = []
    for part in node_name.strip("/").split("/"):
        if parts and part.startswith(parts[-1] + "."):
            parts[-1] = part
        elif part:
            parts.append(part)
    if len(parts) > 1 and re.fullmatch(rf"{re.escape(op)}(_\d+)?", parts[-1]):
        parts.pop()
    if parts and re.search(r"[A-Za-z]", ".".join(parts)):
        return ".".join(parts)
    return op.lower()
