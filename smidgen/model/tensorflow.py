"""Keras and TensorFlow networks as ONNX: a .keras file, a SavedModel folder or a float .tflite, through tf2onnx.

Channels-last images become channels-first: the written network takes NCHW (and gives NCHW where an output has four
axes), under the input's own name, and `nchw` removes the transposes that the change leaves behind. The written file is
run beside TensorFlow on one random input before it is put in place. TensorFlow and tf2onnx are optional:
``pip install 'smidgen[tf]'``.

A network file is a program. Keras runs with ``safe_mode`` on, so code stored in Lambda layers is refused; a SavedModel
is a TensorFlow graph, which may read and write files: convert only one whose origin you trust.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from smidgen.errors import LoadError, OutputError, VerificationError
from smidgen.model.nchw import TO_NCHW, scalars_as_vectors, to_nchw
from smidgen.runtimes.onnxruntime import open_onnx

MEND = "pip install 'smidgen[tf]'"
# Both sides sum in float32, in another order: MobileNet-sized networks differ by 1e-6 of the largest answer.
AGREES_WITHIN = 1e-4
# Stands for a free height or width in the check against TensorFlow.
FREE_SIDE = 64


@dataclass(frozen=True)
class _Read:
    """A network as tf2onnx gives it, NCHW inputs, and what TensorFlow itself answers to an NHWC input."""

    model: onnx.ModelProto
    channels_last: bool
    shape: tuple[int | None, ...]
    dtype: np.dtype
    answer: Callable[[np.ndarray], list[np.ndarray]]


def convert_tensorflow(source: Path, destination: Path, opset: int = 17) -> Path:
    """Write a Keras or TensorFlow network as ONNX: f_onnx(x_nchw) = f_tf(x_nhwc).

    Args:
        source: a ``.keras`` file, a SavedModel folder, or a float ``.tflite`` file; one input, any number of outputs.
        destination: the ONNX file to write.
        opset: ONNX operator set.

    Returns:
        The destination.

    Raises:
        LoadError: the source is missing, of another kind, quantized, holds code, or TensorFlow is not installed.
        OutputError: the destination cannot be written.
        VerificationError: the ONNX network does not answer as TensorFlow does.

    >>> convert_tensorflow(Path("nowhere.keras"), Path("out.onnx"))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    smidgen.errors.LoadError: tensorflow: 'nowhere.keras' does not exist; give a .keras, a .tflite ...
    """
    read = _reader(source)
    missing = [name for name in ("tensorflow", "tf2onnx") if importlib.util.find_spec(name) is None]
    if missing:
        raise LoadError(f"tensorflow: '{source}' needs {' and '.join(missing)}, not installed here; {MEND}")
    with _quiet(), _told(source):
        found = read(source, opset)
    clean = to_nchw(found.model, channels_last=found.channels_last)
    _write(clean, destination, lambda written: _verify(written, found, source))
    return destination


def _reader(source: Path) -> Callable[[Path, int], _Read]:
    if not source.exists():
        raise LoadError(f"tensorflow: '{source}' does not exist; give a .keras, a .tflite or a SavedModel folder")
    if source.is_dir():
        if (source / "saved_model.pb").is_file():
            return _read_saved
        raise LoadError(f"tensorflow: folder '{source}' holds no saved_model.pb; give a SavedModel folder")
    readers = {".keras": _read_keras, ".tflite": _read_tflite}
    if source.suffix not in readers:
        mend = "give a .keras (save it again with Keras 3: model.save('m.keras')), a SavedModel folder or a .tflite"
        raise LoadError(f"tensorflow: '{source}' has suffix '{source.suffix}'; {mend}")
    return readers[source.suffix]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep TensorFlow's start-up talk, its deprecations and tf2onnx's progress out of the user's way."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    loggers = [logging.getLogger(name) for name in ("tensorflow", "tf2onnx", "absl")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextlib.contextmanager
def _told(source: Path) -> Iterator[None]:
    """Whatever Keras, TensorFlow or tf2onnx raise about a file is a fault of loading it, told in one line."""
    try:
        yield
    except LoadError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())
        if "Lambda" in text and "unsafe" in text:
            mend = "rebuild it without Lambda layers, or export a SavedModel yourself"
            raise LoadError(
                f"tensorflow: '{source}' stores Python code in a Lambda layer, not run here; {mend}"
            ) from error
        raise LoadError(f"tensorflow: '{source}' cannot be converted: {type(error).__name__}: {text[:300]}") from error


def _read_keras(source: Path, opset: int) -> _Read:
    keras = importlib.import_module("keras")
    if keras.backend.backend() != "tensorflow":
        raise LoadError(f"tensorflow: Keras runs on {keras.backend.backend()} here; set KERAS_BACKEND=tensorflow")
    network = keras.saving.load_model(source, compile=False, safe_mode=True)
    tensors = list(network.inputs)
    # Keras numbers inputs that were given no name.
    names = ["input" if each.name.startswith("keras_tensor") else each.name for each in tensors]
    outputs = list(getattr(network, "output_names", None) or [])

    def call(x: Any) -> dict[str, Any]:
        given = network(x, training=False)
        listed = list(given.values()) if isinstance(given, dict) else given
        listed = list(listed) if isinstance(listed, list | tuple) else [listed]
        called = outputs if len(outputs) == len(listed) else [f"output_{place}" for place in range(len(listed))]
        return dict(zip(called, listed, strict=True))

    takes = [(name, each.shape, each.dtype) for name, each in zip(names, tensors, strict=True)]
    return _from_function(source, call, takes, opset)


def _read_saved(source: Path, opset: int) -> _Read:
    tf = importlib.import_module("tensorflow")
    loaded = tf.saved_model.load(str(source))
    signatures = dict(loaded.signatures)
    if not signatures:
        raise LoadError(f"tensorflow: '{source}' has no signature; export it with model.export(folder)")
    served = signatures.get("serving_default", next(iter(signatures.values())))
    takes = served.structured_input_signature[1]

    def call(x: Any) -> dict[str, Any]:
        return served(**{next(iter(takes)): x})

    return _from_function(source, call, [(name, each.shape, each.dtype) for name, each in takes.items()], opset)


def _from_function(source: Path, call: Callable[[Any], dict[str, Any]], takes: Sequence[Any], opset: int) -> _Read:
    tf, tf2onnx = importlib.import_module("tensorflow"), importlib.import_module("tf2onnx")
    _one_input(source, [name for name, _, _ in takes])
    name, shape, dtype = takes[0][0], tuple(takes[0][1]), tf.as_dtype(takes[0][2])
    spec = [tf.TensorSpec((None, *shape[1:]), dtype, name=name)]
    function = tf.function(call, input_signature=spec, autograph=False)
    traced = function.get_concrete_function().graph
    last = not _channels_first(traced.as_graph_def())
    turned = [name] if last and len(shape) == 4 else None
    model, _ = tf2onnx.convert.from_function(function, input_signature=spec, opset=opset, inputs_as_nchw=turned)
    # tf2onnx freezes variables, but asks for captured constants (Keras's Normalization has two) as if they were inputs.
    captured = {inner.name: outer for outer, inner in traced.captures if outer.dtype != tf.resource}
    asked = [each.name for each in model.graph.input if each.name in captured]
    model.graph.initializer.extend(onnx.numpy_helper.from_array(captured[each].numpy(), each) for each in asked)

    def answer(x: np.ndarray) -> list[np.ndarray]:
        given = function(tf.constant(x))
        return [given[each.name].numpy() for each in model.graph.output]

    return _Read(_unturned(model), last, (None, *shape[1:]), np.dtype(dtype.as_numpy_dtype), answer)


def _read_tflite(source: Path, opset: int) -> _Read:
    tf, tf2onnx = importlib.import_module("tensorflow"), importlib.import_module("tf2onnx")
    interpreter = tf.lite.Interpreter(model_path=str(source))
    tensors = interpreter.get_tensor_details()
    whole = {np.dtype(each["dtype"]).name for each in tensors if len(each["quantization_parameters"]["scales"])}
    whole |= {"float16"} & {np.dtype(each["dtype"]).name for each in tensors}
    if whole:
        mend = "give the float network that it was made from"
        raise LoadError(f"tensorflow: '{source}' is quantized ({', '.join(sorted(whole))}); {mend}")
    takes, gives = interpreter.get_input_details(), interpreter.get_output_details()
    _one_input(source, [each["name"] for each in takes])
    shape = tuple(None if size < 0 else int(size) for size in takes[0]["shape_signature"])
    turned = [takes[0]["name"]] if len(shape) == 4 else None
    model, _ = tf2onnx.convert.from_tflite(str(source), opset=opset, inputs_as_nchw=turned)
    places = {each["name"]: each["index"] for each in gives}
    order = [places[each.name] for each in model.graph.output]

    def answer(x: np.ndarray) -> list[np.ndarray]:
        interpreter.resize_tensor_input(takes[0]["index"], x.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(takes[0]["index"], x)
        interpreter.invoke()
        return [interpreter.get_tensor(place) for place in order]

    return _Read(_plainly_named(_unturned(model)), True, shape, np.dtype(takes[0]["dtype"]), answer)


def _one_input(source: Path, names: list[str]) -> None:
    if len(names) != 1:
        raise LoadError(f"tensorflow: '{source}' takes {len(names)} inputs ({', '.join(names)}); one is supported")


def _channels_first(graph: Any) -> bool:
    """Whether a TensorFlow graph says NCHW itself (Keras with ``channels_first``)."""
    nodes = [*graph.node, *(node for each in graph.library.function for node in each.node_def)]
    return any(node.attr["data_format"].s.startswith(b"NC") for node in nodes if "data_format" in node.attr)


def _unturned(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model after a second go at its Transposes, where tf2onnx's first left more than a Flatten accounts for."""
    if sum(node.op_type == "Transpose" for node in model.graph.node) < 2:
        return model
    graph = importlib.import_module("tf2onnx.graph")
    return graph.GraphUtil.optimize_model_proto(scalars_as_vectors(model)) or model


