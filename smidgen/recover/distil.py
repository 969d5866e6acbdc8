"""Distillation: a network learns to answer as another one does.

    loss = (1 − a) · CE(labels) + a · T² · KL(softmax(t/T) ‖ softmax(s/T)) + b · features     Hinton et al. 2015

t and s are the scores of teacher and student (arXiv:1503.02531); T² keeps the gradient's size whatever the temperature.
Networks that are no classifiers learn values: half the squared error of each output over its variance. Features are
what the last layers of one size of map read, at each size that both networks have; where widths differ, a projection
learned beside the student and thrown away after (FitNets, arXiv:1412.6550) maps its features to the teacher's.

Differs from the papers: features are learned beside the answers, not before them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from smidgen.calibrate.answers import LEAST_VARIANCE, as_logits, is_classifier, outputs_of
from smidgen.data import Dataset
from smidgen.errors import DataError, UserError
from smidgen.model.sites import FORWARD
from smidgen.recover.scoring import answers, class_score, ordered

Outputs = list[Tensor]
# Classes; of mixed images the share of each class, from the first to the last one that there are labels of.
Labels = Int64[Tensor, " n"] | Float[Tensor, "n known"]
KEPT_NBYTES = 1 << 29  # a teacher's answers are kept when all of them take less


def soft_loss(student: Float[Tensor, "n k"], teacher: Float[Tensor, "n k"], temperature: float) -> Float[Tensor, ""]:
    """T² · KL(softmax(t/T) ‖ softmax(s/T)), the mean over samples (arXiv:1503.02531).

    Args:
        student, teacher: logits.
        temperature: T.

    >>> x = torch.tensor([[1.0, 3.0]])
    >>> soft_loss(x, x, 4.0).item()
    0.0
    """
    wanted, given = ((logits / temperature).log_softmax(1) for logits in (teacher, student))
    return temperature**2 * F.kl_div(given, wanted, reduction="batchmean", log_target=True)


def label_loss(student: Float[Tensor, "n k"], labels: Labels) -> Float[Tensor, ""]:
    """−log softmax(s)[label], the mean over samples; of mixed images weighed by their shares of classes.

    Args:
        student: logits.
        labels: classes, or shares of them.

    >>> logits = torch.tensor([[2.0, 0.0, 1.0]])
    >>> label_loss(logits, torch.tensor([0])).equal(label_loss(logits, torch.tensor([[1.0, 0.0]])))
    True
    """
    if labels.is_floating_point():
        labels = F.pad(labels, (0, max(0, student.shape[1] - labels.shape[1])))
    return F.cross_entropy(student, labels)


def value_loss(student: Sequence[Tensor], teacher: Sequence[Tensor], variances: Sequence[float]) -> Float[Tensor, ""]:
    """Half the squared error over its variance, the mean over outputs.

    Args:
        student, teacher: outputs, of equal shapes.
        variances: of each output of the teacher.

    >>> value_loss([torch.zeros(2, 3)], [torch.ones(2, 3)], [0.5]).item()
    1.0
    """
    pairs = zip(student, teacher, variances, strict=True)
    found = [0.5 * (s - t).square().mean() / max(v, LEAST_VARIANCE) for s, t, v in pairs]
    return torch.stack(found).mean()


@dataclass(frozen=True)
class Mixture:
    """What a student learns from.

    Args:
        temperature: T; higher tells more of the classes that the teacher holds unlikely.
        mix: a, the teacher's share; the labels have the rest.
        features: b, the weight of the features; 0 leaves them out.

    Raises:
        UserError: a value that cannot be.
    """

    temperature: float = 4.0
    mix: float = 0.9
    features: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise UserError(f"distil: temperature={self.temperature!r} cannot be; give a number above 0: 4")
        if not 0 <= self.mix <= 1:
            raise UserError(f"distil: mix={self.mix!r} is no share; give 0 (labels alone) to 1 (the teacher alone)")
        if not 0 <= self.features < float("inf"):
            raise UserError(f"distil: features={self.features!r} cannot be; give 0 or more")


class Teaching:
    """The loss of a student, and its score on inputs it does not learn from.

    Args:
        teacher, student: on one device; the teacher is in evaluation mode and never changed.
        mixture: what it learns from.
        example: one batch of inputs, on that device.

    Raises:
        DataError: the two have other outputs.
        UserError: labels mixed into what is no classifier, no features that go together, or no scores at all.
    """

    def __init__(self, teacher: nn.Module, student: nn.Module, mixture: Mixture, example: Tensor) -> None:
        self.teacher, self.student, self.mixture = teacher.eval().requires_grad_(False), student, mixture
        wanted, given = _answers(teacher, example), _answers(student, example)
        _check_outputs(wanted, given)
        if not any(each.is_floating_point() for each in wanted):
            raise UserError("distil: the networks answer with whole numbers; have them give scores to learn from")
        self.classifier = is_classifier(wanted)
        if not self.classifier and mixture.mix < 1:
            raise UserError("distil: labels are mixed in for classifiers alone; give mix=1 for this network")
        self.variances = [1.0] * len(wanted)
        self.hints = Hints(teacher, student, example) if mixture.features else None

    def loss(self, x: Tensor, labels: Tensor | None, *kept: Tensor) -> Tensor:
        """Of a batch, for `smidgen.recover.loop.fit`; ``kept`` are the teacher's answers where they are known."""
        if self.hints is not None:
            return self._with_features(x, labels, self.hints)
        wanted = list(kept) if kept or self.mixture.mix == 0 else _answers(self.teacher, x)
        return self._loss(outputs_of(self.student(x)), wanted, labels)

    def _with_features(self, x: Tensor, labels: Tensor | None, hints: Hints) -> Tensor:
        with hints.listening() as heard:
            wanted = _answers(self.teacher, x)
            given = outputs_of(self.student(x))
        return self._loss(given, wanted, labels) + self.mixture.features * hints.loss(heard)

    def _loss(self, given: Outputs, wanted: Outputs, labels: Tensor | None) -> Tensor:
        given, wanted = ([each.float() for each in side] for side in (given, wanted))  # bfloat16, if mixed
        if not self.classifier:
            return value_loss(given, wanted, self.variances)
        mix, logits = self.mixture.mix, as_logits(given[0])
        found = torch.zeros((), device=logits.device)
        if mix > 0:
            found = found + mix * soft_loss(logits, as_logits(wanted[0]), self.mixture.temperature)
        if mix < 1:
            assert labels is not None  # asked for before anything began
            found = found + (1 - mix) * label_loss(logits, labels)
        return found

    def keep_answers(self, inputs: Dataset, batch: int = 256) -> list[Tensor]:
        """The teacher's answers to all inputs, ``[inputs, …]`` on the host; none where they take too much memory.

        They also tell how much each value varies, which their error is measured by.
        """
        kept: list[list[Tensor]] = []
        nbytes = 0
        for part in inputs.batches(batch):
            found = [each.cpu() for each in _answers(self.teacher, torch.from_numpy(part).to(self._device))]
            nbytes += sum(each.nbytes for each in found)
            if kept and nbytes > KEPT_NBYTES:
                break
            kept.append(found)
        together = [torch.cat(each) for each in zip(*kept, strict=True)]
        self.variances = [float(each.float().var()) if each.numel() > 1 else 1.0 for each in together]
        return together if nbytes <= KEPT_NBYTES and all(len(each) == len(inputs) for each in together) else []

    def score(self, inputs: Dataset, wanted: Sequence[Tensor]) -> float:
        """On inputs the student does not learn from; lower is better.

        Args:
            inputs: with labels, or judged by the teacher's answers alone.
            wanted: those answers, from `keep_answers`.

        Returns:
            For classifiers wrong answers and their loss, see `smidgen.recover.scoring.ordered`. For others the mean
            normalised error.
        """
        given = answers(self.student, inputs)
        if not self.classifier:
            return float(value_loss(given, [each.float() for each in wanted], self.variances))
        logits, aims = as_logits(given[0]), as_logits(wanted[0])
        if inputs.labels is not None:
            return class_score(logits, torch.from_numpy(inputs.labels.copy()))
        return ordered(logits.argmax(1) != aims.argmax(1), soft_loss(logits, aims, 1.0))

    @property
    def _device(self) -> torch.device:
        return next((each.device for each in self.student.parameters()), torch.device("cpu"))

    @property
    def projections(self) -> list[nn.Parameter]:
        """Learned beside the student."""
        return [] if self.hints is None else list(self.hints.parameters())


