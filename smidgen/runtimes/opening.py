"""Open a written file in the runtime its name says, and run arrays through it; all runtimes alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from smidgen.errors import DataError, LoadError
from smidgen.runtimes.micro import MICRO_END, open_micro
from smidgen.runtimes.onnxruntime import open_onnx


@runtime_checkable
class Runner(Protocol):
    """An opened file; usable in ``with``.

    ``input_shape`` has None where an axis is free; ``input_dtype`` is what ``run`` casts to.
    """

    @property
    def path(self) -> Path: ...

    @property
    def input_shape(self) -> tuple[int | None, ...]: ...

    @property
    def input_dtype(self) -> np.dtype: ...

    @property
    def output_names(self) -> tuple[str, ...]: ...

    def run(self, x: np.ndarray) -> tuple[np.ndarray, ...]:
        """Answers for a batch ``x`` [n, …], one array an output."""
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Runner: ...

    def __exit__(self, *_: object) -> None: ...


def _open_tflite(path: Path, threads: int) -> Runner:
    if path.name.endswith(MICRO_END):
        return open_micro(path, threads)
    from smidgen.runtimes.litert import open_tflite  # LiteRT is optional

    return open_tflite(path, threads)


def _open_pte(path: Path, threads: int) -> Runner:
    from smidgen.runtimes.executorch import open_pte  # ExecuTorch is optional

    return open_pte(path, threads)


# What opens a file, by the end of its name.
_OPENERS: dict[str, Callable[[Path, int], Runner]] = {".onnx": open_onnx, ".tflite": _open_tflite, ".pte": _open_pte}


def open_file(path: str | Path, threads: int = 1) -> Runner:
    """Open a written file in its runtime.

    Args:
        path: the file; the end of its name says which runtime.
        threads: of the runtime.

    Raises:
        LoadError: no runtime opens such files, or it cannot open this one.

    >>> open_file("model.doc")
    Traceback (most recent call last):
    smidgen.errors.LoadError: runtime: nothing here runs 'model.doc'; give a file that ends in .onnx, .tflite, .pte
    """
    path = Path(path)
    opener = _OPENERS.get(path.suffix)
    if opener is None:
        raise LoadError(f"runtime: nothing here runs '{path}'; give a file that ends in {', '.join(_OPENERS)}")
    return opener(path, threads)


def run_dataset(runner: Runner, batches: Iterable[np.ndarray]) -> tuple[np.ndarray, ...]:
    """Answers for all ``batches`` of [n, …], one array an output, joined along the samples.

    DataError when there is no batch or one does not fit (see ``Runner.run``).

    >>> import tempfile, onnx, onnx.helper as h
    >>> x, y = (h.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 2]) for name in "xy")
    >>> graph = h.make_graph([h.make_node("Neg", ["x"], ["y"])], "negate", [x], [y])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     model = h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8)
    ...     onnx.save(model, folder + "/negate.onnx")
    ...     with open_file(folder + "/negate.onnx") as runner:
    ...         run_dataset(runner, [np.ones((3, 2)), np.ones((1, 2))])[0].shape
    (4, 2)
    """
    answers = [runner.run(batch) for batch in batches]
    if not answers:
        raise DataError("runtime: there is nothing to run; give at least one batch")
    return tuple(np.concatenate(parts) for parts in zip(*answers, strict=True))
