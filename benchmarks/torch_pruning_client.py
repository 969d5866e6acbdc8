"""torch-pruning's one-shot pruner on one network: run with a Python that has torch-pruning, smidgen on its path.

    python benchmarks/torch_pruning_client.py MODEL.onnx FOLDER 0.8 0.65 0.5

Writes FOLDER/<share>.onnx for each share of the multiply-accumulates, and prints one JSON line: what could not be done.
Global L2 importance as its documentation has it, channels rounded to 8, the classifier left alone.
"""

from __future__ import annotations

import copy
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch_pruning as tp
from mobile_peers import write_network

from smidgen.model.load import load_network

ROUND = 8
TRIES = 12  # of the ratio that leaves so many multiplications


def pruned(model: torch.nn.Module, example: torch.Tensor, ratio: float) -> tuple[torch.nn.Module, float]:
    """A network with that ratio of all channels cut, and the multiplications left."""
    result: Any = copy.deepcopy(model)
    last = [m for m in result.modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d))][-1]
    pruner = tp.pruner.MetaPruner(
        result, example, importance=tp.importance.MagnitudeImportance(p=2), global_pruning=True, pruning_ratio=ratio,
        ignored_layers=[last], round_to=ROUND,
    )  # fmt: skip
    pruner.step()
    return result, tp.utils.count_ops_and_params(result, example)[0]


def main() -> None:
    warnings.simplefilter("ignore")
    file, folder, shares = sys.argv[1], Path(sys.argv[2]), [float(share) for share in sys.argv[3:]]
    network = load_network(file)
    sizes = [side or 1 for side in network.input_shape[1:]]
    example, found = torch.rand(1, *sizes), {}
    for share in shares:
        try:
            whole = tp.utils.count_ops_and_params(network.module, example)[0]
            low, high, best = 0.0, 0.95, None
            for _ in range(TRIES):
                ratio = (low + high) / 2
                result, left = pruned(network.module, example, ratio)
                if left <= share * whole:
                    high, best = ratio, result
                else:
                    low = ratio
            if best is None:
                raise ValueError("no ratio leaves so few")
            write_network(best, folder / f"{share:g}.onnx", tuple(sizes))
            found[f"{share:g}"] = "done"
        except Exception as error:  # whatever it is, it is what the table tells
            found[f"{share:g}"] = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
    print(json.dumps(found))


if __name__ == "__main__":
    main()
