"""ONNX files as trainable torch networks.

reading      bytes → checked model          schemas    a node against its operator's definition
tensors      stored tensors, size-checked   registry   operator → importing function
whole        one file of several
importing    the walk over the graph        builder    partial evaluation into an fx graph
operators/   one function an operator, one file a family
"""

from __future__ import annotations

from .importing import Imported, InputSpec, import_model, load_onnx
from .registry import supported_operators
from .whole import whole_onnx

__all__ = ["Imported", "InputSpec", "import_model", "load_onnx", "supported_operators", "whole_onnx"]
