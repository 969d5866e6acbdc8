"""Accuracy against file size, drawn so that it reads in grey and with any colour vision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

# Okabe and Ito's palette (Color Universal Design, 2008); every curve has a marker and a dash of its own too.
STYLES = (
    ("#0072B2", "o", "-"), ("#D55E00", "s", "--"), ("#009E73", "^", "-."), ("#CC79A7", "D", ":"),
    ("#E69F00", "v", (0, (6, 1))), ("#56B4E9", "P", (0, (3, 1, 1, 1, 1, 1))),
)  # fmt: skip
GREY = "#444444"


class Shown(Protocol):
    """A point of a curve: bytes of the file, and fractions."""

    @property
    def nbytes(self) -> int: ...
    @property
    def accuracy(self) -> float: ...
    @property
    def agreement(self) -> float: ...


def draw(
    path: Path,
    title: str,
    curves: Mapping[str, Sequence[Shown]],
    originals: Mapping[str, tuple[int, float]],
    *,
    measure: str = "accuracy",
    zoom: float = 2.0,
    asked: tuple[float, str] | None = None,
    file: str = "ONNX file",
) -> None:
    """Two panels over the same bytes: the whole range, and the last points below the original.

    Args:
        path: the PNG.
        title: over both panels.
        curves: points by legend entry.
        originals: bytes and score (a fraction) of the original, by legend entry.
        measure: "accuracy" or "agreement".
        zoom: points below the best original that the second panel shows.
        asked: size in bytes of a mark across the panels, and its name.
        file: what the bytes are of.
    """
    panes, axes = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    for axis in axes:
        for (name, points), (colour, marker, dash) in zip(curves.items(), STYLES, strict=False):
            shown = sorted({(p.nbytes, 100 * getattr(p, measure)) for p in points})
            axis.plot(*zip(*shown, strict=True), color=colour, marker=marker, linestyle=dash, ms=5, lw=1.5, label=name)
        for (name, (nbytes, score)), (colour, *_) in zip(originals.items(), STYLES, strict=False):
            label = "original" if len(originals) == 1 else f"original, {name}"
            axis.plot([nbytes], [100 * score], "*", color=colour, ms=14, mec="black", mew=0.8, label=label, zorder=5)
        if asked is not None:
            axis.axvline(asked[0], color=GREY, lw=1, ls=(0, (4, 3)), label=asked[1])
        _dress(axis, measure, f"bytes of the {file} (log scale)")
    best = 100 * max(score for _, score in originals.values())
    top = max([best, *(100 * getattr(p, measure) for points in curves.values() for p in points)])  # luck may exceed it
    axes[1].set_ylim(best - zoom, top + 0.12 * zoom)
    axes[0].set_title("whole range", fontsize=10)
    axes[1].set_title("the top point" if zoom == 1 else f"the top {zoom:g} points", fontsize=10)
    handles, labels = axes[0].get_legend_handles_labels()
    panes.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    panes.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    panes.savefig(path, dpi=150)
    plt.close(panes)


def panels(
    path: Path,
    title: str,
    networks: Mapping[str, Mapping[str, Sequence[Shown]]],
    originals: Mapping[str, float],
    zoom: Mapping[str, float],
) -> None:
    """A panel for each network: accuracy against bytes, the last points below the original.

    Args:
        path: the PNG.
        title: over all.
        networks: points by legend entry, by network; every network has the same entries.
        originals: accuracy in per cent, by network.
        zoom: points below the original that are shown, by network.
    """
    columns = min(2, len(networks))
    rows = -(-len(networks) // columns)
    panes, axes = plt.subplots(rows, columns, figsize=(5.5 * columns, 4.2 * rows), layout="constrained", squeeze=False)
    for axis in axes.ravel()[len(networks) :]:
        axis.remove()
    for axis, (network, curves) in zip(axes.ravel(), networks.items(), strict=False):
        for (name, points), (colour, marker, dash) in zip(curves.items(), STYLES, strict=False):
            shown = sorted((p.nbytes, 100 * p.accuracy) for p in points)
            axis.plot(*zip(*shown, strict=True) if shown else ([], []), color=colour, marker=marker, linestyle=dash,
                      ms=5, lw=1.5, label=name)  # fmt: skip
        axis.axhline(originals[network], color=GREY, lw=1, ls=(0, (4, 3)), label="original's accuracy")
        _dress(axis, "accuracy", "bytes (log scale)")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))  # a panel may span an octave
        axis.set_ylim(originals[network] - zoom[network], originals[network] + 0.35 * zoom[network])
        axis.set_title(network, fontsize=10)
    handles, labels = axes[0][0].get_legend_handles_labels()
    panes.legend(handles, labels, loc="outside lower center", ncols=2 * columns, frameon=False, fontsize=9)
    panes.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    panes.savefig(path, dpi=150)
    plt.close(panes)


def frontier(
    path: Path,
    title: str,
    curves: Mapping[str, Sequence[tuple[float, float, float]]],
    original: tuple[float, float, float],
    zoom: float,
) -> None:
    """Accuracy against multiply-adds, and against latency.

    Args:
        path: the PNG.
        title: over both panels.
        curves: (MACs, milliseconds, accuracy in per cent) of each point, by legend entry.
        original: the same of the original.
        zoom: points of accuracy below the original that are shown.
    """
    panes, axes = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained", sharey=True)
    for axis, cost, unit in ((axes[0], 0, 1e6), (axes[1], 1, 1.0)):
        for (name, points), (colour, marker, dash) in zip(curves.items(), STYLES, strict=False):
            shown = sorted({(point[cost] / unit, point[2]) for point in points})
            axis.plot(*zip(*shown, strict=True), color=colour, marker=marker, linestyle=dash, ms=5, lw=1.5, label=name)
        axis.plot([original[cost] / unit], [original[2]], "*", color=GREY, ms=14, mec="black", mew=0.8,
                  label="original", zorder=5)  # fmt: skip
        axis.grid(True, color="#dddddd", lw=0.6)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_xlim(left=0)
    axes[0].set_ylim(original[2] - zoom, original[2] + 0.1 * zoom)
    axes[0].set_ylabel("accuracy on the test inputs (%)")
    axes[0].set_xlabel("million multiply-adds of the file")
    axes[1].set_xlabel("milliseconds of one answer, all files timed in turn")
    handles, labels = axes[0].get_legend_handles_labels()
    panes.legend(handles, labels, loc="outside lower center", ncols=6, frameon=False, fontsize=9)
    panes.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    panes.savefig(path, dpi=150)
    plt.close(panes)


def layer_times(path: Path, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Layers computed otherwise: times as fast as the direct convolution, in onnxruntime and in torch.

    Args:
        path: the PNG.
        title: over both panels.
        rows: of benchmarks/fastconv.py, one for each layer.
    """
    panes, axes = plt.subplots(1, 2, figsize=(12, 0.24 * len(rows) + 2.2), layout="constrained", sharey=True)
    named = {"winograd2": "F(2×2)", "winograd4": "F(4×4)", "fft": "Fourier", "torch.fft": "torch.fft"}
    labels = [f"{c['kernel']}×{c['kernel']}  {c['channels']:>3}ch  {c['size']:>3}²" for c in (r["cell"] for r in rows)]
    places = [len(rows) - 1 - i for i in range(len(rows))]
    for axis, field, where in ((axes[0], "onnxruntime_ms", "ONNX Runtime"), (axes[1], "torch_ms", "torch")):
        for (name, told), (colour, marker, _) in zip(named.items(), STYLES, strict=False):
            shown = [
                (r[field]["direct"] / r[field][name], y) for r, y in zip(rows, places, strict=True) if name in r[field]
            ]
            if shown:
                axis.plot(*zip(*shown, strict=True), linestyle="", color=colour, marker=marker, ms=6, label=told)
        if field == "onnxruntime_ms":
            taken = [(r[field]["direct"] / r[field][r["picked"]], y) for r, y in zip(rows, places, strict=True)]
            axis.plot(*zip(*taken, strict=True), linestyle="", marker="o", ms=12, mfc="none", mec=GREY, label="picked")
        axis.axvline(1, color=GREY, lw=1, ls=(0, (4, 3)))
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_xlabel(f"times as fast as {where}'s own convolution (log scale)")
        axis.grid(True, color="#dddddd", lw=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(places, labels, family="monospace", fontsize=8)
    handles, told = axes[0].get_legend_handles_labels()
    more = [pair for pair in zip(*axes[1].get_legend_handles_labels(), strict=True) if pair[1] not in told]
    panes.legend([*handles, *(h for h, _ in more)], [*told, *(t for _, t in more)], loc="outside lower center", ncols=5,
                 frameon=False, fontsize=9)  # fmt: skip
    panes.suptitle(title, fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    panes.savefig(path, dpi=150)
    plt.close(panes)


def _dress(axis: Axes, measure: str, along: str) -> None:
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axis.xaxis.set_major_formatter(FuncFormatter(_size))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel(along)
    axis.set_ylabel(f"{measure} on the test inputs (%)" if measure == "accuracy" else "agreement with the original (%)")
    axis.grid(True, which="major", color="#dddddd", lw=0.6)
    axis.spines[["top", "right"]].set_visible(False)


def _size(nbytes: float, _position: int) -> str:
    return f"{nbytes / 1e6:g} MB" if nbytes >= 1e6 else f"{nbytes / 1e3:g} kB"
