"""Files with weights as integers: the bits of the file of floats, the bytes predicted, for every kind of layer."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from smidgen.export.archive import pack_archive, unpack_archive
from smidgen.export.onnx import integer_tensors, write
from smidgen.export.onnx_integers import packed_nibbles, with_int4
from smidgen.forms import Dense, LowRank, Quantized, dense, nbytes, scales, width
from smidgen.measure.cost import onnx_cost
from smidgen.methods import methods, roundings
from smidgen.planning.candidates import weights_only
from smidgen.planning.metric import metric_of
from smidgen.planning.precision import Precision
from smidgen.runtimes.onnxruntime import open_onnx
from smidgen.site import Stored, untouched
from tests.export.kinds import kinds

GPTQ = roundings()["gptq"]


@pytest.fixture(scope="module")
def ready():
    return kinds(11)


def rounded(site, bits, rank=None):
    precision = Precision(site, metric_of(site, weights_only(site)), GPTQ)
    form = Dense(site.weight) if rank is None else methods()["svd"].family(site, weights_only(site)).form(rank)
    return Stored(precision.form(form, None, bits), site.bias)


def written(ready, stored, path, target="onnx"):
    write(ready.base, ready.sites, stored, path, target)
    return onnx.load(path)


@pytest.mark.parametrize(("target", "bits"), [("onnx-w8", 8), ("onnx-w4", 4), ("onnx-w4", 8)])
def test_the_file_of_integers_computes_as_the_file_of_floats(ready, tmp_path, target, bits):
    stored = {site.name: rounded(site, bits) for site in ready.sites}
    stored["point"] = rounded(next(s for s in ready.sites if s.name == "point"), bits, rank=3)
    written(ready, stored, tmp_path / "f.onnx")
    proto = written(ready, stored, tmp_path / "i.onnx", target)
    onnx.checker.check_model(proto, full_check=True)
    kinds = [node.op_type for node in proto.graph.node]
    assert kinds.count("DequantizeLinear") == len(ready.sites) + 1
    kind = TensorProto.INT4 if bits == 4 else TensorProto.INT8
    assert sum(t.data_type == kind for t in proto.graph.initializer) == len(ready.sites) + 1
    x = np.random.default_rng(0).normal(size=(4, 3, 5, 5)).astype("f4")
    with open_onnx(tmp_path / "f.onnx") as floats, open_onnx(tmp_path / "i.onnx") as integers:
        assert floats.run(x)[0].tobytes() == integers.run(x)[0].tobytes()


@pytest.mark.parametrize(("target", "bits"), [("onnx-w8", 8), ("onnx-w4", 4)])
def test_the_standard_unpacks_to_the_bits_of_the_form(ready, tmp_path, target, bits):
    """By the operator's definition, computed here: float32(z) · scale along its axis."""
    stored = {site.name: rounded(site, bits) for site in ready.sites}
    proto = written(ready, stored, tmp_path / "i.onnx", target)
    tensors = {t.name: t for t in proto.graph.initializer}
    for node in (n for n in proto.graph.node if n.op_type == "DequantizeLinear"):
        z, scale = (numpy_helper.to_array(tensors[name]) for name in node.input)
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
        shape = [-1 if i == axis else 1 for i in range(z.ndim)]
        values = z.astype(np.float32) * scale.reshape(shape)
        site = node.input[0].removesuffix(".weight")
        want = dense(stored[site].form)
        assert (values.T if axis == 1 else values).tobytes() == want.tobytes()
        alone = helper.make_model(
            helper.make_graph([node], "g", [], [helper.make_tensor_value_info(node.output[0], 1, None)],
                              [tensors[name] for name in node.input]),
            opset_imports=proto.opset_import, ir_version=10,
        )  # fmt: skip
        assert ReferenceEvaluator(alone).run(None, {})[0].tobytes() == values.tobytes()


@pytest.mark.parametrize("target", ["onnx-w8", "onnx-w4"])
def test_bytes_are_those_predicted(ready, tmp_path, target):
    floats = {site.name: untouched(site) for site in ready.sites}
    whole = write(ready.base, ready.sites, floats, tmp_path / "f.onnx")
    total = 0
    for bits in (4, 8):
        stored = {site.name: rounded(site, bits) for site in ready.sites}
        size = write(ready.base, ready.sites, stored, tmp_path / "i.onnx", target)
        saved = sum(
            nbytes(Dense(s.weight), s.geometry, target) - nbytes(stored[s.name].form, s.geometry, target)
            for s in ready.sites
        )
        assert abs(whole - saved - size) <= max(64, 0.02 * size)
        total += size
        for site in ready.sites:
            held = width(stored[site.name].form, target)
            assert held == (8 if target == "onnx-w8" else bits)
            outline = nbytes(Dense(site.weight), site.geometry, target, held)
            assert outline == nbytes(stored[site.name].form, site.geometry, target)
    assert total < whole, "even so small a network gains"


def test_nibbles():
    assert packed_nibbles(np.array([[-7, 7], [0, -1], [3, -8]])).hex() == "79f083"
    assert packed_nibbles(np.array([5], np.int32)).hex() == "05"
    values = np.random.default_rng(0).integers(-7, 8, (3, 5))
    tensor = TensorProto(dims=values.shape, data_type=TensorProto.INT4, raw_data=packed_nibbles(values))
    assert (numpy_helper.to_array(tensor).astype(int) == values).all()


