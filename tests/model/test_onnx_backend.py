"""ONNX's own node tests, run for every operator the importer supports.

Each test runs twice. *Operands*: all its inputs are inputs of the network, but for those an operator needs to know at
import (`_KNOWN`). *Baked*: all but the first are stored in the file, as weights are, so that layers are made of them.
"""

from __future__ import annotations

import warnings
from collections import Counter
from functools import lru_cache

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from smidgen.errors import LoadError
from smidgen.model.onnx import import_model, supported_operators

# Operands that decide shapes, or how the operator works: known at import, as exporters write them.
_KNOWN = {
    "AffineGrid": (1,),
    "BlackmanWindow": (0,),
    "CenterCropPad": (1,),
    "Col2Im": (1, 2),
    "Compress": (1,),
    "ConstantOfShape": (0,),
    "CumProd": (1,),
    "CumSum": (1,),
    "DFT": (1, 2),
    "Dropout": (1, 2),
    "Expand": (1,),
    "HammingWindow": (0,),
    "HannWindow": (0,),
    "GRU": (1, 2, 3, 4),
    "LSTM": (1, 2, 3, 4, 7),
    "RNN": (1, 2, 3, 4),
    "MaxUnpool": (2,),
    "MelWeightMatrix": (0, 1, 2, 3, 4),
    "OneHot": (1,),
    "Pad": (1, 2, 3),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "STFT": (1, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "Tile": (1,),
    "TopK": (1,),
    "Trilu": (1,),
    "Unsqueeze": (1,),
    "Upsample": (1,),
    **{
        f"Reduce{kind}": (1,)
        for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
    },
}

_UNSIGNED = "torch computes little with unsigned integers of 16, 32 and 64 bits"
_WIDE_UNSIGNED = (onnx.TensorProto.UINT16, onnx.TensorProto.UINT32, onnx.TensorProto.UINT64)
_UNSUPPORTED_TYPES = (
    "strings, sequences, complex numbers and numbers of 2, 4 or (floats) 8 bits are not network values here"
)
_TRAINING = "training mode: a network is imported for inference"
_ALIGN = "onnxruntime and torch align corners with the rounded length, this test with the unrounded one"
_RESET = "torch's GRU applies its reset gate after the product (linear_before_reset=1); the test's default before"
_LAYOUT = "layout=1 is refused; onnxruntime does not run it either"
# Tests of supported operators that are left out, by the beginning of their name, each with its reason.
_EXCLUDED: dict[str, str] = {
    "test_mod_float_edge_cases_fmod_0": "its operand holds NaN, which is refused where a file stores it",
    "test_resize_downsample_scales_linear_align_corners": _ALIGN,
    "test_resize_downsample_scales_cubic_align_corners": _ALIGN,
    "test_gru_defaults": _RESET,
    "test_gru_with_initial_bias": _RESET,
    "test_gru_seq_length": _RESET,
    "test_gru_reverse": _RESET,
    "test_gru_bidirectional": _RESET,
    "test_gru_batchwise": _LAYOUT,
    "test_lstm_batchwise": _LAYOUT,
    "test_simple_rnn_batchwise": _LAYOUT,
    "test_lstm_with_peepholes": "peepholes have no counterpart in torch's LSTM",
    "test_batchnorm_example_training_mode": _TRAINING,
    "test_batchnorm_epsilon_training_mode": _TRAINING,
    "test_training_dropout_default": _TRAINING,
    "test_training_dropout": _TRAINING,
}

_TYPES = {
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.DOUBLE,
    onnx.TensorProto.INT32,
    onnx.TensorProto.INT64,
    onnx.TensorProto.BOOL,
    onnx.TensorProto.UINT8,
    onnx.TensorProto.INT8,
    onnx.TensorProto.INT16,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
}


@lru_cache(maxsize=1)
def _all_cases():
    with warnings.catch_warnings():
        # ONNX's generators of test data overflow on purpose in casts to narrow types.
        warnings.simplefilter("ignore")
        from onnx.backend.test.loader import load_model_tests

        return load_model_tests(kind="node")


@lru_cache(maxsize=1)
def _cases():
    supported = supported_operators()
    kept = []
    for case in _all_cases():
        ops = {node.op_type for node in case.model.graph.node}
        opsets = {item.domain: item.version for item in case.model.opset_import}
        known = all(op in supported and supported[op][0] <= opsets.get("", 0) <= supported[op][1] for op in ops)
        if known and set(opsets) == {""}:
            kept.append(case)
    return kept


def _excluded(case) -> str | None:
    for beginning, reason in _EXCLUDED.items():
        if case.name.startswith(beginning):
            return reason
    for value in [*case.model.graph.input, *case.model.graph.output]:
        kind = value.type.tensor_type.elem_type
        if kind not in _TYPES:
            return _UNSIGNED if kind in _WIDE_UNSIGNED else _UNSUPPORTED_TYPES
    return None


def _bake(model, arrays, keep):
    """The model with those inputs stored in it that `keep` does not name, and the arrays of the others."""
    baked = onnx.ModelProto()
    baked.CopyFrom(model)
    rest, given = [], []
    for value, array in zip(model.graph.input, arrays, strict=True):
        if value.name in keep:
            rest.append(value)
            given.append(array)
        else:
            baked.graph.initializer.append(numpy_helper.from_array(_array(array), value.name))
    del baked.graph.input[:]
    baked.graph.input.extend(rest)
    return baked, given


def _array(value):
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)


