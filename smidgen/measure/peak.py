"""The memory that the activations of a written file take at once, whatever kind of file it is."""

from __future__ import annotations

from pathlib import Path

from smidgen.measure.activations import Peak, peak_activations


def peak_of(path: str | Path) -> Peak | None:
    """`peak_activations` of a file of any kind; None of one whose layers are compiled.

    Args:
        path: an ONNX or a TFLite file, or another.

    Raises:
        LoadError: when it cannot be read.
    """
    if Path(path).suffix == ".tflite":
        from smidgen.measure.tflite_activations import tflite_peak  # LiteRT's schema is optional

        return tflite_peak(path)
    return peak_activations(path) if Path(path).suffix == ".onnx" else None
