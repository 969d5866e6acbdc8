"""Open an ExecuTorch program in its own runtime on the CPU and run arrays through it.

    runner = open_pte("model.pte")
    logits, = runner.run(images)

One input, and the batch that the file was written for. A program names no ends; its outputs are called ``output``,
``output1`` and so on. It takes its input's axes in memory in the order of the example that it was exported with, and
ExecuTorch copies what it is given without a look at that: ``run`` puts them in order.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from smidgen.errors import DataError, LoadError, one_line
from smidgen.runtimes.batches import check_batch, in_portions
from smidgen.runtimes.elsewhere import check_survives
from smidgen.runtimes.silence import silent

INSTALL = "pip install smidgen[executorch]"
METHOD = "forward"
# ExecuTorch's numbers of element types (runtime/core/portable_type/scalar_type.h), which are torch's.
TYPES = {0: "u1", 1: "i1", 2: "i2", 3: "i4", 4: "i8", 6: "f4", 7: "f8", 11: "?"}
# Where a program's tables keep what is read here (exir/_serialize/program.fbs): entry of field n at 4 + 2 n.
FIELDS = {"plans": 6, "name": 4, "values": 8, "inputs": 10, "value": 6, "dim_order": 10}
# Digests of the files that this process wrote, or saw the runtime run.
SOUND: set[bytes] = set()
_TRY = """
import sys
import torch
from executorch.runtime import Runtime
program = Runtime.get().load_program(sys.stdin.buffer.read())  # a method does not keep its program alive
method = program.load_method("forward")
taken = method.metadata.input_tensor_meta(0)
method.execute([torch.zeros(taken.sizes())])
"""


def require_executorch(what: str) -> None:
    """LoadError, with the command that helps, where ExecuTorch is not installed.

    Args:
        what: needs it, for the message.
    """
    if importlib.util.find_spec("executorch") is None:
        raise LoadError(f"{what}: .pte files need the package executorch; {INSTALL}")


def sound(content: bytes) -> bytes:
    """The content, noted as a file that this process wrote itself."""
    SOUND.add(hashlib.sha256(content).digest())
    return content


class _Pool:
    """The one pool of threads that all programs of a process share.

    A program keeps the address of the pool it was loaded with, so that each is loaded again when another has changed
    the number of threads; ``generation`` counts the changes.
    """

    generation = 0

    @classmethod
    def of(cls, threads: int) -> int:
        """The pool with so many threads; its generation."""
        from executorch.extension.pybindings import portable_lib  # pyright: ignore[reportMissingImports]

        if portable_lib._threadpool_get_thread_count() != threads:
            portable_lib._unsafe_reset_threadpool(threads)
            cls.generation += 1
        return cls.generation


@dataclass(eq=False)
class _Loaded:
    """A program in memory, and the pool it was loaded with."""

    content: bytes
    threads: int
    generation: int = -1
    program: Any = None  # kept, since the method reads its weights and does not keep it
    method: Any = None

    def ready(self) -> Any:
        """The method to execute, loaded again where the pool is another by now."""
        generation = _Pool.of(self.threads)
        if self.method is None or generation != self.generation:
            from executorch.runtime import Runtime  # pyright: ignore[reportMissingImports]

            with quiet():
                program = Runtime.get().load_program(self.content)
                self.method, self.program = program.load_method(METHOD), program
            self.generation = generation
        return self.method


@dataclass(frozen=True, eq=False)
class ExecuTorchRunner:
    """An opened ``.pte`` file: what it takes, what it gives, and ``run``.

    ``input_dtype`` is what ``run`` casts to, ``axes`` the order in which its axes lie in memory, the outermost first.
    Usable in ``with``.
    """

    path: Path
    input_shape: tuple[int | None, ...]
    input_dtype: np.dtype
    output_names: tuple[str, ...]
    axes: tuple[int, ...]
    _loaded: list[_Loaded] = field(repr=False)

    def run(self, x: np.ndarray) -> tuple[np.ndarray, ...]:
        """Answers for a batch ``x`` [n, …], one array an output; ``x`` is cast to the input's type.

        The file gets portions of its own batch, the last one filled up and the filling cut off again. DataError when
        the shape does not fit, n is 0 or the runtime refuses; LoadError after ``close``.
        """
        if not self._loaded:
            raise LoadError(f"runtime: '{self.path}' was closed; open it again")
        check_batch(self.path, self.input_shape, x)
        return in_portions(self.path, self.output_names, self.input_shape[0] or 1, x, self._answer)

    def close(self) -> None:
        """Let go of the program; a second call does nothing."""
        self._loaded.clear()

    def __enter__(self) -> ExecuTorchRunner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answer(self, x: np.ndarray) -> tuple[np.ndarray, ...]:
        (loaded,) = self._loaded
        fed = torch.from_numpy(np.require(x, self.input_dtype, ["C", "W"]))  # torch warns of what is read only
        fed = fed.permute(self.axes).contiguous().permute(tuple(np.argsort(self.axes)))
        try:
            return tuple(output.numpy() for output in loaded.ready().execute([fed]))
        except (RuntimeError, ValueError) as fault:
            raise DataError(f"runtime: '{self.path.name}' fails on {list(x.shape)}: {one_line(fault)}") from None


def open_pte(path: str | Path, threads: int = 1) -> ExecuTorchRunner:
    """Open ``path`` in ExecuTorch: CPU, XNNPACK for what was handed to it.

    A file that this process did not write is tried in another process first: the runtime checks the outer layer of a
    program, not what its operators are given. The pool of threads is one for the process; a file that is opened with
    another number of threads changes it for the time of its own runs.

    Returns:
        The runner.

    Raises:
        LoadError: no such file, it is damaged, ExecuTorch is missing or cannot open it, or it has not one input.
    """
    path = Path(path)
    if not path.is_file():
        raise LoadError(f"runtime: no file '{path}'; check the path")
    require_executorch(f"runtime: '{path.name}'")
    return runner_of(path.read_bytes(), threads, path)


def runner_of(content: bytes, threads: int = 1, path: Path = Path("model.pte")) -> ExecuTorchRunner:
    """The runner of a file's content; see `open_pte`.

    Args:
        content: of the file.
        threads: of the process's pool while it runs.
        path: its name, for messages.
    """
    check_survives(_TRY, content, "ExecuTorch", path, SOUND)
    loaded = _Loaded(content, threads)
    try:
        with quiet():
            method = loaded.ready()
            meta = method.metadata
            count = meta.num_inputs()
            if count != 1 or not meta.num_outputs():
                raise LoadError(f"runtime: '{path}' has {count} inputs; give a network with one, and an output")
            taken = meta.input_tensor_meta(0)
            shape, kind = tuple(map(int, taken.sizes())), TYPES.get(taken.dtype())
            if kind is None or not shape or 0 in shape:
                raise LoadError(f"runtime: the input of '{path}' is no batch of numbers; give a network that takes one")
            # The first run makes what later ones share.
            answers = method.execute([torch.from_numpy(np.zeros(shape, kind))])
            axes = _axes(content, len(shape))
    except LoadError:
        raise
    except Exception as fault:  # the binding raises its own types
        raise LoadError(f"runtime: ExecuTorch cannot open '{path}': {one_line(fault)}") from None
    if not all(isinstance(each, torch.Tensor) for each in answers):
        raise LoadError(f"runtime: '{path}' gives other things than tensors")
    names = tuple(f"output{i or ''}" for i in range(len(answers)))
    return ExecuTorchRunner(path, shape, np.dtype(kind), names, axes, [loaded])


def _axes(content: bytes, count: int) -> tuple[int, ...]:
    """The order in which the axes of the input lie in memory; the runtime's binding does not tell it.

    Args:
        content: of a program that the runtime has opened.
        count: axes of its input.
    """
    from flatbuffers import number_types as kinds
    from flatbuffers.table import Table

    def item(table: Table, name: str, n: int) -> Table:
        start = table.Vector(table.Offset(FIELDS[name]))
        return Table(table.Bytes, table.Indirect(start + 4 * n))

    root = Table(content, kinds.UOffsetTFlags.py_type(int.from_bytes(content[:4], "little")))
    plans = [item(root, "plans", n) for n in range(root.VectorLen(root.Offset(FIELDS["plans"])))]
    (plan,) = (each for each in plans if each.String(each.Offset(FIELDS["name"]) + each.Pos) == METHOD.encode())
    first = plan.Get(kinds.Int32Flags, plan.Vector(plan.Offset(FIELDS["inputs"])))
    tensor, value = Table(content, 0), item(plan, "values", first)
    value.Union(tensor, value.Offset(FIELDS["value"]))
    start = tensor.Vector(tensor.Offset(FIELDS["dim_order"]))
    axes = tuple(content[start : start + count])
    if sorted(axes) != list(range(count)):
        raise ValueError(f"its input's axes are in the order {list(axes)}")
    return axes


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what ExecuTorch and the packages it imports tell, from Python and from C++."""
    before, nowhere = logging.root.manager.disable, io.StringIO()
    logging.disable(logging.WARNING)
    try:  # its log goes through Python's streams, that of XNNPACK past them
        with (
            warnings.catch_warnings(), silent(),
            contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere),
        ):  # fmt: skip
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