def _tensor(value):
    array = _array(value)
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.astype(np.float32)).to(torch.bfloat16)
    return torch.from_numpy(np.array(array))


def _run(model, arrays):
    loaded = import_model(model)
    with torch.no_grad():
        results = loaded.module(*[_tensor(array) for array in arrays])
    return results if isinstance(results, tuple) else (results,)


def _check(case, keep):
    for inputs, expected in case.data_sets:
        model, given = _bake(case.model, inputs, keep)
        for result, wanted in zip(_run(model, given), expected, strict=True):
            wanted = _tensor(wanted)
            assert result.dtype == wanted.dtype, f"{result.dtype} for {wanted.dtype}"
            assert result.shape == wanted.shape, f"{list(result.shape)} for {list(wanted.shape)}"
            half = wanted.dtype in (torch.float16, torch.bfloat16)
            rtol, atol = max(case.rtol, 2e-2 if half else 0), max(case.atol, 1e-2 if half else 1e-6)
            torch.testing.assert_close(result, wanted, rtol=rtol, atol=atol, equal_nan=True)


def _variants(case):
    names = [value.name for value in case.model.graph.input]
    known = {names[index] for index in _KNOWN.get(_origin(case), ()) if index < len(names)}
    for node in case.model.graph.node:
        known |= {node.input[index] for index in _KNOWN.get(node.op_type, ()) if index < len(node.input)}
    yield "operands", set(names) - known
    if len(names) > 1:
        yield "baked", set(names[:1]) - known


def _origin(case) -> str:
    """The operator under test, also where the test runs its expansion into simpler ones."""
    plain = case.name.split("_expanded")[0]
    first = next((other for other in _all_cases() if other.name == plain), case)
    return first.model.graph.node[0].op_type


def survey():
    """(passed by operator, excluded by reason, failures)."""
    passed, excluded, failed = Counter(), Counter(), []
    for case in _cases():
        reason = _excluded(case)
        if reason is not None:
            excluded[reason] += 1
            continue
        for variant, keep in _variants(case):
            try:
                _check(case, keep)
                passed[_origin(case)] += 1
            except Exception as error:
                failed.append((case.name, variant, f"{type(error).__name__}: {str(error).strip()[:300]}"))
    return passed, excluded, failed


def test_onnx_node_tests(capsys: pytest.CaptureFixture[str]):
    passed, excluded, failed = survey()
    with capsys.disabled():
        print("\nONNX node tests passed, by operator (each as operands, and baked where it has several inputs):")
        print(", ".join(f"{op} {count}" for op, count in sorted(passed.items())))
        print(
            f"passed {sum(passed.values())} runs over {len(passed)} operators; excluded {sum(excluded.values())} tests"
        )
        for reason, count in excluded.most_common():
            print(f"  {count}: {reason}")
    assert not failed, "\n".join(f"{name} ({variant}): {why}" for name, variant, why in failed)


def test_every_supported_operator_has_a_passing_node_test():
    tested = {node.op_type for case in _cases() if _excluded(case) is None for node in case.model.graph.node}
    # ONNX holds no node test of GlobalLpPool, and of GRU only with the reset gate that torch does not have;
    # test_onnx_operators.py runs both against onnxruntime.
    assert set(supported_operators()) - tested == {"GRU", "GlobalLpPool"}


def test_excluded_names_exist():
    names = [case.name for case in _cases()]
    assert all(any(name.startswith(beginning) for name in names) for beginning in _EXCLUDED)


def test_load_error_is_what_a_bad_node_gives():
    case = next(case for case in _cases() if case.name == "test_relu")
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    model.graph.node[0].input.append("x")
    with pytest.raises(LoadError):
        import_model(model)
