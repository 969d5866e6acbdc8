"""The files of a run: which kinds there are, and how a realised network becomes one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from smidgen.budget import parse_target
from smidgen.errors import BudgetError
from smidgen.export.archive import pack_archive, unpack_archive
from smidgen.export.files import write_bytes
from smidgen.export.onnx import integer_tensors, write
from smidgen.export.onnx_strip import shortened
from smidgen.export.prepare import Prepared
from smidgen.forms import leaves, width
from smidgen.site import Stored

FILES = {
    "onnx": "model.onnx", "archive": "model.smidgen", "onnx-w8": "model.w8.onnx", "onnx-w4": "model.w4.onnx",
}  # fmt: skip
ALWAYS = ("onnx", "archive")  # written whatever the target: the table shows the archive's bytes beside the others'


def check_targets(names: str | Sequence[str]) -> tuple[str, ...]:
    """Targets that this version writes, the first of which the budget binds.

    Raises:
        BudgetError: for one it does not write, or none.

    >>> check_targets("archive")
    ('archive',)
    """
    given = tuple(dict.fromkeys([names] if isinstance(names, str) else names))
    for name in given:
        if parse_target(name) not in FILES:
            raise BudgetError(f"target: '{name}' is not written by this version; use one of {', '.join(FILES)}")
    if not given:
        raise BudgetError(f"target: none is given; use one of {', '.join(FILES)}")
    return given


def write_target(target: str, prepared: Prepared, stored: Mapping[str, Stored], onnx: Path) -> Path:
    """Write a target's file beside the ONNX file of floats that it stands for.

    Args:
        target: name of the kind of file.
        prepared: the network's graph and sites.
        stored: form and bias of every site.
        onnx: the ONNX file of floats, written already.

    Returns:
        The file.
    """
    if target == "onnx":
        return onnx
    path = onnx.with_suffix(FILES[target].removeprefix("model"))
    if target == "archive":
        model, names = shortened(onnx.read_bytes())
        integers = integer_tensors(prepared.base, prepared.sites, stored)
        write_bytes(pack_archive(model, {names.get(name, name): packed for name, packed in integers.items()}), path)
    elif any(width(leaf, target) for one in stored.values() for leaf in leaves(one.form)):
        write(prepared.base, prepared.sites, stored, path, target)
    else:
        # No integers in it: the same file, also where that is the original which was kept.
        write_bytes(onnx.read_bytes(), path)
    return path


def runnable(target: str, path: Path) -> Path:
    """The file that a runtime opens: an archive is unpacked beside itself."""
    if target != "archive":
        return path
    place = path.with_suffix(".unpacked.onnx")
    write_bytes(unpack_archive(path.read_bytes()), place)
    return place
