"""Channels found and cut: the smaller graph answers as the original in which nothing reads what is cut."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from torch import nn

from smidgen.export.onnx import fill
from smidgen.export.prepare import prepare
from smidgen.model.channels import cut, find_channels
from smidgen.model.load import load_network
from smidgen.site import untouched


class Net(nn.Module):
    """A network from layers and a function of them."""

    def __init__(self, forward, **layers):
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.run = forward

    def forward(self, x):
        return self.run(self, x)


def graph_of(net, shape=(2, 3, 8, 8)):
    torch.manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_()
    example = torch.randn(*shape)
    ready = prepare(load_network(net), example)
    return fill(ready.base, ready.sites, {site.name: untouched(site) for site in ready.sites}), example.numpy()


def answers(model, x):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it tells of constants that nothing reads any more
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return session.run(None, {session.get_inputs()[0].name: x})


def unread(model, channels, keep):
    """The same graph in which no layer reads the channels that are not kept."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    stored = {tensor.name: tensor for tensor in result.graph.initializer}
    every = np.append(keep, True)
    for layer in channels.layers:
        tensor = stored[f"{layer.name}.weight"]
        node = next(node for node in result.graph.node if tensor.name in node.input)
        weight = numpy_helper.to_array(tensor).copy()
        gone = ~every[layer.inputs]
        if layer.depthwise:
            weight[~every[layer.outputs]] = 0
        elif node.op_type == "MatMul" or node.op_type == "ConvTranspose":
            weight[gone] = 0
        else:
            inside = weight.shape[1]
            for group, part in enumerate(np.split(weight, layer.groups)):
                part[:, gone[group * inside : (group + 1) * inside]] = 0
        tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
    return result


def check(model, x, keep=None, least=1):
    """Half of every class cut, or what is not kept; the channels."""
    found = find_channels(model)
    channels = found.channels
    assert channels.count >= least
    if keep is None:
        keep, rng = np.ones(channels.count, dtype=bool), np.random.default_rng(0)
        for units in channels.classes:
            keep[rng.permutation(units)[: len(units) // 2]] = False
    smaller = cut(found, keep)
    onnx.checker.check_model(smaller, full_check=True)
    for small, whole in zip(answers(smaller, x), answers(unread(model, channels, keep), x), strict=True):
        np.testing.assert_allclose(small, whole, atol=1e-4, rtol=1e-4)
    every = np.ones(channels.count, dtype=bool)
    assert channels.macs(keep) < channels.macs(every) or keep.all()
    again = find_channels(smaller).channels
    assert again.macs(np.ones(again.count, dtype=bool)) == channels.macs(keep)
    return channels


def conv(inp, out, **more):
    return nn.Conv2d(inp, out, 3, padding=1, **more)


def head(inp):
    return nn.Linear(inp, 4)


NETS = {
    "chain": lambda: Net(
        lambda n, x: n.c(F.relu(n.b(F.relu(n.a(x)))).mean((2, 3))), a=conv(3, 8), b=conv(8, 12), c=head(12)
    ),
    "residual": lambda: Net(
        lambda n, x: n.d(F.relu((y := F.relu(n.a(x))) + n.c(F.relu(n.b(y)))).mean((2, 3))),
        a=conv(3, 8), b=conv(8, 6), c=conv(6, 8), d=head(8),
    ),
    "concat": lambda: Net(
        lambda n, x: n.d(torch.cat([n.a(x), n.b(x)], 1).relu().flatten(1)),
        a=conv(3, 4), b=conv(3, 6), d=head(640),
    ),
    "depthwise": lambda: Net(
        lambda n, x: n.d(F.hardswish(n.c(F.relu6(n.b(F.relu6(n.a(x)))))).mean((2, 3))),
        a=conv(3, 8), b=conv(8, 8, groups=8), c=nn.Conv2d(8, 12, 1), d=head(12),
    ),
    "depthwise, two of each": lambda: Net(
        lambda n, x: n.d(n.b(F.relu(n.a(x))).relu().mean((2, 3))), a=conv(3, 8), b=conv(8, 16, groups=8), d=head(16)
    ),
    "grouped": lambda: Net(
        lambda n, x: n.d(n.b(F.relu(n.a(x))).relu().mean((2, 3))), a=conv(3, 8), b=conv(8, 12, groups=2), d=head(12)
    ),
    "padded shortcut": lambda: Net(
        lambda n, x: n.d(F.relu(_padded(y := F.relu(n.a(x))) + n.b(y)).mean((2, 3))),
        a=conv(3, 8), b=conv(8, 14, stride=2), d=head(14),
    ),
    "batch norm behind an activation": lambda: Net(
        lambda n, x: n.d(n.bn(torch.sigmoid(n.a(x))).mean((2, 3))), a=conv(3, 8), bn=nn.BatchNorm2d(8), d=head(8)
    ),
    "slice, split and shuffle": lambda: Net(_shuffled, a=conv(3, 8), b=conv(4, 4), d=head(8)),
    "squeeze and excite": lambda: Net(
        lambda n, x: n.d(((y := n.a(x).relu()) * torch.sigmoid(n.c(n.b(y.mean((2, 3), keepdim=True)).relu())))
                         .mean((2, 3))),
        a=conv(3, 8), b=nn.Conv2d(8, 4, 1), c=nn.Conv2d(4, 8, 1), d=head(8),
    ),
    "transposed": lambda: Net(
        lambda n, x: n.d(n.b(n.a(x).relu()).relu().mean((2, 3))),
        a=conv(3, 8), b=nn.ConvTranspose2d(8, 6, 2, stride=2), d=head(6),
    ),
    "constants": lambda: Net(
        lambda n, x: n.d(n.act(n.a(x) * n.gain).mean((2, 3))),
        a=conv(3, 8), gain=nn.Parameter(torch.rand(1, 8, 1, 1)), act=nn.PReLU(8), d=head(8),
    ),
    "upsampling": lambda: Net(
        lambda n, x: n.d(F.interpolate(n.a(x).relu(), scale_factor=2.0).mean((2, 3))), a=conv(3, 8), d=head(8)
    ),
}  # fmt: skip


def _padded(x):
    return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 4))


