"""smidgen: make trained neural networks small enough for phones, Raspberry Pis and microcontrollers.

>>> import smidgen
>>> smidgen.Budget(size="200 kB").nbytes
200000
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smidgen.budget import Budget
    from smidgen.data import Dataset, Preprocess, open_data
    from smidgen.errors import SmidgenError, UserError
    from smidgen.export.archive import unpack
    from smidgen.model.load import load_network
    from smidgen.model.replace import rebuild_network
    from smidgen.pipeline import apply, compress
    from smidgen.pipeline.bench import bench
    from smidgen.pipeline.bundle import bundle, merge
    from smidgen.pipeline.distil import distil
    from smidgen.pipeline.downsample import downsample
    from smidgen.pipeline.fastconv import fastconv
    from smidgen.pipeline.glimpse import glimpse
    from smidgen.pipeline.prune import prune
    from smidgen.pipeline.sweep import sweep
    from smidgen.pipeline.transfer import transfer
    from smidgen.recover.training import Training
    from smidgen.report.result import Result
    from smidgen.report.sweep import Mark, Sweep

# Public names and where they live: loaded on first use, so that importing smidgen does not import torch.
_HOMES = {
    "Budget": "budget",
    "Dataset": "data",
    "Mark": "report.sweep",
    "Preprocess": "data",
    "Result": "report.result",
    "SmidgenError": "errors",
    "Sweep": "report.sweep",
    "Training": "recover.training",
    "UserError": "errors",
    "apply": "pipeline",
    "bench": "pipeline.bench",
    "bundle": "pipeline.bundle",
    "compress": "pipeline",
    "distil": "pipeline.distil",
    "downsample": "pipeline.downsample",
    "fastconv": "pipeline.fastconv",
    "glimpse": "pipeline.glimpse",
    "load_network": "model.load",
    "merge": "pipeline.bundle",
    "open_data": "data",
    "prune": "pipeline.prune",
    "rebuild_network": "model.replace",
    "sweep": "pipeline.sweep",
    "transfer": "pipeline.transfer",
    "unpack": "export.archive",
}

__all__ = [
    "Budget", "Dataset", "Mark", "Preprocess", "Result", "SmidgenError", "Sweep", "Training", "UserError",
    "apply", "bench", "bundle", "compress", "distil", "downsample", "fastconv", "glimpse", "load_network", "merge",
    "open_data", "prune", "rebuild_network", "sweep", "transfer", "unpack",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'smidgen' has no attribute {name!r}")
    return getattr(importlib.import_module(f"smidgen.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
