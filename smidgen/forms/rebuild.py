"""What a form stands for: the full weight, its leaves, and a short name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from smidgen.forms.scales import scales
from smidgen.forms.types import CP, Dense, Form, LowRank, Quantized


def dense(form: Form) -> np.ndarray:
    """The full weight a form stands for.

    Args:
        form: any form.

    Returns:
        ``[out, inp, *kernel]``, in the precision of the leaves.

    >>> import numpy as np
    >>> u, v = np.ones((4, 1), np.float32), np.ones((1, 3), np.float32)
    >>> dense(LowRank(v=Dense(v), u=Dense(u))).shape
    (4, 3)
    """
    match form:
        case Dense(values):
            return values
        case Quantized():
            return _from_integers(form)
        case LowRank(v, u, core, groups):
            return _low_rank(dense(v), dense(u), None if core is None else dense(core), groups)
        case CP(inp, kernel, out):
            return _cp(dense(inp), [dense(k) for k in kernel], dense(out))


def _from_integers(form: Quantized) -> np.ndarray:
    """The same bits on every machine: two float32 products, in this order."""
    z = form.integers.astype(np.float32).reshape(len(form.row), len(form.column), -1)
    column, row = scales(form.column, form.per_octave), scales(form.row, form.per_octave)
    return ((z * column[None, :, None]) * row[:, None, None]).reshape(form.integers.shape)


def shape(form: Form) -> tuple[int, ...]:
    """Shape of a leaf's weight, without computing it.

    >>> shape(Dense(np.zeros((4, 3), np.float32)))
    (4, 3)
    """
    match form:
        case Dense(values):
            return values.shape
        case Quantized(integers):
            return integers.shape
        case LowRank() | CP():
            return dense(form).shape


def _low_rank(v: np.ndarray, u: np.ndarray, core: np.ndarray | None, groups: int) -> np.ndarray:
    window = v.shape[1:]
    v = v.reshape(groups, v.shape[0] // groups, -1)
    u = u.reshape(groups, u.shape[0] // groups, -1)
    if core is not None:
        u = u @ core.reshape(groups, v.shape[1], v.shape[1])
    return (u @ v).reshape(-1, *window)


def _cp(inp: np.ndarray, kernel: list[np.ndarray], out: np.ndarray) -> np.ndarray:
    basis = inp  # [rank, inp], then one kernel axis after another
    for axis in kernel:
        shape = (axis.shape[0],) + (1,) * (basis.ndim - 1) + (axis.shape[1],)
        basis = basis[..., None] * axis.reshape(shape)
    return (out @ basis.reshape(basis.shape[0], -1)).reshape(out.shape[0], *basis.shape[1:])


def leaves(form: Form) -> Iterator[Dense | Quantized]:
    """The leaves of a form, in the order their layers run."""
    match form:
        case Dense() | Quantized():
            yield form
        case LowRank(v, u, core, _):
            yield from leaves(v)
            if core is not None:
                yield from leaves(core)
            yield from leaves(u)
        case CP(inp, kernel, out):
            yield from leaves(inp)
            for axis in kernel:
                yield from leaves(axis)
            yield from leaves(out)


def replace_last(form: Form, values: np.ndarray) -> Form:
    """The form with another last layer: what a least-squares refit of the outputs changes.

    Args:
        form: any form.
        values: ``[out, rank]`` for a factored form, the whole weight for a dense one.
    """
    match form:
        case Dense() | Quantized():
            return Dense(values)
        case LowRank():
            return replace(form, u=Dense(values))
        case CP():
            return replace(form, out=Dense(values))


def rank(form: Form) -> int | None:
    """Inner dimension of a factored form (of one group), None for a dense one."""
    match form:
        case Dense() | Quantized():
            return None
        case LowRank(v, _, _, groups):
            return shape(v)[0] // groups
        case CP(inp, _, _):
            return shape(inp)[0]


def describe(form: Form) -> str:
    """Short name of a form for tables: ``dense``, ``quantized``, ``low-rank``, ``low-rank (3 factors)``, ``cp``."""
    match form:
        case Dense():
            return "dense"
        case Quantized():
            return "quantized"
        case LowRank(_, _, core, _):
            return "low-rank" if core is None else "low-rank (3 factors)"
        case CP():
            return "cp"