def _shuffled(n, x):
    left, right = n.a(x).relu().chunk(2, 1)
    both = torch.cat([left, n.b(right)], 1)
    return n.d(both[:, :, 1:].mean((2, 3)))


@pytest.mark.parametrize("name", NETS)
def test_a_cut_network_answers_as_if_nothing_read_the_channels(name):
    model, x = graph_of(NETS[name]())
    check(model, x)


def test_channels_that_are_added_are_one_and_padded_ones_are_their_own():
    model, x = graph_of(NETS["padded shortcut"]())
    channels = check(model, x)
    a, b = channels.layers[0].outputs, channels.layers[1].outputs
    assert b[2:10].tolist() == a.tolist()
    assert not set(b[:2].tolist() + b[10:].tolist()) & set(a.tolist())
    # Cut only where the shortcut is padding: less is padded.
    keep = np.ones(channels.count, dtype=bool)
    keep[b[[0, 11, 12]]] = False
    check(model, x, keep)


def test_groups_of_a_convolution_lose_the_same_places():
    model, _ = graph_of(NETS["grouped"]())
    layer = find_channels(model).channels.layers[1]
    assert layer.inputs[:4].tolist() == layer.inputs[4:].tolist()
    assert layer.outputs[:6].tolist() == layer.outputs[6:].tolist()


def test_inputs_outputs_and_what_cannot_be_followed_stay():
    shuffled = Net(
        lambda n, x: n.d(n.b(n.a(x).view(-1, 2, 4, 64).transpose(1, 2).reshape(-1, 8, 8, 8)).relu().mean((2, 3))),
        a=conv(3, 8), b=conv(8, 8), d=head(8),
    )  # fmt: skip
    model, x = graph_of(shuffled)
    channels = check(model, x)
    assert channels.left == {"a": "Reshape puts them on several axes", "d": "they are the network's outputs"}
    assert (channels.layers[0].inputs == -1).all()
    attention = Net(lambda n, x: n.b(torch.softmax(n.a(x), 1).mean((2, 3))), a=conv(3, 8), b=head(8))
    model, _ = graph_of(attention)
    assert find_channels(model).channels.left["a"] == "Softmax runs over them"


