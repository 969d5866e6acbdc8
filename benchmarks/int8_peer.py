"""NNCF's static int8 of an ONNX file, run in an environment of its own (NNCF is no dependency).

python int8_peer.py model.onnx calibration.npy out.onnx
"""

from __future__ import annotations

import sys

import nncf
import numpy as np
import onnx

SAMPLES = 300  # NNCF's own default


def main() -> None:
    model_path, inputs_path, out_path = sys.argv[1:]
    model = onnx.load(model_path)
    name = model.graph.input[0].name
    inputs = np.load(inputs_path, allow_pickle=False)
    data = nncf.Dataset([{name: x[None]} for x in inputs])
    onnx.save(nncf.quantize(model, data, subset_size=SAMPLES), out_path)


if __name__ == "__main__":
    main()
