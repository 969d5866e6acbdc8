"""NNCodec behind a pipe: runs in NNCodec's own environment, which needs an older numpy than smidgen.

`nncodec_client.py` starts it with `python -I`: without that, `import nncodec` would find the script beside this file.
Every line on stdin is a job in JSON, every line on stdout an answer; arrays go through .npz files, nothing is pickled.

    first   {"version": of NNCodec}
    job     {"arrays": npz, "out": npz, "settings": {…nncodec.nnc.compress…}}
    answer  {"nbytes": of the bitstream, "payload": {tensor: bytes of its arithmetic code}}, and in the npz
            "values/NAME" as decoded from the bitstream, "integers/NAME" as NNCodec's entropy coder takes them
    with "ioq" among the settings, before the answer: {"score": npz} asks for a number, the higher the better
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

try:
    import torchvision  # noqa: F401 - whether it loads is the question
except RuntimeError:
    # NNCodec imports it, and beside a torch of another build it misses two operators that nobody here calls.
    for _module in [module for module in sys.modules if module.partition(".")[0] == "torchvision"]:
        del sys.modules[_module]
    _OPERATORS = torch.library.Library("torchvision", "FRAGMENT")
    for _name in ("nms", "qnms"):
        _OPERATORS.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from nncodec import nnc
from nncodec.extensions import deepCABAC
from nncodec.nnc_core import coder, nnr_model
from nncodec.nnc_core.hdsp.hdsp_tool import HDSP_OPTS_OFF

# The eight states of dependent quantization: the next one, by an index's parity (ISO/IEC 15938-17, Trellis8States).
NEXT_STATE = ((0, 2), (7, 5), (1, 3), (6, 4), (2, 0), (5, 7), (3, 1), (4, 6))
# As nncodec.nnc.compress has them.
UNARY_LENGTH, PROFILE = 11, 1
ANSWERS = sys.stdout


class Quality(nnr_model.ModelExecute):
    """What input-dependent quantization asks for a network's quality: the process at the other end of the pipe."""

    def __init__(self, place: str) -> None:
        self.place = place

    def eval_model(self, parameters: Mapping[str, np.ndarray], verbose: bool = False) -> dict[str, float]:
        np.savez(self.place, **parameters)
        tell({"score": self.place})
        return {"score": float(json.loads(sys.stdin.readline()))}

    def has_eval(self) -> bool:
        return True

    def has_test(self) -> bool:
        return False

    def has_tune_ft(self) -> bool:
        return False

    def has_tune_lsa(self) -> bool:
        return False


def tell(answer: Mapping[str, Any]) -> None:
    """One line to the other end."""
    print(json.dumps(answer), file=ANSWERS, flush=True)


def answer(job: Mapping[str, Any]) -> dict[str, Any]:
    """Compress, decompress, and look at what the entropy coder was given."""
    with np.load(job["arrays"]) as file:
        arrays = {name: file[name] for name in file.files}
    settings = dict(job["settings"])
    if settings.get("ioq"):
        settings["model_executer"] = Quality(job["out"])
    given: dict[str, Any] = {}
    encode = coder.encode

    def spied(enc_info: Any, model_info: Any, approx_data: Any, **more: Any) -> Any:
        given.update(approx_data)  # the last call is the one that counts
        return encode(enc_info, model_info, approx_data, **more)

    coder.encode = spied
    try:
        stream = nnc.compress(arrays, bitstream_path=None, return_bitstream=True, **settings)
    finally:
        coder.encode = encode
    values = nnc.decompress(bytearray(stream))
    integers, payload = {}, {}
    for name, levels in given["parameters"].items():
        dependent = bool(given["dq_flag"][name])
        integers[name] = indices(levels) if dependent else levels
        payload[name] = code_nbytes(levels, dependent)
    np.savez(job["out"], **{f"values/{k}": v for k, v in values.items()},
             **{f"integers/{k}": v for k, v in integers.items()})  # fmt: skip
    return {"nbytes": len(stream), "payload": payload}


def code_nbytes(levels: np.ndarray, dependent: bool) -> int:
    """Bytes of a tensor's arithmetic code alone, without unit header, shape or step; the better with or without rows
    of zeros skipped."""
    flat = np.ascontiguousarray(levels, np.int32)
    zero_rows = np.array([not row.any() for row in flat] if flat.ndim > 1 else np.zeros(len(flat)), np.int32)
    sizes = []
    for skip in (0, 1):
        encoder = deepCABAC.Encoder()
        encoder.initCtxModels(UNARY_LENGTH, 1)
        encoder.encodeLayer(flat, int(dependent), 0, PROFILE, 0, skip, zero_rows, *HDSP_OPTS_OFF(), 0, 0)
        sizes.append(len(encoder.finish()))
    return min(sizes)


def indices(levels: np.ndarray) -> np.ndarray:
    """The integers that are coded, from the multiples of half the step that dependent quantization makes of them:
    level = 2·index − sign(index)·(state & 1)."""
    state, found = 0, []
    for level in levels.ravel().tolist():
        odd = state & 1
        index = (level + odd) >> 1 if level > 0 else -((odd - level) >> 1) if level < 0 else 0
        found.append(index)
        state = NEXT_STATE[state][index & 1]
    return np.array(found, np.int32).reshape(levels.shape)


def main() -> None:
    sys.stdout = sys.stderr  # NNCodec prints
    tell({"version": version("nncodec")})
    for line in sys.stdin:
        tell(answer(json.loads(line)))


if __name__ == "__main__":
    main()
