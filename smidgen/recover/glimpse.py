"""Teaching a network where to look (`smidgen.model.glimpse`), and from which certainty on its first looks stand.

    loss = D(teacher, crop) + D(teacher, glance) + b · |box − aim|     D: smidgen.recover.distance; labels mixed in

Where nobody gives boxes the aims are the teacher's own: the class-activation map of its answer (LayerCAM, Jiang et al.,
doi:10.1109/TIP.2021.3089943), whose mean place is the centre and whose spread is the size. They say where to begin: b
falls to nothing over the first half of the training, then the answers alone move the box.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor, nn

from smidgen.calibrate.answers import as_logits
from smidgen.data import Dataset
from smidgen.errors import UserError
from smidgen.model.glimpse import LEAST_SIZE, NEVER, Glimpse, confidence
from smidgen.model.sites import CONV
from smidgen.recover.distance import distance

BOX_WEIGHT = 10.0  # b at the start: a box that is off by a tenth of the image costs a nat
FADED = 0.5  # share of the training after which boxes are no longer taught
SPREAD = 2.0  # standard deviations of a map to either side that the box takes in
THRESHOLDS = 33  # tried for each stage: quantiles of how sure it is
FEWEST = 4  # places of a map that tells one
SAME_PLACE = 0.02  # standard deviation of the centres below which all boxes are one; the image's half side is 1
WHOLE_IMAGE = 0.9  # mean side above which a crop is the image


def activation_boxes(
    teacher: nn.Module, inputs: Dataset, cells: int = 1, batch: int = 64, least: float = LEAST_SIZE
) -> Float[Tensor, "n 3"]:
    """Where the teacher found its answers: boxes of LayerCAM maps.

    The map is that of the deepest convolution which tells so many places apart; of the finest where none does.

    Args:
        teacher: a classifier with convolutions, run where it lies.
        inputs: images.
        cells: of the map along its shorter side, at least, where a layer has that many.
        batch: images at a time.
        least: side of a box at least, as a share of the image's.

    Returns:
        x and y of the centre in −1 … 1 and the side as a share, on the host.

    Raises:
        UserError: it has no convolution whose map tells a place.
    """
    place = next(teacher.parameters()).device
    layer = _telling(teacher, torch.from_numpy(next(iter(inputs.batches(1)))).to(place), cells)
    if layer is None:
        raise UserError("glimpse: the network has no convolution whose map tells a place; give boxes")
    parts = (torch.from_numpy(part).to(place) for part in inputs.batches(batch))
    return torch.cat([boxes_of(_map(teacher, layer, x), least).cpu() for x in parts])


def _telling(teacher: nn.Module, x: Tensor, cells: int) -> nn.Module | None:
    """The convolution whose map is taken."""
    sizes: dict[nn.Module, int] = {}

    def hear(layer: nn.Module, _: object, given: Tensor) -> None:
        if given.ndim == 4 and given.shape[2] * given.shape[3] >= FEWEST:
            sizes[layer] = min(given.shape[2:])

    hooks = [each.register_forward_hook(hear) for each in teacher.modules() if isinstance(each, CONV[1])]
    try:
        with torch.no_grad():
            teacher(x)
    finally:
        for hook in hooks:
            hook.remove()
    enough = min(cells, max(sizes.values(), default=0))
    return next((layer for layer in reversed(sizes) if sizes[layer] >= enough), None)


def _map(teacher: nn.Module, layer: nn.Module, x: Tensor) -> Float[Tensor, "n h w"]:
    """Σ_c relu(∂score/∂A_c) relu(A_c) of a layer's outputs A, each place by itself (LayerCAM).

    Grad-CAM's mean slope of a channel tells places only in the last maps, which are the coarsest.
    """
    heard: list[Tensor] = []

    def hear(_: nn.Module, __: object, found: Tensor) -> None:
        heard.append(found)

    hook = layer.register_forward_hook(hear)
    try:
        with torch.enable_grad():
            scores = as_logits(teacher(x.requires_grad_(True)))
            (slope,) = torch.autograd.grad(scores.amax(1).sum(), heard[-1])
    finally:
        hook.remove()
    return (slope.relu() * heard[-1].detach().relu()).sum(1)


def boxes_of(maps: Float[Tensor, "n h w"], least: float = LEAST_SIZE) -> Float[Tensor, "n 3"]:
    """Centre and size of what maps hold, one cell wider; the middle half of the image where one holds nothing.

    Mean place and spread are taken twice, the second time of what lies within the first box: what little a map holds
    elsewhere would make it a box of everything.

    >>> spot = torch.zeros(1, 4, 4)
    >>> spot[0, 0, 3] = 1.0
    >>> boxes_of(spot).tolist()
    [[0.75, -0.75, 0.5]]
    """
    rows, columns = maps.shape[1:]
    # Squared: a broad floor of small values would pull every centre to the middle.
    weight, cell = maps.double().square(), 1 / min(rows, columns)
    empty = weight.sum((1, 2)) <= 0
    x, y, size = _extent(weight, cell)
    at_x, at_y = _places(maps)
    within_x, within_y = (at_x - x[:, None]).abs() <= size[:, None], (at_y - y[:, None]).abs() <= size[:, None]
    near = within_y[:, :, None] & within_x[:, None]
    x, y, size = _extent(weight * near, cell)
    boxes = torch.stack([x, y, (size + cell).clamp(max(least, cell), 1.0)], 1)
    boxes[empty] = boxes.new_tensor([0.0, 0.0, 0.5])
    return boxes.float()


def _places(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Middles of a map's columns, and of its rows, in −1 … 1."""
    first, second = ((torch.arange(n, device=maps.device) * 2 + 1) / n - 1 for n in (maps.shape[2], maps.shape[1]))
    return first, second


