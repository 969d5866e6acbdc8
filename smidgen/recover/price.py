"""The price on bits while a network trains: λ rises to a given one, or is steered until a budget is met.

    given     λ_t = λ · min(1, t / ramp)
    a size    ln λ_t = ln λ_0 + P·e_t + I·∫ e/r dt,   e = ln(bytes / aim) + T·d ln(bytes / aim)/dt
              aim_t falls geometrically from the first bytes to the size at t = ramp, and stays there
    a drop    ln λ_t = ln λ_0 + D·∫ (1 − drop_t / most) dt, told once an epoch what was measured

t runs from 0 to 1 over the whole training; r_t is the highest learning rate from then on, as a share of the highest of
all. A low rate lets λ do little, so the integral has to run ahead of it: with r = 1 throughout, ResNet-20's file ended
at 31.6 kB of the 34 kB asked for, λ still falling. Bytes are those that the model of the coder predicts, times the
ratio of what the coder itself last made of the integers to what was predicted for them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from smidgen.errors import PlanError
from smidgen.recover.entropy import Entropy

# Nats a byte where nothing else is known, and nats of all bytes of a size that is asked: near what small LeNets end at.
FIRST_PRICE, FIRST_WORTH = 4e-6, 0.05
LOWEST, HIGHEST = 1e-3, 1e4  # of that; a budget that asks for more cannot be met
RAMP = 0.4
PROPORTIONAL, INTEGRAL = 1.0, 24.0
SLOWEST = 0.05  # of r
# Bytes follow λ late: what counts is where they will be after this share of the training, by their smoothed slope.
LEAD, SMOOTH = 0.04, 0.7
DROP_GAIN = 12.0  # of the drop's integral: e-fold in a twelfth of the training where nothing is lost
WARMUP = 0.02  # of the training, before bytes are looked at
COUNTED = 500  # times in a training that sizes are counted, if that is not within
EVERY = (4, 32)  # steps
MEASURED = 40  # times in a training that the coder itself is asked
NEAR = 3.0  # times its aim, below which it is asked
AIM = 0.992  # of a size: the last epochs then fit nearly all


@dataclass
class _Steered:
    """What a controller remembers; plain values."""

    steps: int = 0
    price: float = 0.0
    integral: float = 0.0
    first_nbytes: float | None = None
    error: float | None = None  # at the last count, and its slope
    slope: float = 0.0
    ratio: float = 1.0  # of coded to predicted bytes
    predicted_bits: float = 0.0
    told: float = 0.0  # share of the training at which a drop was last told
    history: list[list[float]] = field(default_factory=list)


class Price:
    """A hook for `smidgen.recover.loop.fit`, stepped after each of the optimizer's.

    Args:
        entropy: what is priced.
        steps: of the whole training.
        price: λ, nats of one input's loss a byte; with a budget the first one, and when None one that suits it.
        size: bytes to reach.
        beside: bytes of the file that are no integers.
        most_points: of a drop to reach, told with `dropped`.
        ramp: share of the training in which λ rises, or bytes fall.
        rates: the learning rate of each step, as a share of the highest; constant when None.

    >>> from torch import nn
    >>> price = Price(Entropy(nn.Sequential(nn.Linear(4, 3))), steps=100, price=1e-5)
    >>> price.now
    0.0
    >>> for _ in range(50):
    ...     price.step()
    >>> price.now
    1e-05
    """

    def __init__(
        self, entropy: Entropy, steps: int, *, price: float | None = None, size: int | None = None, beside: int = 0,
        most_points: float | None = None, ramp: float = RAMP, rates: Sequence[float] | None = None,
    ) -> None:  # fmt: skip
        if size is not None and size <= beside:
            raise PlanError(f"entropy: {size} bytes are asked, and the graph alone takes {beside}; ask for more")
        worth = FIRST_PRICE if size is None else FIRST_WORTH / (size - beside)
        self.entropy, self.all_steps, self.ramp = entropy, max(1, steps), ramp
        # From nothing no steering leads anywhere.
        self.first = worth if price is None or (price == 0 and (size or most_points)) else price
        self.aim = None if size is None else AIM * (size - beside)
        self.most_points, self.beside = most_points, beside
        # The highest still to come, not the one of now: a warm-up is no end.
        self._rates = list(accumulate(reversed(rates or [1.0] * self.all_steps), max))[::-1]
        self.every = min(max(self.all_steps // COUNTED, EVERY[0]), EVERY[1])
        self.books = _Steered(price=0.0 if size is None and most_points is None else self.first)
        self.books.predicted_bits = entropy.refresh()

    @property
    def now(self) -> float:
        """λ, nats a byte."""
        return self.books.price

    @property
    def done(self) -> float:
        """Share of the training that is over."""
        return self.books.steps / self.all_steps

    @property
    def nbytes(self) -> float:
        """Of the file now, predicted."""
        return self.beside + self.books.ratio * self.books.predicted_bits / 8

    def step(self) -> None:
        """Count sizes where it is time, and set λ."""
        books = self.books
        books.steps += 1
        due = books.steps % self.every == 0
        if due:
            books.predicted_bits = self.entropy.refresh()
        # Far from its aim the ratio does not matter, and large tensors take seconds to code.
        near = self.aim is not None and books.predicted_bits / 8 < NEAR * self.aim
        if near and books.steps % max(self.every, self.all_steps // MEASURED // self.every * self.every) == 0:
            self.measure()
        if self.aim is not None:
            if due and self.done > WARMUP:
                self._steer(self.aim)
        elif self.most_points is None:
            books.price = self.first * min(1.0, self.done / self.ramp)

    def measure(self) -> int:
        """Ask the coder itself; bytes of the file as far as the integers go."""
        books, coded = self.books, self.entropy.nbytes()
        books.predicted_bits = self.entropy.refresh()
        books.ratio = 8 * coded / max(books.predicted_bits, 8.0)
        books.history.append([float(books.steps), books.predicted_bits / 8, float(coded), books.price])
        return self.beside + coded

    def _steer(self, aim: float) -> None:
        books = self.books
        nbytes = max(books.ratio * books.predicted_bits / 8, 1.0)
        if books.first_nbytes is None:
            books.first_nbytes = max(nbytes, aim)
        left = max(0.0, 1 - self.done / self.ramp)
        error = math.log(nbytes / aim) - left * math.log(books.first_nbytes / aim)
        passed = self.every / self.all_steps
        if books.error is not None:
            books.slope = SMOOTH * books.slope + (1 - SMOOTH) * (error - books.error) / passed
        books.error, error = error, error + LEAD * books.slope
        rate = max(self._rates[min(books.steps, self.all_steps) - 1], SLOWEST)
        books.integral += INTEGRAL / rate * error * passed
        self._set(PROPORTIONAL * error)

    def dropped(self, points: float) -> None:
        """Steer by the points that were measured to be lost now, where a drop is the budget."""
        if self.most_points is not None:
            error = 1 - points / self.most_points
            self.books.integral += DROP_GAIN * min(1.0, max(-1.0, error)) * (self.done - self.books.told)
            self.books.told = self.done
            self._set(0.0)

    def goes_on(self, entropy: Entropy) -> None:
        """Price another network from here on: the same one without its silent channels."""
        self.entropy = entropy
        self.books.predicted_bits = entropy.refresh()

    @property
    def predicted_nbytes(self) -> float:
        """Of the file now, by the model alone: without what the coder was seen to make of it."""
        return self.beside + self.books.predicted_bits / 8

    def told(self) -> list[dict[str, float]]:
        """For a record: predicted and coded bytes of the integers, and λ, in the course of the training."""
        return [dict(zip(("step", "predicted", "coded", "price"), row, strict=True)) for row in self.books.history]

    def _set(self, beside: float) -> None:
        """λ from the integral, kept where it can still come back from."""
        low, high = math.log(LOWEST), math.log(HIGHEST)
        self.books.integral = min(max(self.books.integral, low), high)
        self.books.price = self.first * math.exp(min(max(self.books.integral + beside, low), high))

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {**vars(self.books), "history": [list(row) for row in self.books.history]}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """What `state_dict` gave."""
        self.books = _Steered(**state)
