"""Three stages as one ONNX graph that answers as the module, whichever stage an image ends at."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from smidgen.errors import UserError
from smidgen.export.glimpse import Stages, write_glimpse
from smidgen.export.onnx import write
from smidgen.export.prepare import prepare
from smidgen.model.glimpse import CROP, GLANCE, NEVER, WHOLE, Glimpse, Localizer
from smidgen.model.load import load_network
from smidgen.runtimes.opening import open_file
from smidgen.site import untouched

SIDE = (8, 10)


def full(classes: int = 3) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))


def file_of(module: nn.Module, example: torch.Tensor, path) -> None:
    prepared = prepare(load_network(module), example)
    write(prepared.base, prepared.sites, {each.name: untouched(each) for each in prepared.sites}, path)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return Glimpse(Localizer(1, 3, 2, size=0.4), full(), full(), SIDE).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def stages(net, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stages")
    image = torch.rand(1, 1, 32, 40)
    for name, part, given in (
        ("localizer", net.localizer, image), ("classifier", net.classifier, torch.rand(1, 1, *SIDE)),
        ("full", net.full, image),
    ):  # fmt: skip
        file_of(part, given, folder / f"{name}.onnx")
    return Stages(*(folder / f"{name}.onnx" for name in ("localizer", "classifier", "full")))


@pytest.mark.parametrize(("sure", "stage"), [((0.0, 0.0), GLANCE), ((NEVER, 0.0), CROP), ((NEVER, NEVER), WHOLE)])
def test_one_graph_answers_as_the_module(net, stages, tmp_path, sure, stage):
    path = tmp_path / "one.onnx"
    write_glimpse(stages, SIDE, sure, path)
    net.sure.copy_(torch.tensor(sure))
    x = torch.rand(6, 1, 32, 40, generator=torch.Generator().manual_seed(1))
    assert set(net.ends(x).tolist()) == {stage}
    with open_file(path, 1) as runner:
        written = np.concatenate([runner.run(each[None].numpy())[0] for each in x])
    np.testing.assert_allclose(written, net(x).detach().numpy(), atol=1e-5)


def test_each_image_ends_where_it_is_sure(net, stages, tmp_path):
    x = torch.rand(30, 1, 32, 40, generator=torch.Generator().manual_seed(2))
    looks = net.looks(x)
    sure = tuple(float(each.softmax(1).amax(1).median()) for each in (looks.glance, looks.crop))
    net.sure.copy_(torch.tensor(sure))
    assert set(net.ends(x).tolist()) == {GLANCE, CROP, WHOLE}
    path = tmp_path / "one.onnx"
    write_glimpse(stages, SIDE, sure, path)
    # At the median itself a last bit may decide otherwise.
    away = (looks.glance.softmax(1).amax(1) - sure[0]).abs() > 1e-5
    away &= (looks.crop.softmax(1).amax(1) - sure[1]).abs() > 1e-5
    with open_file(path, 1) as runner:
        written = np.concatenate([runner.run(each[None].numpy())[0] for each in x[away]])
    np.testing.assert_allclose(written, net(x[away]).detach().numpy(), atol=1e-5)


def test_a_stage_that_is_not_needed_does_not_run(stages, tmp_path):
    """Crop and whole network stand in a branch, which a runtime enters only where it must."""
    path = tmp_path / "one.onnx"
    write_glimpse(stages, SIDE, (0.0, 0.0), path)
    graph = onnx.load(path).graph
    assert [node.op_type for node in graph.node][-1] == "If"
    outside = {node.op_type for node in graph.node}
    assert "GridSample" not in outside


def test_stages_of_other_classes_are_refused(net, stages, tmp_path):
    file_of(full(4), torch.rand(1, 1, 32, 40), tmp_path / "four.onnx")
    with pytest.raises(UserError, match=r"\[3, 4\] scores; they must have the same classes"):
        write_glimpse(Stages(stages.localizer, stages.classifier, tmp_path / "four.onnx"), SIDE, (1.0, 1.0),
                      tmp_path / "one.onnx")  # fmt: skip
    with pytest.raises(UserError, match="has 1 outputs, not a box and scores"):
        write_glimpse(Stages(stages.classifier, stages.classifier, None), SIDE, (1.0, 1.0), tmp_path / "one.onnx")
