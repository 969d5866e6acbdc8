"""Conjugate gradients for least squares whose normal matrix is a function, not an array.

    minimise ½⟨x, N(x)⟩ − ⟨r, x⟩,   N linear, symmetric and positive semi-definite

Hestenes and Stiefel 1952, preconditioned. x may be of any shape; every step lowers the objective, so the few steps that
an alternating fit takes between its other updates never set it back.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

# The relative residual at which conjugate gradients stop, and the steps they take at most. Tucker-2 and
# spatial fits of trained layers end, after all sweeps, at the losses of a residual of 1e-3, in half the time.
CG_TOLERANCE = 0.1
CG_STEPS = 30


def conjugate_gradients(
    normal: Callable[[Tensor], Tensor],
    right: Tensor,
    start: Tensor,
    precondition: Callable[[Tensor], Tensor],
    *,
    tolerance: float = CG_TOLERANCE,
    steps: int = CG_STEPS,
) -> Tensor:
    """Solve N(x) = r for a symmetric positive semi-definite N; every step lowers ½⟨x, N(x)⟩ − ⟨r, x⟩.

    Args:
        normal: N.
        right: r.
        start: x to start from.
        precondition: an approximate inverse of N, symmetric positive definite.
        tolerance: stop once the residual's preconditioned norm is this part of its first.
        steps: most steps.

    >>> import torch
    >>> conjugate_gradients(lambda x: 2 * x, torch.ones(2), torch.zeros(2), lambda x: x).tolist()
    [0.5, 0.5]
    """
    found = start
    residual = right - normal(found)
    direction = ready = precondition(residual)
    size = first = float((residual * ready).sum())
    for _ in range(steps):
        if size <= tolerance**2 * first or size <= 0:
            break
        along = normal(direction)
        bend = float((direction * along).sum())
        if bend <= 0:  # rounding: N is flat here
            break
        found = found + size / bend * direction
        residual = residual - size / bend * along
        ready = precondition(residual)
        last, size = size, float((residual * ready).sum())
        direction = ready + size / last * direction
    return found
