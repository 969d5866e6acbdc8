"""The files of a run: which kinds there are, and how a realised network becomes one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from smidgen.budget import FILES, parse_target
from smidgen.calibrate.ranges import Activations
from smidgen.data import Dataset
from smidgen.errors import BudgetError, DataError
from smidgen.export.archive import Packed, pack_archive, unpack_archive
from smidgen.export.archive_views import image_shapes, viewed
from smidgen.export.executorch import to_executorch, to_executorch_int8
from smidgen.export.files import write_bytes
from smidgen.export.halves import halved
from smidgen.export.micro import check_operators, for_micro
from smidgen.export.onnx import fill, integer_tensors, write
from smidgen.export.onnx_strip import shortened
from smidgen.export.prepare import Prepared
from smidgen.export.static import write_static
from smidgen.export.tflite import to_tflite
from smidgen.export.tflite_static import calibrated
from smidgen.forms import DIRECT, FLOATS, SHARED, SPARSE, STATIC, Dense, Quantized, leaves, width
from smidgen.model.replace import with_forms
from smidgen.planning.widths import in_integers
from smidgen.runtimes.executorch import require_executorch
from smidgen.runtimes.micro import require_micro
from smidgen.runtimes.tflite_file import require_litert
from smidgen.site import Stored

HUFFMAN = "model.huffman.smidgen"
ALWAYS = ("onnx", "archive")  # written whatever the target: the table shows the archive's bytes beside the others'


def check_targets(names: str | Sequence[str]) -> tuple[str, ...]:
    """Targets that can be written here, the first of which the budget binds.

    Raises:
        BudgetError: for one there is not, or none.
        LoadError: a package that it needs is missing.

    >>> check_targets("archive")
    ('archive',)
    """
    given = tuple(dict.fromkeys([names] if isinstance(names, str) else names))
    for name in given:
        parse_target(name)
        if name == "mcu":
            require_micro(f"target: {name}")
        if name.startswith("tflite") or name == "mcu":
            require_litert(f"target: {name}", "litert_torch")  # said before an hour's work, not after
        if name.startswith("executorch"):
            require_executorch(f"target: {name}")
    if not given:
        raise BudgetError(f"target: none is given; use one of {', '.join(FILES)}")
    return given


def check_given(targets: Sequence[str], inputs: object) -> None:
    """DataError where a target needs inputs and none are given.

    >>> check_given(["onnx", "tflite-int8"], None)
    Traceback (most recent call last):
    smidgen.errors.DataError: target: tflite-int8 needs inputs, to measure the activations' ranges; give --data
    """
    for name in targets:
        if name in STATIC and inputs is None:
            raise DataError(f"target: {name} needs inputs, to measure the activations' ranges; give --data")


@dataclass(frozen=True, eq=False)
class Source:
    """What the file of any target is made from.

    Args:
        prepared: the network's graph and sites.
        stored: form and bias of every site.
        model: the realised network.
        onnx: its ONNX file of floats, written already.
        inputs: calibration inputs, or None.
        held: selection inputs, or None.
        example: one input.
        threads: of runtimes that a writer asks.
        bound: the target that the budget binds.
        activations: that it was trained with; see `Realised`.
    """

    prepared: Prepared
    stored: Mapping[str, Stored]
    model: nn.Module
    onnx: Path
    inputs: Dataset | None
    held: Dataset | None
    example: np.ndarray
    threads: int = 1
    bound: str = "onnx"
    activations: Activations | None = None


def write_target(target: str, source: Source) -> Path:
    """Write a target's file beside the ONNX file of floats.

    Returns:
        The file.
    """
    path = source.onnx.with_suffix(FILES[target].removeprefix("model"))
    if target != "onnx":
        _WRITERS[target](source, path)
    return path


def _archive(source: Source, path: Path) -> None:
    write_bytes(packed_archive(source.prepared, source.stored, source.onnx), path)


def packed_archive(prepared: Prepared, stored: Mapping[str, Stored], onnx: Path) -> bytes:
    """The archive of a network.

    Args:
        prepared, stored: the network's graph, and form and bias of every site.
        onnx: its ONNX file of floats.
    """
    return pack_archive(*_packed(prepared, stored, onnx))


def _packed(prepared: Prepared, stored: Mapping[str, Stored], onnx: Path) -> tuple[bytes, dict[str, Packed]]:
    """The ONNX file with its weights' shortest names, and the integers behind them."""
    model, names = shortened(_direct(prepared, stored, onnx))
    integers = integer_tensors(prepared.base, prepared.sites, stored)
    for name, form in viewed(stored, image_shapes(prepared.base, prepared.sites)).items():
        if not integers[f"{name}.weight"].transposed:
            integers[f"{name}.weight"] = Packed(form)
    return model, {names.get(name, name): each for name, each in integers.items()}


