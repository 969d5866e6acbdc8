"""glimpse(): a classifier that looks at a shrunken image first, then at a crop, and at everything only when unsure.

load → divide the data → the network's answers and where it found them → train localizer and classifier
     → (compress each stage) → from which certainty on a first look stands → export as one graph → measure
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from smidgen.budget import Budget
from smidgen.calibrate.answers import as_logits, is_classifier, outputs_of
from smidgen.data import Dataset
from smidgen.errors import DataError, UserError, one_line
from smidgen.export.glimpse import Stages, write_glimpse
from smidgen.export.verify import verify
from smidgen.measure.scores import Metric
from smidgen.model.glimpse import Glimpse, Localizer, Look
from smidgen.model.load import Network, load_network
from smidgen.pipeline.glimpse_stages import (
    SMALLER,
    STRAIGHT,
    check_target,
    costs_of,
    look_through,
    verify_joined,
    with_smaller,
    write_straight,
)
from smidgen.pipeline.task import Data, Progress, Threads, as_data
from smidgen.pipeline.training import Ground, check_classes, finish, open_ground, original_file, weights_digest
from smidgen.pipeline.training import write_network as write_part
from smidgen.recover.glimpse import (
    Answers,
    Fading,
    Lessons,
    Sureness,
    activation_boxes,
    choose_sureness,
    collapsed,
)
from smidgen.recover.loop import fit
from smidgen.recover.scoring import answers as answers_of
from smidgen.recover.training import Training
from smidgen.report.training import Trained
from smidgen.runtimes.opening import open_file

Boxes = Mapping[int, Tensor]

POINTS = 0.5  # that may be lost beside the full network, where nobody said
TIMED, RUNS = 200, 3  # inputs, and runs of each, that tell how long a file takes
CELLS = 4  # of a map along a crop's side, that tell where it belongs
SHRINK = 4  # pixels of a side that the localizer averages into one


def glimpse(
    model: nn.Module | str | Path,
    data: Data,
    crop: int | tuple[int, int],
    *,
    classifier: nn.Module | str | Path | None = None,
    localizer: nn.Module | None = None,
    boxes: np.ndarray | None = None,
    fallback: bool = True,
    max_drop: float = POINTS,
    target: str = "onnx",
    budget: Budget | None = None,
    labels: float = 0.5,
    training: Training | None = None,
    test: Data = None,
    validation: Data = None,
    weights: str | Path | None = None,
    metric: str | Metric | None = None,
    checkpoint: str | Path | None = None,
    threads: int | None = None,
    device: str = "cpu",
    seed: int = 0,
    progress: Progress = lambda stage, done, total: None,
) -> Trained:
    """Teach a localizer and a small classifier to answer for a network that reads large images.

        E[MACs] = localizer + p(no early exit) · (crop + classifier) + p(fallback) · full

    It pays where what matters is small in the image. Where it fills the frame the crop is the image, and the record
    says so.

    Args:
        model: a classifier of images: a module, an ``.onnx`` or ``.pt2`` file, or ``file.py:factory``. It stays as it
            is, as the last stage.
        data: images, labels optional, as for `smidgen.compress`; four fifths are learned from, the last one chooses.
        crop: rows and columns of what the classifier sees, pixels.
        classifier: crop → scores of the same classes; a copy of the network where it takes crops, when None.
        localizer: image → (box, scores); see `smidgen.model.glimpse.Localizer`, which is taken when None.
        boxes: where to look in each input of ``data``: x, y of the centre in −1 … 1 and the side as a share of the
            image's, ``[inputs, 3]``; the network's own class-activation maps tell when None.
        fallback: whether the whole image is looked at when unsure; without, the network is not in the file.
        max_drop: percentage points of right answers that may be lost on the inputs that choose.
        target: ``onnx``, or ``onnx-fp16``, ``onnx-w8`` or ``onnx-int8``: each stage is then compressed to it before the
            thresholds are chosen. ``tflite`` (without fallback) writes the way through the crop, which has no branch,
            beside the ONNX file.
        budget: a ratio or a tradeoff that each stage keeps; with one, a target of ``onnx`` is compressed too.
        labels: their share of what is learned from, where there are some.
        training: of localizer and classifier; see `smidgen.Training`, its seed is ``seed``.
        test: inputs scored once at the end; a fifth of ``data`` is held back when None.
        validation: inputs that choose between epochs and thresholds; a fifth of ``data`` is held back when None.
        weights: ``.safetensors`` or weights-only ``.pth`` for a factory.
        metric: replaces accuracy in the files' scores; see `smidgen.compress`.
        checkpoint: file to go on from, if it is there, and to write.
        threads: for torch and onnxruntime; what torch uses when None.
        device: where torch computes: ``cpu`` or ``cuda``.
        seed: of everything drawn.
        progress: called with (stage, done, total).

    Returns:
        The network that looks, its one file, and what was measured; ``record["glimpse"]`` has shares, expected
        multiply-accumulates and thresholds.

    Raises:
        UserError: no classifier of images, parts that do not go together, or boxes that are none.
    """
    check_target(target, budget, fallback=fallback)
    training = replace(training or Training(), seed=seed)
    side = (crop, crop) if isinstance(crop, int) else crop
    network = load_network(model, weights)
    given = as_data(data)
    ground = open_ground(network, given, test, validation, metric, threads, training)
    _check(network, ground, side, max_drop)
    with Threads(ground.threads):
        work = _Work(ground, network, side, device, progress)
        work.build(classifier, localizer, fallback, None if boxes is None else _by_item(boxes, given), seed)
        fitted = work.train(training, labels, None if checkpoint is None else Path(checkpoint))
        work.write_stages()
        if target in SMALLER or budget is not None:
            work.compress(target, budget)
        sureness, warning = work.choose(max_drop)
        path = work.write()
        files, beside = {"original": work.original}, ()
        if target == STRAIGHT:
            beside = (write_straight(work.net, ground.example, path.with_suffix(".tflite"), ground.threads),)
            files[STRAIGHT] = beside[0]
        files["glimpse"] = path
        done = finish(
            ground, files, work.net, training, fitted, kind="glimpse", name=network.name,
            asked={"crop": list(side), "max_drop": max_drop, "labels": labels, "fallback": fallback, "target": target,
                   "budget": None if budget is None else budget.kind},
            glimpse=work.told(sureness, warning, path),
        )  # fmt: skip
        return replace(done, beside=beside)


def _by_item(boxes: np.ndarray, given: Dataset) -> Boxes:
    """Boxes by the item that each belongs to."""
    if boxes.shape != (len(given), 3) or not np.isfinite(boxes).all():
        raise DataError(
            f"glimpse: boxes of shape {list(boxes.shape)} are not x, y and side of each of {len(given)} inputs, as "
            "finite numbers"
        )
    values = torch.from_numpy(boxes.astype(np.float32))
    return {int(item): box for item, box in zip(given.indices, values, strict=True)}


def _check(network: Network, ground: Ground, side: tuple[int, int], points: float) -> None:
    """Refuse what cannot be, before anything is trained."""
    example = ground.example
    if example.ndim != 4:
        raise DataError(f"glimpse: inputs of shape {tuple(example.shape[1:])} are no images; it needs [channels, h, w]")
    if not all(1 <= s <= whole for s, whole in zip(side, example.shape[2:], strict=True)):
        raise UserError(f"glimpse: a crop of {side[0]}×{side[1]} is no part of images of "
                        f"{example.shape[2]}×{example.shape[3]}; give fewer pixels")  # fmt: skip
    if not points >= 0:
        raise UserError(f"glimpse: max_drop={points:g} points cannot be lost; give 0 or more")
    with torch.no_grad():
        answer = network.module(example)
    if not is_classifier(outputs_of(answer)):
        raise UserError("glimpse: the network must answer with one score a class")
    check_classes(ground, answer)


@dataclass(eq=False)
class _Work:
    """One network, and the one that looks for it."""

    ground: Ground
    network: Network
    side: tuple[int, int]
    device: str
    progress: Progress

    def build(
        self, classifier: Any, localizer: nn.Module | None, fallback: bool, boxes: Boxes | None, seed: int
    ) -> None:
        """Assemble the stages, and ask the network what it answers and where it found that."""
        example, full = self.ground.example, self.network.module.eval().requires_grad_(False)
        with torch.no_grad():
            self.classes = as_logits(outputs_of(full(example))[0]).shape[1]
        self.full = full.to(self.device)
        roles = self.ground.roles
        self.progress("where the network looks", 0, 1)
        self.aims = [self._aims(part, boxes) for part in (roles.calibration, roles.selection)]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            start = float(self.aims[0][:, 2].mean())
            local = localizer or Localizer(example.shape[1], self.classes, SHRINK, size=start)
            small = self._classifier(classifier)
        self.net = Glimpse(local, small, full if fallback else None, self.side)

    def _aims(self, part: Dataset, boxes: Boxes | None) -> Tensor:
        if boxes is None:
            share = min(s / whole for s, whole in zip(self.side, self.ground.example.shape[2:], strict=True))
            return activation_boxes(self.full, part, ceil(CELLS / share))
        return torch.stack([boxes[int(item)] for item in part.indices])

    def _classifier(self, given: Any) -> nn.Module:
        """What reads crops, once it is certain that it does."""
        small = copy.deepcopy(self.network.module).cpu() if given is None else load_network(given).module
        crop = Look(self.side)(self.ground.example, torch.tensor([[0.0, 0.0, 1.0]]))
        try:
            with torch.no_grad():
                answer = small.eval()(crop)
        except Exception as error:  # a network's own code may raise anything
            what = "the network takes no crops; give a classifier" if given is None else "the classifier does not run"
            raise UserError(f"glimpse: {what} for {self.side[0]}×{self.side[1]}: {one_line(error)}") from error
        if not isinstance(answer, Tensor) or as_logits(answer).shape[1:] != (self.classes,):
            raise UserError(f"glimpse: the classifier must answer with {self.classes} scores, as the network does")
        return small.requires_grad_(True)

    def train(self, training: Training, labels: float, checkpoint: Path | None) -> Any:
        """Localizer and classifier; the network stands still."""
        learned, selection = self.ground.roles.calibration, self.ground.roles.selection
        self.wanted = [as_logits(answers_of(self.full, part)[0]) for part in (learned, selection)]
        parts = nn.ModuleDict({"localizer": self.net.localizer, "classifier": self.net.classifier})
        self.net.to(self.device)
        fading = Fading(training.epochs * max(1, len(learned) // training.batch))
        lessons = Lessons(self.net, labels, fading)
        # What augmentation moves, boxes and the network's answers do not follow.
        if training.augment:
            raise UserError(f"glimpse: {training.augment[0]} would move what the boxes tell; leave --augment out")
        return fit(
            parts, learned, lessons.loss, training, held=self._score, hooks=[fading],
            beside=[self.wanted[0], self.aims[0]], checkpoint=checkpoint, device=self.device,
            identity={
                "network": weights_digest(self.network.module), "labels": labels, "selection": selection.sha256,
            }, progress=self.progress,
        )  # fmt: skip

    def _score(self) -> float:
        """Wrong crops and glances on the inputs that choose, and their distance from the network's answers."""
        part, full, found = self.ground.roles.selection, self.wanted[1], list[list[Tensor]]()
        with torch.no_grad():
            for batch in part.batches():
                looks = self.net.looks(torch.from_numpy(batch).to(self.device))
                found.append([looks.glance.float().cpu(), looks.crop.float().cpu()])
        firsts = [torch.cat(each) for each in zip(*found, strict=True)]
        wrong = sum(float((each.argmax(1) != self.labels).double().mean()) for each in firsts)
        apart = [(full.log_softmax(1) - each.log_softmax(1)) * full.softmax(1) for each in firsts]
        return wrong + 0.1 * sum(float(each.sum(1).mean()) for each in apart)

    @cached_property
    def labels(self) -> Tensor:
        """Of the inputs that choose; what the network answers where there are none."""
        known = self.ground.roles.selection.labels
        return self.wanted[1].argmax(1) if known is None else torch.from_numpy(known.copy())

    @cached_property
    def original(self) -> Path:
        """The network's own file, or one written from it."""
        return original_file(self.network, self.ground)

    def write_stages(self) -> None:
        """Each stage as a file of floats."""
        self.net.cpu().eval()
        self.device = "cpu"
        place, example = self.ground.folder.path, self.ground.example
        crop = Look(self.side)(example, torch.tensor([[0.0, 0.0, 1.0]]))
        parts = {"localizer": (self.net.localizer, example), "classifier": (self.net.classifier, crop)}
        for name, (part, given) in parts.items():
            write_part(load_network(part), part, replace(self.ground, example=given), place / f"{name}.onnx")
        self.stages = Stages(place / "localizer.onnx", place / "classifier.onnx", None)
        if self.net.full is not None:
            write_part(self.network, self.net.full, self.ground, place / "full.onnx")
            self.stages = replace(self.stages, full=place / "full.onnx")
        self.floats = self.stages

    def compress(self, target: str, budget: Budget | None) -> None:
        """Each stage made smaller, as its file is; the modules stay as they were trained."""
        ground = self.ground
        self.stages = with_smaller(
            self.stages, self.side, ground.roles.calibration, target, budget, ground.threads, ground.seed, self.progress
        )  # fmt: skip

    def choose(self, points: float) -> tuple[Sureness, str | None]:
        """Thresholds by what the files answer to the inputs that choose, and whether the boxes mean anything."""
        part, given = self.ground.roles.selection, self.wanted[1]
        counts = costs_of(self.stages, self.original, self.side, self.ground.example.shape[1])
        if None in counts:
            raise UserError("glimpse: the network's multiplications cannot be counted; export it with fixed sizes")
        self.costs = [float(each or 0) for each in counts]
        # What the network answers in floats is known already.
        seen = look_through(self.stages, self.side, part, self.ground.threads, full=self.stages != self.floats)
        answers = Answers(seen.glance, seen.crop, given if seen.full is None else seen.full, self.labels, given)
        sureness = choose_sureness(answers, self.costs, points, self.net.full is not None)
        self.net.sure.copy_(torch.tensor(sureness.sure))
        return sureness, collapsed(seen.box, self.aims[1])

    @property
    def sure(self) -> tuple[float, float]:
        """From which certainty on answers stand."""
        first, second = self.net.sure.tolist()
        return first, second

    def write(self) -> Path:
        """One graph, held against the module, or against its stages where those are smaller than the module's."""
        path, ground = self.ground.folder.path / "model.onnx", self.ground
        write_glimpse(self.stages, self.side, self.sure, path)
        if self.stages == self.floats:
            verify(self.net, path, ground.one, ground.threads)
        else:
            verify_joined(path, self.stages, self.side, self.sure, ground.roles.selection, ground.threads)
        return path

    def told(self, sureness: Sureness, warning: str | None, path: Path) -> dict[str, Any]:
        """For the record: what is expected, and what the test inputs did."""
        test, threads = self.ground.roles.test, self.ground.threads
        seen = look_through(self.stages, self.side, test, threads, full=False)
        ends = seen.ends(self.sure, fallback=self.stages.full is not None)
        shares = (np.bincount(ends, minlength=3) / max(1, len(ends))).tolist()
        small, crop, full = self.costs
        files = {"localizer": self.stages.localizer, "classifier": self.stages.classifier, "full": self.stages.full}
        return {
            "sure": list(sureness.sure), "warning": warning, "macs": {"localizer": small, "crop": crop, "full": full},
            "nbytes": {name: None if each is None else each.stat().st_size for name, each in files.items()},
            "selection": {"shares": list(sureness.shares), "lost": sureness.lost, "expected_macs": sureness.macs},
            "test": {"shares": shares, "expected_macs": small + (1 - shares[0]) * crop + shares[2] * full},
            "latency": mean_latency(self.original, path, test, threads),
        }  # fmt: skip


def mean_latency(original: Path, path: Path, inputs: Dataset, threads: int) -> dict[str, Any]:
    """Milliseconds of one input each, the mean over inputs: what a file takes depends on what it is shown.

    Args:
        original, path: files, run in turns; of each input the fastest of a few runs counts.
        inputs: the first `TIMED` are taken.
        threads: of the runtime.
    """
    some = inputs.take(range(min(TIMED, len(inputs))))
    found: list[list[float]] = [[], []]
    with open_file(original, threads) as before, open_file(path, threads) as after:
        for number, x in enumerate(some.batches(1)):
            for runner, times in zip((before, after), found, strict=True):
                runs = []
                for _ in range(RUNS + (number == 0)):  # the first input warms up
                    started = time.perf_counter()
                    runner.run(x)
                    runs.append(1000 * (time.perf_counter() - started))
                times.append(min(runs))
    first, second = (float(np.mean(times)) for times in found)
    return {"inputs": len(some), "original_ms": first, "glimpse_ms": second, "speedup": first / second}
