"""The ONNX importer on real networks, on graphs as exporters write them, and on files that are wrong."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from smidgen.errors import LoadError, UnsupportedOperator
from smidgen.model.onnx import Imported, import_model, load_onnx, supported_operators

NETWORKS = {
    "ai85cd_catsdogs": 127 / 128,
    "lenet_mnist": 255.0,
    "mobilenet_v1_0.25_128_imagenet": 1.0,
    "mobilenet_v1_0.25_96_vww_mlperftiny": 1.0,
    "mobilenet_v2_1.0_224_imagenet": 1.0,
    "resnet20_cifar10_jpegft": 2.0,
    "resnet8_cifar10_mlperftiny": 255.0,
    "squeezenet1_1_imagenet": 120.0,
    "ultraface_rfb320": 1.0,
}


def value(name, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def stored(name, array):
    return numpy_helper.from_array(np.asarray(array), name)


def model_of(nodes, inputs, outputs, initializers=(), opset=17):
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(initializers))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def run_onnxruntime(content, feeds):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # its notes on initializers listed as inputs
    content = content if isinstance(content, (str, bytes)) else content.SerializeToString()
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"]).run(None, feeds)


def outputs_of(module, *inputs):
    with torch.no_grad():
        result = module(*inputs)
    return result if isinstance(result, tuple) else (result,)


def assert_agrees(model, *arrays) -> Imported:
    """The import answers as onnxruntime does."""
    loaded = import_model(model)
    feeds = {spec.name: array for spec, array in zip(loaded.inputs, arrays, strict=True)}
    ours = outputs_of(loaded.module, *[torch.from_numpy(array) for array in arrays])
    for mine, wanted in zip(ours, run_onnxruntime(model, feeds), strict=True):
        assert tuple(mine.shape) == wanted.shape
        np.testing.assert_allclose(mine.numpy(), wanted, atol=1e-4 * max(abs(wanted).max(initial=0), 1e-3), rtol=1e-4)
    return loaded


def exported(loaded: Imported, x):
    dynamic = {spec.name: {0: torch.export.Dim("b", min=1, max=64)} for spec in loaded.inputs}
    return torch.export.export(loaded.module, (x,), dynamic_shapes=dynamic)


# Real networks


def sensible_input(name, spec, batch):
    generator = torch.Generator().manual_seed(batch)
    x = torch.rand(batch, *spec.shape[1:], generator=generator)  # type: ignore[arg-type]
    # Smooth, as photographs are, and in the range each network expects.
    x = nn.functional.avg_pool2d(x, 3, 1, 1)
    low = {"lenet_mnist": 0.0, "resnet8_cifar10_mlperftiny": 0.0}.get(name, -1.0)
    return (low + (1 - low) * x) * NETWORKS[name]


def answers_of_onnxruntime(path, spec, x):
    dims = onnx.load(path).graph.input[0].type.tensor_type.shape.dim
    if dims[0].dim_value == 1:  # a fixed batch: one by one
        rows = [run_onnxruntime(str(path), {spec.name: row.numpy()}) for row in x.split(1)]
        return [np.concatenate(column) for column in zip(*rows, strict=True)]
    return run_onnxruntime(str(path), {spec.name: x.numpy()})


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_agree_with_onnxruntime(name, data_dir: Path, capsys: pytest.CaptureFixture[str]):
    path = data_dir / "models" / f"{name}.onnx"
    loaded = load_onnx(path)
    (spec,) = loaded.inputs
    assert spec.shape[0] is None
    assert not loaded.module.training
    worst = 0.0
    program = exported(loaded, sensible_input(name, spec, 4)).module()
    for batch in (1, 3):
        x = sensible_input(name, spec, batch)
        wanted = answers_of_onnxruntime(path, spec, x)
        for module in (loaded.module, program):
            ours = outputs_of(module, x)
            assert len(ours) == len(wanted) == len(loaded.output_names)
            for mine, theirs in zip(ours, wanted, strict=True):
                assert tuple(mine.shape) == theirs.shape
                worst = max(worst, float(abs(mine.numpy() - theirs).max() / abs(theirs).max()))
    with capsys.disabled():
        print(f"\n{name}: largest difference {worst:.1e} of the largest output", end="")
    assert worst <= 1e-4


@pytest.mark.parametrize("name", ["resnet20_cifar10_jpegft", "ultraface_rfb320"])
def test_networks_export_to_onnx_again(name, data_dir: Path, tmp_path: Path):
    loaded = load_onnx(data_dir / "models" / f"{name}.onnx")
    x = sensible_input(name, loaded.inputs[0], 2)
    path = tmp_path / "again.onnx"
    with warnings.catch_warnings():
        # torch's exporter warns of its own deprecated parts (pytree specs, node attributes).
        warnings.simplefilter("ignore")
        batch = {"input": {0: torch.export.Dim("b", min=1, max=64)}}
        torch.onnx.export(
            loaded.module, (x,), str(path), dynamo=True, external_data=False, dynamic_shapes=batch, verbose=False
        )
    again = load_onnx(path)
    x = sensible_input(name, loaded.inputs[0], 3)
    for mine, wanted in zip(outputs_of(again.module, x), outputs_of(loaded.module, x), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-5)


def test_networks_are_trainable_layers(data_dir: Path):
    loaded = load_onnx(data_dir / "models" / "resnet20_cifar10_jpegft.onnx")
    layers = dict(loaded.module.named_modules())
    assert sum(isinstance(layer, nn.Conv2d) for layer in layers.values()) == 19
    assert isinstance(layers["layer2_1_conv2"], nn.Conv2d)
    assert isinstance(layers["linear"], nn.Linear)
    before = layers["conv1"].weight.detach().clone()
    optimizer = torch.optim.SGD(loaded.module.parameters(), lr=0.1)
    loaded.module(torch.randn(2, 3, 32, 32)).square().mean().backward()
    assert all(parameter.grad is not None for parameter in loaded.module.parameters())
    optimizer.step()
    assert not torch.equal(before, layers["conv1"].weight)


def test_import_is_stable_and_can_be_copied(data_dir: Path):
    import copy

    path = data_dir / "models" / "lenet_mnist.onnx"
    first, second = load_onnx(path), load_onnx(path)
    assert list(first.module.state_dict()) == list(second.module.state_dict())
    assert first.module.code == second.module.code
    x = torch.rand(2, 1, 28, 28)
    assert torch.equal(copy.deepcopy(first.module)(x), second.module(x))


# Graphs as exporters write them


def test_same_padding_is_a_step_before_the_layer():
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], auto_pad="SAME_UPPER", strides=[2, 2])]
    model = model_of(nodes, [value("x", ["N", 3, 8, 8])], [value("y", None)], [stored("w", random(4, 3, 3, 3))])
    loaded = assert_agrees(model, random(2, 3, 8, 8))
    assert isinstance(loaded.module.conv, nn.Conv2d)
    assert loaded.module.conv.padding == (0, 0)


def test_matmul_and_bias_are_one_linear_layer():
    nodes = [helper.make_node("MatMul", ["x", "fc.weight"], ["h"]), helper.make_node("Add", ["b", "h"], ["y"])]
    initializers = [stored("fc.weight", random(6, 4)), stored("b", random(4))]
    loaded = assert_agrees(model_of(nodes, [value("x", ["N", 6])], [value("y", None)], initializers), random(3, 6))
    assert loaded.module.fc.bias is not None
    assert [node.op for node in loaded.module.graph.nodes] == ["placeholder", "call_module", "output"]


def test_bias_is_not_absorbed_where_the_product_is_used_twice():
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Add", ["h", "b"], ["a"]),
        helper.make_node("Mul", ["a", "h"], ["y"]),
    ]
    initializers = [stored("w", random(6, 4)), stored("b", random(4))]
    assert_agrees(model_of(nodes, [value("x", ["N", 6])], [value("y", None)], initializers), random(3, 6))


def test_weights_used_twice_are_one_parameter():
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"], transB=1),
        helper.make_node("Gemm", ["h", "w", "b"], ["k"], transB=1),
        helper.make_node("Gemm", ["k", "w", "c"], ["y"], transB=1),
    ]
    initializers = [stored("w", random(4, 4)), stored("b", random(4)), stored("c", random(4, seed=1))]
    model = model_of(nodes, [value("x", ["N", 4])], [value("y", None)], initializers)
    loaded = assert_agrees(model, random(2, 4))
    assert len(list(loaded.module.parameters())) == 3


def test_computed_shapes_follow_the_batch():
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"]),
        helper.make_node("Unsqueeze", ["n", "zero"], ["n1"]),
        helper.make_node("Concat", ["n1", "two", "minus"], ["t"], axis=0),
        helper.make_node("Reshape", ["x", "t"], ["r"]),
        helper.make_node("Mul", ["n", "three"], ["n3"]),
        helper.make_node("Range", ["z", "n3", "one"], ["steps"]),
        helper.make_node("Cast", ["steps"], ["f"], to=1),
        helper.make_node("ReduceMax", ["f"], ["top"], keepdims=0),
        helper.make_node("ConstantOfShape", ["t2"], ["ones"], value=stored("v", np.array([2.0], np.float32))),
        helper.make_node("Concat", ["n1", "two"], ["t2"], axis=0),
    ]
    nodes = [*nodes[:9], nodes[10], nodes[9]]
    nodes += [
        helper.make_node("Add", ["r", "top"], ["a"]),
        helper.make_node("ReduceSum", ["a", "last"], ["m"], keepdims=0),
        helper.make_node("Mul", ["m", "ones"], ["y"]),
    ]
    initializers = [
        stored("zero", np.array([0])),
        stored("two", np.array([2])),
        stored("minus", np.array([-1])),
        stored("three", np.array([3])),
        stored("z", np.array(0)),
        stored("one", np.array(1)),
        stored("last", np.array([2])),
    ]
    nodes[1] = helper.make_node("Gather", ["s", "z"], ["n"])
    nodes[5] = helper.make_node("Mul", ["n", "onethree"], ["n3"])
    initializers.append(stored("onethree", np.array(3)))
    model = model_of(nodes, [value("x", ["N", 4, 3])], [value("y", None)], initializers)
    for batch in (1, 2, 5):
        loaded = assert_agrees(model, random(batch, 4, 3))
    x = torch.from_numpy(random(3, 4, 3))
    assert torch.equal(exported(loaded, x).module()(x), loaded.module(x))


def test_height_and_width_may_be_dynamic():
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Slice", ["s", "two", "four"], ["hw"]),
        helper.make_node("Shape", ["c"], ["sc"]),
        helper.make_node("Slice", ["sc", "zero", "two"], ["nc"]),
        helper.make_node("Concat", ["nc", "hw"], ["t"], axis=0),
        helper.make_node("Resize", ["c", "", "", "t"], ["y"], mode="linear"),
    ]
    initializers = [stored("w", random(2, 3, 3, 3))]
    initializers += [stored(name, np.array([n])) for name, n in (("zero", 0), ("two", 2), ("four", 4))]
    model = model_of(nodes, [value("x", ["N", 3, "H", "W"])], [value("y", None)], initializers)
    assert_agrees(model, random(2, 3, 12, 20))
    assert import_model(model).inputs[0].shape == (None, 3, None, None)


def test_a_fixed_batch_becomes_dynamic_where_every_step_follows():
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"])]
    model = model_of(nodes, [value("x", [1, 2, 6])], [value("y", None)], [stored("shape", np.array([1, 3, -1]))])
    loaded = import_model(model)
    assert loaded.inputs[0].shape == (None, 2, 6)
    x = torch.from_numpy(random(5, 2, 6))
    assert torch.equal(loaded.module(x), x.reshape(5, 3, 4))


def test_a_fixed_batch_stays_where_a_step_does_not_follow():
    nodes = [helper.make_node("Squeeze", ["x", "axis"], ["y"])]
    model = model_of(nodes, [value("x", [1, 2, 6])], [value("y", None)], [stored("axis", np.array([0]))])
    assert import_model(model).inputs[0].shape == (1, 2, 6)
    assert_agrees(model, random(1, 2, 6))


def test_several_inputs_and_outputs_keep_their_order_and_names():
    nodes = [helper.make_node("Sub", ["in/a", "class"], ["d"]), helper.make_node("Neg", ["d"], ["e"])]
    model = model_of(nodes, [value("in/a", ["N", 2]), value("class", ["N", 2])], [value("e", None), value("d", None)])
    loaded = assert_agrees(model, random(2, 2), random(2, 2, seed=1))
    assert loaded.output_names == ("e", "d")
    assert loaded.module(in_a=torch.ones(1, 2), class_=torch.zeros(1, 2))[1].tolist() == [[1, 1]]


def test_known_expressions_are_folded_and_identities_removed():
    nodes = [
        helper.make_node("Constant", [], ["c"], value=stored("v", random(2))),
        helper.make_node("Exp", ["c"], ["e"]),
        helper.make_node("Identity", ["x"], ["i"]),
        helper.make_node("Dropout", ["i"], ["d"]),
        helper.make_node("Mul", ["d", "e"], ["y"]),
    ]
    loaded = assert_agrees(model_of(nodes, [value("x", ["N", 2])], [value("y", None)]), random(3, 2))
    assert [node.op for node in loaded.module.graph.nodes] == ["placeholder", "get_attr", "call_function", "output"]
    assert len(dict(loaded.module.named_buffers())) == 1


@pytest.mark.parametrize("opset", [7, 9])
def test_upsample(opset):
    scales = [1.0, 1.0, 2.0, 3.0]
    if opset == 7:
        node, initializers = helper.make_node("Upsample", ["x"], ["y"], scales=scales), []
    else:
        node = helper.make_node("Upsample", ["x", "s"], ["y"])
        initializers = [stored("s", np.array(scales, np.float32))]
    assert_agrees(
        model_of([node], [value("x", ["N", 2, 3, 3])], [value("y", None)], initializers, opset), random(1, 2, 3, 3)
    )


@pytest.mark.parametrize(
    ("op", "attributes", "opset"),
    [
        ("Softmax", {}, 11),
        ("LogSoftmax", {"axis": 2}, 9),
        ("Clip", {"min": -0.5, "max": 0.5}, 9),
        ("Squeeze", {"axes": [1]}, 11),
        ("Unsqueeze", {"axes": [0, 4]}, 11),
        ("ReduceSum", {"axes": [1, -1], "keepdims": 0}, 11),
        ("ReduceMean", {"axes": [2]}, 13),
        ("Slice", {"starts": [1], "ends": [99], "axes": [2]}, 9),
        ("Split", {"split": [1, 4], "axis": 2}, 11),
        ("Pad", {"pads": [0, 0, 1, 0, 0, 2], "mode": "reflect"}, 9),
        ("Pad", {"pads": [0, 0, 1, 0, 0, 2], "value": 3.0}, 9),
        ("Dropout", {}, 9),
        ("Flatten", {"axis": 2}, 9),
    ],
)
def test_attributes_that_later_became_operands(op, attributes, opset):
    outputs = ["y", "z"] if op == "Split" else ["y"]
    node = helper.make_node(op, ["x"], outputs, **attributes)
    model = model_of([node], [value("x", ["N", 1, 5])], [value(name, None) for name in outputs], opset=opset)
    assert_agrees(model, random(3, 1, 5))


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_gru(direction):
    count = 2 if direction == "bidirectional" else 1
    initializers = [stored("w", random(count, 9, 4)), stored("r", random(count, 9, 3)), stored("b", random(count, 18))]
    node = helper.make_node(
        "GRU", ["x", "w", "r", "b"], ["y", "h"], direction=direction, hidden_size=3, linear_before_reset=1
    )
    model = model_of([node], [value("x", [5, "N", 4])], [value("y", None), value("h", None)], initializers)
    assert_agrees(model, random(5, 2, 4))


@pytest.mark.parametrize("p", [1, 2, 3])
def test_global_lp_pool(p):
    node = helper.make_node("GlobalLpPool", ["x"], ["y"], p=p)
    assert_agrees(model_of([node], [value("x", ["N", 2, 3, 3])], [value("y", None)]), random(2, 2, 3, 3))


@pytest.mark.parametrize(("start", "end", "step"), [(-1, -99, -1), (3, 0, -2), (1, 1, -1), (-2, -5, -3), (4, 1, -3)])
def test_slices_backwards(start, end, step):
    node = helper.make_node("Slice", ["x", "s", "e", "a", "t"], ["y"])
    entries = {"s": start, "e": end, "a": 1, "t": step}
    initializers = [stored(name, np.array([entry])) for name, entry in entries.items()]
    assert_agrees(model_of([node], [value("x", ["N", 5])], [value("y", None)], initializers), random(2, 5))


@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("coordinates", ["half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel"])
@pytest.mark.parametrize("factor", [2.0, 0.5, 1.5])
def test_resizing(mode, coordinates, factor):
    attributes = {"mode": mode, "coordinate_transformation_mode": coordinates}
    node = helper.make_node("Resize", ["x", "", "scales"], ["y"], **attributes)
    scales = stored("scales", np.array([1, 1, factor, factor], np.float32))
    model = model_of([node], [value("x", ["N", 2, 6, 8])], [value("y", None)], [scales])
    assert_agrees(model, random(2, 2, 6, 8))


class Recurrent(nn.Module):
    """An audio network: convolution, recurrence, attention."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 8, 3, padding=1)
        self.norm = nn.LayerNorm(8)
        self.lstm = nn.LSTM(8, 5, bidirectional=True, batch_first=True)
        self.gru = nn.GRU(10, 6, batch_first=True)
        self.out = nn.Linear(6, 3)

    def forward(self, x):
        h = self.norm(torch.relu(self.conv(x)).transpose(1, 2))
        h = self.gru(self.lstm(h)[0])[0]
        h = h.unsqueeze(1)  # torch exports attention of four axes only
        return self.out(nn.functional.scaled_dot_product_attention(h, h, h)).softmax(-1)


