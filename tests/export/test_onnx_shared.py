"""Files of shared weights: the bits of the file of floats, the bytes predicted, folded on opening, for every width."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn

from smidgen.export.archive import pack_archive, unpack_archive
from smidgen.export.onnx import integer_tensors, write
from smidgen.export.onnx_shared import packed_bits
from smidgen.export.prepare import prepare
from smidgen.forms import Codebook, Dense, dense, nbytes, width
from smidgen.measure.cost import onnx_cost
from smidgen.methods import methods, sharings
from smidgen.model.load import load_network
from smidgen.planning.candidates import weights_only
from smidgen.planning.metric import metric_of
from smidgen.planning.precision import Precision
from smidgen.runtimes.onnxruntime import open_onnx
from smidgen.site import Stored, untouched
from tests.export.kinds import kinds

TARGET = "onnx-shared"


@pytest.fixture(scope="module")
def ready():
    return kinds(31)


def shared(site, bits, rank=None):
    precision = Precision(site, metric_of(site, weights_only(site)), sharings()["kmeans"])
    form = Dense(site.weight) if rank is None else methods()["svd"].family(site, weights_only(site)).form(rank)
    return Stored(precision.form(form, None, bits), site.bias)


def written(ready, stored, path, target=TARGET):
    write(ready.base, ready.sites, stored, path, target)
    return onnx.load(path)


@pytest.mark.parametrize("bits", range(1, 9))
def test_the_shared_file_computes_as_the_file_of_floats(ready, tmp_path, bits):
    stored = {site.name: shared(site, bits) for site in ready.sites}
    stored["point"] = shared(next(s for s in ready.sites if s.name == "point"), bits, rank=3)
    written(ready, stored, tmp_path / "f.onnx", "onnx")
    proto = written(ready, stored, tmp_path / "s.onnx")
    onnx.checker.check_model(proto, full_check=True)
    assert [node.op_type for node in proto.graph.node].count("Gather") == len(ready.sites) + 1
    x = np.random.default_rng(0).normal(size=(4, 3, 5, 5)).astype("f4")
    with open_onnx(tmp_path / "f.onnx") as floats, open_onnx(tmp_path / "s.onnx") as small:
        assert floats.run(x)[0].tobytes() == small.run(x)[0].tobytes()
    assert onnx_cost(tmp_path / "s.onnx") == onnx_cost(tmp_path / "f.onnx")
    assert onnx_cost(tmp_path / "s.onnx")[1] is not None


@pytest.mark.parametrize("bits", [1, 3, 5, 8])
def test_the_standard_unpacks_to_the_bits_of_the_form(ready, tmp_path, bits):
    """By ONNX's own reference implementation, layer by layer."""
    stored = {site.name: shared(site, bits) for site in ready.sites}
    proto = written(ready, stored, tmp_path / "s.onnx")
    weights = {n.input[1]: stored[s.name] for n, s in zip(_layers(proto), ready.sites, strict=True)}
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.helper.make_tensor_value_info(name, 1, None) for name in weights)
    fed = {"input": np.zeros((1, 3, 5, 5), "f4")}
    for got, one in zip(ReferenceEvaluator(proto).run(None, fed), weights.values(), strict=True):
        want = dense(one.form)
        assert (got if got.shape == want.shape else got.T).tobytes() == want.tobytes()


def _layers(proto):
    return [n for n in proto.graph.node if n.op_type in ("Conv", "Gemm", "MatMul")]


@pytest.mark.parametrize("bits", [2, 5, 8])
def test_onnxruntime_folds_it_all_on_opening(ready, tmp_path, bits):
    """The graph that runs is the one of floats: no unpacking is left in it, without any option."""
    stored = {site.name: shared(site, bits) for site in ready.sites}
    graphs = {}
    for target in ("onnx", TARGET):
        written(ready, stored, tmp_path / "m.onnx", target)
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "run.onnx")
        options.log_severity_level = 4
        onnxruntime.InferenceSession(tmp_path / "m.onnx", options, providers=["CPUExecutionProvider"])
        graphs[target] = [node.op_type for node in onnx.load(tmp_path / "run.onnx").graph.node]
    assert sorted(graphs[TARGET]) == sorted(graphs["onnx"])
    assert not {"Gather", "BitShift", "MatMulInteger", "Cast"} & set(graphs[TARGET])


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 7, 8])
def test_bytes_are_those_predicted(ready, tmp_path, bits):
    floats = {site.name: untouched(site) for site in ready.sites}
    whole = write(ready.base, ready.sites, floats, tmp_path / "f.onnx")
    stored = {site.name: shared(site, bits) for site in ready.sites}
    size = write(ready.base, ready.sites, stored, tmp_path / "s.onnx", TARGET)
    saved = sum(
        nbytes(Dense(s.weight), s.geometry, TARGET) - nbytes(stored[s.name].form, s.geometry, TARGET)
        for s in ready.sites
    )
    assert abs(whole - saved - size) <= 40 * len(ready.sites)
    for site in ready.sites:
        form = stored[site.name].form
        assert width(form, TARGET) <= bits
        assert width(form, "onnx-w8") is None
        if len(form.values) > 2 ** (bits - 1):  # as many as were allowed, or nearly
            assert nbytes(form, site.geometry, TARGET) <= nbytes(Dense(site.weight), site.geometry, TARGET, bits)


