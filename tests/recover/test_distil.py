"""Losses of distillation against what they are by definition, and what they learn from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from smidgen.data import Dataset
from smidgen.errors import DataError, UserError
from smidgen.recover.distil import Hints, Mixture, Teaching, need_labels, soft_loss, value_loss


def logits(seed: int, count: int = 5) -> torch.Tensor:
    return 3 * torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))


def mlp(width: int, outputs: int = 4, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, outputs))


def cnn(width: int, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1),
        nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(2 * width, 4),
    )  # fmt: skip


def test_the_soft_loss_is_the_formula():
    student, teacher = logits(0), logits(1)
    p, q = (torch.softmax(x.double() / 3, 1) for x in (teacher, student))
    wanted = 9 * (p * (p / q).log()).sum(1).mean()
    assert soft_loss(student, teacher, 3.0).item() == pytest.approx(wanted.item(), rel=1e-5)


def test_at_high_temperature_it_matches_logits():
    # arXiv:1503.02531, eq. 4: T² KL → half the squared distance of centred logits over the number of classes.
    student, teacher = logits(0).double(), logits(1).double()
    apart = (student - student.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
    wanted = (apart.square().sum(1) / (2 * 4)).mean()
    assert soft_loss(student, teacher, 1e4).item() == pytest.approx(wanted.item(), rel=1e-3)


def test_values_are_measured_by_their_spread():
    given, wanted = [torch.zeros(2, 3), torch.ones(2, 2)], [torch.full((2, 3), 2.0), torch.ones(2, 2)]
    assert value_loss(given, wanted, [4.0, 9.0]).item() == pytest.approx((0.5 * 4 / 4 + 0) / 2)


@pytest.mark.parametrize("mix", [0.0, 0.3, 1.0])
def test_labels_and_teacher_share_the_loss(mix):
    teacher, student, x, labels = mlp(8), mlp(3, seed=1), torch.randn(10, 6), torch.arange(10) % 4
    teaching = Teaching(teacher, student, Mixture(2.0, mix), x[:1])
    hard = nn.functional.cross_entropy(student(x), labels)
    soft = soft_loss(student(x), teacher(x), 2.0)
    assert teaching.loss(x, labels).item() == pytest.approx((mix * soft + (1 - mix) * hard).item(), rel=1e-5)


def test_a_teacher_that_is_not_listened_to_is_not_asked():
    teacher, student = mlp(8), mlp(3)
    teaching = Teaching(teacher, student, Mixture(mix=0.0), torch.zeros(1, 6))
    teacher.forward = None  # type: ignore[assignment]
    teaching.loss(torch.randn(4, 6), torch.zeros(4, dtype=torch.int64))


def test_kept_answers_are_as_good_as_fresh_ones():
    x = torch.randn(70, 6)
    teaching = Teaching(mlp(8), mlp(3, seed=1), Mixture(mix=1.0), x[:1])
    (kept,) = teaching.keep_answers(Dataset.from_array(x.numpy()), batch=32)
    assert kept.shape == (70, 4)
    assert teaching.loss(x[10:20], None, kept[10:20]).item() == pytest.approx(teaching.loss(x[10:20], None).item())
    assert not any(part.requires_grad for part in teaching.teacher.parameters())


def test_answers_that_take_too_much_memory_are_not_kept(monkeypatch):
    monkeypatch.setattr("smidgen.recover.distil.KEPT_NBYTES", 70 * 4 * 4 - 1)
    teaching = Teaching(mlp(8), mlp(3), Mixture(mix=1.0), torch.zeros(1, 6))
    assert teaching.keep_answers(Dataset.from_array(np.zeros((70, 6), np.float32)), batch=32) == []


def test_probabilities_are_read_as_logits():
    teacher, student, x = mlp(8), mlp(3, seed=1), torch.randn(10, 6)
    plain = Teaching(teacher, student, Mixture(mix=1.0), x[:1]).loss(x, None)
    ended = Teaching(nn.Sequential(teacher, nn.Softmax(1)), student, Mixture(mix=1.0), x[:1]).loss(x, None)
    assert ended.item() == pytest.approx(plain.item(), rel=1e-4)


class Named(nn.Module):
    """Answers with a dict."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body, self.a, self.b = nn.Linear(6, width), nn.Linear(width, 3), nn.Linear(width, 1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = torch.relu(self.body(x))
        return {"a": self.a(x), "b": self.b(x)}


