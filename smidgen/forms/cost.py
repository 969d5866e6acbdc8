"""What a form costs: bytes in a target's file, weights, multiplications."""

from __future__ import annotations

import numpy as np

from smidgen.forms.geometry import Geometry
from smidgen.forms.stages import Stage, stages
from smidgen.forms.types import Codebook, Form, Quantized

# Bytes one layer adds to a stripped ONNX file beside its weights: node, attributes, tensor header and short names.
# Measured on files written by smidgen.export (106 for a convolution, 58 for a Gemm); the difference does not matter.
LAYER_OVERHEAD = {"linear": 60, "conv": 105, "conv_transpose": 120}
FLOAT_BYTES = 4
# Widths of integers, or of indices into a codebook, that a target's file can hold beside floats, the narrowest first.
WIDTHS: dict[str, tuple[int, ...]] = {"onnx-w8": (8,), "onnx-w4": (4, 8), "onnx-shared": (1, 2, 3, 4, 5, 6, 7, 8)}
SHARED: tuple[str, ...] = ("onnx-shared",)  # those of codebooks
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
        target: name of the file kind: float32 ``onnx``, or one of `WIDTHS`.
        bits: width of all its leaves, for a form whose integers are not known yet.

    Raises:
        ValueError: for a target without a byte model.
    """
    if target != "onnx" and target not in WIDTHS:
        raise ValueError(f"nbytes: no byte model for target {target!r}; use one of onnx, {', '.join(WIDTHS)}")
    return sum(_stage_nbytes(s, bits or width(s.weight, target), target in SHARED) for s in stages(form, geometry))


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


def _stage_nbytes(stage: Stage, bits: int | None, shared: bool) -> int:
    kind = stage.geometry.kind
    if bits is None:
        return FLOAT_BYTES * stage.params + LAYER_OVERHEAD[kind]
    # Integers of four bits lie two in a byte; each row has a float32 scale.
    weights = -(-stage.params * bits // 8)
    if shared:
        nodes = SHARED_BYTES if bits == 8 else SHARED_OVERHEAD + SHARED_REST * (stage.params * bits % 8 > 0)
        return weights + FLOAT_BYTES * min(2**bits, stage.params) + nodes + LAYER_OVERHEAD[kind]
    return weights + FLOAT_BYTES * stage.geometry.out_channels + WIDTH_OVERHEAD + LAYER_OVERHEAD[kind]
