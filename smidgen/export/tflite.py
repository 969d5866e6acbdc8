"""TFLite: a network converted once into a flatbuffer of floats, stripped of all that LiteRT does not need.

    write_tflite(model, example, path)

The conversion is litert-torch's (torch.export, StableHLO, TFLite). A network that takes images channels first gets a
file that takes them last, as TFLite's operators and phones do; the file says so in its description.
"""

from __future__ import annotations

import contextlib
import copy
import io
import re
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from smidgen.errors import LoadError
from smidgen.export.files import write_bytes
from smidgen.export.tflite_graph import drop_flattening, drop_transposes
from smidgen.export.verify import verify
from smidgen.model.load import load_network
from smidgen.runtimes.silence import silent
from smidgen.runtimes.tflite_file import CHANNELS_LAST, parse, require_litert, serialise, strip

COLOURS = (1, 3, 4)  # channels of an image; a network whose last axis has so many takes its channels last already
_OPERATOR = re.compile(r"\b(?:torch\.ops\.)?((?:aten|prims|quantized|torchvision)\.\w+)")


def write_tflite(
    model: nn.Module, example: torch.Tensor, path: Path, input_name: str = "input", output_names: tuple[str, ...] = ()
) -> int:
    """Write a network as a TFLite file of floats.

    Args:
        model: in evaluation mode; not changed.
        example: inputs ``[n, …]``, the first of which sets the file's shape.
        path: file to write, replaced in one step.
        input_name, output_names: names of the file's ends.

    Returns:
        The file's size in bytes.

    Raises:
        LoadError: the package is missing, or an operator has no counterpart.
        OutputError: the file cannot be written.
    """
    return write_bytes(to_tflite(model, example, input_name, output_names), path)


def tflite_of(path: Path) -> bytes:
    """An ONNX file as a TFLite file of floats, run once and compared.

    Args:
        path: of an ONNX file with one input, all of whose sizes but the batch's are told.

    Returns:
        The TFLite file's bytes.

    Raises:
        LoadError: as `to_tflite`, or a size is free.
        VerificationError: the two answer differently.
    """
    require_litert("export", "litert_torch")
    network = load_network(path)
    _, *sizes = network.input_shape or (None, None)
    shape = [size for size in sizes if size is not None]
    if len(shape) < len(sizes):
        raise LoadError(
            f"export: input '{network.input_name}' {list(network.input_shape)} has free sizes, a TFLite file has "
            "none; write the ONNX file with fixed ones"
        )
    example = torch.rand(1, *shape, generator=torch.Generator().manual_seed(0))
    content = to_tflite(network.module, example, network.input_name, network.output_names)
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "model.tflite"
        written.write_bytes(content)
        verify(network.module, written, example.numpy(), threads=1)
    return content


def to_tflite(
    model: nn.Module,
    example: torch.Tensor,
    input_name: str = "input",
    output_names: tuple[str, ...] = (),
    *,
    columns: bool = True,
) -> bytes:
    """The file that `write_tflite` writes.

    Args:
        model, example, input_name, output_names: see there.
        columns: change the order of a dense layer's columns where that spares an operator; `quantized` does it later,
            when it has found the weights.
    """
    require_litert("export", "litert_torch")
    network, x = copy.deepcopy(model).cpu().eval(), example[:1].detach().cpu()
    turned = takes_channels_first(tuple(x.shape))
    converted = parse(_converted(network, x, turned))
    names = output_names or tuple(f"output{i or ''}" for i in range(len(converted.subgraphs[0].outputs)))
    drop_transposes(converted)
    if columns:
        drop_flattening(converted)
    strip(converted, (input_name,), names)
    converted.description = CHANNELS_LAST if turned else None
    return serialise(converted)


def takes_channels_first(shape: tuple[int, ...]) -> bool:
    """Whether inputs of a shape are images with their channels first, ``[n, c, h, w]``.

    >>> takes_channels_first((1, 3, 32, 32)), takes_channels_first((1, 32, 32, 3)), takes_channels_first((1, 64))
    (True, False, False)
    """
    return len(shape) == 4 and (shape[1] in COLOURS or shape[3] not in COLOURS)


def _converted(network: nn.Module, x: torch.Tensor, turned: bool) -> bytes:
    with _quiet():
        import litert_torch

        given: Any = network
        try:
            if turned:
                given, x = litert_torch.to_channel_last_io(network, args=[0]), x.permute(0, 2, 3, 1).contiguous()
            return litert_torch.convert(given.eval(), (x,)).model_content()
        except Exception as error:  # torch, the lowerings and the converter each raise their own
            fault = error
    raise LoadError(f"export: this network cannot become TFLite: {_reason(given, x, fault)}; use another target")


def _reason(network: nn.Module, x: torch.Tensor, fault: Exception) -> str:
    """The operator that has no counterpart and the layer it is in, where that can be told."""
    text = " ".join(str(fault).split())
    found = _OPERATOR.search(text)
    if found is None:
        return text[:200] or type(fault).__name__
    operator = found[1]
    layer = layer_of(network, x, operator)
    return f"TFLite has no operator for {operator}" + (f" of layer '{layer}'" if layer else "")


def layer_of(network: nn.Module, x: torch.Tensor, operator: str) -> str | None:
    """The path of the first layer that has one of torch's operators, ``aten.gelu``; None where that cannot be told."""
    try:
        with _quiet():
            graph = torch.export.export(network, (x,)).graph
    except Exception:  # what cannot be exported at all has no layers to name
        return None
    return layer_in(graph, operator)


def layer_in(graph: torch.fx.Graph, operator: str) -> str | None:
    """`layer_of` for a graph of torch.export."""
    for node in graph.nodes:
        if operator.partition(".")[2].lstrip("_") in str(node.target):  # a decomposed one has an underscore more
            paths = [path for path, _ in node.meta.get("nn_module_stack", {}).values() if path]
            return paths[-1] if paths else None
    return None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the converter's progress, its warnings, and what its C++ part tells on the error stream."""
    nowhere = io.StringIO()
    with warnings.catch_warnings(), silent(), contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        warnings.simplefilter("ignore")
        with _no_progress():
            yield


@contextlib.contextmanager
def _no_progress() -> Iterator[None]:
    from litert_torch import progress

    before, progress.config.show_progress = progress.config.show_progress, False
    try:
        yield
    finally:
        progress.config.show_progress = before
