"""Opening networks: factories, weights, programs, and one line for everything that is wrong. Nothing is unpickled."""

from __future__ import annotations

import pickle
import sys

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from smidgen.errors import LoadError
from smidgen.model.load import load_network

NETS = """
import torch
from torch import nn

class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x).relu()

def small():
    return Small()

def failing():
    raise ValueError("no such width" + chr(10) + "second line")

def needy(width):
    return nn.Linear(width, 2)

def number():
    return 7

not_callable = 3
"""


@pytest.fixture
def nets(tmp_path):
    path = tmp_path / "nets_for_test_load.py"
    path.write_text(NETS)
    yield path
    sys.modules.pop("nets_for_test_load", None)


def refused(words, *args):
    with pytest.raises(LoadError, match=words) as caught:
        load_network(*args)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(("load: ", "onnx: "))
    return text


def test_a_module_is_copied_and_the_given_one_stays_as_it_was():
    given = nn.Sequential(nn.Linear(4, 3), nn.Dropout()).train()
    network = load_network(given)
    assert given.training
    assert not network.module.training
    with torch.no_grad():
        network.module[0].weight.zero_()
    assert given[0].weight.abs().sum().item() > 0
    assert (network.name, network.input_shape, network.source) == ("Sequential", (), None)


def test_a_factory_of_a_file(nets):
    network = load_network(f"{nets}:small")
    assert network.name == "small"
    assert not network.module.training
    assert network.module(torch.zeros(2, 4)).shape == (2, 3)


def test_a_factory_of_a_package():
    assert isinstance(load_network("torch.nn:Identity").module, nn.Identity)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("smal", "has no function 'smal'; it has: .*small"),
        ("not_callable", "has no function"),
        ("failing", "calling .*failing failed: no such width; the factory must work without arguments"),
        ("needy", "failed: .*width"),
        ("number", "returned a int; it must return a torch.nn.Module"),
    ],
)
def test_factories_that_do_not_work(nets, name, words):
    refused(words, f"{nets}:{name}")


def test_code_that_cannot_be_imported(tmp_path):
    (tmp_path / "broken_for_test_load.py").write_text("import no_such_package_at_all\n")
    refused("cannot import .*no_such_package_at_all", f"{tmp_path / 'broken_for_test_load.py'}:make")
    refused("there is no file", f"{tmp_path / 'nowhere.py'}:make")
    refused("cannot import 'no_such_package_at_all'", "no_such_package_at_all:make")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere.onnx", "there is no file"),
        ("code.py", "name the function that builds the network"),
        ("weights.pth", "holds weights without the network"),
        ("weights.safetensors", "holds weights without the network"),
        ("net.keras", "TensorFlow file"),
        ("empty.onnx", "empty.onnx"),
        ("broken.pt2", "not a program that torch.export.save wrote"),
    ],
)
def test_files_that_are_no_networks(tmp_path, name, words):
    if name != "nowhere.onnx":
        (tmp_path / name).write_bytes(b"" if "empty" in name else b"not what it says")
    refused(words, tmp_path / name)


def state(value=1.0):
    return {"layer.weight": torch.full((3, 4), value), "layer.bias": torch.zeros(3)}


@pytest.mark.parametrize("kind", ["safetensors", "pth", "checkpoint"])
def test_weights_for_a_factory(nets, tmp_path, kind):
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    if kind == "safetensors":
        save_file(state(), path)
    else:
        torch.save({"state_dict": state(), "epoch": 3} if kind == "checkpoint" else state(), path)
    network = load_network(f"{nets}:small", path)
    assert network.module.layer.weight.sum().item() == 12.0


def test_weights_for_a_module_do_not_change_the_given_one(tmp_path):
    save_file({"weight": torch.ones(3, 4), "bias": torch.zeros(3)}, tmp_path / "w.safetensors")
    given = nn.Linear(4, 3)
    before = given.weight.detach().clone()
    assert float(load_network(given, tmp_path / "w.safetensors").module[0].weight.detach().sum()) == 12.0
    assert torch.equal(given.weight, before)


