"""Open a TFLite file in TensorFlow Lite Micro, the interpreter of microcontrollers, on this machine.

    runner = open_micro("model.mcu.tflite")
    logits, = runner.run(images)
    runner.arena_nbytes

Its kernels compute the integers that a microcontroller computes; how long they take here says nothing of one there.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from smidgen.errors import DataError, LoadError, one_line
from smidgen.runtimes.batches import check_batch
from smidgen.runtimes.elsewhere import run_elsewhere
from smidgen.runtimes.silence import silent
from smidgen.runtimes.tflite_file import (
    CHANNELS_LAST,
    ITEM_NBYTES,
    as_floats,
    as_stored,
    names_of,
    parse,
    require_litert,
    stored_bytes,
)

MICRO_END = ".mcu.tflite"  # of the names of files for microcontrollers
INSTALL = "pip install smidgen[mcu]"
MOST_ARENA = 1 << 30  # bytes; a microcontroller has a thousandth
_LOOSE = 8  # times all activations: a kernel's 32-bit sums of eight-bit results, and room to plan in
_ROOM = 1 << 20  # bytes beside them, for what the interpreter keeps of each tensor and operator
_TOTAL = re.compile(r"Arena allocation total (\d+) bytes")
# The interpreter ends the process where its arena is too small, and on some files: so each is tried elsewhere first.
_TRY = """
import sys
import numpy as np
from tflite_micro import runtime
interpreter = runtime.Interpreter.from_bytes(sys.stdin.buffer.read(), arena_size=int(sys.argv[1]))
taken = interpreter.get_input_details(0)
interpreter.set_input(np.zeros(taken["shape"], taken["dtype"]), 0)
interpreter.invoke()
interpreter.print_allocations()
"""
# Bytes of the arena of each file that was tried, by its digest.
_ARENAS: dict[bytes, int] = {}


def require_micro(what: str) -> None:
    """LoadError, with the command that helps, where TensorFlow Lite Micro is not installed.

    Args:
        what: needs it, for the message.
    """
    if importlib.util.find_spec("tflite_micro") is None:
        raise LoadError(f"{what}: TensorFlow Lite Micro needs the package tflite-micro; {INSTALL}")
    require_litert(what)  # its schema


@dataclass(frozen=True, eq=False)
class MicroRunner:
    """An opened file: what it takes, what it gives, and ``run``.

    ``input_shape`` is that of the network, also where the file takes its channels last; ``input_dtype`` is what ``run``
    casts to; ``arena_nbytes`` is the memory that the interpreter asks for beside the file: activations, and what it
    keeps of each tensor and operator, whose pointers take eight bytes here and four on a microcontroller. Usable in
    ``with``.
    """

    path: Path
    input_shape: tuple[int | None, ...]
    input_dtype: np.dtype
    output_names: tuple[str, ...]
    arena_nbytes: int
    channels_last: bool
    _taken: Mapping[str, Any] = field(repr=False)
    _given: tuple[Mapping[str, Any], ...] = field(repr=False)
    _interpreter: list[Any] = field(repr=False)

    def run(self, x: np.ndarray) -> tuple[np.ndarray, ...]:
        """Answers for a batch ``x`` [n, …], one array an output, one sample after the other.

        DataError when the shape does not fit, n is 0 or the interpreter refuses; LoadError after ``close``.
        """
        if not self._interpreter:
            raise LoadError(f"runtime: '{self.path}' was closed; open it again")
        check_batch(self.path, self.input_shape, x)
        answers = [self._answer(each) for each in (np.moveaxis(x, 1, -1) if self.channels_last else x)]
        return tuple(np.concatenate(parts) for parts in zip(*answers, strict=True))

    def close(self) -> None:
        """Let go of the interpreter; a second call does nothing."""
        self._interpreter.clear()

    def __enter__(self) -> MicroRunner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answer(self, x: np.ndarray) -> tuple[np.ndarray, ...]:
        (interpreter,) = self._interpreter
        try:
            interpreter.set_input(np.ascontiguousarray(as_stored(x[None], self._taken)), 0)
            interpreter.invoke()
            return tuple(as_floats(interpreter.get_output(n), each) for n, each in enumerate(self._given))
        except (RuntimeError, ValueError) as fault:
            raise DataError(f"runtime: '{self.path.name}' fails on {list(x.shape)}: {one_line(fault)}") from None


def open_micro(path: str | Path, threads: int = 1) -> MicroRunner:
    """Open ``path`` in TensorFlow Lite Micro.

    Args:
        path: the file.
        threads: not used; microcontrollers have one.

    Raises:
        LoadError: no such file, it is damaged, the interpreter is missing or cannot run it, or it has not one input of
            one sample.
    """
    path = Path(path)
    if not path.is_file():
        raise LoadError(f"runtime: no file '{path}'; check the path")
    require_micro(f"runtime: '{path.name}'")
    content = path.read_bytes()
    model = parse(content, f"'{path}'")
    shape, outputs = _ends(model, path)
    arena = _room(model, path)
    needed = _tried(content, arena, path)
    with silent():
        from tflite_micro import runtime  # pyright: ignore[reportMissingImports]

        interpreter = runtime.Interpreter.from_bytes(content, arena_size=arena)
    taken = _details(interpreter.get_input_details(0))
    last = len(shape) > 2 and model.description in (CHANNELS_LAST, CHANNELS_LAST.encode())
    return MicroRunner(
        path=path,
        input_shape=(shape[0], shape[-1], *shape[1:-1]) if last else tuple(shape),
        input_dtype=np.dtype(np.float32 if taken["quantization"][0] else taken["dtype"]),
        output_names=outputs,
        arena_nbytes=needed,
        channels_last=last,
        _taken=taken,
        _given=tuple(_details(interpreter.get_output_details(n)) for n in range(len(outputs))),
        _interpreter=[interpreter],
    )


def arena_nbytes(path: str | Path) -> int:
    """Bytes of memory that TensorFlow Lite Micro asks for to run a file; see `MicroRunner`."""
    with open_micro(path) as runner:
        return runner.arena_nbytes


def _ends(model: Any, path: Path) -> tuple[list[int], tuple[str, ...]]:
    """The shape of the input, and the outputs' names."""
    graph = model.subgraphs[0]
    inputs, outputs = ([] if ends is None else [int(i) for i in ends] for ends in (graph.inputs, graph.outputs))
    if len(inputs) != 1 or not outputs:
        raise LoadError(f"runtime: '{path}' has {len(inputs)} inputs; give a network with one, and an output")
    taken = graph.tensors[inputs[0]]
    shape = [] if taken.shape is None else [int(size) for size in taken.shape]
    if not shape or shape[0] != 1:
        raise LoadError(f"runtime: '{path}' takes {shape}; microcontrollers run one sample at a time: give [1, …]")
    names = (graph.tensors[i].name or b"" for i in outputs)
    return shape, tuple(name.decode(errors="replace") if isinstance(name, bytes) else name for name in names)


