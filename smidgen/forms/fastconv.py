"""How a fast algorithm computes a layer: from its geometry to the matrices of `smidgen.numerics.fastconv`."""

from __future__ import annotations

from functools import lru_cache

from smidgen.errors import Refusal
from smidgen.forms.geometry import Geometry
from smidgen.forms.stages import Stage
from smidgen.forms.types import DIRECT
from smidgen.numerics.fastconv import Bilinear, fourier, winograd

# Outputs m of F(m, r), by the algorithm's name; None is no Winograd.
ALGORITHMS: dict[str, int | None] = {"winograd2": 2, "winograd4": 4, "fft": None}
# Points of Winograd's transform along an axis: beyond, the answers lose more than 1e-4 in float32 (F(4, 7): 7e-4).
MOST_POINTS = 8
# Bytes of a fast convolution's nodes; more where a map is cut into windows, and for each of them along an axis.
# Measured on written files: 1,220 with one window, 2,100 with 2 × 2, 3,460 with 8 × 8, 6,780 with 6 × 28.
OVERHEAD, CUT, WINDOW = 1220, 430, 120


@lru_cache(maxsize=256)
def plan_layer(geometry: Geometry, algorithm: str) -> Bilinear:
    """How an algorithm computes a layer.

    Args:
        geometry: of the layer.
        algorithm: one of `ALGORITHMS`.

    Raises:
        Refusal: it does not cover such a layer; the message is the reason.
    """
    outputs = ALGORITHMS[algorithm]
    return plan_fft(geometry) if outputs is None else plan_winograd(geometry, outputs)


def fast_plan(stage: Stage) -> Bilinear | None:
    """How a stage of a form is computed; None where directly.

    Args:
        stage: one for whose layer there is a plan.
    """
    return None if stage.algorithm == DIRECT else plan_layer(stage.geometry, stage.algorithm)


def fast_nbytes(stage: Stage) -> int:
    """Bytes in an ONNX file of a transformed kernel, of the matrices that transform maps, and of the nodes.

    Args:
        stage: one that is not computed directly.
    """
    plan = plan_layer(stage.geometry, stage.algorithm)
    # Equal ones are stored once: on square maps Winograd's are the same for both axes.
    kept = {(m.shape, m.tobytes()): m.size for m, skip in zip(plan.along, plan.plain, strict=True) if not skip}
    numbers = plan.growth * stage.params + sum(kept.values())
    cut = 0 if plan.windows == 1 else CUT + WINDOW * (plan.rows.blocks + plan.cols.blocks)
    return round(4 * numbers) + OVERHEAD + cut


def plan_winograd(geometry: Geometry, outputs: int) -> Bilinear:
    """Winograd's algorithm for a layer; see `plan_layer`."""
    _covered(geometry)
    if outputs + max(geometry.kernel) - 1 > MOST_POINTS:
        raise Refusal(f"F({outputs}, {max(geometry.kernel)}) loses too many digits; at most {MOST_POINTS} points")
    return winograd(_two(geometry.in_size), _two(geometry.kernel), _two(geometry.padding), outputs)


def plan_fft(geometry: Geometry) -> Bilinear:
    """Fourier's for a layer; see `plan_layer`."""
    _covered(geometry)
    channels = geometry.in_channels, geometry.out_channels
    return fourier(_two(geometry.in_size), _two(geometry.kernel), _two(geometry.padding), channels)


def _covered(g: Geometry) -> None:
    """Refusal where neither algorithm computes such a layer."""
    if g.kind != "conv" or len(g.kernel) != 2:
        raise Refusal("no convolution of two axes")
    if g.groups > 1:
        raise Refusal(f"{g.groups} groups")
    if max(g.kernel) == 1:
        raise Refusal("1×1 kernel, a plain product already")
    for what, values in (("stride", g.stride), ("dilation", g.dilation)):
        if max(values) > 1:
            raise Refusal(f"{what} {'×'.join(map(str, values))}")


def _two(values: tuple[int, ...]) -> tuple[int, int]:
    first, second = values
    return first, second
