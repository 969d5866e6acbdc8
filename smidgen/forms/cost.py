"""What a form costs: bytes in a target's file, weights, multiplications."""

from __future__ import annotations

from smidgen.forms.geometry import Geometry
from smidgen.forms.stages import stages
from smidgen.forms.types import Form

# Bytes one layer adds to a stripped ONNX file beside its weights: node, attributes, tensor header and short names.
# Measured on files written by smidgen.export (106 for a convolution, 58 for a Gemm); the difference does not matter.
LAYER_OVERHEAD = {"linear": 60, "conv": 105, "conv_transpose": 120}
FLOAT_BYTES = 4


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


def nbytes(form: Form, geometry: Geometry, target: str = "onnx") -> int:
    """Bytes the form takes in a target's file, its layers' own overhead included.

    Args:
        form: how the weight is stored.
        geometry: the layer it replaces.
        target: name of the file kind; float32 ``onnx`` is the one there is.

    Raises:
        ValueError: for a target without a byte model.
    """
    if target != "onnx":
        raise ValueError(f"nbytes: no byte model for target {target!r}; use 'onnx'")
    return sum(FLOAT_BYTES * s.params + LAYER_OVERHEAD[s.geometry.kind] for s in stages(form, geometry))
