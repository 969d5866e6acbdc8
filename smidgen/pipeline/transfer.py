"""transfer(): a trained network learns other classes.

open → divide the data → new last layer → it learns alone → all learn → export → measure
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from smidgen.calibrate.answers import as_logits
from smidgen.data import Dataset, check_inputs, check_labels
from smidgen.errors import DataError, UserError, one_line
from smidgen.measure.scores import Metric
from smidgen.model.heads import with_head
from smidgen.model.load import Network, load_network
from smidgen.pipeline.task import Data, Progress, Threads
from smidgen.pipeline.training import Ground, finish, open_ground, original_file, weights_digest, write_network
from smidgen.recover.distil import label_loss
from smidgen.recover.loop import Fitted, fit
from smidgen.recover.scoring import indistinct, labelled_score
from smidgen.recover.training import Training
from smidgen.report.training import Trained


def transfer(
    model: nn.Module | str | Path,
    data: Data,
    classes: int | None = None,
    *,
    training: Training | None = None,
    freeze_epochs: int = 3,
    body_rate: float = 0.1,
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
    """Teach a trained classifier other classes: a new last layer learns alone, then all layers do, more slowly.

    BatchNorms that an export has folded into an ONNX file's layers stay folded.

    Args:
        model: a module, an ``.onnx`` or ``.pt2`` file, or ``file.py:factory``, that ends in a dense or 1×1 layer.
        data: inputs with labels, as for `smidgen.compress`. Four fifths are learned from, by the last one the best
            epoch is chosen. Images may have another size than the network's where its layers take any.
        classes: of the new network; the largest label and one when None.
        training: of all layers; see `smidgen.Training`, its seed is ``seed``.
        freeze_epochs: before that, in which the new layer learns alone; 0 for none.
        body_rate: learning rate of the other layers, as a share of the new one's; 0 never changes them.
        test: inputs scored once at the end; a fifth of ``data`` is held back when None.
        validation: inputs that choose between epochs; a fifth of ``data`` is held back when None.
        weights: ``.safetensors`` or weights-only ``.pth`` for a factory.
        metric: replaces accuracy in the files' scores; see `smidgen.compress`.
        checkpoint: file to go on from, if it is there, and to write; the new layer's own is beside it.
        threads: for torch and onnxruntime; what torch uses when None.
        device: where torch computes: ``cpu`` or ``cuda``.
        seed: of everything drawn.
        progress: called with (stage, done, total).

    Returns:
        The new network, its file, and what was measured; `smidgen.compress` takes it further.

    Raises:
        UserError: for anything wrong with what was given.

    >>> _ = torch.manual_seed(0)
    >>> net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 10))
    >>> x = torch.randn(100, 8)
    >>> result = transfer(net, (x, (x[:, 0] > 0).long()), training=Training(epochs=1, batch=16))
    >>> result.model(x[:1]).shape
    torch.Size([1, 2])
    """
    if freeze_epochs < 0 or not 0 <= body_rate <= 1 or freeze_epochs == body_rate == 0:
        raise UserError(
            f"transfer: freeze_epochs={freeze_epochs!r} must be 0 or more and body_rate={body_rate!r} from 0 to 1, not "
            "both 0"
        )
    training = replace(training or Training(), seed=seed)
    network = load_network(model, weights)
    free = replace(network, input_shape=())  # the size is the data's, if the network takes it
    ground = open_ground(free, data, test, validation, metric, threads, training)
    network = _at_size(network, ground)
    count = _classes(ground, classes)
    with Threads(ground.threads):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            changed, head = with_head(network.module, ground.example, count)
        # What cannot be written is told before the training.
        path = ground.folder.path / "model.onnx"
        write_network(network, copy.deepcopy(changed), ground, path)
        place = None if checkpoint is None else Path(checkpoint)
        work = _Work(ground, changed.to(device), head, training, device, weights_digest(network.module), progress)
        fitted = work.train(freeze_epochs, body_rate, place)
        write_network(network, work.net, ground, path)
        files = {"original": original_file(network, ground), "transferred": path}
        asked = {"classes": count, "freeze_epochs": freeze_epochs, "body_rate": body_rate, "head": head}
        return finish(
            ground, files, work.net, training, fitted[-1], comparable=False, kind="transfer", name=network.name,
            asked=asked, head=fitted[0].plain() if freeze_epochs else None,
            kept=work.kept if body_rate else "head",
        )  # fmt: skip


class _Work:
    """Trains the new layer and then all of them."""

    def __init__(
        self,
        ground: Ground,
        net: nn.Module,
        head: str,
        training: Training,
        device: str,
        digest: str,
        progress: Progress,
    ) -> None:
        self.ground, self.net, self.training, self.device = ground, net, training, device
        self.head, self.digest, self.progress = net.get_submodule(head), digest, progress
        self.kept = "all"  # whose weights came back: those of all layers' training, or of the new one's alone

    def train(self, freeze_epochs: int, body_rate: float, checkpoint: Path | None) -> list[Fitted]:
        """Both parts, the new layer's own first."""
        done: list[Fitted] = []
        best: dict[str, Any] = {}
        own = {id(each) for each in self.head.parameters()}
        body = [each for each in self.net.parameters() if id(each) not in own]
        epochs = freeze_epochs + (self.training.epochs if body_rate else 0)
        if freeze_epochs:
            place = None if checkpoint is None else checkpoint.with_name(f"{checkpoint.name}.head")
            alone = self._within(replace(self.training, epochs=freeze_epochs), freeze_epochs / epochs)
            frozen = [each for each in body if each.requires_grad]
            for each in frozen:
                each.requires_grad_(False)
            self.net.eval()  # BatchNorms of the body keep their statistics
            done.append(self._fit(self.head, alone, None, place, "the new layer, "))
            for each in frozen:
                each.requires_grad_(True)
            best = {name: value.clone() for name, value in self.net.state_dict().items()}
        if body_rate:
            groups = [{"params": list(self.head.parameters())}, {"params": body, "lr_scale": body_rate}]
            every = self._within(self.training, self.training.epochs / epochs)
            done.append(self._fit(self.net, every, groups, checkpoint, "all layers, "))
            if best and _better(done[0].best, done[1].best):
                self.net.load_state_dict(best)
                self.kept = "head"
        self.net.eval()
        return done

    def _fit(self, part: nn.Module, training: Training, groups: Any, checkpoint: Path | None, told: str) -> Fitted:
        roles = self.ground.roles
        held: Callable[[], float] = lambda: labelled_score(self.net, roles.selection)  # noqa: E731 - a name for its type
        return fit(
            part, roles.calibration, self._loss, training, held=held, within=indistinct(len(roles.selection)),
            groups=groups, checkpoint=checkpoint, device=self.device,
            identity={"network": self.digest, "selection": roles.selection.sha256},
            progress=lambda stage, at, total: self.progress(told + stage, at, total),
        )  # fmt: skip

    def _loss(self, x: Tensor, labels: Tensor | None) -> Tensor:
        assert labels is not None  # asked for before anything began
        return label_loss(as_logits(self.net(x).float()), labels)

    def _within(self, training: Training, share: float) -> Training:
        limit = self.training.time_limit
        return training if limit is None else replace(training, time_limit=limit * share)


