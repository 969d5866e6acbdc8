"""The stages of a glimpse as files: written one by one, made smaller, and asked what they answer."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from smidgen.budget import Budget
from smidgen.data import Dataset
from smidgen.errors import BudgetError, VerificationError
from smidgen.export.files import write_bytes
from smidgen.export.glimpse import Stages
from smidgen.export.tflite import to_tflite
from smidgen.export.verify import STATIC_TOLERANCE, verify
from smidgen.measure.cost import onnx_cost
from smidgen.model.glimpse import CROP, GLANCE, WHOLE, Glimpse, Look, confidence
from smidgen.pipeline import compress
from smidgen.pipeline.targets import check_targets
from smidgen.runtimes.opening import open_file, run_dataset

SMALLER = ("onnx-fp16", "onnx-w8", "onnx-int8")  # what stages can be compressed to and still be one graph
STRAIGHT = "tflite"  # a target without branches
TARGETS = ("onnx", *SMALLER, STRAIGHT)
MOST = 1000  # inputs that compressing a stage sees
BATCH = 64
ASKED = 16  # inputs by which one graph is held against its stages


@dataclass(frozen=True)
class Seen:
    """What the stages' files answer to some inputs.

    Args:
        box: ``[n, 3]``.
        glance, crop: scores, ``[n, k]``.
        full: the same of the network as it is in the file; None where it was not asked.
    """

    box: Tensor
    glance: Tensor
    crop: Tensor
    full: Tensor | None

    def ends(self, sure: tuple[float, float], *, fallback: bool) -> np.ndarray:
        """The stage at which each input ends, ``[n]``.

        Args:
            sure: probability from which the glance's answer stands, and from which the crop's does.
            fallback: whether anything comes behind the crop.
        """
        leaves, looks = (confidence(each) >= least for each, least in zip((self.glance, self.crop), sure, strict=True))
        last = WHOLE if fallback else CROP
        return np.where(leaves.numpy(), GLANCE, np.where(looks.numpy(), CROP, last))


def check_target(target: str, budget: Budget | None, *, fallback: bool) -> None:
    """BudgetError where a glimpse has no such file, or its stages cannot have such a budget.

    >>> check_target("onnx", Budget(size="9 kB"), fallback=True)
    Traceback (most recent call last):
    smidgen.errors.BudgetError: glimpse: a size cannot be divided among its stages; give a ratio or a tradeoff, which \
each of them keeps
    """
    if target not in TARGETS:
        raise BudgetError(f"glimpse: there is no file of '{target}' with branches; give one of {', '.join(TARGETS)}")
    if target == STRAIGHT and (fallback or budget is not None):
        raise BudgetError(f"glimpse: {STRAIGHT} has no branches, and floats alone; leave fallback and budget out")
    if budget is not None and budget.kind not in ("ratio", "tradeoff"):
        raise BudgetError(f"glimpse: a {budget.kind} cannot be divided among its stages; give a ratio or a tradeoff, "
                          "which each of them keeps")  # fmt: skip
    check_targets(target)


def _looks(
    localizer: Path, side: tuple[int, int], inputs: Dataset, threads: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Box, glance and crop of some inputs, a batch at a time."""
    look = Look(side)
    with open_file(localizer, threads) as runner:
        for batch in inputs.batches(BATCH):
            box, glance = runner.run(batch)
            yield box, glance, look(torch.from_numpy(batch), torch.from_numpy(box)).numpy()


def look_through(stages: Stages, side: tuple[int, int], inputs: Dataset, threads: int, *, full: bool = True) -> Seen:
    """Every stage's answer to every input, in its runtime.

    Args:
        stages: the files.
        side: rows and columns of the crop.
        inputs: images.
        threads: of the runtime.
        full: whether the network is asked too.
    """
    with open_file(stages.classifier, threads) as runner:
        looks = _looks(stages.localizer, side, inputs, threads)
        found = [(box, glance, runner.run(crop)[0]) for box, glance, crop in looks]
    whole = None
    if full and stages.full is not None:
        with open_file(stages.full, threads) as runner:
            whole = torch.from_numpy(run_dataset(runner, inputs.batches(BATCH))[0]).float()
    box, glance, crop = (torch.from_numpy(np.concatenate(each)).float() for each in zip(*found, strict=True))
    return Seen(box, glance, crop, whole)


