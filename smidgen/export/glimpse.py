"""A glimpse (`smidgen.model.glimpse`) as one ONNX graph: stages that are not needed do not run.

    x → localizer → sure? ── yes ────────────────────────────────→ scores
                      └ no → GridSample → classifier → sure? ─ yes ─↗
                                                         └ no → full ─↗

Each stage is a file of its own first, written as any network is, so its layers may hold whatever a target has:
integers, factors, zeros. The stages are then nested with ``If``, which runs one branch alone. It decides for one image
at a time: the batch is 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, compose, helper, numpy_helper

from smidgen.errors import UserError
from smidgen.export.onnx import write_bytes
from smidgen.model.glimpse import Look

OLDEST, RENAMED = 16, 20  # opsets that brought GridSample, and called its mode linear


@dataclass(frozen=True)
class Stages:
    """Files of the stages, each with one input.

    Args:
        localizer: image → box ``[1, 3]``, scores ``[1, k]``.
        classifier: crop → scores.
        full: image → scores; None where a crop's answer always stands.
    """

    localizer: Path
    classifier: Path
    full: Path | None


def write_glimpse(stages: Stages, side: tuple[int, int], sure: tuple[float, float], path: Path) -> int:
    """Write the stages as one graph.

    Args:
        stages: their files, of one image each.
        side: rows and columns of the crop.
        sure: probability from which the glance's answer stands, and from which the crop's does.
        path: file to write.

    Returns:
        Its size in bytes.

    Raises:
        UserError: the stages' answers differ in length, or a file is none of one input.
        OutputError: it cannot be written.
    """
    localizer, classifier = _part(stages.localizer, "glance_"), _part(stages.classifier, "crop_")
    full = None if stages.full is None else _part(stages.full, "whole_")
    if len(localizer.graph.output) != 2:
        raise UserError(f"glimpse: the localizer has {len(localizer.graph.output)} outputs, not a box and scores")
    box, glance = (each.name for each in localizer.graph.output)
    answers = [localizer.graph.output[1], classifier.graph.output[0], *([] if full is None else [full.graph.output[0]])]
    lengths = {each.type.tensor_type.shape.dim[-1].dim_value for each in answers}
    if len(lengths) != 1:
        raise UserError(f"glimpse: the stages answer with {sorted(lengths)} scores; they must have the same classes")
    image = localizer.graph.input[0].name
    opsets = _opsets(localizer, classifier, full)
    mode = "bilinear" if opsets[""] < RENAMED else "linear"
    looked = [*_look(image, box, classifier.graph.input[0].name, mode), *classifier.graph.node]
    stored = [*localizer.graph.initializer, *classifier.graph.initializer, *_constants(side, sure)]
    seen = classifier.graph.output[0].name
    if full is not None:
        whole = [helper.make_node("Identity", [image], [full.graph.input[0].name]), *full.graph.node]
        looked += _either("crop", seen, "sure_crop", whole, full.graph.output[0].name, "looked")
        stored, seen = [*stored, *full.graph.initializer], "looked"
    nodes = [*localizer.graph.node, *_either("glance", glance, "sure_glance", looked, seen, "scores")]
    (count,) = lengths
    graph = helper.make_graph(
        nodes, "glimpse", [localizer.graph.input[0]],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, count])], stored,
    )  # fmt: skip
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid(*each) for each in opsets.items()],
        ir_version=max(each.ir_version for each in (localizer, classifier)),
    )  # fmt: skip
    _name_input(model, image)
    onnx.checker.check_model(model)
    return write_bytes(model.SerializeToString(), path)


def _part(path: Path, prefix: str) -> onnx.ModelProto:
    """A stage with names of its own."""
    model = onnx.load(path)
    stored = {each.name for each in model.graph.initializer}
    given = [each for each in model.graph.input if each.name not in stored]
    if len(given) != 1:
        raise UserError(f"glimpse: '{path.name}' has {len(given)} inputs, not one")
    shape = given[0].type.tensor_type.shape.dim
    if shape and shape[0].dim_value != 1:
        shape[0].Clear()
        shape[0].dim_value = 1
    return compose.add_prefix(model, prefix)


def _look(image: str, box: str, crop: str, mode: str) -> list[onnx.NodeProto]:
    """`smidgen.model.glimpse.Look` as nodes."""
    make = helper.make_node
    return [
        make("Slice", [box, "look_zero", "look_two", "look_one"], ["look_centre"]),
        make("Slice", [box, "look_two", "look_three", "look_one"], ["look_size"]),
        make("Sub", ["look_unit", "look_size"], ["look_most"]),
        make("Neg", ["look_most"], ["look_least"]),
        make("Max", ["look_centre", "look_least"], ["look_above"]),
        make("Min", ["look_above", "look_most"], ["look_within"]),
        make("Mul", ["look_grid", "look_size"], ["look_scaled"]),
        make("Add", ["look_scaled", "look_within"], ["look_places"]),
        make("GridSample", [image, "look_places"], [crop], mode=mode, padding_mode="border", align_corners=0),
    ]  # fmt: skip


def _constants(side: tuple[int, int], sure: tuple[float, float]) -> list[TensorProto]:
    floats = {"look_unit": [[1.0]], "sure_glance": sure[0], "sure_crop": sure[1]}
    places = {"look_zero": [0], "look_two": [2], "look_three": [3], "look_one": [1]}
    values = {"look_grid": Look(side).grid.numpy()[None].astype(np.float32)}
    values |= {name: np.array(value, np.float32) for name, value in floats.items()}
    values |= {name: np.array(value, np.int64) for name, value in places.items()}
    return [numpy_helper.from_array(value, name) for name, value in values.items()]


def _either(
    stage: str, scores: str, least: str, otherwise: list[onnx.NodeProto], answer: str, result: str
) -> list[onnx.NodeProto]:
    """The stage's own scores where its largest probability is at least so much, else what the other nodes find."""
    make, value = helper.make_node, helper.make_tensor_value_info
    kept, found = f"{stage}_kept", f"{stage}_otherwise"
    branches = {
        "then_branch": ([make("Identity", [scores], [kept])], kept),
        "else_branch": ([*otherwise, make("Identity", [answer], [found])], found),
    }
    graphs: dict[str, Any] = {
        name: helper.make_graph(nodes, f"{stage}_{name}", [], [value(end, TensorProto.FLOAT, None)])
        for name, (nodes, end) in branches.items()
    }
    return [
        make("Softmax", [scores], [f"{stage}_shares"], axis=1),
        make("ReduceMax", [f"{stage}_shares"], [f"{stage}_largest"], keepdims=0),
        make("GreaterOrEqual", [f"{stage}_largest", least], [f"{stage}_stands"]),
        make("If", [f"{stage}_stands"], [result], **graphs),
    ]


def _opsets(*parts: onnx.ModelProto | None) -> dict[str, int]:
    """Versions by domain; all stages must have the same."""
    found: dict[str, int] = {}
    for part in parts:
        for entry in [] if part is None else part.opset_import:
            domain = "" if entry.domain == "ai.onnx" else entry.domain
            if found.setdefault(domain, entry.version) != entry.version:
                raise UserError(
                    f"glimpse: the stages are written in opsets {found[domain]} and {entry.version}; write all alike"
                )
    if found[""] < OLDEST:
        raise UserError(f"glimpse: a crop needs opset {OLDEST} and the stages have {found['']}; write them anew")
    return found


def _name_input(model: onnx.ModelProto, old: str) -> None:
    """The image is called ``input``, as in every file that smidgen writes."""

    def rename(graph: onnx.GraphProto) -> None:
        for node in graph.node:
            for place, name in enumerate(node.input):
                if name == old:
                    node.input[place] = "input"
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    rename(attribute.g)

    rename(model.graph)
    model.graph.input[0].name = "input"