class Hints(nn.Module):
    """Features that the two networks have at the same size of map, and projections from one's to the other's.

    Args:
        teacher, student: run once.
        example: one batch of inputs.

    Raises:
        UserError: there are none.

    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> small = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> [tuple(each.weight.shape) for each in Hints(net, small, torch.zeros(1, 4)).projections]
    [(8, 3)]
    """

    def __init__(self, teacher: nn.Module, student: nn.Module, example: Tensor) -> None:
        super().__init__()
        sides = [_read_by_layers(net, example) for net in (teacher, student)]
        sizes = [size for size in sides[0] if size in sides[1]]
        if not sizes:
            raise UserError("distil: no layers of the two networks read maps of the same size; leave features out")
        self._pairs = [(sides[0][size][0], sides[1][size][0]) for size in sizes]
        self.projections = nn.ModuleList(
            _projection(sides[1][size][1], sides[0][size][1], len(size)) for size in sizes
        ).to(example.device)

    @contextmanager
    def listening(self) -> Iterator[dict[nn.Module, Tensor]]:
        """What the layers read while the block runs both networks."""
        heard: dict[nn.Module, Tensor] = {}

        def hear(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
            heard[layer] = given[0]

        hooks = [layer.register_forward_pre_hook(hear) for pair in self._pairs for layer in pair]
        try:
            yield heard
        finally:
            for hook in hooks:
                hook.remove()

    def loss(self, heard: dict[nn.Module, Tensor]) -> Tensor:
        """The mean normalised error of the student's features, projected."""
        found = []
        for (theirs, own), projection in zip(self._pairs, self.projections, strict=True):
            wanted = heard[theirs].detach().float()
            error = (projection(heard[own].float()) - wanted).square().mean()
            found.append(0.5 * error / wanted.var().clamp_min(LEAST_VARIANCE))
        return torch.stack(found).mean()


def _read_by_layers(net: nn.Module, example: Tensor) -> dict[tuple[int, ...], tuple[nn.Module, int]]:
    """The last layer that reads each size of map, and its channels; the first layer reads the input, no feature."""
    calls: list[tuple[nn.Module, Tensor]] = []
    hooks = [
        each.register_forward_pre_hook(lambda layer, given: calls.append((layer, given[0])))
        for each in net.modules()
        if isinstance(each, FORWARD)
    ]
    try:
        _answers(net, example)
    finally:
        for hook in hooks:
            hook.remove()
    count = [layer for layer, _ in calls]
    # A layer run twice reads two things: neither is its own.
    once = [(layer, x) for layer, x in calls[1:] if count.count(layer) == 1]
    return {
        tuple(x.shape[2:]): (layer, x.shape[1])
        for layer, x in once
        if x.ndim == 2 or (x.ndim > 2 and not isinstance(layer, nn.Linear))
    }


def _projection(given: int, wanted: int, axes: int) -> nn.Module:
    if given == wanted:
        return nn.Identity()
    if axes == 0:
        return nn.Linear(given, wanted)
    kinds: dict[int, Callable[[int, int, int], nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
    return kinds[axes](given, wanted, 1)


def _answers(net: nn.Module, x: Tensor) -> Outputs:
    """In evaluation mode, without a gradient; the network's mode is as it was."""
    before = {each: each.training for each in net.modules()}
    net.eval()
    with torch.no_grad():
        found = outputs_of(net(x))
    for each, mode in before.items():
        each.training = mode
    return found


def _check_outputs(wanted: Outputs, given: Outputs) -> None:
    shapes = [[tuple(each.shape[1:]) for each in side] for side in (given, wanted)]
    if shapes[0] != shapes[1]:
        told = [", ".join(str(list(shape)) for shape in side) for side in shapes]
        raise DataError(
            f"distil: the student answers with {told[0]} for each input and the teacher with {told[1]}; "
            "give it a last layer like the teacher's"
        )


def need_labels(data: Dataset, mix: float | None) -> float:
    """The teacher's share, with what data there is.

    Args:
        data: learned from.
        mix: asked for; None for 0.9 with labels (arXiv:1503.02531 weighs them little) and 1 without.

    Raises:
        DataError: labels are needed and there are none.

    >>> import numpy as np
    >>> need_labels(Dataset.from_array(np.zeros((1, 2), np.float32)), None)
    1.0
    """
    if data.labels is None and mix is not None and mix < 1:
        raise DataError(
            f"mix: a share of {mix:g} learns from labels too, and {data.source!r} has none; "
            "leave it out, or give 1: then the original's answers are enough (as in the recipe distil)"
        )
    return mix if mix is not None else 1.0 if data.labels is None else 0.9
