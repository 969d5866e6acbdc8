"""What a form costs: bytes in a target's file, weights, multiplications."""

from __future__ import annotations

import numpy as np

from smidgen.forms.geometry import Geometry
from smidgen.forms.stages import Stage, stages
from smidgen.forms.types import DIRECT, Codebook, Form, Masked, Quantized

# Bytes one layer adds to a stripped ONNX file beside its weights: node, attributes, tensor header and short names.
# Measured on files written by smidgen.export (106 for a convolution, 58 for a Gemm); the difference does not matter.
LAYER_OVERHEAD = {"linear": 60, "conv": 105, "conv_transpose": 120}
# The same of a TFLite file: the operator with its options, the tables of weight, bias and result, two aligned buffers.
# Measured on LeNet, ResNet-20 and MobileNetV2, alike for all kinds; with integers three tensors have scales too.
TFLITE_OVERHEAD, TFLITE_INT8_OVERHEAD = 230, 300
# The same of an ExecuTorch program: XNNPACK's nodes and values, with integers those of each conversion too and a scale
# a row. Measured as the growth from one to four dense layers (650, 1,330) and convolutions (740, 1,330).
EXECUTORCH_OVERHEAD, EXECUTORCH_INT8_OVERHEAD, EXECUTORCH_ROW = 700, 1330, 4
# Bytes of one row beside its integers: its scale, that of its bias, and zero points, which layers of equally many rows
# share: LeNet 8, whose layers all differ, MobileNetV1 1.
TFLITE_ROW = 4 + 4 + 2
# Layers of so many columns, or fewer, have one scale for all rows and eight bits where the file computes in integers:
# a row's own scale takes ten bytes and more (the gender CNN at 30 kB: its largest layer has rank 7, with them rank 5).
NARROW = 16
FLOAT_BYTES, HALF_BYTES = 4, 2
HALF_OVERHEAD = 31  # bytes of the operator that widens a weight: measured on LeNet and ResNet-20, ONNX and TFLite
# Widths of integers, or of indices into a codebook, that a target's file can hold beside floats, the narrowest first.
WIDTHS: dict[str, tuple[int, ...]] = {
    "onnx-w8": (8,), "onnx-w4": (4, 8), "onnx-int8": (8,), "tflite-int8": (4, 8),
    "mcu": (8,), "onnx-shared": (1, 2, 3, 4, 5, 6, 7, 8), "executorch-int8": (8,),
}  # fmt: skip
SHARED: tuple[str, ...] = ("onnx-shared",)  # those of codebooks
# Targets whose file holds floats alone.
FLOATS = ("onnx", "onnx-fp16", "tflite", "tflite-fp16", "onnx-sparse", "executorch")
HALVES = frozenset({"onnx-fp16", "tflite-fp16"})  # those of 16 bits, which runtimes widen
SPARSE = "onnx-sparse"  # the one that leaves zeros out
# Bytes of a mask's nodes and names beside its bits and the survivors; those of indices are in `SHARED_OVERHEAD`.
# Measured on written files.
MASK_OVERHEAD = 330
# Those whose file computes in integers: a layer that keeps its floats would cost time, and is not on offer.
STATIC = frozenset({"onnx-int8", "tflite-int8", "mcu", "executorch-int8"})
# TFLite files of integers, in which narrow layers have one scale for all rows; see `NARROW`.
ONE_SCALE = frozenset({"tflite-int8", "mcu"})
# Bytes a layer of an ONNX file in integers adds beside those of its weight: Q and D of what it gives, with their scale,
# and the D of its bias, whose rows have scales too. Measured on written files.
QDQ_OVERHEAD, QDQ_ROW = 200, 4
# Bytes a weight of integers adds beside them and its scales: a DequantizeLinear node, its names, the scales' header.
# Measured on written files (61 for a convolution and a Gemm, 48 for a MatMul, whose axis is the default).
WIDTH_OVERHEAD = 61
# The same of indices beside them and the codebook's values: five nodes that unpack them, their names and the shape; two
# more where the last byte is not full; only two in all where an index is a byte. Measured on written files of four
# dense layers and four convolutions at 1 to 7 bits (246 to 266, 315 to 334 with the rest) and at 8 (70).
SHARED_OVERHEAD, SHARED_REST, SHARED_BYTES = 255, 70, 70


def params(form: Form, geometry: Geometry) -> int:
    """Number of stored weights, bias left out.

    >>> import numpy as np
    >>> from smidgen.forms import Dense
    >>> params(Dense(np.zeros((20, 30))), Geometry("linear", 30, 20))
    600
    """
    return sum(stage.params for stage in stages(form, geometry))


def macs(form: Form, geometry: Geometry) -> int:
    """Multiplications for one sample."""
    return sum(stage.macs for stage in stages(form, geometry))


def nbytes(form: Form, geometry: Geometry, target: str = "onnx", bits: int | None = None) -> int:
    """Bytes the form takes in a target's file, its layers' own overhead included.

    Args:
        form: how the weight is stored.
        geometry: the layer it replaces.
        target: name of the file kind: one of `FLOATS` or one of `WIDTHS`.
        bits: width of all its leaves, for a form whose integers are not known yet.

    Raises:
        ValueError: for a target without a byte model.
    """
    if target not in FLOATS and target not in WIDTHS:
        known = ", ".join([*FLOATS, *WIDTHS])
        raise ValueError(f"nbytes: no byte model for target {target!r}; use one of {known}")
    return sum(_stage_nbytes(s, bits or width(s.weight, target), target) for s in stages(form, geometry))


