"""Open a written ONNX file in ONNX Runtime on the CPU and run arrays through it.

    runner = open_onnx("model.onnx")
    logits, = runner.run(images)

One input, float or integer; a file with a fixed batch takes any number of samples, cut into its own portions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from smidgen.errors import DataError, LoadError, one_line
from smidgen.runtimes.batches import check_batch

# ONNX Runtime's names of the element types numpy has too.
_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(int16)": np.int16,
    "tensor(uint16)": np.uint16,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}
# A file that stores weights as integers and computes in floats. ONNX Runtime would make floats of them at every call,
# 3 times as slow at 8 bits and 16 times at 4 (a dense layer of 1024 x 1024); told so, it does it once, on opening.
_UNPACK_ONCE = "session.disable_quant_qdq"
# Only what ends the process: every other fault comes back as an exception, and is told once.
_LOG_FATAL = 4


@dataclass(frozen=True, eq=False)
class OnnxRunner:
    """An opened ONNX file: what it takes, what it gives, and ``run``.

    ``input_shape`` has None where an axis is free; ``input_dtype`` is what ``run`` casts to. Usable in ``with``.
    """

    path: Path
    input_name: str
    input_shape: tuple[int | None, ...]
    input_dtype: np.dtype
    output_names: tuple[str, ...]
    _session: list[Any] = field(repr=False)

    def run(self, x: np.ndarray) -> tuple[np.ndarray, ...]:
        """Answers for a batch ``x`` [n, …], one array an output; ``x`` is cast to the input's type.

        A file with a fixed batch gets portions of that size, the last one filled up and the filling cut off again.
        DataError when the shape does not fit, n is 0 or the runtime refuses; LoadError after ``close``.
        """
        if not self._session:
            raise LoadError(f"runtime: '{self.path}' was closed; open it again")
        check_batch(self.path, self.input_shape, x)
        batch = self.input_shape[0]
        if batch is None or batch == len(x):
            return self._answer(x)
        portions = [self._portion(x[start : start + batch], batch) for start in range(0, len(x), batch)]
        return tuple(np.concatenate(parts) for parts in zip(*portions, strict=True))

    def close(self) -> None:
        """Let go of the session; a second call does nothing."""
        self._session.clear()

    def __enter__(self) -> OnnxRunner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _portion(self, x: np.ndarray, batch: int) -> tuple[np.ndarray, ...]:
        """Run at most ``batch`` samples as exactly ``batch``, by repeating the last one."""
        missing = batch - len(x)
        filled = np.concatenate([x, np.repeat(x[-1:], missing, axis=0)]) if missing else x
        outputs = self._answer(filled)
        for name, output in zip(self.output_names, outputs, strict=True):
            if missing and (output.ndim == 0 or len(output) != batch):
                raise DataError(
                    f"runtime: output '{name}' of '{self.path.name}' has shape {list(output.shape)}, "
                    f"not {batch} samples first; give a multiple of {batch} samples"
                )
        return tuple(output[: len(x)] if missing else output for output in outputs)

    def _answer(self, x: np.ndarray) -> tuple[np.ndarray, ...]:
        fed = np.ascontiguousarray(x, dtype=self.input_dtype)
        try:
            return tuple(self._session[0].run(list(self.output_names), {self.input_name: fed}))
        except Exception as fault:  # the binding raises its own types, none of them public
            raise DataError(f"runtime: '{self.path.name}' fails on {list(x.shape)}: {one_line(fault)}") from None


def open_onnx(path: str | Path, threads: int = 1, *, fused: bool = True) -> OnnxRunner:
    """Open ``path`` in ONNX Runtime: CPU, ``threads`` threads inside an operator, all graph optimisations, silent.

    Weights stored as integers for a network that computes in floats are unpacked on opening, not at every call.

    Args:
        path: the file.
        threads: inside an operator.
        fused: False runs the operators one by one, as the file has them: slow, and what the file says on any processor.

    Returns the runner. LoadError when there is no such file, the runtime cannot open it, or it has not one input.

    >>> import tempfile, onnx, onnx.helper as h
    >>> x, y = (h.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 2]) for name in "xy")
    >>> graph = h.make_graph([h.make_node("Neg", ["x"], ["y"])], "negate", [x], [y])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     model = h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8)
    ...     onnx.save(model, folder + "/negate.onnx")
    ...     runner = open_onnx(folder + "/negate.onnx")
    >>> runner.input_shape, runner.run(np.array([[1.0, 2.0]]))
    ((None, 2), (array([[-1., -2.]], dtype=float32),))
    """
    path = Path(path)
    if not path.is_file():
        raise LoadError(f"runtime: no file '{path}'; check the path")
    try:
        options = _options(threads)
        if not fused:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        if _weight_only(path):
            options.add_session_config_entry(_UNPACK_ONCE, "1")
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as fault:  # the binding raises its own types, none of them public
        raise LoadError(f"runtime: ONNX Runtime cannot open '{path}': {one_line(fault)}") from None
    inputs = session.get_inputs()
    if len(inputs) != 1:
        names = ", ".join(each.name for each in inputs) or "none"
        raise LoadError(f"runtime: '{path}' has {len(inputs)} inputs ({names}); give a network with one")
    taken = inputs[0]
    if taken.type not in _DTYPES or not taken.shape:
        raise LoadError(
            f"runtime: input '{taken.name}' of '{path}' is {taken.type} {taken.shape}; give a batch of numbers"
        )
    return OnnxRunner(
        path=path,
        input_name=taken.name,
        input_shape=tuple(size if isinstance(size, int) else None for size in taken.shape),
        input_dtype=np.dtype(_DTYPES[taken.type]),
        output_names=tuple(each.name for each in session.get_outputs()),
        _session=[session],
    )


def _options(threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads that wait for the next call by turning take the cores from other files, which are timed in turns: with two
    # threads on two cores four files each took two to four times as long as alone (a 3×3 layer 7.0 ms, alone 1.6).
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = _LOG_FATAL
    return options


def _weight_only(path: Path) -> bool:
    """Whether operators' names in the file tell that it unpacks integers and never makes any."""
    content = path.read_bytes()
    return b"DequantizeLinear" in content and b"QuantizeLinear" not in content


def saturation(path: str | Path, x: np.ndarray, threads: int = 1) -> float:
    """How far this processor's answers are from what a file of integers says, as a share of the largest output.

    Processors without VNNI add two products of uint8 and int8 in 16 bits, which saturate: ONNX Runtime then answers
    otherwise than on others (its documentation of quantization, "u8s8").

    Args:
        path: the file.
        x: a few inputs.
        threads: of the runtime.

    Returns:
        0 and a few thousandths where nothing saturates: values on the verge of two integers.
    """
    found = []
    for fused in (True, False):
        with open_onnx(path, threads, fused=fused) as runner:
            found.append(runner.run(x))
    shares = [float(np.abs(a - b).max() / max(float(np.abs(b).max()), 1e-9)) for a, b in zip(*found, strict=True)]
    return max(shares, default=0.0)