def _direct(prepared: Prepared, stored: Mapping[str, Stored], onnx: Path) -> bytes:
    """The ONNX file without the larger kernels of fast convolutions: an archive is for storing and sending."""
    if all(not isinstance(one.form, Dense) or one.form.algorithm == DIRECT for one in stored.values()):
        return onnx.read_bytes()
    return fill(prepared.base, prepared.sites, stored, "archive").SerializeToString()


def huffman_archive(prepared: Prepared, stored: Mapping[str, Stored], onnx: Path) -> Path:
    """An archive whose integers have Huffman codes, not the arithmetic one; it unpacks like any other.

    Args:
        prepared, stored: the network's graph, and form and bias of every site.
        onnx: its ONNX file of floats.

    Returns:
        The file, beside that one.
    """
    model, packed = _packed(prepared, stored, onnx)
    path = onnx.with_name(HUFFMAN)
    write_bytes(pack_archive(model, packed, coders=("constant", "raw", "huffman", "runs")), path)
    return path


def _integers(target: str, source: Source, path: Path) -> None:
    prepared, stored = source.prepared, source.stored
    held = any(width(leaf, target) for one in stored.values() for leaf in leaves(one.form))
    if not held and source.bound in FLOATS and target not in SHARED:
        stored, held = {site.name: in_integers(site, stored[site.name], target) for site in prepared.sites}, True
    if not held:
        # No integers in it: the same file, also where that is the original which was kept.
        write_bytes(source.onnx.read_bytes(), path)
    elif target in STATIC:
        write_static(prepared, stored, path, source.inputs, source.held, source.threads, source.activations)
    else:
        write(prepared.base, prepared.sites, stored, path, target)


def _floats_of(target: str, source: Source, path: Path) -> None:
    write(source.prepared.base, source.prepared.sites, source.stored, path, target)


def _tflite(source: Source, path: Path) -> None:
    write_bytes(_floats(source, columns=True), path)


def _tflite_half(source: Source, path: Path) -> None:
    write_bytes(halved(_floats(source, columns=True)), path)


def _floats(source: Source, *, columns: bool) -> bytes:
    graph = source.prepared.base.proto.graph
    ends = graph.input[0].name, tuple(each.name for each in graph.output)
    return to_tflite(source.model, torch.from_numpy(source.example), *ends, columns=columns)


def _tflite_int8(source: Source, path: Path) -> None:
    write_bytes(_tflite_integers("tflite-int8", source, _floats(source, columns=False)), path)


def _mcu(source: Source, path: Path) -> None:
    floats = _floats(source, columns=False)
    check_operators(floats, source.model, torch.from_numpy(source.example))
    write_bytes(for_micro(_tflite_integers("mcu", source, floats)), path)


def _tflite_integers(target: str, source: Source, floats: bytes) -> bytes:
    assert source.inputs is not None  # `check_given` saw to it
    integers = _held(source, target)
    return calibrated(floats, source.inputs, integers, source.threads, held=source.held, micro=target == "mcu")


def _held(source: Source, target: str) -> list[np.ndarray]:
    """The integers that a target's file takes as they are."""
    held = [leaf for one in source.stored.values() for leaf in leaves(one.form)]
    return [leaf.integers for leaf in held if isinstance(leaf, Quantized) and width(leaf, target)]


def _executorch(source: Source, path: Path) -> None:
    write_bytes(to_executorch(source.model, torch.from_numpy(source.example)), path)


def _executorch_int8(source: Source, path: Path) -> None:
    target, inputs, example = "executorch-int8", source.inputs, torch.from_numpy(source.example)
    assert inputs is not None  # `check_given` saw to it
    if source.bound in FLOATS:
        sites = source.prepared.sites
        stored = {each.name: in_integers(each, source.stored[each.name], target) for each in sites}
        source = replace(source, stored=stored, model=with_forms(source.prepared.module, sites, stored))
    write_bytes(to_executorch_int8(source.model, example, inputs, _held(source, target)), path)


# What writes a target's file, from its source to a path.
_WRITERS: dict[str, Callable[[Source, Path], None]] = {
    "archive": _archive, "onnx-w8": partial(_integers, "onnx-w8"), "onnx-w4": partial(_integers, "onnx-w4"),
    "onnx-int8": partial(_integers, "onnx-int8"), "onnx-shared": partial(_integers, "onnx-shared"),
    "onnx-sparse": partial(_floats_of, SPARSE), "onnx-fp16": partial(_floats_of, "onnx-fp16"),
    "tflite-fp16": _tflite_half, "tflite": _tflite, "tflite-int8": _tflite_int8, "mcu": _mcu,
    "executorch": _executorch, "executorch-int8": _executorch_int8,
}  # fmt: skip


def runnable(target: str, path: Path) -> Path:
    """The file that a runtime opens: an archive is unpacked beside itself."""
    if target != "archive":
        return path
    place = path.with_suffix(".unpacked.onnx")
    write_bytes(unpack_archive(path.read_bytes()), place)
    return place
