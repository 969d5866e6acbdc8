"""A written file, reopened in its runtime, answers as the network it was written from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from smidgen.calibrate.answers import outputs_of
from smidgen.errors import VerificationError
from smidgen.runtimes.opening import open_file

TOLERANCE = 1e-3  # largest difference between the written file and the torch model, as a share of the largest output
# … where activations are rounded too: what is larger is a fault of the writing, what rounding costs is measured
STATIC_TOLERANCE = 0.5


def verify(
    model: nn.Module, path: Path, x: np.ndarray, threads: int, device: str = "cpu", tolerance: float = TOLERANCE
) -> None:
    """VerificationError where a written file answers otherwise than the network it was written from.

    Args:
        model: the network.
        path: its file.
        x: one input.
        threads: of the runtime.
        device: where the network lies.
        tolerance: largest difference, as a share of the largest output.
    """
    with torch.no_grad():
        answer = model(torch.from_numpy(x).to(device))
    expected = [a.cpu().numpy() for a in outputs_of(answer)]
    with open_file(path, threads) as runner:
        written = runner.run(x)
    for want, got in zip(expected, written, strict=True):
        worst, size = float(np.abs(want - got).max()), float(np.abs(want).max())
        if not worst <= tolerance * max(size, 1e-6):
            raise VerificationError(
                f"export: the written file differs from the network by {worst:.2g} (outputs up to {size:.2g}); "
                "please report this network"
            )