def _room(model: Any, path: Path) -> int:
    """An arena that is large enough for certain; see `MOST_ARENA`."""
    activations = 0
    for graph in model.subgraphs:
        for tensor in graph.tensors or []:
            if stored_bytes(model, tensor) is None:
                count = math.prod([] if tensor.shape is None else (int(size) for size in tensor.shape))
                activations += count * ITEM_NBYTES.get(names_of("TensorType")[tensor.type], 4)
    count = sum(len(graph.tensors or []) + len(graph.operators or []) for graph in model.subgraphs)
    weights = sum(len(buffer.data) for buffer in model.buffers if buffer.data is not None)
    arena = _ROOM + _LOOSE * activations + 1024 * count + 4 * weights
    if arena > MOST_ARENA:
        raise LoadError(f"runtime: '{path}' asks for {arena >> 20} MiB of memory; no microcontroller has it")
    return arena


def _tried(content: bytes, arena: int, path: Path) -> int:
    """Bytes of the arena that are used, as the interpreter counts them in a process of its own."""
    digest = hashlib.sha256(content).digest()
    if digest in _ARENAS:
        return _ARENAS[digest]
    done = run_elsewhere(_TRY, content, "TensorFlow Lite Micro", path, str(arena))
    told = done.stderr.decode(errors="replace")
    found = _TOTAL.search(told)
    if done.returncode < 0:
        raise LoadError(f"runtime: TensorFlow Lite Micro crashes on '{path}' (signal {-done.returncode})")
    if done.returncode or found is None:
        raise LoadError(f"runtime: TensorFlow Lite Micro cannot run '{path}': {_reason(told)}")
    _ARENAS[digest] = int(found[1])
    return _ARENAS[digest]


def _reason(told: str) -> str:
    """What the interpreter said, which comes before Python's own lines, else the last of these."""
    before, _, traceback = told.partition("Traceback")
    return one_line(before) or one_line(traceback.strip().splitlines()[-1] if traceback.strip() else "no reason told")


def _details(details: Mapping[str, Any]) -> dict[str, Any]:
    """An end as LiteRT describes it: its type, and (scale, zero point), 0 where it has none."""
    told = details["quantization_parameters"]
    one = len(told["scales"]) == 1 and np.issubdtype(details["dtype"], np.integer)
    quantization = (float(told["scales"][0]), int(told["zero_points"][0])) if one else (0.0, 0)
    return {"dtype": np.dtype(details["dtype"]).type, "quantization": quantization}
