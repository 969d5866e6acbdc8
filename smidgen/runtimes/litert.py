"""Open a TFLite file in LiteRT on the CPU and run arrays through it.

    runner = open_tflite("model.tflite")
    logits, = runner.run(images)

One input. Integers at the ends are made of floats and turned back by the file's scales. A file that smidgen wrote takes
its channels last, as phones do, and says so; ``run`` takes them first, as the network did.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from smidgen.errors import DataError, LoadError, one_line
from smidgen.runtimes.batches import check_batch, in_portions
from smidgen.runtimes.elsewhere import check_survives
from smidgen.runtimes.silence import silent
from smidgen.runtimes.tflite_file import CHANNELS_LAST, SOUND, as_floats, as_stored, parse, require_litert, scale_of

_TRY = """
import sys
import numpy as np
from ai_edge_litert.interpreter import Interpreter
interpreter = Interpreter(model_content=sys.stdin.buffer.read())
interpreter.allocate_tensors()
(taken,) = interpreter.get_input_details()
interpreter.set_tensor(taken["index"], np.zeros(taken["shape"], taken["dtype"]))
interpreter.invoke()
"""


@dataclass(frozen=True, eq=False)
class LiteRtRunner:
    """An opened TFLite file: what it takes, what it gives, and ``run``.

    ``input_shape`` is that of the network, also where the file takes its channels last; ``input_dtype`` is what ``run``
    casts to. Usable in ``with``.
    """

    path: Path
    input_name: str
    input_shape: tuple[int | None, ...]
    input_dtype: np.dtype
    output_names: tuple[str, ...]
    channels_last: bool
    _interpreter: list[Any] = field(repr=False)

    def run(self, x: np.ndarray) -> tuple[np.ndarray, ...]:
        """Answers for a batch ``x`` [n, …], one array an output; ``x`` is cast to the input's type.

        A file has a fixed batch and gets portions of that size, the last one filled up and the filling cut off again.
        DataError when the shape does not fit, n is 0 or the runtime refuses; LoadError after ``close``.
        """
        if not self._interpreter:
            raise LoadError(f"runtime: '{self.path}' was closed; open it again")
        check_batch(self.path, self.input_shape, x)
        return in_portions(self.path, self.output_names, self.input_shape[0] or 1, x, self._answer)

    def close(self) -> None:
        """Let go of the interpreter; a second call does nothing."""
        self._interpreter.clear()

    def __enter__(self) -> LiteRtRunner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answer(self, x: np.ndarray) -> tuple[np.ndarray, ...]:
        (interpreter,) = self._interpreter
        (taken,) = interpreter.get_input_details()
        fed = np.moveaxis(x, 1, -1) if self.channels_last else x
        try:
            interpreter.set_tensor(taken["index"], as_stored(fed, taken))
            interpreter.invoke()
            return tuple(as_floats(interpreter.get_tensor(d["index"]), d) for d in interpreter.get_output_details())
        except (RuntimeError, ValueError) as fault:
            raise DataError(f"runtime: '{self.path.name}' fails on {list(x.shape)}: {one_line(fault)}") from None


def open_tflite(path: str | Path, threads: int = 1) -> LiteRtRunner:
    """Open ``path`` in LiteRT: CPU, ``threads`` threads inside an operator, XNNPACK where it knows the operator.

    The file is read and checked first, and a file that this process did not write is tried in another process, since
    LiteRT trusts what it is given.

    Returns:
        The runner.

    Raises:
        LoadError: no such file, it is damaged, LiteRT is missing or cannot open it, or it has not one input.
    """
    path = Path(path)
    if not path.is_file():
        raise LoadError(f"runtime: no file '{path}'; check the path")
    require_litert(f"runtime: '{path.name}'")
    return runner_of(path.read_bytes(), threads, path)


def runner_of(content: bytes, threads: int = 1, path: Path = Path("model.tflite")) -> LiteRtRunner:
    """The runner of a file's content; see `open_tflite`.

    Args:
        content: of the file.
        threads: inside an operator.
        path: its name, for messages.
    """
    model = parse(content, f"'{path}'")
    graph = model.subgraphs[0]
    if graph.inputs is None or len(graph.inputs) != 1 or graph.outputs is None or not len(graph.outputs):
        count = 0 if graph.inputs is None else len(graph.inputs)
        raise LoadError(f"runtime: '{path}' has {count} inputs; give a network with one, and an output")
    _survives(content, path)
    try:
        interpreter = interpreter_of(content, threads)
    except Exception as fault:  # the binding raises its own types
        raise LoadError(f"runtime: LiteRT cannot open '{path}': {one_line(fault)}") from None
    (details,) = interpreter.get_input_details()
    shape = [int(size) for size in details["shape"]]
    if not shape:
        raise LoadError(f"runtime: the input of '{path}' is a lone number; give a network that takes a batch")
    last = len(shape) > 2 and model.description in (CHANNELS_LAST, CHANNELS_LAST.encode())
    return LiteRtRunner(
        path=path,
        input_name=details["name"],
        input_shape=(shape[0], shape[-1], *shape[1:-1]) if last else tuple(shape),
        input_dtype=np.dtype(np.float32 if scale_of(details) else details["dtype"]),
        output_names=tuple(d["name"] for d in interpreter.get_output_details()),
        channels_last=last,
        _interpreter=[interpreter],
    )


def _survives(content: bytes, path: Path) -> None:
    """LoadError where LiteRT ends the process on this file.

    It checks little of what it is given: a DEPTHWISE_CONV_2D with an input too few is a segmentation fault. So a file
    that this process did not write, nor open before, is opened and run in another process first.
    """
    check_survives(_TRY, content, "LiteRT", path, SOUND)


def interpreter_of(content: bytes, threads: int = 1, *, every_tensor: bool = False) -> Any:
    """LiteRT's interpreter of a file, ready to run.

    Args:
        content: of the file, known to be sound.
        threads: inside an operator.
        every_tensor: keep what is computed in between readable, which goes without XNNPACK.
    """
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    given: dict[str, Any] = {"model_content": content, "num_threads": threads}
    if every_tensor:
        given["experimental_preserve_all_tensors"] = True
        given["experimental_op_resolver_type"] = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    with silent():  # it tells which delegate it made
        interpreter = Interpreter(**given)
        interpreter.allocate_tensors()
    return interpreter
