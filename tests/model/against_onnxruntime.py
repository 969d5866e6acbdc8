"""What onnxruntime answers, and whether the import of a graph answers alike."""

from __future__ import annotations

import numpy as np
import onnxruntime
import torch

from smidgen.model.onnx import Imported, import_model


def run_onnxruntime(content, feeds):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # its notes on initializers listed as inputs
    content = content if isinstance(content, (str, bytes)) else content.SerializeToString()
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"]).run(None, feeds)


def outputs_of(module, *inputs):
    with torch.no_grad():
        result = module(*inputs)
    return result if isinstance(result, tuple) else (result,)


def assert_agrees(model, *arrays) -> Imported:
    """The import answers as onnxruntime does."""
    loaded = import_model(model)
    feeds = {spec.name: array for spec, array in zip(loaded.inputs, arrays, strict=True)}
    ours = outputs_of(loaded.module, *[torch.from_numpy(array) for array in arrays])
    for mine, wanted in zip(ours, run_onnxruntime(model, feeds), strict=True):
        assert tuple(mine.shape) == wanted.shape
        np.testing.assert_allclose(mine.numpy(), wanted, atol=1e-4 * max(abs(wanted).max(initial=0), 1e-3), rtol=1e-4)
    return loaded


def exported(loaded: Imported, x):
    dynamic = {spec.name: {0: torch.export.Dim("b", min=1, max=64)} for spec in loaded.inputs}
    return torch.export.export(loaded.module, (x,), dynamic_shapes=dynamic)
