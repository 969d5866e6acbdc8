"""Selective attention: look at a small picture of the whole, then at a crop, and at everything only when unsure.

    localizer    shrunken image → box (x, y, s) and first scores        sure enough: the answer
    crop         affine grid of the box → small image → classifier      sure enough: the answer
    full         the whole image → the network that was given           the answer

The box is differentiable: its centre is the mean place under a softmax over a map of the localizer, and the crop is
sampled bilinearly on an affine grid (spatial transformers, Jaderberg et al. 2015, arXiv:1506.02025). How sure an answer
is, is its largest probability. Glimpses as a way to spend less: Mnih et al. 2014, arXiv:1406.6247; leaving early:
Teerapittayanon et al. 2016, arXiv:1709.01686.

Differs from the papers: one look, found from a localizer, no recurrence; boxes are learned by gradient, not by reward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

GLANCE, CROP, WHOLE = range(3)
NEVER = 2.0  # a probability that no answer has: that stage never ends it
LEAST_SIZE = 0.05  # of a box, as a share of the image's side


@dataclass(frozen=True)
class Looks:
    """What a network saw of a batch.

    Args:
        box: ``[n, 3]``: x and y of the centre in −1 … 1, and the side as a share of the image's.
        glance: scores from the shrunken image, ``[n, classes]``.
        crop: scores from the crop.
    """

    box: Float[Tensor, "n 3"]
    glance: Float[Tensor, "n k"]
    crop: Float[Tensor, "n k"]


class Localizer(nn.Module):
    """A few convolutions on the shrunken image: where to look, and what it seems to be.

    Args:
        channels: of the image.
        classes: of the answer.
        shrink: pixels of a side that are averaged into one before anything else.
        widths: channels of its convolutions; the first two halve the map.
        size: side of the box as a share of the image's; learned from there where ``learn_size``.
        learn_size: whether each image has a size of its own.

    >>> box, scores = Localizer(1, 10, 4, size=0.2)(torch.zeros(2, 1, 64, 64))
    >>> box.shape, scores.shape, round(box[0, 2].item(), 3)
    (torch.Size([2, 3]), torch.Size([2, 10]), 0.2)
    """

    def __init__(
        self, channels: int, classes: int, shrink: int, widths: Sequence[int] = (8, 16, 24), *, size: float = 0.25,
        learn_size: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.shrink, self.learn_size = shrink, learn_size
        layers: list[nn.Module] = []
        before = channels
        for number, width in enumerate(widths):
            stride = 2 if number < 2 else 1
            layers += [nn.Conv2d(before, width, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(width),
                       nn.ReLU()]  # fmt: skip
            before = width
        self.body = nn.Sequential(*layers)
        self.place = nn.Conv2d(before, 1, 1)
        self.size = nn.Linear(before, 1)
        self.scores = nn.Linear(before, classes)
        nn.init.zeros_(self.size.weight)
        share = min(max((size - LEAST_SIZE) / (1 - LEAST_SIZE), 1e-3), 1 - 1e-3)
        nn.init.constant_(self.size.bias, float(torch.tensor(share).logit()))
        self.size.requires_grad_(learn_size)

    def forward(self, x: Float[Tensor, "n c h w"]) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "n k"]]:
        """Box and scores of each image."""
        seen = self.body(F.avg_pool2d(x, self.shrink))
        rows, columns = seen.shape[2:]
        weight = self.place(seen).flatten(1).softmax(1)  # n, places
        pooled = (seen.flatten(2) * weight[:, None]).sum(2)
        across = weight.reshape(-1, rows, columns)
        x_at = (across.sum(1) * _middles(columns, x)).sum(1)
        y_at = (across.sum(2) * _middles(rows, x)).sum(1)
        size = LEAST_SIZE + (1 - LEAST_SIZE) * self.size(pooled).sigmoid()
        return torch.stack([x_at, y_at, size[:, 0]], 1), self.scores(pooled)


def _middles(count: int, like: Tensor) -> Tensor:
    """Middles of so many equal parts of −1 … 1."""
    return (torch.arange(count, device=like.device, dtype=like.dtype) * 2 + 1) / count - 1


class Look(nn.Module):
    """The crop of a box, in a size of its own.

    Args:
        side: rows and columns of the crop, pixels.

    >>> whole = torch.tensor([[0.0, 0.0, 1.0]])
    >>> x = torch.arange(16.0).reshape(1, 1, 4, 4)
    >>> torch.equal(Look((4, 4))(x, whole), x)
    True
    """

    grid: Tensor

    def __init__(self, side: tuple[int, int]) -> None:
        super().__init__()
        rows, columns = (_middles(count, torch.zeros(())) for count in side)
        grid = torch.stack([columns.expand(side), rows[:, None].expand(side)], 2)  # x, then y
        self.register_buffer("grid", grid, persistent=False)

    def forward(self, x: Float[Tensor, "n c h w"], box: Float[Tensor, "n 3"]) -> Float[Tensor, "n c rows columns"]:
        """Sampled bilinearly; the centre is moved so far that the box lies within the image."""
        size = box[:, 2:]
        most = 1 - size
        centre = torch.minimum(torch.maximum(box[:, :2], -most), most)
        grid = self.grid[None] * size[:, None, None] + centre[:, None, None]
        return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


class Glimpse(nn.Module):
    """A network that looks at no more of an image than it needs.

    Args:
        localizer: image → (box, scores), such as `Localizer`.
        classifier: crop → scores.
        full: image → scores; None where a crop's answer always stands.
        side: rows and columns of the crop.
        sure: probability from which the glance's answer stands, and from which the crop's does.

    >>> head = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    >>> net = Glimpse(Localizer(1, 10, 4), head, None, (8, 8)).eval()
    >>> net(torch.zeros(2, 1, 64, 64)).shape, net.ends(torch.zeros(2, 1, 64, 64)).tolist()
    (torch.Size([2, 10]), [1, 1])
    """

    sure: Tensor

    def __init__(
        self, localizer: nn.Module, classifier: nn.Module, full: nn.Module | None, side: tuple[int, int],
        sure: tuple[float, float] = (NEVER, 0.0),
    ) -> None:  # fmt: skip
        super().__init__()
        self.localizer, self.look, self.classifier, self.full = localizer, Look(side), classifier, full
        self.register_buffer("sure", torch.tensor(sure, dtype=torch.float64))

    def looks(self, x: Float[Tensor, "n c h w"]) -> Looks:
        """Both first stages for every image, for training."""
        box, glance = self.localizer(x)
        return Looks(box, glance, self.classifier(self.look(x, box)))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """The answer of the stage at which each image ends."""
        return self._run(x)[0]

    def ends(self, x: Float[Tensor, "n c h w"]) -> Int64[Tensor, " n"]:
        """The stage at which each image ends: `GLANCE`, `CROP` or `WHOLE`."""
        return self._run(x)[1]

    def _run(self, x: Tensor) -> tuple[Tensor, Tensor]:
        box, answer = self.localizer(x)
        stage = torch.full((len(x),), GLANCE, device=x.device)
        unsure = confidence(answer) < self.sure[0]
        if bool(unsure.any()):
            answer = answer.clone()
            answer[unsure] = self.classifier(self.look(x[unsure], box[unsure])).to(answer)
            stage[unsure] = CROP
            still = unsure & (confidence(answer) < self.sure[1])
            if self.full is not None and bool(still.any()):
                answer[still] = self.full(x[still]).to(answer)
                stage[still] = WHOLE
        return answer, stage


def confidence(scores: Float[Tensor, "n k"]) -> Float[Tensor, " n"]:
    """The largest probability of each answer.

    >>> confidence(torch.zeros(1, 4)).item()
    0.25
    """
    return scores.softmax(1).amax(1)