def test_what_does_not_fit_stays_in_floats(ready, tmp_path):
    sites = {site.name: site for site in ready.sites}
    stored = {name: untouched(site) for name, site in sites.items()}
    wide = np.zeros(sites["head"].weight.shape, np.int32)
    wide[0, 0] = 128
    row, one = np.zeros(len(wide), np.int32), np.zeros(1, np.int32)
    stored["head"] = Stored(Quantized(wide, row, one), sites["head"].bias)
    narrow = np.full(sites["over"].weight.shape, -127, np.int32)
    stored["over"] = Stored(Quantized(narrow, np.zeros(len(narrow), np.int32), one - 4), sites["over"].bias)
    channels = np.ones(sites["bare"].weight.shape, np.int32)
    stored["bare"] = Stored(Quantized(channels, np.zeros(len(channels), np.int32), np.arange(9, dtype=np.int32)))
    proto = written(ready, stored, tmp_path / "i.onnx", "onnx-w4")
    kinds = {t.name: t.data_type for t in proto.graph.initializer}
    assert kinds["head.weight"] == TensorProto.FLOAT
    assert kinds["over.weight"] == TensorProto.INT8
    assert kinds["bare.weight"] == TensorProto.FLOAT, "a scale for each column has no place"
    assert kinds["stem.weight"] == TensorProto.FLOAT
    (node,) = [n for n in proto.graph.node if n.op_type == "DequantizeLinear"]
    scale = next(numpy_helper.to_array(t) for t in proto.graph.initializer if t.name == node.input[1])
    assert (scale == 0.5).all(), "the column's exponent is part of it"
    written(ready, stored, tmp_path / "f.onnx")
    x = np.random.default_rng(0).normal(size=(2, 3, 5, 5)).astype("f4")
    with open_onnx(tmp_path / "f.onnx") as floats, open_onnx(tmp_path / "i.onnx") as integers:
        np.testing.assert_allclose(floats.run(x)[0], integers.run(x)[0], rtol=1e-6, atol=1e-6)


def test_one_float32_is_the_scale_of_integers_that_an_archive_held():
    """Row and column exponents add up on the grid: at most the last bit differs from two products."""
    draw = np.random.default_rng(0)
    z, row = draw.integers(-127, 128, (40, 30)).astype(np.int32), draw.integers(-40, 40, 40).astype(np.int32)
    form = Quantized(z, row, np.array([-13], np.int32), 4)
    one = z.astype(np.float32) * scales(row - 13, 4)[:, None]
    np.testing.assert_allclose(one, dense(form), rtol=2.0**-22)


def test_the_file_of_floats_still_packs_to_an_archive(ready, tmp_path):
    stored = {site.name: rounded(site, 4) for site in ready.sites}
    written(ready, stored, tmp_path / "f.onnx")
    floats = (tmp_path / "f.onnx").read_bytes()
    packed = pack_archive(floats, integer_tensors(ready.base, ready.sites, stored))
    assert unpack_archive(packed) == floats
    assert len(packed) < write(ready.base, ready.sites, stored, tmp_path / "i.onnx", "onnx-w4")


def test_weights_and_products_are_counted_as_in_the_file_of_floats(ready, tmp_path):
    stored = {site.name: rounded(site, 4) for site in ready.sites}
    written(ready, stored, tmp_path / "f.onnx")
    for target in ("onnx-w8", "onnx-w4"):
        written(ready, stored, tmp_path / "i.onnx", target)
        assert onnx_cost(tmp_path / "i.onnx") == onnx_cost(tmp_path / "f.onnx")
        assert onnx_cost(tmp_path / "i.onnx")[1] is not None


def graph_of(node, opset, *tensors):
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 4, 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["a", "b", "c", "d"])
    small = TensorProto(name="z", dims=[1], data_type=TensorProto.INT4, raw_data=b"\x01")
    read = helper.make_node("DequantizeLinear", ["z", "s"], ["w"])
    scale = numpy_helper.from_array(np.ones((), "f4"), "s")
    last = helper.make_node("Add", ["v", "w"], ["y"])
    graph = helper.make_graph([read, node, last], "g", [x], [y], [small, scale, *tensors])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def test_the_opset_is_raised_for_int4_alone():
    plain = with_int4(graph_of(helper.make_node("Relu", ["x"], ["v"]), 18))
    assert (plain.opset_import[0].version, plain.ir_version) == (21, 10)
    onnx.checker.check_model(plain, full_check=True)
    assert with_int4(plain) is plain
    floats = graph_of(helper.make_node("Relu", ["x"], ["v"]), 18)
    del floats.graph.initializer[0]
    assert with_int4(floats).opset_import[0].version == 18


def test_operators_that_changed_their_meaning_are_converted(tmp_path):
    grid = numpy_helper.from_array(np.random.default_rng(0).uniform(-1, 1, (1, 3, 3, 2)).astype("f4"), "grid")
    node = helper.make_node("GridSample", ["x", "grid"], ["v"], mode="bilinear")
    result = with_int4(graph_of(node, 18, grid))
    assert result.opset_import[0].version == 21
    (sample,) = [n for n in result.graph.node if n.op_type == "GridSample"]
    assert next(a.s for a in sample.attribute if a.name == "mode") == b"linear"
    onnx.save(result, tmp_path / "m.onnx")
    with open_onnx(tmp_path / "m.onnx") as runner:
        assert runner.run(np.ones((1, 4, 4, 4), "f4"))[0].shape == (1, 4, 3, 3)


def test_a_low_rank_layer_has_two_weights_of_integers(ready, tmp_path):
    sites = {site.name: site for site in ready.sites}
    stored = {name: untouched(site) for name, site in sites.items()}
    stored["head"] = rounded(sites["head"], 4, rank=5)
    assert isinstance(stored["head"].form, LowRank)
    proto = written(ready, stored, tmp_path / "i.onnx", "onnx-w4")
    shapes = {t.name: tuple(t.dims) for t in proto.graph.initializer if t.data_type == TensorProto.INT4}
    assert shapes == {"head.0.weight": (5, 75), "head.1.weight": (11, 5)}
