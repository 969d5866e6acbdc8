"""Changes of training images, drawn anew for each batch; all but the last leave the class of an image as it is.

    shift2   moved by up to 2 pixels either way
    flip     half of them mirrored, left to right
    zoom20   magnified by up to 20 %
    turn10   turned by up to 10 degrees
    elastic5 bent: places pushed by 5 % of a side (root mean square), near ones alike (doi:10.1109/ICDAR.2003.1227801)
    mixup    (1 − a)·x + a·y, y another of the batch, a ~ U(0, 1) for each; labels alike (arXiv:1710.09412)

What comes into view at a border repeats the border's pixels: inputs are normalised, and zero need not be black.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from smidgen.errors import DataError, UserError

Augment = Callable[[Tensor, torch.Generator], Tensor]
MIXUP = "mixup"
SMOOTHNESS = 4 / 29  # of a side: the Gaussian's width in Simard et al. 2003, four pixels of 29


def augmented(
    images: Float[Tensor, "n c h w"], names: Sequence[str], generator: torch.Generator
) -> Float[Tensor, "n c h w"]:
    """A batch of images, changed in each named way in turn, but not mixed.

    Args:
        images: on any device.
        names: see the top of this file.
        generator: on the CPU, whatever the device of the images.

    >>> augmented(torch.zeros(2, 1, 4, 4), ["shift2", "flip"], torch.Generator().manual_seed(0)).shape
    torch.Size([2, 1, 4, 4])
    """
    for name in names:
        if name != MIXUP:
            images = read_augment(name)(images, generator)
    return images


def mixed(
    images: Float[Tensor, "n c h w"], labels: Int64[Tensor, " n"] | None, classes: int, generator: torch.Generator
) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, "n classes"] | None]:
    """Each image mixed with another of the batch, and the shares of classes in it (Zhang et al., arXiv:1710.09412).

    Shares are drawn evenly, as for networks that learn from another one (Beyer et al., arXiv:2106.05237).

    Args:
        images: on any device.
        labels: classes, or None.
        classes: how many there are.
        generator: on the CPU.

    >>> x, y = torch.eye(2)[:, None, None], torch.tensor([0, 1])
    >>> images, shares = mixed(x, y, 2, torch.Generator().manual_seed(1))
    >>> torch.equal(images.squeeze(), shares)
    True
    """
    share, others = torch.rand(len(images), generator=generator), torch.randperm(len(images), generator=generator)
    share, others = share.to(images), others.to(images.device)
    lone = share[:, None, None, None]
    whole = (1 - lone) * images + lone * images[others]
    if labels is None:
        return whole, None
    alone = F.one_hot(labels, classes).to(share)
    return whole, (1 - share[:, None]) * alone + share[:, None] * alone[others]


def read_augment(name: str) -> Augment:
    """The change of each image that a name such as ``shift2`` means.

    Raises:
        UserError: none.

    >>> read_augment("flip")(torch.tensor([[[[1.0, 2.0]]]]), torch.Generator().manual_seed(1)).shape
    torch.Size([1, 1, 1, 2])
    """
    found = re.fullmatch(r"(shift|zoom|turn|elastic)([1-9]\d{0,2})|flip", name)
    if not found:
        raise UserError(f"augment: {name!r} is none of shift2, flip, zoom20, turn10, elastic5 (with any number), mixup")
    if name == "flip":
        return _flip
    most = int(found[2])
    change = CHANGES[found[1]]
    return lambda images, generator: change(images, most, generator)


def check_images(shape: Sequence[int], names: Sequence[str]) -> None:
    """Refuse to change inputs that are no images.

    Args:
        shape: of one input.
        names: of the changes; none pass everything.

    Raises:
        DataError: not ``[c, h, w]``, or smaller than a shift.

    >>> check_images((1, 28, 28), ["shift2"])
    """
    if names and len(shape) != 3:
        raise DataError(f"augment: {names[0]} changes images, and an input has the shape {list(shape)}; leave it out")
    for name in names:
        if name.startswith("shift") and int(name.removeprefix("shift")) >= min(shape[1:]):
            raise DataError(f"augment: {name} moves an image of {shape[1]}×{shape[2]} out of sight; give less")


def _shift(images: Tensor, most: int, generator: torch.Generator) -> Tensor:
    count, _, height, width = images.shape
    down, right = torch.randint(-most, most + 1, (2, count, 1), generator=generator).to(images.device)
    rows = (down + torch.arange(height, device=images.device)).clamp(0, height - 1)
    columns = (right + torch.arange(width, device=images.device)).clamp(0, width - 1)
    which = torch.arange(count, device=images.device)[:, None, None]
    # Indices on either side of a slice put the channels last.
    return images[which, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def _flip(images: Tensor, generator: torch.Generator) -> Tensor:
    mirrored = (torch.rand(len(images), generator=generator) < 0.5).to(images.device)
    return torch.where(mirrored[:, None, None, None], images.flip(3), images)


def _zoom(images: Tensor, most: int, generator: torch.Generator) -> Tensor:
    size = 1 / (1 + torch.rand(len(images), generator=generator) * most / 100)
    centre = (2 * torch.rand(2, len(images), generator=generator) - 1) * (1 - size)  # the window stays inside
    none = torch.zeros_like(size)
    return _seen(images, [[size, none, centre[0]], [none, size, centre[1]]])


def _turn(images: Tensor, most: int, generator: torch.Generator) -> Tensor:
    angle = (2 * torch.rand(len(images), generator=generator) - 1) * math.radians(most)
    sine, cosine, none = angle.sin(), angle.cos(), torch.zeros_like(angle)
    tall = images.shape[2] / images.shape[3]  # the grid runs from −1 to 1 along either side
    return _seen(images, [[cosine, -sine * tall, none], [sine / tall, cosine, none]])


def _bend(images: Tensor, root_mean_square: int, generator: torch.Generator) -> Tensor:
    """Noise at knots one Gaussian's width apart, smoothed by it: of the same strength everywhere to one in 10,000."""
    down, across = (_bumps(side, images) for side in images.shape[2:])
    noise = torch.randn(len(images), 2, down.shape[1], across.shape[1], generator=generator).to(images)
    # At this spacing the squares of a Gaussian's values add up to √π along either axis; a side is two units long.
    pushed = (down @ noise @ across.T) * (2 * root_mean_square / 100 / math.sqrt(math.pi))
    none = torch.zeros(len(images))
    return _seen(images, [[none + 1, none, none], [none, none + 1, none]], pushed.permute(0, 2, 3, 1))


def _bumps(side: int, like: Tensor) -> Float[Tensor, "side knots"]:
    """Gaussians about knots, those beside the image too, at its pixels."""
    knots = torch.arange(-3, math.ceil(1 / SMOOTHNESS) + 4, dtype=like.dtype, device=like.device)
    pixels = (torch.arange(side, dtype=like.dtype, device=like.device) + 0.5) / side
    return torch.exp(-0.5 * (pixels[:, None] / SMOOTHNESS - knots) ** 2)


def _seen(images: Tensor, rows: list[list[Tensor]], pushed: Tensor | float = 0.0) -> Tensor:
    """The images through an affine map of the places they are read at, each then pushed by so much."""
    maps = torch.stack([torch.stack(row, 1) for row in rows], 1).to(images)
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid + pushed, padding_mode="border", align_corners=False)


Change = Callable[[Tensor, int, torch.Generator], Tensor]
CHANGES: dict[str, Change] = {"shift": _shift, "zoom": _zoom, "turn": _turn, "elastic": _bend}
