"""ExecuTorch: a network as a ``.pte`` program whose layers XNNPACK computes, in floats or in integers of eight bits.

    write_bytes(to_executorch(model, example), path)
    write_bytes(to_executorch_int8(model, example, inputs, integers), path)

The program is made by torch.export and ExecuTorch's own lowering; how a graph is rounded, `executorch_int8` says.
Batches are of one, as ExecuTorch plans its memory for, and channels come first: an example that lies in memory
otherwise would make a program that takes its input so, and says it nowhere but in its tables.

Every program is run beside torch before it is handed out.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
from collections.abc import Iterator, Sequence
from unittest import mock

import numpy as np
import torch
from torch import nn

from smidgen.data import Dataset
from smidgen.export.executorch_check import check_answers, check_operators, left_over, told
from smidgen.export.executorch_int8 import rounded
from smidgen.runtimes.executorch import require_executorch, sound

# Largest difference between a program and the network that it was made from, as a share of the outputs. With integers
# both round alike, but not always to the same side: 0.004 on LeNet, 0.2 on MobileNetV2, of whose outputs rounding takes
# as much.
TOLERANCE, INT8_TOLERANCE = 1e-3, 0.4
ALIGNMENT = 16  # of constants, the runtime's least; by default 128, which fills up to 340 bytes a layer of integers
KEY = 16  # letters of a constant's hash: 64 bits tell thousands apart
CHECKED = 8  # calibration inputs that an integer program is tried on


def to_executorch(model: nn.Module, example: torch.Tensor) -> bytes:
    """A program of floats.

    Args:
        model: in evaluation mode; not changed.
        example: inputs ``[n, …]``, the first of which sets the file's shape.

    Returns:
        The file's content.

    Raises:
        LoadError: the package is missing, or the network cannot be lowered.
        VerificationError: the program answers otherwise than the network.
    """
    require_executorch("export")
    network, x = _alone(model), _first(example)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x.dtype)
    return _checked(network, x, torch.cat([x, noise]), TOLERANCE)  # zeros alone would tell nothing


def to_executorch_int8(
    model: nn.Module, example: torch.Tensor, inputs: Dataset, integers: Sequence[np.ndarray] = ()
) -> bytes:
    """A program with weights and activations in integers of eight bits, its ends in floats.

    Args:
        model, example: see `to_executorch`.
        inputs: calibration inputs, on which the activations' ranges are seen.
        integers: of weights, ``[out, …]`` as torch stores them, of at most ±127; kept as they are.

    Returns:
        The file's content.

    Raises:
        LoadError, VerificationError: see `to_executorch`; here the program is held against the network that torch
            rounds step by step.
    """
    require_executorch("export")
    network, x = _alone(model), _first(example)
    with told():
        graph = rounded(network, x, inputs, integers)
    some = torch.from_numpy(np.concatenate(list(inputs.array(0, min(CHECKED, len(inputs))).batches())))
    return _checked(graph, x, some, INT8_TOLERANCE)


def _alone(model: nn.Module) -> nn.Module:
    """A copy to work on; the lowering takes no weights whose channels lie last in memory."""
    network = copy.deepcopy(model).cpu().eval()
    for each in network.parameters():
        each.data = each.data.clone(memory_format=torch.contiguous_format)
    return network


def _first(example: torch.Tensor) -> torch.Tensor:
    """The first of the inputs, its axes in memory as they are counted."""
    return example[:1].detach().cpu().clone(memory_format=torch.contiguous_format)


class _ShortHash:
    """hashlib's SHA-256 with a name of fewer letters."""

    def sha256(self, data: bytes) -> _ShortHash:
        self.found = hashlib.sha256(data)
        return self

    def hexdigest(self) -> str:
        return self.found.hexdigest()[:KEY]


@contextlib.contextmanager
def _short_keys() -> Iterator[None]:
    """For the time of a lowering, constants are called by fewer letters of their hash.

    Each is named twice in the file, by 64 letters: 384 bytes a layer of integers, 2 % of a ResNet-20. The lowering has
    no setting for it, so the name it calls hashlib by is set; where a later one does otherwise the file is only larger.
    """
    from executorch.backends.xnnpack.operators import node_visitor  # pyright: ignore[reportMissingImports]

    if not hasattr(node_visitor, "hashlib"):
        yield
        return
    with mock.patch.object(node_visitor, "hashlib", _ShortHash()):
        yield


def _checked(network: nn.Module, x: torch.Tensor, inputs: torch.Tensor, tolerance: float) -> bytes:
    """The program of a network for inputs like ``x``, run beside it."""
    graphs: list[torch.fx.Graph] = []
    with told(graphs):  # importing them warns, too
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner  # pyright: ignore[reportMissingImports]
        from executorch.exir import ExecutorchBackendConfig, to_edge_transform_and_lower  # pyright: ignore[reportMissingImports]

        exported = torch.export.export(network, (x,))
        graphs.append(exported.graph)
        with _short_keys():
            lowered = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
        lowered = lowered.to_executorch(ExecutorchBackendConfig(segment_alignment=ALIGNMENT))
        content = sound(bytes(lowered.buffer))
    check_operators(lowered.executorch_program, graphs[0])
    rest = [name for name, _ in left_over(lowered.executorch_program)]
    check_answers(content, network, inputs, tolerance, rest)
    return content