class Trap:
    """Unpickling it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_pickle_with_code_is_refused_and_not_run(nets, tmp_path, how):
    trap, path = tmp_path / "sprung", tmp_path / "w.pth"
    if how == "torch":
        torch.save({"layer.weight": Trap(trap)}, path)
    else:
        path.write_bytes(pickle.dumps(Trap(trap)))
    refused("not a weights file smidgen can read safely", f"{nets}:small", path)
    assert not trap.exists()


def test_a_whole_pickled_module_is_refused(nets, tmp_path):
    torch.save(nn.Linear(4, 3), tmp_path / "whole.pth")
    refused("read safely.*state_dict", f"{nets}:small", tmp_path / "whole.pth")


def test_weights_that_do_not_fit(nets, tmp_path):
    wrong = {
        "missing": {"layer.weight": torch.ones(3, 4)},
        "other": {**state(), "more": torch.ones(1)},
        "shape": {**state(), "layer.weight": torch.ones(3, 5)},
    }
    for name, tensors in wrong.items():
        save_file(tensors, tmp_path / f"{name}.safetensors")
        refused("does not fit the network", f"{nets}:small", tmp_path / f"{name}.safetensors")
    torch.save([1, 2], tmp_path / "list.pth")
    refused("does not fit the network", f"{nets}:small", tmp_path / "list.pth")
    refused("there is no weights file", f"{nets}:small", tmp_path / "nowhere.pth")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10")
    refused("read safely", f"{nets}:small", tmp_path / "cut.safetensors")


def test_a_program_becomes_layers_again(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 3)).eval()
    x = torch.randn(2, 2, 6, 6)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, tmp_path / "net.pt2")
    network = load_network(tmp_path / "net.pt2")
    assert torch.allclose(network.module(x), model(x), atol=1e-5)
    assert {nn.Conv2d, nn.Linear} <= {type(m) for m in network.module.modules()}
    assert network.source is None, "the original to compare with is our own export"
    assert network.input_shape[1:] == (2, 6, 6)


def test_an_onnx_file_is_its_own_original(tmp_path):
    import onnx
    from onnx import helper

    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 4]) for name in ("pixels", "out")]
    tensors = [onnx.numpy_helper.from_array(torch.eye(4).numpy(), "w")]
    graph = helper.make_graph([helper.make_node("MatMul", ["pixels", "w"], ["out"])], "g", ends[:1], ends[1:], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    network = load_network(tmp_path / "m.onnx")
    assert (network.source, network.input_name, network.output_names) == (tmp_path / "m.onnx", "pixels", ("out",))
    assert (network.name, network.input_shape) == ("m", (None, 4))
    refused("holds its own weights", tmp_path / "m.onnx", tmp_path / "m.onnx")


def test_a_script_that_exits_while_imported(tmp_path):
    (tmp_path / "exits_for_test_load.py").write_text("import sys\nsys.exit('usage: train.py DATA')\n")
    refused("cannot import", f"{tmp_path / 'exits_for_test_load.py'}:make")


def test_float64_is_refused_with_the_mend(tmp_path):
    network = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    assert "0.weight is float64" in refused("call .float\\(\\) on it", network)
    path = tmp_path / "double.onnx"
    h, kind = onnx.helper, onnx.TensorProto.DOUBLE
    weight = onnx.numpy_helper.from_array(np.ones((4, 3)), "w")
    x, y = (h.make_tensor_value_info(name, kind, ["n", size]) for name, size in (("x", 4), ("y", 3)))
    graph = h.make_graph([h.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8), path)
    refused("takes float64 inputs.*convert it to float32", path)


def test_float64_weights_behind_a_cast_are_refused(tmp_path):
    path = tmp_path / "within.onnx"
    h, kind = onnx.helper, onnx.TensorProto
    weight = onnx.numpy_helper.from_array(np.ones((4, 3)), "w")
    x, y = (h.make_tensor_value_info(name, kind.FLOAT, ["n", size]) for name, size in (("x", 4), ("y", 3)))
    nodes = [
        h.make_node("Cast", ["x"], ["d"], to=kind.DOUBLE),
        h.make_node("MatMul", ["d", "w"], ["m"]),
        h.make_node("Cast", ["m"], ["y"], to=kind.FLOAT),
    ]
    model = h.make_model(h.make_graph(nodes, "g", [x], [y], [weight]), opset_imports=[h.make_opsetid("", 17)])
    onnx.save(model, path)
    refused("is float64, smidgen computes in float32; convert it to float32", path)


@pytest.mark.parametrize("layer", [nn.Linear(4, 3), nn.Conv2d(2, 3, 1)])
def test_a_single_layer_stands_in_a_place_of_its_own(layer):
    network = load_network(layer)
    assert [name for name, _ in network.module.named_parameters()] == ["0.weight", "0.bias"]
    assert network.name == type(layer).__name__
