"""Damaged ONNX files: an error of ours or the right answer, never a crash, a hang or a flood of memory.

The importer runs in one process under a limit on its address space, onnxruntime in another, so that whatever a mutated
file does to either is seen. Where both accept a file, both must answer alike.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import resource
import tempfile
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

MUTATIONS = 3000
PATIENCE_S = 180.0  # wall clock for one mutation, after which it hangs: a busy machine may take its time
PROCESSOR_S = (
    45.0  # of its own time; most take 10 ms, the largest that limits allow 10 to 20 s, as busy as the caches are
)
ROOM_BYTES = 4 << 30  # address space on top of what an imported torch has
ODD_NUMBERS = (0, 1, -1, 2, 3, 5, 7, 16, 255, 4096, 1 << 20, (1 << 31) - 1, 1 << 31, -(1 << 31), 1 << 62, -(1 << 63))


def _value(name, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def _stored(name, array):
    return numpy_helper.from_array(np.asarray(array), name)


def _weights(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _model(nodes, inputs, outputs, stored, opset=17):
    graph = helper.make_graph(nodes, "g", inputs, outputs, stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def convolutional():
    """Convolutions, pools, batch normalization, a residual and a classifier."""
    make = helper.make_node
    nodes = [
        make("Conv", ["x", "w1", "b1"], ["c1"], pads=[1, 1, 1, 1], strides=[1, 1], kernel_shape=[3, 3], group=1),
        make("BatchNormalization", ["c1", "s", "b1", "m", "v"], ["n1"], epsilon=1e-5),
        make("Relu", ["n1"], ["r1"]),
        make("MaxPool", ["r1"], ["p1"], kernel_shape=[2, 2], strides=[2, 2], ceil_mode=0),
        make("Conv", ["p1", "w2"], ["c2"], auto_pad="SAME_UPPER", dilations=[1, 1], group=2),
        make("Add", ["c2", "p1"], ["a"]),
        make("AveragePool", ["a"], ["q"], kernel_shape=[2, 2], pads=[0, 0, 1, 1], strides=[2, 2]),
        make("Flatten", ["q"], ["f"], axis=1),
        make("Gemm", ["f", "w3", "b3"], ["y"], alpha=1.0, beta=1.0, transB=1),
    ]
    stored = [
        _stored("w1", _weights(1, 4, 3, 3, 3)),
        _stored("b1", _weights(2, 4)),
        _stored("s", np.ones(4, np.float32)),
        _stored("m", _weights(3, 4)),
        _stored("v", np.ones(4, np.float32)),
        _stored("w2", _weights(4, 4, 2, 3, 3)),
        _stored("w3", _weights(5, 5, 16)),
        _stored("b3", _weights(6, 5)),
    ]
    return _model(nodes, [_value("x", ["N", 3, 8, 8])], [_value("y", ["N", 5])], stored)


def attentive():
    """Matrix products, softmax, and a shape that is computed."""
    make = helper.make_node
    nodes = [
        make("MatMul", ["x", "w"], ["h"]),
        make("Add", ["h", "b"], ["hb"]),
        make("Shape", ["x"], ["s"]),
        make("Gather", ["s", "zero"], ["n"], axis=0),
        make("Concat", ["n", "rest"], ["t"], axis=0),
        make("Reshape", ["hb", "t"], ["heads"]),
        make("Transpose", ["heads"], ["k"], perm=[0, 2, 3, 1]),
        make("Transpose", ["heads"], ["q"], perm=[0, 2, 1, 3]),
        make("MatMul", ["q", "k"], ["qk"]),
        make("Softmax", ["qk"], ["p"], axis=-1),
        make("ReduceMean", ["p"], ["r"], axes=[3], keepdims=0),
        make("Clip", ["r", "low"], ["y"]),
    ]
    stored = [
        _stored("w", _weights(1, 6, 8)),
        _stored("b", _weights(2, 8)),
        _stored("zero", np.array([0])),
        _stored("rest", np.array([-1, 2, 4])),
        _stored("low", np.float32(0.1)),
    ]
    return _model(nodes, [_value("x", ["N", 5, 6])], [_value("y", None)], stored)


def reshaping():
    """Padding, slices, resizing, splits, concatenation, a transposed convolution, a fixed batch."""
    make = helper.make_node
    nodes = [
        make("Pad", ["x", "pads"], ["p"], mode="reflect"),
        make("Slice", ["p", "from", "to", "axes", "steps"], ["s"]),
        make("Resize", ["s", "", "scales"], ["u"], mode="linear", coordinate_transformation_mode="half_pixel"),
        make("ConvTranspose", ["u", "w"], ["t"], strides=[2, 2], pads=[0, 0, 1, 1], output_padding=[1, 1]),
        make("Split", ["t"], ["t1", "t2"], axis=1),
        make("Tile", ["t1", "repeats"], ["tt"]),
        make("Concat", ["tt", "t2"], ["c"], axis=1),
        make("Unsqueeze", ["c", "axes1"], ["c1"]),
        make("Squeeze", ["c1", "axes1"], ["c2"]),
        make("Reshape", ["c2", "shape"], ["y"]),
    ]
    stored = [
        _stored("pads", np.array([0, 0, 1, 1, 0, 0, 1, 1])),
        _stored("from", np.array([0, 5])),
        _stored("to", np.array([1 << 62, -(1 << 62)])),
        _stored("axes", np.array([2, 3])),
        _stored("steps", np.array([2, -1])),
        _stored("scales", np.array([1, 1, 2, 2], np.float32)),
        _stored("w", _weights(1, 2, 2, 3, 3)),
        _stored("repeats", np.array([1, 2, 1, 1])),
        _stored("axes1", np.array([1])),
        _stored("shape", np.array([1, -1])),
    ]
    return _model(nodes, [_value("x", [1, 2, 4, 4])], [_value("y", None)], stored)


def sequential():
    """A recurrent layer, layer normalization, quantized weights, indexing."""
    make = helper.make_node
    nodes = [
        make("LSTM", ["x", "lw", "lr", "lb"], ["seq", "last"], hidden_size=3, direction="forward"),
        make("Squeeze", ["seq", "one"], ["flat"]),
        make("LayerNormalization", ["flat", "s", "b"], ["n"], axis=-1, epsilon=1e-5),
        make("DequantizeLinear", ["q", "scale", "zero"], ["w"], axis=1),
        make("MatMul", ["n", "w"], ["m"]),
        make("TopK", ["m", "k"], ["top", "place"], axis=-1, largest=1),
        make("Gather", ["m", "places"], ["g"], axis=2),
        make("Where", ["cond", "top", "g"], ["c"]),
        make("CumSum", ["c", "last_axis"], ["cs"], exclusive=0, reverse=1),
        make("Einsum", ["cs", "top"], ["y"], equation="tbi,tbj->bij"),
    ]
    stored = [
        _stored("lw", _weights(1, 1, 12, 4)),
        _stored("lr", _weights(2, 1, 12, 3)),
        _stored("lb", _weights(3, 1, 24)),
        _stored("one", np.array([1])),
        _stored("s", np.ones(3, np.float32)),
        _stored("b", _weights(4, 3)),
        _stored("q", np.arange(-9, 9, dtype=np.int8).reshape(3, 6)),
        _stored("scale", np.full(6, 0.1, np.float32)),
        _stored("zero", np.zeros(6, np.int8)),
        _stored("k", np.array([2])),
        _stored("places", np.array([0, -1])),
        _stored("cond", np.array([True, False])),
        _stored("last_axis", np.array(2)),
    ]
    return _model(nodes, [_value("x", [5, "N", 4])], [_value("y", None)], stored)


MODELS = (convolutional, attentive, reshaping, sequential)
OPS = sorted({node.op_type for make in MODELS for node in make().graph.node} | {"Expand", "Where", "Loop", "Bogus"})


# Mutations: each changes the model in place, or gives other bytes.


def _pick(rng, items):
    return rng.choice(list(items)) if len(items) else None


def _attribute(rng, model):
    node = _pick(rng, [node for node in model.graph.node if node.attribute])
    attribute = _pick(rng, node.attribute)
    if attribute.ints:
        if rng.random() < 0.2:
            attribute.ints.append(rng.choice(ODD_NUMBERS))
        else:
            attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(ODD_NUMBERS)
    elif attribute.type == onnx.AttributeProto.INT:
        attribute.i = rng.choice(ODD_NUMBERS)
    elif attribute.type == onnx.AttributeProto.FLOAT:
        attribute.f = rng.choice([0.0, -1.0, 1e30, float("nan"), float("inf"), 0.5])
    else:
        attribute.s = rng.choice([b"", b"SAME_LOWER", b"VALID", b"edge", b"wrap", b"cubic", b"nearest", b"\xff\xfe"])


def _attribute_kind(rng, model):
    attribute = _pick(rng, _pick(rng, [node for node in model.graph.node if node.attribute]).attribute)
    attribute.type = rng.choice([1, 2, 3, 4, 5, 6, 7, 8])


def _attribute_gone(rng, model):
    node = _pick(rng, [node for node in model.graph.node if node.attribute])
    del node.attribute[rng.randrange(len(node.attribute))]


def _attribute_twice(rng, model):
    node = _pick(rng, [node for node in model.graph.node if node.attribute])
    node.attribute.append(_pick(rng, node.attribute))


def _dims(rng, model):
    tensor = _pick(rng, model.graph.initializer)
    if tensor.dims and rng.random() < 0.8:
        tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(ODD_NUMBERS)
    else:
        tensor.dims.append(rng.choice([1, 2, 1 << 40]))


def _dims_swapped(rng, model):
    tensor = _pick(rng, [tensor for tensor in model.graph.initializer if len(tensor.dims) > 1])
    if tensor is not None:
        dims = list(tensor.dims)
        rng.shuffle(dims)
        tensor.dims[:] = dims


def _numbers(rng, model):
    tensor = _pick(rng, model.graph.initializer)
    array = numpy_helper.to_array(tensor).copy().reshape(-1)
    if array.size:
        floats = [0.0, -1.0, 1e9, float("nan"), float("inf"), 0.3]
        array[rng.randrange(array.size)] = rng.choice(floats if array.dtype.kind == "f" else ODD_NUMBERS)
        tensor.raw_data = array.tobytes()


def _kind(rng, model):
    _pick(rng, model.graph.initializer).data_type = rng.choice(range(0, 24))


def _raw(rng, model):
    tensor = _pick(rng, model.graph.initializer)
    tensor.raw_data = rng.choice([b"", tensor.raw_data[:-1], tensor.raw_data * 2, tensor.raw_data[1:]])


def _external(rng, model):
    tensor = _pick(rng, model.graph.initializer)
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", rng.choice(["/etc/passwd", "../x", "x", "", "a/../../x", "c:\\x"])


def _op(rng, model):
    _pick(rng, model.graph.node).op_type = rng.choice(OPS)


def _operand(rng, model):
    node = _pick(rng, [node for node in model.graph.node if node.input])
    names = [name for other in model.graph.node for name in [*other.input, *other.output]] + ["nowhere", ""]
    node.input[rng.randrange(len(node.input))] = rng.choice(names)


def _operands_swapped(rng, model):
    node = _pick(rng, [node for node in model.graph.node if len(node.input) > 1])
    names = list(node.input)
    rng.shuffle(names)
    node.input[:] = names


def _operand_count(rng, model):
    node = _pick(rng, [node for node in model.graph.node if node.input])
    if rng.random() < 0.5:
        node.input.append(rng.choice(list(node.input)))
    else:
        del node.input[rng.randrange(len(node.input))]


def _output(rng, model):
    node = _pick(rng, model.graph.node)
    names = [name for other in model.graph.node for name in other.output] + ["", "fresh"]
    if rng.random() < 0.3:
        node.output.append(rng.choice(names))
    else:
        node.output[0] = rng.choice(names)


def _node_gone(rng, model):
    del model.graph.node[rng.randrange(len(model.graph.node))]


def _nodes_swapped(rng, model):
    nodes = list(model.graph.node)
    i, j = rng.randrange(len(nodes)), rng.randrange(len(nodes))
    nodes[i], nodes[j] = nodes[j], nodes[i]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _input(rng, model):
    tensor = model.graph.input[0].type.tensor_type
    choice = rng.random()
    if choice < 0.6:
        dim = rng.choice(list(tensor.shape.dim))
        dim.dim_value = rng.choice(ODD_NUMBERS)
    elif choice < 0.8:
        tensor.elem_type = rng.choice(range(0, 20))
    elif choice < 0.9:
        tensor.shape.dim.add().dim_value = rng.choice(ODD_NUMBERS)
    else:
        rng.choice(list(tensor.shape.dim)).dim_param = "M"


def _opset(rng, model):
    model.opset_import[0].version = rng.choice([-1, 0, 1, 6, 7, 9, 11, 12, 13, 18, 21, 23, 99, 1 << 40])


def _graph_output(rng, model):
    model.graph.output[0].name = rng.choice([name for node in model.graph.node for name in node.output] + ["", "none"])


STRUCTURED = (
    _attribute,
    _attribute,
    _attribute,
    _attribute_kind,
    _attribute_gone,
    _attribute_twice,
    _dims,
    _dims_swapped,
    _numbers,
    _numbers,
    _kind,
    _raw,
    _external,
    _op,
    _operand,
    _operands_swapped,
    _operand_count,
    _output,
    _node_gone,
    _nodes_swapped,
    _input,
    _opset,
    _graph_output,
)


def mutated(seed: int) -> tuple[str, bytes]:
    """A damaged file, and how it was damaged."""
    rng = random.Random(seed)
    make = rng.choice(MODELS)
    model = make()
    kind = rng.random()
    if kind < 0.75:
        chosen = rng.choices(STRUCTURED, k=1 if rng.random() < 0.8 else 2)
        for mutate in chosen:
            with contextlib.suppress(ValueError, AttributeError, TypeError, OverflowError):  # nothing left to mutate
                mutate(rng, model)
        return f"{make.__name__}: {', '.join(m.__name__ for m in chosen)}", model.SerializeToString()
    content = bytearray(model.SerializeToString())
    if kind < 0.8:
        return f"{make.__name__}: cut", bytes(content[: rng.randrange(len(content))])
    for _ in range(rng.choice([1, 1, 2, 5])):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return f"{make.__name__}: bits", bytes(content)


def feeds(model) -> dict[str, np.ndarray] | None:
    """An input that fits what the file declares; None where it would be too large to run."""
    rng = np.random.default_rng(0)
    stored = {tensor.name for tensor in model.graph.initializer}
    given = {}
    for value in model.graph.input:
        if value.name in stored:
            continue
        dims = [dim.dim_value if dim.HasField("dim_value") else 3 for dim in value.type.tensor_type.shape.dim]
        if any(dim < 0 for dim in dims) or np.prod([float(dim) for dim in dims]) > 1 << 18:
            return None
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
        if dtype.kind not in "fiub":
            return None
        given[value.name] = (rng.normal(size=dims) * 2).astype(dtype)
    return given


def _serve(pipe: Connection, answer) -> None:
    # What the libraries print about damaged files is no news; results go through the pipe.
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    while (content := pipe.recv()) is not None:
        start = time.process_time()  # not the wall clock: other work on the machine is no fault of the file
        result = answer(content)
        pipe.send((*result, time.process_time() - start))


def _importer(pipe: Connection) -> None:
    from jaxtyping import install_import_hook

    install_import_hook("smidgen", "beartype.beartype")
    import torch

    from smidgen.errors import LoadError
    from smidgen.model.onnx import load_onnx

    torch.set_num_threads(1)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + ROOM_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    def answer(content):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "m.onnx"
            path.write_bytes(content)
            try:
                loaded = load_onnx(path)
            except LoadError as error:
                return ("refused" if "\n" not in str(error) else "a message of several lines"), str(error)
        model = onnx.load_model_from_string(content)
        given = feeds(model)
        if given is None:
            return "too large to run", ""
        with torch.no_grad():
            results = loaded.module(*[torch.from_numpy(given[spec.name]) for spec in loaded.inputs])
        results = results if isinstance(results, tuple) else (results,)
        return "ran", [result.float().numpy() for result in results]

    def guarded(content):
        try:
            return answer(content)
        except Exception as error:
            return "raised", f"{type(error).__name__}: {error}"

    _serve(pipe, guarded)


def _runtime(pipe: Connection) -> None:
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    # Optimized, it multiplies by dequantized weights in 8 bits, which is not what the file says.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL

    def answer(content):
        try:
            session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
            results = session.run(None, feeds(onnx.load_model_from_string(content)))
            return "ran", [np.asarray(result, dtype=np.float32) for result in results]
        except Exception as error:
            return "refused", str(error)

    _serve(pipe, answer)


class Process:
    """A worker that is started again when a file kills it."""

    def __init__(self, target) -> None:
        self.target = target
        self.start()

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=self.target, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()

    def ask(self, content: bytes):
        """What the worker says, or 'died' or 'hung'."""
        try:
            self.pipe.send(content)
            if self.pipe.poll(PATIENCE_S * 4 if not hasattr(self, "warm") else PATIENCE_S):
                self.warm = True
                return self.pipe.recv()
            result = ("hung", "", PATIENCE_S)
        except (EOFError, OSError):
            result = ("died", "", 0.0)
        self.stop()
        self.start()
        return result

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _disagree(ours, theirs) -> str | None:
    for mine, wanted in zip(ours, theirs, strict=True):
        if mine.shape != wanted.shape:
            return f"shape {mine.shape} for {wanted.shape}"
        scale = np.abs(wanted).max(initial=0.0)
        # Past these the order of additions decides the answer.
        if not np.isfinite(wanted).all() or scale > 1e6:
            continue
        if not np.allclose(mine, wanted, atol=1e-4 * max(scale, 1e-3), rtol=1e-3):
            return f"values differ by {np.abs(mine - wanted).max()} of {scale}"
    return None


def survey(seeds):
    """(counts of what happened, what must not have happened)."""
    counts, wrong = Counter(), []
    importer, runtime = Process(_importer), Process(_runtime)
    try:
        for seed in seeds:
            how, content = mutated(seed)
            state, result, seconds = importer.ask(content)
            if state not in ("ran", "raised", "refused", "too large to run") or seconds > PROCESSOR_S:
                wrong.append((seed, how, f"importer {state} after {seconds:.1f} s: {result!s:.200}"))
            if state not in ("ran", "raised"):
                counts[state] += 1
                continue
            theirs, wanted, _ = runtime.ask(content)
            if theirs != "ran":  # such as a reshape that only some batch sizes fit
                counts[f"{state}, onnxruntime {theirs}"] += 1
            elif state == "raised":
                wrong.append((seed, how, f"raised where onnxruntime runs: {result!s:.300}"))
            elif (difference := _disagree(result, wanted)) is not None:
                wrong.append((seed, how, difference))
            else:
                counts["agreed"] += 1
    finally:
        importer.stop()
        runtime.stop()
    return counts, wrong


@pytest.mark.slow
def test_damaged_files_give_our_error_or_the_right_answer(capsys: pytest.CaptureFixture[str]):
    start = time.monotonic()
    counts, wrong = survey(range(MUTATIONS))
    with capsys.disabled():
        print(f"\n{MUTATIONS} damaged files in {time.monotonic() - start:.0f} s: {dict(counts)}")
    assert not wrong, "\n".join(map(str, wrong[:20]))
    assert counts["refused"] > MUTATIONS // 4
    assert counts["agreed"] > MUTATIONS // 10


@pytest.mark.parametrize("make", MODELS)
def test_the_undamaged_models_agree(make):
    from smidgen.model.onnx import import_model

    assert import_model(make()).output_names == ("y",)
