"""Keras, SavedModel and TFLite networks as NCHW ONNX: same answers as TensorFlow, no Transpose, plain refusals."""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from smidgen.errors import LoadError, OutputError, VerificationError
from smidgen.model import tensorflow as converter
from smidgen.model.tensorflow import convert_tensorflow

missing = [name for name in ("tensorflow", "tf2onnx") if importlib.util.find_spec(name) is None]
needs_tensorflow = pytest.mark.skipif(bool(missing), reason=f"{' and '.join(missing)} not installed: smidgen[tf]")
# TensorFlow's own deprecations are not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore")


class Networks(NamedTuple):
    """One small CNN in all forms, images and TensorFlow's own answers to them."""

    folder: Path
    images: np.ndarray
    answers: np.ndarray


def small_cnn(layers: Any, keras: Any) -> Any:
    return keras.Sequential(
        [
            keras.Input((32, 24, 3), name="image"),
            layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(6.0),
            layers.DepthwiseConv2D(3, padding="same"),
            layers.BatchNormalization(),
            layers.ReLU(6.0),
            layers.Conv2D(12, 1, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dropout(0.3),
            layers.Dense(10),
            layers.Softmax(),
        ]
    )


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Networks:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tf, keras = pytest.importorskip("tensorflow"), pytest.importorskip("keras")
        keras.utils.set_random_seed(0)
        network = small_cnn(keras.layers, keras)
        network.compile("sgd", "sparse_categorical_crossentropy")
        random = np.random.default_rng(0)
        images = random.normal(size=(64, 32, 24, 3)).astype("f4")
        network.fit(images, random.integers(0, 10, 64), epochs=2, verbose=0)  # BatchNorm statistics away from 0 and 1
        folder = tmp_path_factory.mktemp("networks")
        network.save(folder / "cnn.keras")
        network.export(folder / "cnn_saved", verbose=False)
        make = tf.lite.TFLiteConverter.from_keras_model
        (folder / "cnn.tflite").write_bytes(make(network).convert())
        smaller = make(network)
        smaller.optimizations = [tf.lite.Optimize.DEFAULT]
        (folder / "cnn_int8.tflite").write_bytes(smaller.convert())
        return Networks(folder, images[:5], network(images[:5], training=False).numpy())


def run(path: Path, x: np.ndarray) -> list[np.ndarray]:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return [np.asarray(each) for each in session.run(None, {session.get_inputs()[0].name: x})]


def saved(layers: list[Any], path: Path) -> Any:
    keras = pytest.importorskip("keras")
    network = keras.Sequential(layers)
    network.save(path)
    return network


@needs_tensorflow
@pytest.mark.slow
@pytest.mark.parametrize("source", ["cnn.keras", "cnn_saved", "cnn.tflite"])
def test_onnx_answers_nchw_as_tensorflow_answers_nhwc(networks: Networks, tmp_path: Path, source: str) -> None:
    written = convert_tensorflow(networks.folder / source, tmp_path / "new" / "cnn.onnx")
    assert written == tmp_path / "new" / "cnn.onnx"
    model = onnx.load(written)
    onnx.checker.check_model(model)
    found = run(written, networks.images.transpose(0, 3, 1, 2))[0]
    np.testing.assert_allclose(found, networks.answers, atol=1e-5)
    assert [each.name for each in model.graph.input] == ["image"]
    axes = model.graph.input[0].type.tensor_type.shape.dim
    assert (axes[0].dim_param, [axis.dim_value for axis in axes[1:]]) == ("batch", [3, 32, 24])
    kinds = Counter(node.op_type for node in model.graph.node)
    assert kinds["Transpose"] == 0
    assert kinds["Conv"] == 3
    assert set(kinds) == {"Conv", "Clip", "Relu", "MaxPool", "Flatten", "MatMul", "Add", "Softmax"}
    assert [each.version for each in model.opset_import] == [17]
    assert sorted(each.name for each in written.parent.iterdir()) == ["cnn.onnx"]


@needs_tensorflow
@pytest.mark.slow
def test_image_outputs_are_nchw(tmp_path: Path) -> None:
    keras = pytest.importorskip("keras")
    layers = keras.layers
    convolution = layers.Conv2D(4, 3, padding="same", activation="relu")
    network = saved([keras.Input((8, 6, 3)), convolution, layers.Conv2DTranspose(5, 2, 2)], tmp_path / "mask.keras")
    written = convert_tensorflow(tmp_path / "mask.keras", tmp_path / "mask.onnx")
    x = np.random.default_rng(0).normal(size=(2, 8, 6, 3)).astype("f4")
    expected = network(x, training=False).numpy().transpose(0, 3, 1, 2)
    np.testing.assert_allclose(run(written, x.transpose(0, 3, 1, 2))[0], expected, atol=1e-5)
    assert "Transpose" not in {node.op_type for node in onnx.load(written).graph.node}


@needs_tensorflow
@pytest.mark.slow
def test_a_scalar_added_to_a_convolution_leaves_no_transposes(tmp_path: Path) -> None:
    # MobileNetV3's squeeze-and-excite: tf2onnx alone leaves every Transpose of the network in.
    keras = pytest.importorskip("keras")
    layers = keras.layers
    start = keras.Input((12, 12, 3), name="image")
    first = layers.Conv2D(4, 3)(start)
    squeezed = layers.Conv2D(4, 1)(layers.GlobalAveragePooling2D(keepdims=True)(first))
    excited = layers.Multiply()([first, layers.ReLU(6.0)(squeezed + 3.0)])
    keras.Model(start, layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(excited))).save(tmp_path / "m.keras")
    model = onnx.load(convert_tensorflow(tmp_path / "m.keras", tmp_path / "m.onnx"))
    assert "Transpose" not in {node.op_type for node in model.graph.node}