class Pyramid(nn.Module):
    """A U-shaped image network."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.up = nn.ConvTranspose2d(8, 4, 4, stride=2, padding=1)
        self.act = nn.PReLU(4)
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x):
        h = nn.functional.silu(self.norm(self.down(x)))
        small = nn.functional.interpolate(nn.functional.avg_pool2d(h, 2), scale_factor=2.0, mode="bilinear")
        y = self.bn(self.act(self.up(h + small)))
        y = nn.functional.pixel_shuffle(torch.cat([y, nn.functional.hardswish(y)], 1), 2)
        return nn.functional.adaptive_avg_pool2d(y, 1).flatten(1), y


@pytest.mark.parametrize(("network", "shape"), [(Recurrent, (2, 4, 16)), (Pyramid, (2, 3, 16, 16))])
def test_torch_networks_come_back(network, shape, tmp_path: Path):
    torch.manual_seed(0)
    net, x, path = network().eval(), torch.randn(shape), tmp_path / "net.onnx"
    with warnings.catch_warnings():
        # torch's exporter warns of its own deprecated parts.
        warnings.simplefilter("ignore")
        batch = {"x": {0: torch.export.Dim("b", min=1, max=64)}}
        torch.onnx.export(net, (x,), str(path), dynamo=True, external_data=False, dynamic_shapes=batch, verbose=False)
    loaded = load_onnx(path)
    x = torch.randn(3, *shape[1:])
    for mine, wanted in zip(outputs_of(loaded.module, x), outputs_of(net, x), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-5)
    given = {kind for kind in map(type, net.modules()) if kind is not network}
    kept = {type(layer) for layer in loaded.module.modules()}
    assert given - kept <= {nn.GroupNorm}  # torch writes it as InstanceNormalization between reshapes


# Files that are wrong


def relu_model(**changes):
    model = model_of([helper.make_node("Relu", ["x"], ["y"], name="act")], [value("x", ["N", 2])], [value("y", None)])
    for name, change in changes.items():
        getattr(model, name).CopyFrom(change)
    return model


def gemm_model(weight):
    nodes = [helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)]
    return model_of(nodes, [value("x", ["N", 2])], [value("y", None)], [weight])


@pytest.mark.parametrize("content", [b"", b"not a network", b"\x08\x07", b"\xff" * 100, bytes(1000)])
def test_files_that_are_not_onnx(content, tmp_path: Path):
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(LoadError) as raised:
        load_onnx(path)
    assert "\n" not in str(raised.value)


def test_paths_that_are_no_file(tmp_path: Path):
    for path in (tmp_path, tmp_path / "none.onnx", "\0"):
        with pytest.raises(LoadError):
            load_onnx(path)


def test_a_file_over_the_limit_is_not_read(tmp_path: Path):
    path = tmp_path / "m.onnx"
    path.write_bytes(relu_model().SerializeToString())
    with pytest.raises(LoadError, match="max_bytes"):
        load_onnx(path, max_bytes=10)


def test_every_unsupported_operator_is_named_at_once():
    nodes = [
        helper.make_node("Loop", ["x"], ["a"], name="l"),
        helper.make_node("Magic", ["a"], ["b"], domain="com.acme"),
        helper.make_node("Relu", ["b"], ["y"]),
    ]
    with pytest.raises(UnsupportedOperator) as raised:
        import_model(model_of(nodes, [value("x", [1])], [value("y", None)]))
    message = str(raised.value)
    assert all(word in message for word in ("'Loop'", "'Magic'", "com.acme", "opset 17", "supported_operators()"))


@pytest.mark.parametrize("version", [1, 6, 99])
def test_opsets_out_of_range(version):
    with pytest.raises(LoadError, match="opset"):
        import_model(
            model_of([helper.make_node("Relu", ["x"], ["y"])], [value("x", [1])], [value("y", None)], (), version)
        )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_named(bad):
    with pytest.raises(LoadError, match="'w'"):
        import_model(gemm_model(stored("w", np.array([[1.0, bad]], np.float32))))


def test_masks_may_hold_minus_infinity():
    nodes = [helper.make_node("Add", ["x", "mask"], ["h"]), helper.make_node("Softmax", ["h"], ["y"])]
    mask = stored("mask", np.array([[0, -np.inf], [0, 0]], np.float32))
    assert_agrees(model_of(nodes, [value("x", ["N", 2, 2])], [value("y", None)], [mask]), random(3, 2, 2))


@pytest.mark.parametrize(
    "change",
    [
        {"dims": [1 << 40, 1 << 40]},
        {"dims": [-1, 2]},
        {"dims": [2, 2]},
        {"raw_data": b"\0" * 7},
        {"data_type": TensorProto.STRING},
        {"data_type": 99},
    ],
)
def test_stored_tensors_must_fit_their_dims(change):
    weight = stored("w", np.ones((1, 2), np.float32))
    for name, new in change.items():
        if name == "dims":
            weight.dims[:] = new
        else:
            setattr(weight, name, new)
    with pytest.raises(LoadError, match="'w'"):
        import_model(gemm_model(weight))


def external_model(location, offset="0", length="8"):
    weight = TensorProto(name="w", dims=[1, 2], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    for key, text in (("location", location), ("offset", offset), ("length", length)):
        weight.external_data.add(key=key, value=text)
    return gemm_model(weight)


def test_external_data_beside_the_model(tmp_path: Path):
    (tmp_path / "w.bin").write_bytes(b"\0" * 4 + np.array([3, 4], np.float32).tobytes())
    (tmp_path / "m.onnx").write_bytes(external_model("w.bin", "4").SerializeToString())
    loaded = load_onnx(tmp_path / "m.onnx")
    assert loaded.module(torch.ones(1, 2)).item() == 7


@pytest.mark.parametrize(
    ("location", "offset", "length"),
    [
        ("../w.bin", "0", "8"),
        ("/etc/passwd", "0", "8"),
        ("a/../../w.bin", "0", "8"),
        ("link", "0", "8"),
        ("sub/w.bin", "0", "8"),
        ("none.bin", "0", "8"),
        ("", "0", "8"),
        ("here.bin", "4", "8"),
        ("here.bin", "-4", "8"),
        ("here.bin", "0", "99999999999999999999"),
        ("here.bin", "x", "8"),
    ],
)
def test_external_data_elsewhere_are_refused(location, offset, length, tmp_path: Path):
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "w.bin").write_bytes(bytes(8))
    (folder / "here.bin").write_bytes(bytes(8))
    (folder / "link").symlink_to(tmp_path / "w.bin")
    (folder / "sub").symlink_to(tmp_path)
    (folder / "m.onnx").write_bytes(external_model(location, offset, length).SerializeToString())
    with pytest.raises(LoadError, match="'w'"):
        load_onnx(folder / "m.onnx")


def test_external_data_without_a_folder_are_refused():
    with pytest.raises(LoadError, match="'w'"):
        import_model(external_model("w.bin"))


HUGE = 1 << 40


@pytest.mark.parametrize(
    "node",
    [
        helper.make_node("Relu", ["nowhere"], ["y"]),
        helper.make_node("Relu", ["y"], ["y"]),
        helper.make_node("Relu", ["x"], ["x"]),
        helper.make_node("Relu", ["x", "x"], ["y"]),
        helper.make_node("Relu", [], ["y"]),
        helper.make_node("Relu", ["x"], ["y"], alpha=1.0),
        helper.make_node("LeakyRelu", ["x"], ["y"], alpha=1),
        helper.make_node("Add", ["x", "k"], ["y"]),
        helper.make_node("Concat", ["x"], ["y"]),
        helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2], strides=[0, 1]),
        helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[0, 2]),
        helper.make_node("AveragePool", ["x"], ["y"], kernel_shape=[2, 2], pads=[HUGE] * 4),
        helper.make_node("AveragePool", ["x"], ["y"], kernel_shape=[1 << 20, 1 << 20], pads=[1 << 20] * 4),
        helper.make_node("Tile", ["x", "huge"], ["y"]),
        helper.make_node("Expand", ["x", "huge"], ["y"]),
        helper.make_node("Reshape", ["x", "huge"], ["y"]),
        helper.make_node("Pad", ["x", "hugepads"], ["y"]),
        helper.make_node("Pad", ["x", "hugepads"], ["y"], mode="edge"),
        helper.make_node("ConstantOfShape", ["huge"], ["y"]),
        helper.make_node("Range", ["zero", "big", "one"], ["y"]),
        helper.make_node("OneHot", ["k", "big", "pair"], ["y"]),
        helper.make_node("Resize", ["x", "", "scales"], ["y"], mode="cubic", antialias=1),
        helper.make_node("Transpose", ["x"], ["y"], perm=[0, 0, 1, 2]),
        helper.make_node("Gather", ["x", "big"], ["y"]),
        helper.make_node("DepthToSpace", ["x"], ["y"], blocksize=0),
        helper.make_node("LRN", ["x"], ["y"], size=HUGE),
        helper.make_node("HannWindow", ["big"], ["y"]),
        helper.make_node("Cast", ["x"], ["y"], to=99),
        helper.make_node("Unsqueeze", ["x", "big"], ["y"]),
    ],
    ids=lambda node: node.op_type,
)
def test_nodes_that_are_wrong_or_ask_for_too_much(node):
    initializers = [
        stored("k", np.array([1])),
        stored("huge", np.array([HUGE, 1, HUGE, 1])),
        stored("hugepads", np.array([0, 0, 0, 0, HUGE, 0, 0, HUGE])),
        stored("zero", np.array(0)),
        stored("one", np.array(1)),
        stored("big", np.array(HUGE)),
        stored("pair", np.array([0.0, 1.0], np.float32)),
        stored("scales", np.array([1, 1, 1e7, 1e7], np.float32)),
    ]
    model = model_of([node], [value("x", ["N", 2, 4, 4])], [value("y", None)], initializers, opset=18)
    with pytest.raises(LoadError) as raised:
        import_model(model)
    assert "\n" not in str(raised.value)


def test_a_failing_node_is_named_with_its_operator_and_opset():
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="head")]
    model = model_of(nodes, [value("x", ["N", 3])], [value("y", None)], [stored("w", random(4, 5))])
    with pytest.raises(LoadError, match=r"node 'head' \(MatMul, opset 17\).*export the model again"):
        import_model(model)


def test_chains_of_large_constants_are_not_folded_without_end():
    nodes = [helper.make_node("Expand", ["one", "shape"], ["c0"])]
    nodes += [helper.make_node("Tanh", [f"c{i}"], [f"c{i + 1}"]) for i in range(400)]
    nodes += [helper.make_node("ReduceSum", ["c400"], ["s"], keepdims=0), helper.make_node("Add", ["x", "s"], ["y"])]
    initializers = [stored("one", np.float32(0)), stored("shape", np.array([1 << 24]))]
    loaded = import_model(model_of(nodes, [value("x", ["N"])], [value("y", None)], initializers))
    content = io.BytesIO()
    torch.save(loaded.module.state_dict(), content)
    assert content.tell() < 1 << 27


def test_supported_operators_name_their_opsets():
    supported = supported_operators()
    assert len(supported) >= 110
    assert supported["Conv"][0] <= 9
    assert supported["Upsample"] == (7, 9)
    assert supported["Conv"][1] >= 21


def test_smidgen_does_not_import_onnx():
    import subprocess
    import sys

    code = "import sys, smidgen; sys.exit(int('onnx' in sys.modules or 'torch' in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