def test_several_values_are_learned_from_dicts_too():
    x = torch.randn(64, 6)
    teacher, student = Named(9), Named(4)
    teaching = Teaching(teacher, student, Mixture(mix=1.0), x[:1])
    kept = teaching.keep_answers(Dataset.from_array(x.numpy()))
    wanted, given = list(teacher(x).values()), list(student(x).values())
    expected = [0.5 * (g - w).square().mean() / w.var() for g, w in zip(given, wanted, strict=True)]
    assert teaching.loss(x, None, *kept).item() == pytest.approx(float(sum(expected).detach()) / 2, rel=1e-5)


def test_features_of_equal_networks_are_equal():
    net, x = cnn(4), torch.randn(3, 1, 8, 8)
    net(x)  # BatchNorm has seen something
    net.eval()
    hints = Hints(net, net, x)
    assert len(hints.projections) == 3, "8×8 before the last of its layers, 4×4, and what the dense layer reads"
    assert list(hints.parameters()) == []
    with hints.listening() as heard:
        net(x)
    assert hints.loss(heard).item() == 0
    assert not any(each._forward_pre_hooks for each in net.modules())


def test_features_are_projected_where_widths_differ_and_can_be_learned():
    teacher, student, x = cnn(6), cnn(3, seed=1), torch.randn(32, 1, 8, 8)
    teaching = Teaching(teacher, student, Mixture(mix=1.0, features=1.0), x[:2])
    assert [tuple(each.shape) for each in teaching.projections if each.ndim > 1] == [
        (6, 3, 1, 1), (6, 3, 1, 1), (12, 6),
    ]  # fmt: skip
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    optimizer = torch.optim.Adam([*student.parameters(), *teaching.projections], 1e-2)
    losses = []
    student.train()
    for _ in range(40):
        optimizer.zero_grad()
        loss = teaching.loss(x, None)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert student.training


class ArgMax(nn.Module):
    """Answers with the class's number."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.argmax(1)


def test_what_cannot_be_is_told():
    x = torch.zeros(1, 6)
    with pytest.raises(DataError, match=r"answers with \[3\] for each input and the teacher with \[4\]"):
        Teaching(mlp(8), mlp(8, outputs=3), Mixture(), x)
    with pytest.raises(UserError, match="classifiers alone; give mix=1"):
        Teaching(mlp(8, outputs=1), mlp(3, outputs=1), Mixture(mix=0.5), x)
    with pytest.raises(UserError, match="no layers of the two"):
        Teaching(nn.Sequential(nn.Linear(6, 4)), mlp(3), Mixture(features=1.0), x)
    numbers = nn.Sequential(mlp(8), ArgMax())
    with pytest.raises(UserError, match="whole numbers"):
        Teaching(numbers, numbers, Mixture(mix=1.0), x)
    for wrong in ({"temperature": 0.0}, {"mix": 1.5}, {"features": -1.0}):
        with pytest.raises(UserError, match=f"distil: {next(iter(wrong))}="):
            Mixture(**wrong)
    unlabelled = Dataset.from_array(np.zeros((2, 6), np.float32))
    with pytest.raises(DataError, match="the original's answers are enough"):
        need_labels(unlabelled, 0.5)
    assert need_labels(Dataset.from_array(np.zeros((2, 6), np.float32), np.array([0, 1])), None) == 0.9