def _better(one: float | None, other: float | None) -> bool:
    return one is not None and (other is None or one < other)


def _at_size(network: Network, ground: Ground) -> Network:
    """The network for inputs of the data's size; one that takes only its own is refused."""
    given = tuple(ground.example.shape)
    known = network.input_shape
    try:
        with torch.no_grad():
            network.module(ground.example)
    except Exception as error:  # a network's own code may raise anything
        if known:
            check_inputs(ground.learned, known)
        raise DataError(f"transfer: the network does not run on these inputs: {one_line(error)}") from error
    if all(k is None or k == g for k, g in zip(known[1:], given[1:], strict=False)):
        return network
    # Its own file takes no other size: the original is written anew for this one.
    return replace(network, source=None, input_shape=(None, *given[1:]))


def _classes(ground: Ground, classes: int | None) -> int:
    parts: list[Dataset] = [ground.roles.calibration, ground.roles.selection, ground.roles.test]
    labels = [part.labels for part in parts if part.labels is not None]
    if len(labels) < len(parts):
        missing = next(part.source for part in parts if part.labels is None)
        raise DataError(
            f"transfer: it learns from labels and {missing!r} has none; name them with --labels, or train a network "
            "without labels by smidgen distil"
        )
    count = max(int(each.max()) for each in labels) + 1 if classes is None else classes
    if count < 2:
        raise DataError(f"transfer: {count} classes are too few; give labels of two at least")
    for part in parts:
        check_labels(part, count)
    return count
