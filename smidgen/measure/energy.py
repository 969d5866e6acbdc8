"""Energy of one inference, estimated where no counter tells it: a number to compare files by, not a device's joules.

    E = MACs(float32) · 4.6 pJ + MACs(int8) · 0.3 pJ + bytes of weights · 244 pJ

by M. Horowitz, "Computing's energy problem", ISSCC 2014, doi:10.1109/ISSCC.2014.6757323, for a 45 nm process at 0.9 V.
Every stored weight is taken to come from DRAM once; activations are taken to stay on the chip, and instructions, which
cost a general processor some 70 pJ each, are not counted.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx.inliner

from smidgen.measure.cost import COUNTED, node_macs, tensor_types
from smidgen.measure.files import read_onnx

SOURCE = "estimate: 45 nm figures of doi:10.1109/ISSCC.2014.6757323, weights read from DRAM once, activations on chip"
# Picojoules, from the paper's table: a multiplication and an addition.
FLOAT_MAC = 3.7 + 0.9  # 32-bit floating point
INT8_MAC = 0.2 + 0.1  # 8-bit multiplication, 32-bit addition
DRAM_BYTE = (1300 + 2600) / 2 / 8  # 64 bits are given as 1.3 to 2.6 nJ
_INTEGER = frozenset({"QLinearConv", "ConvInteger", "QLinearMatMul", "MatMulInteger"})


@dataclass(frozen=True)
class Energy:
    """Estimated joules of one inference."""

    compute_joules: float
    memory_joules: float

    @property
    def joules(self) -> float:
        return self.compute_joules + self.memory_joules

    def as_dict(self) -> dict[str, Any]:
        """Plain values, labelled as the estimate that they are."""
        return {"joules": self.joules, **asdict(self), "source": SOURCE}


def estimate(float_macs: int, int8_macs: int, weight_nbytes: int) -> Energy:
    """Energy of so many multiply-accumulates and bytes of weights.

    >>> round(estimate(1_000_000, 0, 4_000).joules * 1e6, 3), round(estimate(0, 1_000_000, 1_000).joules * 1e6, 3)
    (5.575, 0.544)
    """
    picojoules = FLOAT_MAC * float_macs + INT8_MAC * int8_macs
    return Energy(picojoules * 1e-12, DRAM_BYTE * weight_nbytes * 1e-12)


def onnx_energy(path: str | Path) -> Energy | None:
    """Estimated energy of an ONNX file for one sample; None where its multiplications cannot be counted.

    A product of what a QuantizeLinear made counts as one of integers: runtimes fuse it so.

    Args:
        path: an ONNX file.

    Raises:
        LoadError: when it cannot be read.
    """
    model = read_onnx(path)
    graph = model.graph
    if any(given.type == onnx.AttributeProto.GRAPH for node in graph.node for given in node.attribute):
        return None
    makers = {name: node for node in graph.node for name in node.output}
    shapes = {name: shape for name, (shape, _) in tensor_types(model).items()}
    macs = {"float": 0, "int8": 0}
    for node in graph.node:
        if node.op_type in COUNTED:
            count = node_macs(node, shapes)
            if count is None:
                return None
            macs["int8" if _in_integers(node, makers) else "float"] += count
    return estimate(macs["float"], macs["int8"], sum(_nbytes(each) for each in graph.initializer))


def _in_integers(node: onnx.NodeProto, makers: dict[str, onnx.NodeProto]) -> bool:
    if node.op_type in _INTEGER:
        return True
    maker = makers.get(node.input[0])
    source = makers.get(maker.input[0]) if maker is not None and maker.op_type == "DequantizeLinear" else None
    return source is not None and source.op_type != "Constant"


def _nbytes(tensor: onnx.TensorProto) -> int:
    """Bytes that a stored tensor takes, two 4-bit integers in one of them."""
    kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    count = 1
    for side in tensor.dims:
        count *= side
    four_bits = tensor.data_type in (onnx.TensorProto.INT4, onnx.TensorProto.UINT4)
    return (count + 1) // 2 if four_bits else count * kind.itemsize