def test_a_single_channel_that_scales_all_others_stays():
    net = Net(lambda n, x: n.d((n.a(x).relu() * torch.sigmoid(n.b(x))).mean((2, 3))), a=conv(3, 8), b=conv(3, 1),
              d=head(8))  # fmt: skip
    model, x = graph_of(net)
    channels = check(model, x)
    assert channels.count == 8
    assert channels.left["b"] == "it is the only channel"


def test_a_protected_layer_stays():
    model, _ = graph_of(NETS["chain"]())
    found = find_channels(model, frozenset({"b"}))
    assert found.channels.left["b"] == "it is protected"
    assert [len(units) for units in found.channels.classes] == [8]


KINDS = ("plain", "residual", "depthwise", "concat", "norm")


@st.composite
def random_nets(draw):
    """A chain of blocks: plain, residual, depthwise or a concatenation."""
    torch.manual_seed(draw(st.integers(0, 99)))
    kinds = draw(
        st.lists(st.sampled_from(["plain", "residual", "depthwise", "concat", "norm"]), min_size=1, max_size=4)
    )
    wide, layers = 3, []
    for kind in kinds:
        out = wide if kind in ("residual", "depthwise", "norm") else draw(st.integers(2, 7))
        if kind == "depthwise":
            layers.append((kind, conv(wide, wide, groups=wide)))
        elif kind == "norm":
            layers.append((kind, nn.BatchNorm2d(wide)))
        else:
            layers.append((kind, conv(wide, out)))
        wide = wide + out if kind == "concat" else out
    return kinds, layers, wide


def _blocks(n, x):
    for number, kind in enumerate(n.kinds):
        y = getattr(n, f"layer{number}")(x)
        x = torch.relu(x + y if kind == "residual" else torch.cat([x, y], 1) if kind == "concat" else y)
    return n.last(x.flatten(1))


@settings(max_examples=8, deadline=None)
@given(random_nets())
def test_any_chain_of_blocks_can_be_cut(made):
    kinds, layers, wide = made
    net = Net(_blocks, last=nn.Linear(wide * 16, 2), **{f"layer{i}": layer for i, (_, layer) in enumerate(layers)})
    net.kinds = kinds
    model, x = graph_of(net, (2, 3, 4, 4))
    check(model, x, least=0)


NETWORKS = (
    "ai85cd_catsdogs", "lenet_mnist", "mobilenet_v1_0.25_128_imagenet", "mobilenet_v1_0.25_96_vww_mlperftiny",
    "resnet20_cifar10_jpegft", "resnet8_cifar10_mlperftiny",
    *(pytest.param(name, marks=pytest.mark.slow) for name in
      ("mobilenet_v2_1.0_224_imagenet", "squeezenet1_1_imagenet", "ultraface_rfb320")),
)  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_can_be_cut(data_dir, name):
    network = load_network(data_dir / "models" / f"{name}.onnx")
    shape = [1, *[int(side or 1) for side in network.input_shape[1:]]]
    ready = prepare(network, torch.rand(*shape, generator=torch.Generator().manual_seed(0)))
    model = fill(ready.base, ready.sites, {site.name: untouched(site) for site in ready.sites})
    x = np.random.default_rng(0).random(shape, dtype=np.float32)
    channels = check(model, x, least=100)
    if name == "ultraface_rfb320":
        ends = {layer for layer in channels.left}
        assert ends == {layer.name for layer in channels.layers if "headers" in layer.name and layer.name in ends}
        assert len(ends) == 8
    else:
        assert set(channels.left.values()) == {"they are the network's outputs"}
