"""Builds the torch graph, and knows every value's shape while it grows.

`Builder.emit` is a partial evaluator: a call whose operands are all known is computed at once, any other becomes a
node. Each node carries two *probes*: its result on the meta device (shapes and dtypes, no memory) for two sizes of
the dynamic axes. A size that is equal in both is static. Because probing comes before computing, a shape that asks
for too much is refused before anything is allocated.
"""

from __future__ import annotations

import math
import operator
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx import Node
from torch.fx.node import map_aggregate

from .limits import BATCH_PROBES, MAX_ELEMENTS, MAX_FOLD_WORK, MAX_FOLDED, MAX_FOLDED_TOTAL, MAX_RANK
from .naming import Names, layer_name
from .values import Malformed, Size

# Work here is not in proportion to the sizes of operands and result.
_HEAVY = {torch.matmul, torch.einsum, torch.det, torch.conv1d, torch.conv2d, torch.conv3d}
_HEAVY |= {torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d}
_HEAVY_FAMILIES = ("pooling", "resizing", "signal", "normalization")


class Builder:
    """A graph under construction.

    Args:
        fixed_batch: the batch size the file was exported with, where the import makes it dynamic; else None.
    """

    def __init__(self, fixed_batch: int | None = None) -> None:
        self.root = nn.Module()
        self.graph = fx.Graph()
        self.fixed_batch = fixed_batch
        self.names = Names()
        self.origins: dict[int, str] = {}  # id of a stored tensor → its name in the file
        self.inputs: list[Node] = []
        self._kept: list[Tensor] = []  # ids stay unique while the tensors live
        self._attributes: dict[int, Node] = {}
        self._parameters: dict[int, nn.Parameter] = {}
        self._derived: dict[tuple[int, str], Tensor] = {}
        self._layers: dict[tuple[object, ...], str] = {}
        self._keys: dict[str, tuple[object, ...]] = {}
        self._calls: Counter[str] = Counter()
        self._sizes: dict[tuple[Node, int], Node] = {}
        self._folded = 0

    # Growing the graph

    def placeholder(self, name: str, shapes: Sequence[Sequence[int]], dtype: torch.dtype) -> Node:
        """An input, its shape under each of the two probes given."""
        node = self.graph.placeholder(name)
        probes = tuple(torch.empty(tuple(shape), dtype=dtype, device="meta") for shape in shapes)
        node.meta["probes"] = probes
        self._check(probes)
        self.inputs.append(node)
        return node

    def emit(self, target: Callable[..., Any], *args: Any, probes: tuple[Any, Any] | None = None, **kwargs: Any) -> Any:
        """Compute `target(*args, **kwargs)` now if every operand is known, else let the graph compute it.

        Args:
            target: an importable function of tensors and numbers.
            args: operands; tensors, nodes, numbers, and lists of them.
            probes: what the call gives under the two probes, where the meta device cannot tell.
            kwargs: further operands.

        Returns:
            A tensor or number, or a node; tuples as one node (see `parts`).

        Raises:
            Malformed: the result is too large.
        """
        if not _nodes_in(args, kwargs):
            known, result = self._fold(target, args, kwargs)
            if known:
                return result
        args, kwargs = map_aggregate((args, kwargs), self._as_argument)
        node = self.graph.call_function(target, tuple(args), dict(kwargs))
        node.meta["probes"] = probes if probes is not None else self._probe(target, args, kwargs)
        self._check(node.meta["probes"])
        return node

    def parts(self, value: Any, count: int) -> tuple[Any, ...]:
        """The `count` members of a tuple that `emit` gave."""
        if isinstance(value, Node):
            return tuple(self.emit(operator.getitem, value, index) for index in range(count))
        return tuple(value[:count])

    def layer(self, module: nn.Module, tensors: dict[str, Tensor | None], hint: tuple[str, str], *operands: Any) -> Any:
        """Apply a module with weights.

        Args:
            module: made on the meta device; its parameters and buffers named in `tensors` are replaced.
            tensors: known tensors by parameter or buffer name.
            hint: operator and node name, from which (with the weight's name) the module is named.
            operands: of the module.

        Returns:
            The node of the call. The same weights used twice are one module, as they are in the file.
        """
        module.eval()
        for name, tensor in tensors.items():
            wanted = getattr(module, name)
            # Torch's recurrent kernels read past a weight that is too small.
            if tensor is not None and (wanted.shape != tensor.shape or wanted.dtype != tensor.dtype):
                raise Malformed(f"a {name} of {list(tensor.shape)} {tensor.dtype} where {list(wanted.shape)} fits")
        operands = map_aggregate(operands, self._as_argument)
        probes = self._probe(module, operands, {})
        key = (repr(module), *((name, None if t is None else id(t)) for name, t in tensors.items()))
        name = self._layers.get(key)
        if name is None:
            weight = next((self.origins.get(id(t), "") for t in tensors.values() if t is not None), "")
            name = self.names.unique(layer_name(*hint, weight))
            self._fill(module, tensors)
            self.root.add_module(name, module)
            self._layers[key] = name
            self._keys[name] = key
        self._calls[name] += 1
        node = self.graph.call_module(name, operands)
        node.meta["probes"] = probes
        self._check(probes)
        return node

    def parameter(self, tensor: Tensor) -> nn.Parameter:
        """The trainable parameter of a known tensor; one tensor is one parameter.

        Raises:
            Malformed: NaN or infinite entries.
        """
        key = id(tensor)
        if key not in self._parameters:
            if not bool(torch.isfinite(tensor).all()):
                raise Malformed(f"weight {self.origins.get(id(tensor), '')!r} holds NaN or infinite entries")
            self._kept.append(tensor)
            # A clone: folding may return views, and training must not write through to another parameter.
            self._parameters[key] = nn.Parameter(tensor.detach().clone(memory_format=torch.contiguous_format))
        return self._parameters[key]

    def derived(self, tensor: Tensor, target: Callable[..., Tensor], *args: Any) -> Tensor:
        """`target(tensor, *args)` for a stored tensor, which keeps the tensor's name."""
        result = target(tensor, *args)
        self._kept.append(result)
        if id(tensor) in self.origins:
            self.origins[id(result)] = self.origins[id(tensor)]
        return result

    def derived_once(self, tensor: Tensor, tag: str, target: Callable[[Tensor], Tensor]) -> Tensor:
        """`derived`, the same tensor each time, so that what the file shares stays shared."""
        key = (id(tensor), tag)
        if key not in self._derived:
            self._kept.append(tensor)
            self._derived[key] = self.derived(tensor, target)
        return self._derived[key]

    def settle(self, name: str) -> None:
        """Give the module to no later node: it was changed."""
        self._layers.pop(self._keys[name], None)

    def calls(self, node: Node) -> int:
        """How often the module that `node` calls is called."""
        return self._calls[str(node.target)]

    def attribute(self, tensor: Tensor) -> Node:
        """The node that reads a known tensor: a buffer of the network."""
        if id(tensor) not in self._attributes:
            origin = self.origins.get(id(tensor), "constant")
            # Masks hold −inf by right; +inf and NaN in a stored array are damage.
            if tensor.is_floating_point() and tensor.numel() > 1 and not bool((tensor < math.inf).all()):
                raise Malformed(f"constant {origin!r} holds NaN or infinite entries")
            name = self.names.unique(origin)
            self.root.register_buffer(name, tensor)
            node = self.graph.get_attr(name)
            meta = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
            node.meta["probes"] = (meta, meta)
            self._kept.append(tensor)
            self._attributes[id(tensor)] = node
        return self._attributes[id(tensor)]

    # Knowing shapes

    def size(self, value: Tensor | Node, axis: int) -> Size:
        """Length of `axis`: a number where it is static, else the node that reads it."""
        if isinstance(value, Tensor):
            return value.shape[axis]
        first, second = (probe.shape[axis] for probe in value.meta["probes"])
        if first == second:
            return int(first)
        axis %= value.meta["probes"][0].ndim
        if (value, axis) not in self._sizes:
            node = self.graph.call_method("size", (value, axis))
            node.meta["probes"] = (int(first), int(second))
            self._sizes[value, axis] = node
        return self._sizes[value, axis]

    def is_batch(self, value: Tensor | Node, axis: int) -> bool:
        """Whether `axis` has the length of the network's dynamic batch."""
        return isinstance(value, Node) and tuple(p.shape[axis] for p in value.meta["probes"]) == BATCH_PROBES

    def batch_size(self) -> Size:
        """Length of the dynamic batch, which is axis 0 of some input."""
        for node in self.inputs:
            if node.meta["probes"][0].ndim and self.is_batch(node, 0):
                return self.size(node, 0)
        raise Malformed("no input has a batch axis")

    # Inside

    def _fold(self, target: Callable[..., Any], args: Any, kwargs: Any) -> tuple[bool, Any]:
        operands = [value for value in _leaves(args, kwargs) if isinstance(value, Tensor)]
        try:
            shapes = self._run(target, *_on_meta(args, kwargs))
        except NotImplementedError:  # no meta kernel: only on operands whose result cannot be large
            if sum(value.numel() for value in operands) > MAX_FOLDED >> 8:
                raise
            shapes = ()
        self._check((shapes,))
        count = sum(value.numel() for value in _leaves((shapes,), {}) if isinstance(value, Tensor))
        largest = max((value.numel() for value in operands), default=0)
        family = str(getattr(target, "__module__", "")).rpartition(".")[2]
        heavy = (target in _HEAVY or family in _HEAVY_FAMILIES) and count * largest > MAX_FOLD_WORK
        # What is as large as something the file stores may always be folded: dequantized weights.
        if heavy or count > max(MAX_FOLDED, largest) or self._folded + count > MAX_FOLDED_TOTAL:
            return False, None
        self._folded += count + largest
        with torch.no_grad():
            return True, target(*args, **kwargs)

    def _probe(self, target: Callable[..., Any], args: Any, kwargs: Any) -> tuple[Any, ...]:
        results = []
        for index in range(2):
            chosen = map_aggregate((args, kwargs), lambda value, i=index: _under_probes(value)[i])
            results.append(self._run(target, *chosen))
        return tuple(results)

    @staticmethod
    def _run(target: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        with torch.no_grad(), torch.device("meta"), warnings.catch_warnings():
            # Performance notes of torch about a call that is only asked for its shape.
            warnings.simplefilter("ignore")
            if isinstance(target, nn.RNNBase):
                return _recurrent(target, *args)
            return target(*args, **kwargs)

    @staticmethod
    def _check(probes: Sequence[Any]) -> None:
        leaves = [[value for value in _leaves((probe,), {}) if isinstance(value, Tensor)] for probe in probes]
        for index, first in enumerate(leaves[0]):
            dynamic = any(first.shape != other[index].shape for other in leaves[1:])
            count = first.numel() // (BATCH_PROBES[0] if dynamic else 1)
            if count > MAX_ELEMENTS or first.ndim > MAX_RANK:
                raise Malformed(f"it makes {first.numel()} elements {list(first.shape)}, more than {MAX_ELEMENTS}")

    def _as_argument(self, value: Any) -> Any:
        return self.attribute(value) if isinstance(value, Tensor) else value

    def _fill(self, module: nn.Module, tensors: dict[str, Tensor | None]) -> None:
        for name, tensor in tensors.items():
            if tensor is not None and name in module._buffers:
                if not bool(torch.isfinite(tensor).all()):
                    raise Malformed(f"weight {self.origins.get(id(tensor), '')!r} holds NaN or infinite entries")
                self._kept.append(tensor)
                module.register_buffer(name, tensor)
            elif tensor is not None:
                setattr(module, name, self.parameter(tensor))
        for name, buffer in list(module.named_buffers()):
            if buffer.is_meta:  # BatchNorm's count of batches
                module.register_buffer(name, torch.zeros(buffer.shape, dtype=buffer.dtype))


def _recurrent(module: nn.RNNBase, x: Tensor, *state: Any) -> Any:
    """Shapes from the first step: on the meta device torch takes every step in Python, a minute for 4,096."""
    y, final = module(x[:1], *state)
    return y.new_empty((len(x), *y.shape[1:])), final


def _leaves(args: Any, kwargs: Any) -> list[Any]:
    found: list[Any] = []
    map_aggregate((args, kwargs), lambda value: found.append(value))
    return found


def _nodes_in(args: Any, kwargs: Any) -> bool:
    return any(isinstance(value, Node) for value in _leaves(args, kwargs))


def _under_probes(value: Any) -> tuple[Any, Any]:
    return value.meta["probes"] if isinstance(value, Node) else (value, value)


def _on_meta(args: Any, kwargs: Any) -> Any:
    def meta(value: Any) -> Any:
        return torch.empty(value.shape, dtype=value.dtype, device="meta") if isinstance(value, Tensor) else value

    return map_aggregate((args, kwargs), meta)
