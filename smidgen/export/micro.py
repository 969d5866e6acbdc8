"""Files for microcontrollers: TensorFlow Lite Micro's operators alone, integers at the ends, and the file as a C array.

    content = for_micro(calibrated(floats, inputs, micro=True))
    sources = c_sources(content, arena_nbytes)

Operators without a kernel for integers stay in floats between a DEQUANTIZE and a QUANTIZE, both of which there are.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn

from smidgen.errors import LoadError
from smidgen.export.tflite import layer_of
from smidgen.runtimes.tflite_file import end_names, names_of, operator_name, parse, serialise, strip

# Operators that the interpreter has, and what its resolver calls them: Add…() (tensorflow/tflite-micro,
# tensorflow/lite/micro/micro_mutable_op_resolver.h and python/tflite_micro/python_ops_resolver.cc). Those with
# variables and other graphs are left out.
OPERATORS = {
    "ABS": "Abs", "ADD": "Add", "ADD_N": "AddN", "ARG_MAX": "ArgMax", "ARG_MIN": "ArgMin",
    "AVERAGE_POOL_2D": "AveragePool2D", "BATCH_MATMUL": "BatchMatMul", "BATCH_TO_SPACE_ND": "BatchToSpaceNd",
    "BROADCAST_ARGS": "BroadcastArgs",
    "BROADCAST_TO": "BroadcastTo", "CAST": "Cast", "CEIL": "Ceil", "CONCATENATION": "Concatenation",
    "CONV_2D": "Conv2D", "COS": "Cos", "CUMSUM": "CumSum", "DEPTH_TO_SPACE": "DepthToSpace",
    "DEPTHWISE_CONV_2D": "DepthwiseConv2D", "DEQUANTIZE": "Dequantize", "DIV": "Div", "ELU": "Elu", "EQUAL": "Equal",
    "EXP": "Exp", "EXPAND_DIMS": "ExpandDims", "FILL": "Fill", "FLOOR": "Floor", "FLOOR_DIV": "FloorDiv",
    "FLOOR_MOD": "FloorMod", "FULLY_CONNECTED": "FullyConnected", "GATHER": "Gather", "GATHER_ND": "GatherNd",
    "GREATER": "Greater", "GREATER_EQUAL": "GreaterEqual", "HARD_SWISH": "HardSwish",
    "L2_NORMALIZATION": "L2Normalization", "L2_POOL_2D": "L2Pool2D", "LEAKY_RELU": "LeakyRelu", "LESS": "Less",
    "LESS_EQUAL": "LessEqual", "LOG": "Log", "LOG_SOFTMAX": "LogSoftmax", "LOGICAL_AND": "LogicalAnd",
    "LOGICAL_NOT": "LogicalNot", "LOGICAL_OR": "LogicalOr", "LOGISTIC": "Logistic", "MAX_POOL_2D": "MaxPool2D",
    "MAXIMUM": "Maximum", "MEAN": "Mean", "MINIMUM": "Minimum", "MIRROR_PAD": "MirrorPad", "MUL": "Mul", "NEG": "Neg",
    "NOT_EQUAL": "NotEqual", "PACK": "Pack", "PAD": "Pad", "PADV2": "PadV2", "PRELU": "Prelu", "QUANTIZE": "Quantize",
    "REDUCE_MAX": "ReduceMax", "REDUCE_MIN": "ReduceMin", "RELU": "Relu", "RELU6": "Relu6", "RESHAPE": "Reshape",
    "RESIZE_BILINEAR": "ResizeBilinear", "RESIZE_NEAREST_NEIGHBOR": "ResizeNearestNeighbor", "ROUND": "Round",
    "RSQRT": "Rsqrt", "SELECT_V2": "SelectV2", "SHAPE": "Shape", "SIN": "Sin", "SLICE": "Slice", "SOFTMAX": "Softmax",
    "SPACE_TO_BATCH_ND": "SpaceToBatchNd", "SPACE_TO_DEPTH": "SpaceToDepth", "SPLIT": "Split", "SPLIT_V": "SplitV",
    "SQRT": "Sqrt", "SQUARE": "Square", "SQUARED_DIFFERENCE": "SquaredDifference", "SQUEEZE": "Squeeze",
    "STRIDED_SLICE": "StridedSlice", "SUB": "Sub", "SUM": "Sum", "TANH": "Tanh", "TRANSPOSE": "Transpose",
    "TRANSPOSE_CONV": "TransposeConv", "UNPACK": "Unpack", "ZEROS_LIKE": "ZerosLike",
}  # fmt: skip
# Torch's operators behind some of those that are missing, to tell which layer has one.
_TORCH = {
    "CONV_3D": "aten.conv3d", "GELU": "aten.gelu", "POW": "aten.pow", "REDUCE_PROD": "aten.prod",
    "REVERSE_V2": "aten.flip", "SIGN": "aten.sign", "TILE": "aten.repeat", "TOPK_V2": "aten.topk",
}  # fmt: skip
STEM = "model_mcu"  # of the C files, and the array's name
_LINE = 16  # bytes of the array in a line


def check_operators(content: bytes, network: nn.Module, example: torch.Tensor) -> None:
    """LoadError, with the operator and its layer, where TensorFlow Lite Micro has no such operator.

    Args:
        content: the network's TFLite file.
        network, example: what it was made from.
    """
    model = parse(content)
    (graph,) = model.subgraphs
    for n, operator in enumerate(graph.operators):
        name = operator_name(model, operator)
        if name in OPERATORS:
            continue
        layer = layer_of(network, example, _TORCH[name]) if name in _TORCH else None
        shape = [int(size) for size in graph.tensors[int(operator.outputs[0])].shape]
        where = f"of layer '{layer}'" if layer else f"({n + 1} of {len(graph.operators)}, which gives {shape})"
        raise LoadError(
            f"target: mcu: TensorFlow Lite Micro has no operator {name} {where}; use tflite-int8, or replace the layer"
        )


def for_micro(content: bytes) -> bytes:
    """A file of integers whose ends are integers too, with the scales that its first and last operators had.

    An end that is read or made in floats as well stays as it is.

    Args:
        content: from `smidgen.export.tflite_static.calibrated`.
    """
    model = parse(content)
    (graph,) = model.subgraphs
    description, names = model.description, end_names(model)
    dropped: set[int] = set()
    graph.inputs = [_read_as(model, int(i), dropped) for i in graph.inputs]
    graph.outputs = [_made_from(model, int(i), dropped) for i in graph.outputs]
    graph.operators = [each for n, each in enumerate(graph.operators) if n not in dropped]
    strip(model, *names)
    model.description = description
    return serialise(model)


def _read_as(model: Any, i: int, dropped: set[int]) -> int:
    """What an input of floats is turned into, where that is all that reads it."""
    graph = model.subgraphs[0]
    readers = [n for n, each in enumerate(graph.operators) if i in [int(k) for k in each.inputs]]
    if len(readers) != 1 or i in [int(k) for k in graph.outputs]:
        return i
    reader = graph.operators[readers[0]]
    if operator_name(model, reader) != "QUANTIZE":
        return i
    dropped.add(readers[0])
    return int(reader.outputs[0])


def _made_from(model: Any, i: int, dropped: set[int]) -> int:
    """What an output of floats is made from, where nothing else reads it."""
    graph = model.subgraphs[0]
    if any(i in [int(k) for k in each.inputs] for each in graph.operators):
        return i
    for n, each in enumerate(graph.operators):
        if i in [int(k) for k in each.outputs] and operator_name(model, each) == "DEQUANTIZE":
            dropped.add(n)
            return int(each.inputs[0])
    return i


def c_sources(content: bytes, arena_nbytes: int) -> dict[str, bytes]:
    """A header and a source file that hold a TFLite file as a constant array, for a microcontroller's flash.

    Args:
        content: of the file.
        arena_nbytes: memory that it needs to run, which the header tells.

    Returns:
        Contents by file name.
    """
    model = parse(content)
    used = dict.fromkeys(operator_name(model, each) for each in model.subgraphs[0].operators)
    calls = " ".join(f"Add{OPERATORS[name]}();" for name in sorted(used) if name in OPERATORS)
    guard = f"{STEM.upper()}_H_"
    header = f"""\