def test_bytes_of_a_large_layer_are_its_bits(tmp_path):
    torch.manual_seed(0)
    big = prepare(load_network(nn.Linear(400, 301).eval()), torch.zeros(1, 400))
    for bits in (1, 4, 5, 7):
        stored = {site.name: shared(site, bits) for site in big.sites}
        size = write(big.base, big.sites, stored, tmp_path / "s.onnx", TARGET)
        assert 0 < size - 400 * 301 * bits / 8 - 4 * 301 - 4 * 2**bits < 500


def test_a_file_of_integers_holds_no_codebooks(ready, tmp_path):
    stored = {site.name: shared(site, 4) for site in ready.sites}
    for target in ("onnx-w8", "onnx-w4"):
        proto = written(ready, stored, tmp_path / "w.onnx", target)
        weights = [t for t in proto.graph.initializer if t.name.endswith(".weight")]
        assert len(weights) == len(ready.sites)
        assert {t.data_type for t in weights} == {TensorProto.FLOAT}


def test_packed_bits():
    assert packed_bits(np.array([[5, 0], [7, 1]]), 3).tolist() == [0b10100011, 0b10010000]
    assert packed_bits(np.array([1, 0, 1, 1]), 1).tolist() == [0b10110000]
    indices = np.random.default_rng(0).integers(0, 32, (7, 11))
    bits = np.unpackbits(packed_bits(indices, 5))[: 77 * 5].reshape(77, 5)
    assert (bits @ [16, 8, 4, 2, 1] == indices.ravel()).all()


def test_one_value_for_all(ready, tmp_path):
    stored = {site.name: untouched(site) for site in ready.sites}
    head = next(s for s in ready.sites if s.name == "head")
    stored["head"] = Stored(Codebook(np.zeros(head.weight.shape, np.uint8), np.ones(1, np.float32)), head.bias)
    proto = written(ready, stored, tmp_path / "s.onnx")
    packed = next(numpy_helper.to_array(t) for t in proto.graph.initializer if t.name == "head.weight")
    assert packed.nbytes == -(-head.weight.size // 8)
    written(ready, stored, tmp_path / "f.onnx", "onnx")
    x = np.random.default_rng(0).normal(size=(2, 3, 5, 5)).astype("f4")
    with open_onnx(tmp_path / "f.onnx") as floats, open_onnx(tmp_path / "s.onnx") as small:
        assert floats.run(x)[0].tobytes() == small.run(x)[0].tobytes()


@pytest.mark.parametrize("bits", [1, 5, 8])
def test_the_file_of_floats_packs_to_an_archive_that_is_smaller(ready, tmp_path, bits):
    stored = {site.name: shared(site, bits) for site in ready.sites}
    written(ready, stored, tmp_path / "f.onnx", "onnx")
    floats = (tmp_path / "f.onnx").read_bytes()
    packed = pack_archive(floats, integer_tensors(ready.base, ready.sites, stored))
    assert unpack_archive(packed) == floats
    assert len(packed) < (tmp_path / "f.onnx").stat().st_size / 2
    assert len(packed) < write(ready.base, ready.sites, stored, tmp_path / "s.onnx", TARGET)


def test_smidgen_reads_its_own_shared_file(ready, tmp_path):
    """The file comes back as a network with the same answers."""
    stored = {site.name: shared(site, 5) for site in ready.sites}
    written(ready, stored, tmp_path / "s.onnx")
    network = load_network(tmp_path / "s.onnx")
    x = torch.randn(3, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    with open_onnx(tmp_path / "s.onnx") as runner, torch.no_grad():
        np.testing.assert_allclose(network.module(x).numpy(), runner.run(x.numpy())[0], rtol=1e-4, atol=1e-5)
