"""How a layer's weight is stored: a closed set of frozen numpy forms.

    Dense                     the array itself; the leaf every other form is built from
    LowRank(v, u, core)       W = U·V or U·C·V: two or three plain layers in a chain
    CP(inp, kernel, out)      one convolution as 1x1, d x 1 depthwise, 1 x d depthwise, 1x1
    Spatial(v, u)             one convolution as d x 1, 1 x d
    Tucker2(inp, core, out)   one convolution as 1x1, a smaller one with the same window, 1x1
    Quantized                 integers and scales; a leaf as Dense is
    Codebook                  a few values and which of them each weight is; a leaf as Dense is
    Masked                    floats, most of them removed; a leaf as Dense is

Forms nest: every part is itself a form. What a form costs and what it computes is derived from the form by one
function each: `dense`, `stages`, `nbytes`, `macs`, `params`; never by the method that found it.
"""

from smidgen.forms.cost import (
    FLOATS,
    HALVES,
    NARROW,
    ONE_SCALE,
    SHARED,
    SPARSE,
    STATIC,
    WIDTHS,
    macs,
    masked_pays,
    nbytes,
    params,
    width,
    widths,
)
from smidgen.forms.geometry import Geometry
from smidgen.forms.rebuild import dense, describe, leaves, rank, replace_last, reshaped, shape, with_leaves
from smidgen.forms.scales import nearest_exponents, scales
from smidgen.forms.stages import Stage, stages
from smidgen.forms.types import (
    CP,
    DIRECT,
    Codebook,
    Dense,
    Form,
    Leaf,
    LowRank,
    Masked,
    Quantized,
    Spatial,
    Tucker2,
    hollow,
)

__all__ = [
    "CP", "DIRECT", "FLOATS", "HALVES", "NARROW", "ONE_SCALE",
    "SHARED", "SPARSE", "STATIC", "WIDTHS", "Codebook", "Dense", "Form",
    "Geometry", "Leaf", "LowRank", "Masked", "Quantized", "Spatial", "Stage", "Tucker2", "dense", "describe",
    "hollow", "leaves", "macs", "masked_pays", "nbytes", "nearest_exponents", "params", "rank", "replace_last",
    "reshaped", "scales", "shape", "stages", "width", "widths",
    "with_leaves",
]  # fmt: skip