// A network in integers of eight bits for TensorFlow Lite Micro, made by smidgen.
//
// Flash: {len(content)} bytes, the array. Arena: {STEM.upper()}_ARENA_NBYTES, as counted with pointers of 64 bits;
// with 32 bits it takes less.
{_told_ends(model)}
// Operators of the resolver, MicroMutableOpResolver<{len(used)}>:
//   {calls}
#ifndef {guard}
#define {guard}

#define {STEM.upper()}_ARENA_NBYTES {arena_nbytes}

#ifdef __cplusplus
extern "C" {{
#endif

extern const unsigned char {STEM}[];
extern const unsigned int {STEM}_len;

#ifdef __cplusplus
}}
#endif

#endif  // {guard}
"""
    rows = (content[start : start + _LINE] for start in range(0, len(content), _LINE))
    body = "\n".join("    " + " ".join(f"0x{byte:02x}," for byte in row) for row in rows)
    source = f"""\
#include "{STEM}.h"

alignas(16) const unsigned char {STEM}[] = {{
{body}
}};
const unsigned int {STEM}_len = {len(content)};
"""
    return {f"{STEM}.h": header.encode(), f"{STEM}.cc": source.encode()}


def _told_ends(model: Any) -> str:
    """Comment lines of the ends: name, type, shape, and what an integer stands for."""
    graph = model.subgraphs[0]
    lines = []
    for kind, ends, names in zip(("Input", "Output"), (graph.inputs, graph.outputs), end_names(model), strict=True):
        for i, name in zip(ends, names, strict=True):
            tensor = graph.tensors[int(i)]
            shape = ", ".join(str(int(size)) for size in tensor.shape)
            known = tensor.quantization
            meant = ""
            if known is not None and known.scale is not None and len(known.scale) == 1:
                meant = f", x = {float(known.scale[0]):.9g} * (q - ({int(known.zeroPoint[0])}))"
            # A name may hold anything: what could end a comment's line is left out.
            told = re.sub(r"[^\w.:/-]", "_", name, flags=re.ASCII)
            lines.append(f"// {kind} {told}: {names_of('TensorType')[tensor.type].lower()} [{shape}]{meant}")
    return "\n".join(lines)