def _plainly_named(model: onnx.ModelProto) -> onnx.ModelProto:
    """TFLite's ``serving_default_image:0`` as ``image``, where nothing else is called so."""
    inner = [name for node in model.graph.node for name in (*node.input, *node.output)]
    for info in [*model.graph.input, *model.graph.output]:
        new = re.sub(r"^serving_default_|:\d+$", "", info.name)
        if new in inner or not new:
            continue
        for node in model.graph.node:
            node.input[:] = [new if name == info.name else name for name in node.input]
            node.output[:] = [new if name == info.name else name for name in node.output]
        info.name = new
    return model


def _write(model: onnx.ModelProto, destination: Path, check: Callable[[Path], None]) -> None:
    """Write beside the destination, check, then put in place: an interrupted or failed run leaves nothing."""
    written = destination.with_name(f"{destination.name}.partial.onnx")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        onnx.save(model, written)
        check(written)
        written.replace(destination)
    except OSError as error:
        raise OutputError(f"tensorflow: '{destination}' cannot be written: {error}; give another place") from error
    finally:
        with contextlib.suppress(OSError):  # the first fault is the one to tell
            written.unlink()


def _verify(written: Path, read: _Read, source: Path) -> None:
    generator = np.random.default_rng(0)
    shape = [1, *(size or FREE_SIDE for size in read.shape[1:])]
    x = generator.uniform(0, 1, shape) if read.dtype.kind == "f" else generator.integers(0, 100, shape)
    x, turn = x.astype(read.dtype), read.channels_last
    with _quiet():
        expected = [_turned(each, turn) for each in read.answer(x)]
    with open_onnx(written) as runner:
        found = runner.run(_turned(x, turn))
    for name, one, other in zip(runner.output_names, expected, found, strict=True):
        gap = float(np.abs(one - other).max()) if one.shape == other.shape else np.inf
        if not gap <= AGREES_WITHIN * max(1.0, float(np.abs(one).max())):
            mend = "try the other of .keras and .tflite"
            raise VerificationError(f"tensorflow: '{source}': output '{name}' comes out {gap:.2g} off in ONNX; {mend}")


def _turned(array: np.ndarray, turn: bool) -> np.ndarray:
    return np.ascontiguousarray(array.transpose(TO_NCHW)) if turn and array.ndim == 4 else array