@needs_tensorflow
@pytest.mark.slow
def test_constants_of_a_normalization_layer_are_kept(tmp_path: Path) -> None:
    keras = pytest.importorskip("keras")
    layers = [keras.Input((6, 6, 3)), keras.layers.Normalization(mean=[1.0, 2, 3], variance=[1.0, 4, 9])]
    network = saved([*layers, keras.layers.Conv2D(4, 3), keras.layers.Flatten()], tmp_path / "m.keras")
    written = convert_tensorflow(tmp_path / "m.keras", tmp_path / "m.onnx")
    x = np.random.default_rng(0).normal(size=(2, 6, 6, 3)).astype("f4")
    found = run(written, x.transpose(0, 3, 1, 2))[0]
    np.testing.assert_allclose(found, network(x, training=False).numpy(), atol=1e-5)
    assert len(onnx.load(written).graph.input) == 1


@needs_tensorflow
@pytest.mark.slow
def test_a_quantized_tflite_is_refused_by_name(networks: Networks, tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"cnn_int8\.tflite' is quantized \(int8\); give the float network"):
        convert_tensorflow(networks.folder / "cnn_int8.tflite", tmp_path / "out.onnx")
    assert not list(tmp_path.iterdir())


@needs_tensorflow
@pytest.mark.slow
def test_code_in_a_lambda_layer_is_not_run(tmp_path: Path) -> None:
    keras = pytest.importorskip("keras")
    saved([keras.Input((4,)), keras.layers.Lambda(lambda x: x * 2)], tmp_path / "code.keras")
    with pytest.raises(LoadError, match="Lambda layer, not run here") as caught:
        convert_tensorflow(tmp_path / "code.keras", tmp_path / "out.onnx")
    assert "\n" not in str(caught.value)


@needs_tensorflow
@pytest.mark.slow
def test_two_inputs_are_refused(tmp_path: Path) -> None:
    keras = pytest.importorskip("keras")
    left, right = keras.Input((4,), name="left"), keras.Input((4,), name="right")
    keras.Model([left, right], keras.layers.Add()([left, right])).save(tmp_path / "two.keras")
    with pytest.raises(LoadError, match=r"takes 2 inputs \(left, right\)"):
        convert_tensorflow(tmp_path / "two.keras", tmp_path / "out.onnx")


@needs_tensorflow
@pytest.mark.slow
@pytest.mark.parametrize("name", ["torn.keras", "torn.tflite"])
def test_a_damaged_file_is_told_in_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"not a network")
    with pytest.raises(LoadError, match=name) as caught:
        convert_tensorflow(tmp_path / name, tmp_path / "out.onnx")
    assert "\n" not in str(caught.value)


@needs_tensorflow
@pytest.mark.slow
def test_a_wrong_network_is_never_put_in_place(
    networks: Networks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(model: onnx.ModelProto, *, channels_last: bool) -> onnx.ModelProto:
        clean = to_nchw(model, channels_last=channels_last)
        weight = next(each for each in clean.graph.initializer if len(each.dims) == 2)
        weight.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(weight), weight.name))
        return clean

    to_nchw = converter.to_nchw
    monkeypatch.setattr(converter, "to_nchw", damaged)
    (tmp_path / "out.onnx").write_bytes(b"the old one")
    with pytest.raises(VerificationError, match="off in ONNX"):
        convert_tensorflow(networks.folder / "cnn.keras", tmp_path / "out.onnx")
    assert [each.read_bytes() for each in tmp_path.iterdir()] == [b"the old one"]


@needs_tensorflow
@pytest.mark.slow
def test_a_place_that_cannot_be_written_is_an_output_error(networks: Networks, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        convert_tensorflow(networks.folder / "cnn.keras", tmp_path / "file" / "out.onnx")


def test_without_tensorflow_the_mend_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (tmp_path / "m.keras").write_bytes(b"")
    with pytest.raises(
        LoadError, match=r"needs tensorflow and tf2onnx, not installed here; pip install 'smidgen\[tf\]'"
    ):
        convert_tensorflow(tmp_path / "m.keras", tmp_path / "out.onnx")


def test_sources_of_another_kind_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    with pytest.raises(LoadError, match="does not exist"):
        convert_tensorflow(tmp_path / "gone.tflite", out)
    (tmp_path / "m.h5").write_bytes(b"")
    with pytest.raises(LoadError, match=r"has suffix '\.h5'.*save it again"):
        convert_tensorflow(tmp_path / "m.h5", out)
    (tmp_path / "empty").mkdir()
    with pytest.raises(LoadError, match=r"holds no saved_model\.pb"):
        convert_tensorflow(tmp_path / "empty", out)
