"""Recipes that train: every stage's bytes and loss are told, and are those of the files."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import smidgen
from smidgen.forms import Codebook
from smidgen.pipeline import compress
from smidgen.recover.training import Training
from smidgen.runtimes.onnxruntime import open_onnx
from tests.pipeline.pictures import pictures

BRIEF = Training(epochs=4, batch=16, lr=2e-3)
CHAIN = {"obs": {"sparsity": 0.9}, "kmeans": {"bits": 3}}


def many() -> tuple[np.ndarray, np.ndarray]:
    x, y = pictures(800)
    return x + 0.8 * np.random.default_rng(7).standard_normal(x.shape).astype(np.float32), y


def stages_of(result, folder) -> dict[str, dict]:
    saved = result.save(folder)
    for stage in result.record["stages"]:
        if stage["path"] is not None:
            assert (saved / stage["path"]).stat().st_size == stage["nbytes"], stage["name"]
    return {stage["name"]: stage for stage in result.record["stages"]}


def answers_alike(result, target: str) -> None:
    """The file answers as the network given back."""
    inputs, _ = pictures(16, seed=5)
    with open_onnx(result.files[target]) as runner, torch.no_grad():
        expected = result.model(torch.from_numpy(inputs)).numpy()
        np.testing.assert_allclose(runner.run(inputs)[0], expected, atol=1e-3 * np.abs(expected).max())


@pytest.fixture(scope="module")
def chain(trained):
    return compress(trained, many()[0], recipe="deep-compression", settings=CHAIN, train=BRIEF, threads=1, seed=1)


def test_deep_compression_tunes_what_it_shared(chain, tmp_path):
    stages = stages_of(chain, tmp_path / "out")
    assert list(stages) == ["original", "pruned", "shared", "tuned", "Huffman", "archive"]
    sizes = [stages[name]["nbytes"] for name in ("original", "pruned", "tuned", "Huffman", "archive")]
    assert sizes == sorted(sizes, reverse=True)
    assert stages["tuned"]["loss"] < stages["shared"]["loss"]
    assert smidgen.unpack(chain.files["archive"]) == smidgen.unpack(tmp_path / "out" / "model.huffman.smidgen")
    answers_alike(chain, "onnx-sparse")


def test_what_was_pruned_while_it_trained_stays_gone_in_the_codebooks(chain):
    forms = {name: one.form for name, one in chain.stored.items()}
    assert all(isinstance(form, Codebook) and len(form.values) <= 8 for form in forms.values())
    weights = {name: form.values[form.indices] for name, form in forms.items()}
    gone = sum(int((each == 0).sum()) for each in weights.values())
    count = sum(each.size for each in weights.values())
    assert count - gone <= chain.record["pruning"]["survivors"] == count - round(0.9 * count)
    assert chain.record["pruning"]["method"] == "magnitude"
    told = {layer["name"]: layer for layer in chain.record["layers"]}
    for name, each in weights.items():
        assert told[name]["sparsity"] == pytest.approx(np.mean(each == 0))
        assert told[name]["form"] == f"pruned {100 * np.mean(each == 0):.1f} %, shared 3-bit"


def test_both_trainings_are_in_the_record(chain):
    told = chain.record["training"]
    parts = told["parts"]
    assert told["epochs"] == 8
    assert parts["pruned"]["gradual"]
    assert not parts["shared"]["gradual"]
    assert told["before"]["loss"] == parts["shared"]["before"]["loss"]
    assert chain.record["mode"] == "training"
    assert "Stages of deep-compression\n" in chain.table()
    assert "loss, selection" in chain.table()


def test_distil_answers_more_as_the_original_without_labels(trained, tmp_path):
    settings = {"kmeans": {"bits": 1}}
    given = {"target": "onnx-shared", "settings": settings, "train": BRIEF, "threads": 1, "seed": 1}
    result = compress(trained, many()[0], recipe="distil", **given)
    stages = stages_of(result, tmp_path / "out")
    assert list(stages) == ["original", "planned", "trained", "archive"]
    assert stages["trained"]["loss"] < stages["planned"]["loss"]
    assert stages["trained"]["nbytes"] == result.files["onnx-shared"].stat().st_size
    answers_alike(result, "onnx-shared")
    # It is --train: the same plan, the same weights.
    plain = compress(trained, many()[0], **given)
    assert plain.files["onnx-shared"].read_bytes() == result.files["onnx-shared"].read_bytes()
    assert "stages" not in plain.record


def test_distil_keeps_to_a_size(trained):
    quick = Training(epochs=1, batch=16)
    result = compress(trained, many(), recipe="distil", budget=smidgen.Budget(size="9 kB"), train=quick, max_ram="1 kB")
    assert result.files["onnx"].stat().st_size <= 9000
    assert not result.met, "of what activations take at once too"
    assert "activations take" in result.record["budget"]["note"]


def test_shared_values_may_be_taken_by_others(trained):
    given = {"target": "onnx-shared", "settings": {"kmeans": {"bits": 1}}, "threads": 1, "seed": 1}
    result = compress(trained, many()[0], train=BRIEF, reassign=True, **given)
    told = result.record["training"]
    assert told["reassign"]
    assert told["kept"], told["why"]
    assert told["after"]["nbytes"] == told["before"]["nbytes"]
    answers_alike(result, "onnx-shared")