def widths(geometry: Geometry, target: str) -> tuple[int, ...]:
    """Widths of integers that a layer can take in a target's file.

    LiteRT runs convolutions of four bits without XNNPACK, half as fast as of eight; dense layers as fast.

    >>> widths(Geometry("linear", 30, 20), "tflite-int8"), widths(Geometry("conv", 3, 2, (3, 3)), "tflite-int8")
    ((4, 8), (8,))
    """
    found = WIDTHS.get(target, ())
    return found if target not in STATIC or geometry.kind == "linear" else tuple(b for b in found if b >= 8)


def narrow(geometry: Geometry) -> bool:
    """Whether a layer has so few columns that a scale for each row costs more than it gains; see `NARROW`."""
    return geometry.groups == 1 and geometry.columns <= NARROW


def width(form: Form, target: str) -> int | None:
    """Bits of each integer or index of a leaf in a target's file; None where the file holds its floats.

    >>> leaf = Quantized(np.array([[7, -3]]), np.zeros(1, np.int32), np.zeros(1, np.int32))
    >>> width(leaf, "onnx-w4"), width(leaf, "onnx-w8"), width(leaf, "onnx")
    (4, 8, None)
    """
    if isinstance(form, Codebook):
        return form.bits if target in SHARED else None
    # A runtime multiplies by one scale a row; several columns' scales it has no place for.
    if target in SHARED or not isinstance(form, Quantized) or len(form.column) > 1:
        return None
    largest = int(np.abs(form.integers).max(initial=0))
    return next((bits for bits in WIDTHS.get(target, ()) if largest < 2 ** (bits - 1)), None)


def _stage_nbytes(stage: Stage, bits: int | None, target: str) -> int:
    g = stage.geometry
    if target in ONE_SCALE:
        # A weight that has no integers yet is rounded as it is written.
        least = 8 if narrow(g) else widths(g, target)[0]
        return _static_nbytes(stage, max(bits or 8, least))
    if target == "executorch-int8":
        return stage.params + EXECUTORCH_ROW * g.out_channels + EXECUTORCH_INT8_OVERHEAD
    extra = 0
    if target == "onnx-int8":
        bits, extra = bits or 8, QDQ_OVERHEAD + QDQ_ROW * g.out_channels
    if bits is None and target.startswith("tflite"):
        return _float_nbytes(stage.params, target) + TFLITE_OVERHEAD
    if bits is None and target == "executorch":
        return FLOAT_BYTES * stage.params + EXECUTORCH_OVERHEAD
    if target == "onnx" and stage.algorithm != DIRECT:
        from smidgen.forms.fastconv import fast_nbytes  # torch, which unpacking an archive does without

        return fast_nbytes(stage)
    if bits is None:
        floats = _float_nbytes(stage.params, target)
        if target == SPARSE and isinstance(stage.weight, Masked):
            floats = min(floats, masked_nbytes(stage.params, stage.weight.survivors))
        return floats + LAYER_OVERHEAD[g.kind]
    # Integers of four bits lie two in a byte; each row has a float32 scale.
    weights = -(-stage.params * bits // 8)
    if target in SHARED:
        nodes = SHARED_BYTES if bits == 8 else SHARED_OVERHEAD + SHARED_REST * (stage.params * bits % 8 > 0)
        return weights + FLOAT_BYTES * min(2**bits, stage.params) + nodes + LAYER_OVERHEAD[g.kind]
    return weights + FLOAT_BYTES * g.out_channels + WIDTH_OVERHEAD + LAYER_OVERHEAD[g.kind] + extra


def _float_nbytes(weights: int, target: str) -> int:
    return HALF_BYTES * weights + HALF_OVERHEAD if target in HALVES else FLOAT_BYTES * weights


def masked_nbytes(weights: int, survivors: int, bits: int | None = None) -> int:
    """Bytes of a mask and what it leaves, floats or indices of so many bits, in an ONNX file without zeros.

    >>> masked_nbytes(8000, 1000) - MASK_OVERHEAD
    5004
    """
    values = FLOAT_BYTES * (survivors + 1)
    if bits is not None:
        values = -(-(survivors + 1) * bits // 8) + FLOAT_BYTES * 2**bits + SHARED_OVERHEAD
    return -(-weights // 8) + values + MASK_OVERHEAD


def masked_pays(weights: int, survivors: int, bits: int | None = None) -> bool:
    """Whether a mask makes the file smaller than the weight's floats do.

    >>> masked_pays(8000, 4000), masked_pays(8000, 7999)
    (True, False)
    """
    return masked_nbytes(weights, survivors, bits) < FLOAT_BYTES * weights


def _static_nbytes(stage: Stage, bits: int) -> int:
    rows = 1 if narrow(stage.geometry) else stage.geometry.out_channels
    return -(-stage.params * bits // 8) + TFLITE_ROW * rows + TFLITE_INT8_OVERHEAD
