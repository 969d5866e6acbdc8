"""How a network is trained: settings as plain values, and the learning rate they mean at each step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

import torch

from smidgen.errors import UserError
from smidgen.recover.augment import MIXUP, read_augment

# Processors that multiply bfloat16; others imitate it, twelve times slower than float32 (a small VGG on AVX2 alone).
NATIVE = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
Optimizer = Literal["adamw", "sgd"]
Rate = Literal["cosine", "constant", "rewind"]
Precision = Literal["float32", "mixed"]


@dataclass(frozen=True)
class Training:
    """How a network is trained.

    Args:
        epochs: passes over the inputs, at most.
        batch: inputs of a step, in each process.
        optimizer: ``adamw`` (Loshchilov and Hutter, arXiv:1711.05101) or ``sgd`` with Nesterov momentum.
        lr: the highest rate.
        weight_decay: of weights; biases, norms and everything else of one axis have none.
        momentum: of ``sgd``.
        warmup: share of all steps in which the rate rises from zero.
        schedule: of the rate after that: ``cosine`` to zero (arXiv:1608.03983), ``constant``, or ``rewind``, which
            replays the end of a stepwise training: the full rate for half of the steps, a tenth for a quarter, a
            hundredth at last (Renda et al. 2020, arXiv:2003.02389).
        clip: most the gradient's norm may be; None for any.
        patience: epochs without a better held-out score after which it stops; None for never.
        precision: ``mixed`` computes in bfloat16 where that is safe and the device multiplies it; weights stay float32.
        time_limit: seconds of training, those before a resumption included; None for any.
        seed: of order, augmentation and dropout.
        augment: changes drawn anew for each training batch; see `smidgen.recover.augment`.
        average: what a running average of the weights keeps of itself at each step, such as 0.999: it is scored and
            kept then; None for the weights themselves. See `smidgen.recover.averaging`.
        hold_back: inputs that choose the epoch, and that are not trained on; None for a fifth, at most 5,000. A loop of
            your own divides its inputs itself.

    Raises:
        UserError: a value that cannot be meant.

    >>> Training(epochs=3, augment=("shift2",)).plain()["epochs"]
    3
    """

    epochs: int = 10
    batch: int = 128
    optimizer: Optimizer = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.0
    momentum: float = 0.9
    warmup: float = 0.05
    schedule: Rate = "cosine"
    clip: float | None = 1.0
    patience: int | None = None
    precision: Precision = "float32"
    time_limit: float | None = None
    seed: int = 0
    augment: tuple[str, ...] = ()
    average: float | None = None
    hold_back: int | None = None

    def __post_init__(self) -> None:
        wrong = next((name for name, fits in self._checks().items() if not fits), None)
        if wrong is not None:
            raise UserError(f"training: {wrong}={getattr(self, wrong)!r} cannot be; {_MEANT[wrong]}")
        for name in self.augment:
            if name != MIXUP:
                read_augment(name)

    def _checks(self) -> dict[str, bool]:
        return {
            "epochs": self.epochs >= 1,
            "batch": self.batch >= 1,
            "optimizer": self.optimizer in get_args(Optimizer),
            "lr": 0 < self.lr < math.inf,
            "weight_decay": 0 <= self.weight_decay < math.inf,
            "momentum": 0 <= self.momentum < 1,
            "warmup": 0 <= self.warmup < 1,
            "schedule": self.schedule in get_args(Rate),
            "clip": self.clip is None or 0 < self.clip < math.inf,
            "patience": self.patience is None or self.patience >= 1,
            "precision": self.precision in get_args(Precision),
            "time_limit": self.time_limit is None or self.time_limit > 0,
            "seed": self.seed >= 0,
            "average": self.average is None or 0 < self.average < 1,
            "hold_back": self.hold_back is None or self.hold_back >= 1,
        }

    @property
    def mixes(self) -> bool:
        """Whether images are mixed with others of their batch."""
        return MIXUP in self.augment

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "augment": list(self.augment)}

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> Training:
        """What `plain` gave.

        Raises:
            UserError: a name that is no setting.
        """
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise UserError(f"training: there is no setting {unknown[0]!r}")
        return cls(**{**values, "augment": tuple(values.get("augment", ()))})

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step, as a share of ``lr``.

        Args:
            step: from 0.
            steps: all there are.

        >>> plan = Training(warmup=0.0)
        >>> [round(plan.rate(step, 5), 3) for step in (0, 2, 4)]
        [1.0, 0.655, 0.095]
        """
        rising = round(self.warmup * steps)
        if step < rising:
            return (step + 1) / (rising + 1)
        share = (step - rising) / max(1, steps - rising)
        if self.schedule == "constant":
            return 1.0
        if self.schedule == "rewind":
            return 1.0 if share < 0.5 else 0.1 if share < 0.75 else 0.01
        return 0.5 * (1 + math.cos(math.pi * share))


def duration(seconds: float) -> str:
    """A time as people say it.

    >>> duration(42.3), duration(754.0), duration(7440.0)
    ('42 s', '13 min', '2 h 4 min')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


_MEANT = {
    "epochs": "give 1 or more",
    "batch": "give 1 or more",
    "optimizer": "give adamw or sgd",
    "lr": "give a rate above 0: 1e-3",
    "weight_decay": "give 0 or more: 1e-4",
    "momentum": "give 0 to below 1: 0.9",
    "warmup": "give a share from 0 to below 1: 0.05",
    "schedule": "give cosine, constant or rewind",
    "clip": "give a norm above 0, or none",
    "patience": "give 1 or more epochs, or none",
    "precision": "give float32 or mixed",
    "time_limit": "give seconds above 0, or none",
    "seed": "give 0 or more",
    "average": "give a share between 0 and 1: 0.999, or none",
    "hold_back": "give 1 input or more, or none",
}


def multiplies_bfloat16(device: str) -> bool:
    """Whether a device multiplies bfloat16 itself; mixed precision is no gain on others.

    Args:
        device: ``cpu`` or another that torch knows.

    >>> multiplies_bfloat16("cuda")
    True
    """
    told = getattr(torch.cpu, "get_capabilities", dict)()  # older versions of torch cannot tell
    return device != "cpu" or any(told.get(name, False) for name in NATIVE)
