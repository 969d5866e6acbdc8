"""One node held against ONNX's own definition of its operator: arity, attributes, element types."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import AttributeProto, NodeProto
from onnx.defs import OpSchema

from .tensors import DTYPES, read_tensor
from .values import Malformed

_ONNX_TYPE = {
    torch_type: "tensor(" + {"double": "double", "float": "float"}.get(name, name) + ")"
    for code, torch_type in DTYPES.items()
    for name in [onnx.TensorProto.DataType.Name(code).lower()]
}
_OPTIONAL = OpSchema.FormalParameterOption.Optional
_VARIADIC = OpSchema.FormalParameterOption.Variadic


@lru_cache(maxsize=1024)
def schema_of(op: str, opset: int) -> OpSchema | None:
    """ONNX's definition of `op` as of `opset`, or None where there is none."""
    try:
        return onnx.defs.get_schema(op, opset, "")
    except onnx.defs.SchemaError:
        return None


def read_attributes(node: NodeProto, schema: OpSchema, folder: Path | None) -> dict[str, Any]:
    """Attributes as plain values, checked against the schema.

    Raises:
        Malformed: unknown, doubled, missing or of the wrong type.
    """
    values: dict[str, Any] = {}
    for attribute in node.attribute:
        name = attribute.name
        if name not in schema.attributes:
            raise Malformed(f"it has no attribute {name!r}")
        if name in values:
            raise Malformed(f"attribute {name!r} is given twice")
        wanted: Any = schema.attributes[name].type
        if attribute.type != int(wanted) or attribute.ref_attr_name:
            raise Malformed(f"attribute {name!r} must be of type {str(wanted).rpartition('.')[2]}")
        values[name] = _plain(attribute, folder)
    for name, attribute in schema.attributes.items():
        if attribute.required and name not in values:
            raise Malformed(f"attribute {name!r} is missing")
    return values


def _plain(attribute: AttributeProto, folder: Path | None) -> Any:
    kind = attribute.type
    if kind == AttributeProto.INT:
        return int(attribute.i)
    if kind == AttributeProto.FLOAT:
        return float(attribute.f)
    if kind == AttributeProto.STRING:
        return _text(attribute.s)
    if kind == AttributeProto.INTS:
        return [int(value) for value in attribute.ints]
    if kind == AttributeProto.FLOATS:
        return [float(value) for value in attribute.floats]
    if kind == AttributeProto.STRINGS:
        return [_text(value) for value in attribute.strings]
    if kind == AttributeProto.TENSOR:
        return read_tensor(attribute.t, folder)
    raise Malformed(f"attribute {attribute.name!r} holds a graph, a type or a sparse tensor, which is not supported")


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise Malformed(f"text {raw[:32]!r} is not UTF-8") from None


def check_operands(schema: OpSchema, dtypes: list[torch.dtype | None], outputs: int) -> None:
    """Number and element types of the operands (None where one is left out) and number of outputs.

    Raises:
        Malformed: too few, too many, or types the operator does not take together.
    """
    if not schema.min_input <= len(dtypes) <= schema.max_input:
        raise Malformed(f"{len(dtypes)} operands; it takes {schema.min_input} to {schema.max_input}")
    if not schema.min_output <= outputs <= schema.max_output:
        raise Malformed(f"{outputs} outputs; it gives {schema.min_output} to {schema.max_output}")
    bound: dict[str, torch.dtype] = {}
    for index, dtype in enumerate(dtypes):
        parameter = schema.inputs[min(index, len(schema.inputs) - 1)]
        if dtype is None:
            if parameter.option != _OPTIONAL:
                raise Malformed(f"operand {parameter.name!r} is missing")
            continue
        name = _ONNX_TYPE[dtype]
        if parameter.types and name not in parameter.types:
            raise Malformed(f"operand {parameter.name!r} is a {name}, which it does not take")
        homogeneous = parameter.option != _VARIADIC or parameter.is_homogeneous
        if homogeneous and bound.setdefault(parameter.type_str, dtype) != dtype:
            raise Malformed(f"operand {parameter.name!r} is a {name} beside a {_ONNX_TYPE[bound[parameter.type_str]]}")