def with_smaller(
    stages: Stages, side: tuple[int, int], inputs: Dataset, target: str, budget: Budget | None, threads: int, seed: int,
    progress: Callable[[str, int, int], None],
) -> Stages:  # fmt: skip
    """The stages compressed, each by `smidgen.compress` on what it sees; no label is used.

    Args:
        stages: files of floats; the smaller ones are written beside them.
        side: rows and columns of the crop.
        inputs: images that may be learned from.
        target: of `SMALLER`, or ``onnx``.
        budget: of each stage; the most careful one when None.
        threads, seed: as for `smidgen.compress`.
        progress: called with (stage, done, total).
    """
    images = replace(inputs.take(np.arange(min(MOST, len(inputs)))), labels=None)
    budget = budget or Budget(tradeoff=0)

    def smaller(path: Path, seen: Dataset) -> Path:
        def tell(stage: str, done: int, total: int) -> None:
            progress(f"{path.stem}: {stage}", done, total)

        made = compress(path, seen, budget=budget, target=target, threads=threads, seed=seed, progress=tell)
        return Path(shutil.copyfile(made.files[target], path.with_name(f"{path.stem}.smaller.onnx")))

    localizer = smaller(stages.localizer, images)
    # The classifier learns its ranges on the crops that the smaller localizer takes.
    crops = Dataset.from_array(np.concatenate([crop for *_, crop in _looks(localizer, side, images, threads)]))
    full = None if stages.full is None else smaller(stages.full, images)
    return Stages(localizer, smaller(stages.classifier, crops), full)


def costs_of(stages: Stages, original: Path, side: tuple[int, int], channels: int) -> tuple[int | None, ...]:
    """Multiply-accumulates of localizer, of crop and classifier, and of the network (as given where it is no stage).

    Args:
        stages: the files.
        original: the network's file.
        side: rows and columns of the crop.
        channels: of the image.
    """
    small, crop, full = (onnx_cost(each)[1] for each in (stages.localizer, stages.classifier, stages.full or original))
    # Four products a pixel, bilinear.
    return small, None if crop is None else crop + 4 * side[0] * side[1] * channels, full


class Straight(nn.Module):
    """Localizer, crop and classifier for every image, whatever the glance says: nothing branches.

    Args:
        net: whose stages run.
    """

    def __init__(self, net: Glimpse) -> None:
        super().__init__()
        self.localizer, self.look, self.classifier = net.localizer, net.look, net.classifier

    def forward(self, x: Tensor) -> Tensor:
        """The crop's scores."""
        return self.classifier(self.look(x, self.localizer(x)[0]))


def write_straight(net: Glimpse, example: Tensor, path: Path, threads: int) -> Path:
    """The stages without branches as a TFLite file, held against the module.

    Args:
        net: trained.
        example: one image.
        path: file to write.
        threads: of the runtime.
    """
    module = Straight(net).eval()
    write_bytes(to_tflite(module, example, "input", ("scores",)), path)
    verify(module, path, example.numpy(), threads)
    return path


def verify_joined(
    path: Path, stages: Stages, side: tuple[int, int], sure: tuple[float, float], inputs: Dataset, threads: int
) -> None:
    """VerificationError where the one graph answers otherwise than its stages, one after the other.

    Args:
        path: the graph.
        stages, side, sure: what it was written from.
        inputs: some images; few of them are asked.
        threads: of the runtime.
    """
    few = inputs.take(np.arange(min(ASKED, len(inputs))))
    seen = look_through(stages, side, few, threads)
    ends = seen.ends(sure, fallback=seen.full is not None)
    answers = [each for each in (seen.glance, seen.crop, seen.full) if each is not None]
    wanted = np.stack([answers[end][i].numpy() for i, end in enumerate(ends)])
    with open_file(path, threads) as runner:
        found = np.concatenate([runner.run(one)[0] for one in few.batches(1)])
    worst, size = float(np.abs(found - wanted).max()), float(np.abs(wanted).max())
    if not worst <= STATIC_TOLERANCE * max(size, 1e-6):
        raise VerificationError(
            f"export: one graph differs from its stages by {worst:.2g} (outputs up to {size:.2g}); please report it"
        )