def _extent(weight: Tensor, cell: float) -> tuple[Tensor, Tensor, Tensor]:
    """Mean x, mean y and the larger spread, of one cell at least: less a map cannot tell."""
    total = weight.sum((1, 2))
    weight = weight / torch.where(total <= 0, 1.0, total)[:, None, None]
    at_x, at_y = _places(weight)
    x, y = (weight.sum(1) * at_x).sum(1), (weight.sum(2) * at_y).sum(1)
    var_x = (weight.sum(1) * (at_x - x[:, None]).square()).sum(1)
    var_y = (weight.sum(2) * (at_y - y[:, None]).square()).sum(1)
    return x, y, (SPREAD * torch.maximum(var_x, var_y).sqrt()).clamp(cell, 1.0)


class Fading:
    """How much boxes count: from 1 to 0 over the first part of a training; a hook of `smidgen.recover.loop.fit`.

    Args:
        steps: of the whole training.

    >>> fading = Fading(4)
    >>> fading.step()
    >>> fading.left
    0.5
    """

    def __init__(self, steps: int) -> None:
        self._steps, self._done = max(1.0, FADED * steps), 0

    @property
    def left(self) -> float:
        """The share that is left."""
        return max(0.0, 1 - self._done / self._steps)

    def step(self) -> None:
        """One more step is taken."""
        self._done += 1

    def state_dict(self) -> dict[str, Any]:
        """Steps taken."""
        return {"done": self._done}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Go on from there."""
        self._done = int(state["done"])


@dataclass(frozen=True, eq=False)
class Lessons:
    """The loss of a glimpse, for `smidgen.recover.loop.fit` with the teacher's scores and boxes beside the inputs.

    Args:
        net: being trained.
        labels: their share of what is learned from.
        fading: how much boxes count.
    """

    net: Glimpse
    labels: float
    fading: Fading

    def loss(self, x: Tensor, labels: Tensor | None, wanted: Tensor, boxes: Tensor) -> Tensor:
        """Of a batch."""
        seen = self.net.looks(x)
        share = self.labels if labels is not None else 0.0
        found = distance([wanted], [seen.crop.float()], labels, share)
        found = found + distance([wanted], [seen.glance.float()], labels, share)
        left = self.fading.left
        return found if left == 0 else found + left * BOX_WEIGHT * F.smooth_l1_loss(seen.box.float(), boxes, beta=0.1)


@dataclass(frozen=True)
class Answers:
    """What each stage answers to inputs that choose.

    Args:
        glance, crop, full: scores, ``[n, k]``.
        labels: classes; the full answers where there are none.
        given: the scores of the network as it was given; ``full`` where that is what is asked when unsure.
    """

    glance: Tensor
    crop: Tensor
    full: Tensor
    labels: Int64[Tensor, " n"]
    given: Tensor | None = None

    def right(self, stage: Tensor) -> NDArray[np.bool_]:
        """Whether each answer of a stage is right."""
        return (stage.argmax(1) == self.labels).numpy()


@dataclass(frozen=True)
class Sureness:
    """From which certainty on answers stand, and what that comes to on the inputs that chose it.

    Args:
        sure: of the glance and of the crop.
        shares: of the inputs that end at each stage: glance, crop, whole.
        lost: percentage points of right answers beside those of the network as it was given.
        macs: expected of one input.
    """

    sure: tuple[float, float]
    shares: tuple[float, float, float]
    lost: float
    macs: float


def choose_sureness(
    answers: Answers, costs: Sequence[float], points: float, fallback: bool = True
) -> Sureness:  # fmt: skip
    """The thresholds with the fewest expected multiplications that lose so little.

        E[MACs] = localizer + p(no early exit) · (crop + classifier) + p(fallback) · full

    Args:
        answers: of the inputs that choose.
        costs: multiply-accumulates of the localizer, of crop and classifier, of the full network.
        points: percentage points of right answers that may be lost beside the network as it was given.
        fallback: whether the full network is asked at all. Without it nothing may lose so little: then what loses the
            least.

    >>> one = torch.eye(2) * 9
    >>> same = Answers(one, one, one, torch.tensor([0, 1]))
    >>> choose_sureness(same, (1.0, 5.0, 100.0), 0.0).macs
    1.0
    """
    sure = [confidence(each).numpy() for each in (answers.glance, answers.crop)]
    right = [answers.right(each) for each in (answers.glance, answers.crop, answers.full)]
    whole = right[2] if answers.given is None else answers.right(answers.given)
    tries = [sorted({0.0, NEVER, *np.quantile(each, np.linspace(0, 1, THRESHOLDS)).tolist()}) for each in sure]
    tries = tries if fallback else [tries[0], [0.0]]
    found = list[Sureness]()
    for first, second in product(*tries):
        leaves, looks = sure[0] >= first, sure[1] >= second
        stage = np.where(leaves, 0, np.where(looks, 1, 2))
        shares = [float((stage == number).mean()) for number in range(3)]
        lost = 100 * float(whole.mean() - np.choose(stage, right).mean())
        macs = costs[0] + (1 - shares[0]) * costs[1] + shares[2] * costs[2]
        found.append(Sureness((float(first), float(second)), (shares[0], shares[1], shares[2]), lost, macs))
    kept = [one for one in found if one.lost <= points + 1e-9]
    return min(kept, key=lambda one: (one.macs, one.lost)) if kept else min(found, key=lambda one: (one.lost, one.macs))


def collapsed(boxes: Float[Tensor, "n 3"], aims: Float[Tensor, "n 3"] | None = None) -> str | None:
    """Why the boxes are no choice, in words; None where they are.

    Args:
        boxes: of inputs that are not learned from.
        aims: where they should be; objects that all stand in one place are no collapse.

    >>> collapsed(torch.tensor([[0.1, 0.1, 1.0], [-0.1, 0.3, 0.9]]))
    'the localizer takes the whole image: the mean side of its boxes is 0.95 of it'
    """
    side, places = float(boxes[:, 2].mean()), boxes[:, :2].std(0)
    if side > WHOLE_IMAGE:
        return f"the localizer takes the whole image: the mean side of its boxes is {side:.2f} of it"
    spread = torch.tensor([1.0, 1.0]) if aims is None else aims[:, :2].std(0)
    if bool((places < SAME_PLACE).all()) and bool((spread > SAME_PLACE).any()):
        x, y = boxes[:, :2].mean(0).tolist()
        return f"the localizer looks at one place, ({x:.2f}, {y:.2f}) of −1 … 1, whatever the image shows"
    return None
