"""What a form stands for: the full weight, its leaves, and a short name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from smidgen.forms.scales import scales
from smidgen.forms.types import CP, DIRECT, Codebook, Dense, Form, Leaf, LowRank, Masked, Quantized, Spatial, Tucker2


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
        case Dense(values) | Masked(values):
            return values
        case Quantized():
            return _from_integers(form)
        case Codebook(indices, values):
            return values[indices]
        case LowRank(v, u, core, groups):
            return _low_rank(dense(v), dense(u), None if core is None else dense(core), groups)
        case CP(inp, kernel, out):
            return _cp(dense(inp), [dense(k) for k in kernel], dense(out))
        case Spatial(v, u, groups):
            return _spatial(dense(v), dense(u), groups)
        case Tucker2(inp, core, out, groups):
            return _tucker2(dense(inp), dense(core), dense(out), groups)


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
        case Dense(values) | Masked(values):
            return values.shape
        case Quantized(integers):
            return integers.shape
        case Codebook(indices):
            return indices.shape
        case LowRank() | CP() | Spatial() | Tucker2():
            return dense(form).shape


def _low_rank(v: np.ndarray, u: np.ndarray, core: np.ndarray | None, groups: int) -> np.ndarray:
    window, turned = v.shape[1:], u.ndim > 2
    v = v.reshape(groups, v.shape[0] // groups, -1)
    if turned:  # [inp, rank] · [rank, out · kernel]
        window = u.shape[1:]
        return (v.swapaxes(1, 2) @ u.reshape(groups, v.shape[1], -1)).reshape(-1, *window)
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


def _spatial(v: np.ndarray, u: np.ndarray, groups: int) -> np.ndarray:
    inp, rank = v.shape[1], v.shape[0] // groups
    first = v.reshape(groups, rank, -1).swapaxes(1, 2)  # (inp, axis of v) by rank
    last = u.reshape(groups, -1, rank, u.shape[2] * u.shape[3]).transpose(0, 2, 1, 3)
    both = first @ last.reshape(groups, rank, -1)
    both = both.reshape(groups, inp, *v.shape[2:], -1, *u.shape[2:])  # group, inp, v's window, out, u's window
    both = both.transpose(0, 4, 1, 2, 5, 3, 6)
    return np.ascontiguousarray(both).reshape(-1, inp, v.shape[2] * u.shape[2], v.shape[3] * u.shape[3])


def _tucker2(inp: np.ndarray, core: np.ndarray, out: np.ndarray, groups: int) -> np.ndarray:
    a, b, window = inp.shape[0] // groups, core.shape[0] // groups, core.shape[2:]
    last = out.reshape(groups, -1, b) @ core.reshape(groups, b, -1)
    taps = last.reshape(groups, -1, a, int(np.prod(window, dtype=int))).swapaxes(2, 3)  # group, out, tap, a
    full = taps @ inp.reshape(groups, 1, a, -1)
    return np.ascontiguousarray(full.swapaxes(2, 3)).reshape(out.shape[0], inp.shape[1], *window)


def leaves(form: Form) -> Iterator[Leaf]:
    """The leaves of a form, in the order their layers run."""
    match form:
        case Dense() | Quantized() | Codebook() | Masked():
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
        case Spatial(v, u, _):
            yield from leaves(v)
            yield from leaves(u)
        case Tucker2(inp, core, out, _):
            yield from leaves(inp)
            yield from leaves(core)
            yield from leaves(out)


def with_leaves(form: Form, given: Sequence[Leaf]) -> Form:
    """The form with other leaves, in the order of `leaves`.

    Raises:
        ValueError: not as many as it has.

    >>> form = LowRank(v=Dense(np.zeros((1, 3))), u=Dense(np.zeros((4, 1))))
    >>> dense(with_leaves(form, [Dense(np.ones((1, 3))), Dense(np.ones((4, 1)))])).sum().item()
    12.0
    """
    rest = iter(given)
    result = _refilled(form, rest)
    if len(given) != len(list(leaves(form))):
        raise ValueError(f"with_leaves: {len(given)} leaves for a form of {len(list(leaves(form)))}")
    return result


def _refilled(form: Form, rest: Iterator[Leaf]) -> Form:
    match form:
        case Dense() | Quantized() | Codebook() | Masked():
            return next(rest, form)
        case LowRank(v, u, core, _):
            v, core = _refilled(v, rest), None if core is None else _refilled(core, rest)
            return replace(form, v=v, core=core, u=_refilled(u, rest))
        case CP(inp, kernel, out):
            inp, kernel = _refilled(inp, rest), tuple(_refilled(axis, rest) for axis in kernel)
            return replace(form, inp=inp, kernel=kernel, out=_refilled(out, rest))
        case Spatial(v, u, _):
            v = _refilled(v, rest)
            return replace(form, v=v, u=_refilled(u, rest))
        case Tucker2(inp, core, out, _):
            inp, core = _refilled(inp, rest), _refilled(core, rest)
            return replace(form, inp=inp, core=core, out=_refilled(out, rest))


def reshaped(leaf: Quantized | Codebook, shape: tuple[int, ...]) -> Quantized | Codebook:
    """The leaf with its weight in another shape of as many values.

    >>> reshaped(Codebook(np.zeros((2, 9), np.uint8), np.ones(1, np.float32)), (2, 1, 3, 3)).indices.shape
    (2, 1, 3, 3)
    """
    if isinstance(leaf, Codebook):
        return replace(leaf, indices=leaf.indices.reshape(shape))
    return replace(leaf, integers=leaf.integers.reshape(shape))


def replace_last(form: Form, values: np.ndarray) -> Form:
    """The form with another last layer: what a least-squares refit of the outputs changes.

    Args:
        form: any form.
        values: the last factor for a factored form, the whole weight for others; of a pruned one with its zeros.
    """
    match form:
        case Masked():
            return Masked(values)
        case Dense():
            return replace(form, values=values)
        case Quantized() | Codebook():
            return Dense(values)
        case LowRank() | Spatial():
            return replace(form, u=Dense(values))
        case CP() | Tucker2():
            return replace(form, out=Dense(values))


def rank(form: Form) -> int | None:
    """Inner dimension of a factored form (of one group), that of the outputs where it has two; None for a dense one."""
    match form:
        case Dense() | Quantized() | Codebook() | Masked():
            return None
        case LowRank(v, _, _, groups) | Spatial(v, _, groups):
            return shape(v)[0] // groups
        case CP(inp, _, _):
            return shape(inp)[0]
        case Tucker2(_, core, _, groups):
            return shape(core)[0] // groups


def describe(form: Form) -> str:
    """Short name of a form for tables: ``dense``, ``winograd4``, ``quantized``, ``pruned``, ``low-rank``, …

    >>> describe(LowRank(v=Dense(np.zeros((1, 3))), u=Dense(np.zeros((4, 1))), core=Dense(np.zeros((1, 1)))))
    'low-rank (3 factors)'
    """
    match form:
        case Dense(_, algorithm):
            return "dense" if algorithm == DIRECT else algorithm
        case Quantized():
            return "quantized"
        case Codebook():
            return "shared"
        case Masked():
            return "pruned"
        case LowRank(_, _, core, _):
            return "low-rank" if core is None else "low-rank (3 factors)"
        case CP():
            return "cp"
        case Spatial():
            return "spatial"
        case Tucker2():
            return "tucker-2"
