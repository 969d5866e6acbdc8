"""Weights that share values, trained through those: a torch parametrization of a layer's weight.

    W_i = c_{k(i)}        ∂L/∂c_k = Σ_{i: k(i) = k} ∂L/∂W_i

The gradients of all weights of a cluster are summed and move its one value; which weight has which value stays as it is
(Han et al. 2016, arXiv:1510.00149, section 3). A value that is exactly 0 is what pruning left and stays 0.

Weights that may move (``moves``) have floats of their own beside, which the gradient passes straight through to:

    ∂L/∂w_i = ∂L/∂W_i        k(i) ← argmin_k |w_i − c_k|, once an epoch (`Reassigning`)

What pruning left at 0 does not move. It is not the default: LeNet after four epochs of 1,800 digits has, on 600 others
of the training split, a loss of 0.324 with it and without at 1 bit, of 0.064 with it and 0.068 without at 2 bits (KL of
the file 0.0027 ± 0.0017 and 0.0036 ± 0.0022), in archives of the same size. That is within the noise.

Differs from the paper: values that came with few significant bits, which pack well, are trained with as many, the
gradient going straight through.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from smidgen.forms import Codebook
from smidgen.numerics.kmeans import SIGNIFICANT, rounded_values

PORTION = 1 << 16  # weights that are reassigned at a time


class Shared(nn.Module):
    """The values of a codebook in the place of a weight.

    Args:
        form: where it starts, and which weight has which value.
        shape: of the layer's weight.
        moves: whether `reassign` may give weights other values.

    >>> from torch.nn.utils import parametrize
    >>> layer, form = nn.Linear(3, 1), Codebook(np.array([[0, 1, 1]], np.uint8), np.array([-1.0, 2.0], np.float32))
    >>> _ = parametrize.register_parametrization(layer, "weight", Shared(form, (1, 3)))
    >>> layer(torch.tensor([[1.0, 10.0, 100.0]])).sum().backward()
    >>> layer.parametrizations["weight"].original.grad.tolist()
    [1.0, 110.0]
    """

    indices: Tensor
    start: Tensor
    free: Tensor
    gone: Tensor

    def __init__(self, form: Codebook, shape: tuple[int, ...], *, moves: bool = False) -> None:
        super().__init__()
        values = torch.from_numpy(form.values.astype(np.float32))
        self.register_buffer("indices", torch.from_numpy(form.indices.astype(np.int64).ravel()))
        self.register_buffer("start", values)
        self.register_buffer("free", values != 0)
        self.register_buffer("gone", (values == 0)[self.indices])
        self.shadow = nn.Parameter(values[self.indices]) if moves else None
        self.shape = shape
        self.coarse = bool(np.array_equal(rounded_values(form.values), form.values))

    def forward(self, values: Tensor) -> Tensor:
        values = self.values(values)
        if self.shadow is None:
            return values.index_select(0, self.indices).reshape(self.shape)
        return _Through.apply(values, self.shadow, self.indices).reshape(self.shape)

    def reassign(self, values: Tensor) -> int:
        """Give each weight the value that is nearest to its own float; how many have another one then."""
        if self.shadow is None:
            return 0
        with torch.no_grad():
            now = self.values(values)
            # In portions: a table of all weights by all values of a large layer would not fit.
            near = [(part[:, None] - now).abs().argmin(1) for part in self.shadow.split(PORTION)]
            found = torch.where(self.gone, self.indices, torch.cat(near))
            moved = int((found != self.indices).sum())
            self.indices.copy_(found)
        return moved

    def values(self, values: Tensor) -> Tensor:
        """Those that the weights have now."""
        values = torch.where(self.free, values, 0.0)
        return _Coarse.apply(values) if self.coarse else values

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The mean of each cluster; where it has no weight, what it was.

        In double precision: the mean of equal numbers is then that number to the bit. Not every device has that.
        """
        flat, indices, start = weight.detach().cpu().double().flatten(), self.indices.cpu(), self.start.cpu().double()
        sums = torch.zeros_like(start).index_add_(0, indices, flat)
        counts = torch.bincount(indices, minlength=len(start))
        return torch.where(counts > 0, sums / counts.clamp_min(1), start).to(weight)

    def form(self, values: Tensor, shape: tuple[int, ...]) -> Codebook:
        """The codebook as it is now, its values rising."""
        now = self.values(values.detach()).cpu().numpy()
        order = np.argsort(now, kind="stable")
        place = np.empty(len(order), np.uint8)
        place[order] = np.arange(len(order))
        return Codebook(place[self.indices.cpu().numpy()].reshape(shape), now[order])


class Reassigning:
    """Reassigns the shared weights of a network once in so many steps: a hook of `smidgen.recover.loop.fit`.

    Not at the end of an epoch, whose score would be of weights that have just moved, but behind the next one's first
    step.

    Args:
        model: trained elsewhere, its shared weights held by `Shared`.
        every: steps of an epoch.

    >>> from torch.nn.utils import parametrize
    >>> layer, form = nn.Linear(2, 1), Codebook(np.array([[0, 1]], np.uint8), np.array([-1.0, 2.0], np.float32))
    >>> layer.weight.data, held = torch.tensor([[-1.0, 2.0]]), Shared(form, (1, 2), moves=True)
    >>> _ = parametrize.register_parametrization(layer, "weight", held)
    >>> held.shadow.data[1] = 0.4
    >>> hook = Reassigning(layer, every=1)
    >>> hook.step(), hook.step(), layer.weight.tolist()
    (0, 1, [[-1.0, -1.0]])
    """

    def __init__(self, model: nn.Module, every: int) -> None:
        self.every, self.steps = every, 0
        self.held: list[tuple[Shared, Tensor]] = []
        for layer in model.modules():
            for each in getattr(layer, "parametrizations", {}).values():
                if isinstance(each[0], Shared):
                    self.held.append((each[0], each.original))

    def step(self) -> int:
        """After each step of the optimizer; how many weights moved."""
        self.steps += 1
        if self.steps == 1 or (self.steps - 1) % self.every:
            return 0
        return sum(shared.reassign(values) for shared, values in self.held)

    def state_dict(self) -> dict[str, int]:
        """Steps; the indices are the model's."""
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """What `state_dict` gave."""
        self.steps = int(state["steps"])


class _Through(torch.autograd.Function):
    """The shared value of each weight forward; the gradient to its value, summed, and to its own float."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, shadow: Tensor, indices: Tensor) -> Tensor:
        ctx.save_for_backward(indices)
        ctx.count = len(values)
        return values.index_select(0, indices)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (indices,) = ctx.saved_tensors
        return grads[0].new_zeros(ctx.count).index_add_(0, indices, grads[0]), grads[0], None


class _Coarse(torch.autograd.Function):
    """Few significant bits forward, all of the gradient backward."""

    @staticmethod
    def forward(ctx: object, values: Tensor) -> Tensor:
        mantissa, exponent = torch.frexp(values)
        coarse = torch.round(mantissa * 2**SIGNIFICANT) / 2**SIGNIFICANT
        # Half of the power twice: 2^exponent of a very small value would not be a float.
        half = torch.div(exponent, 2, rounding_mode="floor")
        return coarse * _POWERS.to(values.device)[half + 126] * _POWERS.to(values.device)[exponent - half + 126]

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> Tensor:
        return grads[0]


_POWERS = torch.from_numpy(np.ldexp(np.float32(1), np.arange(-126, 128)))
