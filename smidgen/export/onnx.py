"""ONNX: the graph is exported once with a placeholder for every site, then written with whatever form each site takes.

    base = export_base(model, sites, example)      # once: torch.export, optimised, stripped, without the sites' weights
    write(base, sites, stored, path)               # many times: placeholders become Conv, Gemm or MatMul chains

So a search over plans writes a real file in milliseconds, and one graph serves every plan.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import torch
from onnx import helper
from torch import nn

from smidgen.errors import LoadError
from smidgen.export.archive import Packed
from smidgen.export.files import write_bytes
from smidgen.export.halves import half_weight
from smidgen.export.onnx_fastconv import Shared, fast_nodes
from smidgen.export.onnx_integers import integer_weight, with_int4
from smidgen.export.onnx_masked import masked_weight
from smidgen.export.onnx_shared import shared_weight
from smidgen.export.onnx_strip import drop_unused, strip
from smidgen.export.torch_operators import read_once
from smidgen.forms import HALVES, SPARSE, Codebook, Geometry, Quantized, Stage, stages, width
from smidgen.forms.fastconv import fast_plan
from smidgen.site import Site, Stored

DOMAIN = "smidgen"
LARGEST_BATCH = 4096  # upper end of the exported batch dimension; ONNX itself keeps it symbolic


@dataclass(frozen=True, eq=False)
class Base:
    """A network's graph with placeholders where its sites are.

    Args:
        proto: the graph; each placeholder is a ``smidgen.Site`` node named after its site.
        sites: names of the sites it has placeholders for.
        norms: (site, BatchNorm module) pairs in which nothing else reads the site's output.
        dynamic_batch: False where the network only exports with the example's batch size.
    """

    proto: onnx.ModelProto
    sites: frozenset[str]
    norms: tuple[tuple[str, str], ...]
    dynamic_batch: bool


def export_base(
    model: nn.Module,
    sites: list[Site],
    example: torch.Tensor,
    input_name: str = "input",
    output_names: tuple[str, ...] = (),
) -> Base:
    """Export a network's graph with its sites left open.

    Args:
        model: in evaluation mode.
        sites: its sites; refused ones keep their weights in the graph.
        example: one batch of inputs, ``[n, …]``.
        input_name, output_names: names in the file.

    Raises:
        LoadError: when torch cannot export the network.
    """
    proto, dynamic = _export(model, example, input_name, output_names)
    _drop_zero_biases(proto.graph, {f"{site.name}.weight" for site in sites if site.bias is None})
    found = frozenset(site.name for site in sites if site.refusal is None and _open(proto, site))
    # Over several positions a BatchNorm's channels are the positions, not the layer's outputs.
    channels_last = {s.name for s in sites if s.geometry.kind == "linear" and s.geometry.in_size}
    norms = tuple(pair for pair in _norms(proto) if pair[0] not in channels_last)
    return Base(strip(_optimised(proto)), found, norms, dynamic)


def write(base: Base, sites: list[Site], stored: Mapping[str, Stored], path: Path, target: str = "onnx") -> int:
    """Write a file in which every placeholder is the chain of layers of its form.

    Args:
        base: from `export_base`.
        sites: the network's sites.
        stored: form and bias by site name, for every site of the base.
        path: file to write, replaced in one step.
        target: ``onnx`` for floats, ``onnx-sparse`` for those that are not zero, or one whose file holds integers or
            indices of a fixed width.

    Returns:
        The file's size in bytes.

    Raises:
        OutputError: when the file cannot be written.
    """
    return write_bytes(fill(base, sites, stored, target).SerializeToString(), path)


def fill(base: Base, sites: list[Site], stored: Mapping[str, Stored], target: str = "onnx") -> onnx.ModelProto:
    """The complete graph for a set of forms; see `write`."""
    proto = onnx.ModelProto()
    proto.CopyFrom(base.proto)
    graph = proto.graph
    by_name = {site.name: site for site in sites}
    nodes, shared = list(graph.node), Shared()
    del graph.node[:]
    for node in nodes:
        if node.domain == DOMAIN:
            graph.node.extend(_chain(graph, node, by_name[node.name], stored[node.name], target, shared))
        else:
            graph.node.append(node)
    graph.initializer.extend(shared.values())
    del proto.opset_import[:]
    proto.opset_import.extend(e for e in base.proto.opset_import if e.domain != DOMAIN)
    return with_int4(proto)


def results_of(base: Base, stored: Mapping[str, Stored], sites: Sequence[Site]) -> dict[str, list[str]]:
    """Names of the values that a site's layers give, one after another, by the site's name.

    Args:
        base, stored, sites: as given to `fill`.
    """
    geometries, found = {site.name: site.geometry for site in sites}, {}
    for marker in (node for node in base.proto.graph.node if node.domain == DOMAIN):
        count = len(stages(stored[marker.name].form, geometries[marker.name]))
        found[marker.name] = [*(f"{marker.output[0]}.{i}" for i in range(count - 1)), marker.output[0]]
    return found


def integer_tensors(base: Base, sites: list[Site], stored: Mapping[str, Stored]) -> dict[str, Packed]:
    """The integers or indices behind a file's weights and biases, by initializer, as the archive wants them.

    Args:
        base, sites, stored: as given to `write`.
    """
    found: dict[str, Packed] = {}
    by_name = {site.name: site for site in sites}
    for marker in (node for node in base.proto.graph.node if node.domain == DOMAIN):
        one = stored[marker.name]
        chain = stages(one.form, by_name[marker.name].geometry)
        names = _stage_names(marker.name, len(chain))
        for name, stage in zip(names, chain, strict=True):
            if isinstance(stage.weight, Quantized | Codebook):
                found[f"{name}.weight"] = Packed(stage.weight, _turned(stage, marker))
        if one.bias_form is not None:
            found[f"{names[-1]}.bias"] = Packed(one.bias_form)
    return found


def _stage_names(site: str, count: int) -> list[str]:
    return [site] if count == 1 else [f"{site}.{i}" for i in range(count)]


def _chain(
    graph: onnx.GraphProto, marker: onnx.NodeProto, site: Site, stored: Stored, target: str, shared: Shared
) -> list[onnx.NodeProto]:
    chain = stages(stored.form, site.geometry)
    nodes, value = [], marker.input[0]
    for i, (prefix, stage) in enumerate(zip(_stage_names(site.name, len(chain)), chain, strict=True)):
        last = i == len(chain) - 1
        result = marker.output[0] if last else f"{marker.output[0]}.{i}"
        plan = fast_plan(stage) if target == "onnx" else None
        if plan is not None:
            bias = stored.bias if last else None
            made, tensors = fast_nodes(plan, stage.values, bias, value, result, prefix, shared)
            graph.initializer.extend(tensors)
            nodes, value = [*nodes, *made], result
            continue
        weight, made = _weight(graph, stage, f"{prefix}.weight", target, turned=_turned(stage, marker))
        names = [value, weight]
        if last and stored.bias is not None:
            names.append(f"{prefix}.bias")
            _add_floats(graph, stored.bias, names[-1])
        nodes += [*made, *layer_nodes(stage.geometry, names, result, flat=_flat(marker))]
        value = result
    return nodes


def _turned(stage: Stage, marker: onnx.NodeProto) -> bool:
    """Whether the weight is stored with its axes swapped, as MatMul takes it."""
    return stage.geometry.kind == "linear" and not _flat(marker)


def _weight(
    graph: onnx.GraphProto, stage: Stage, name: str, target: str, *, turned: bool
) -> tuple[str, list[onnx.NodeProto]]:
    """Store a weight; the value that holds it in floats, and the nodes that make those."""
    leaf, bits = stage.weight, width(stage.weight, target)
    if target == SPARSE and (nodes := masked_weight(graph, leaf, stage.values, name, turned=turned)):
        return nodes[-1].output[0], nodes
    if bits is not None and isinstance(leaf, Codebook):
        nodes = shared_weight(graph, leaf, stage.shape, name, turned=turned)
        return nodes[-1].output[0], nodes
    if target in HALVES and (nodes := half_weight(graph, stage.values.T if turned else stage.values, name)):
        return nodes[-1].output[0], nodes
    if bits is None or not isinstance(leaf, Quantized):
        _add_floats(graph, stage.values.T if turned else stage.values, name)
        return name, []
    node = integer_weight(graph, leaf, stage.shape, bits, name, turned=turned)
    return node.output[0], [node]


def _add_floats(graph: onnx.GraphProto, values: np.ndarray, name: str) -> None:
    graph.initializer.append(onnx.numpy_helper.from_array(np.ascontiguousarray(values, dtype=np.float32), name))


def _flat(marker: onnx.NodeProto) -> bool:
    return any(a.name == "flat" and a.i for a in marker.attribute)


def layer_nodes(g: Geometry, names: list[str], result: str, *, flat: bool) -> list[onnx.NodeProto]:
    """The nodes of one plain layer; names of its input, its weight and perhaps its bias."""
    if g.kind == "linear":
        if flat:
            return [helper.make_node("Gemm", names, [result], transB=1)]
        product = result if len(names) == 2 else f"{result}.m"
        nodes = [helper.make_node("MatMul", names[:2], [product])]
        return nodes if len(names) == 2 else [*nodes, helper.make_node("Add", [product, names[2]], [result])]
    attributes: dict[str, Any] = {"kernel_shape": g.kernel}
    for key, values, neutral in (("strides", g.stride, 1), ("pads", g.padding * 2, 0), ("dilations", g.dilation, 1)):
        if any(v != neutral for v in values):
            attributes[key] = values
    if any(g.output_padding):
        attributes["output_padding"] = g.output_padding
    if g.groups > 1:
        attributes["group"] = g.groups
    return [helper.make_node("Conv" if g.kind == "conv" else "ConvTranspose", names, [result], **attributes)]


def _export(
    model: nn.Module, example: torch.Tensor, input_name: str, output_names: tuple[str, ...]
) -> tuple[onnx.ModelProto, bool]:
    # The exporter reports every torchvision operator it cannot register; none is used here.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    errors = []
    for dynamic in (True, False):
        shapes = ({0: torch.export.Dim("batch", min=1, max=LARGEST_BATCH)},) if dynamic else None
        # Two samples: a batch of one would be taken for a constant.
        batch = torch.cat([example[:1]] * 2) if dynamic else example[:1]
        try:
            with warnings.catch_warnings(), torch.no_grad(), read_once():
                warnings.simplefilter("ignore")  # deprecations inside the exporter, nothing a user can act on
                program = torch.onnx.export(
                    model, (batch,), dynamo=True, external_data=False, optimize=False, verbose=False,
                    dynamic_shapes=shapes,
                )  # fmt: skip
            assert program is not None
            proto = program.model_proto
            _name_ends(proto.graph, input_name, output_names)
            return proto, dynamic
        except Exception as error:  # the exporter raises many kinds; the first line of each is told
            errors.append(str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__)
    raise LoadError(
        f"export: torch cannot export this network to ONNX: {errors[-1]}; make it work with torch.export first"
    )


def _name_ends(graph: onnx.GraphProto, input_name: str, output_names: tuple[str, ...]) -> None:
    """Name inputs and outputs; a value in between that has such a name gets another.

    Torch renames without looking: an output called ``linear_1``, as torch itself would, meets the value of that name.
    """
    ends = {value.name: name for value, name in zip(graph.output, output_names, strict=False)}
    ends[graph.input[0].name] = input_name
    taken = set(ends.values())

    def renamed(name: str) -> str:
        return ends.get(name, f"{name}~" if name in taken else name)

    for value in [*graph.input, *graph.output, *graph.value_info, *graph.initializer]:
        value.name = renamed(value.name)
    _rename_values(graph.node, renamed)


def _rename_values(nodes: Iterable[onnx.NodeProto], renamed: Callable[[str], str]) -> None:
    for node in nodes:
        for names in (node.input, node.output):
            names[:] = [renamed(name) for name in names]
        for attribute in node.attribute:
            _rename_values(attribute.g.node, renamed)


def _optimised(proto: onnx.ModelProto) -> onnx.ModelProto:
    import onnxscript.optimizer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("onnxscript").setLevel(logging.ERROR)
        result: Any = onnxscript.optimizer.optimize(proto)
    return result


def _drop_zero_biases(graph: onnx.GraphProto, weights: set[str]) -> None:
    """The exporter makes a bias of zeros from the weight's shape: a second reader of the weight."""
    for node in graph.node:
        if node.op_type in ("Conv", "ConvTranspose") and node.input[1] in weights:
            del node.input[2:]
    drop_unused(graph)


def _open(proto: onnx.ModelProto, site: Site) -> bool:
    """Replace a site's nodes by a placeholder; False where the export does not keep the layer apart."""
    graph = proto.graph
    weight = f"{site.name}.weight"
    users = [n for n in graph.node if weight in n.input]
    if len(users) != 1:
        return False
    node = users[0]
    used, flat, result = [node], True, node.output[0]
    if node.op_type == "Transpose":  # a dense layer over several positions: Transpose, MatMul, Add
        products = [n for n in graph.node if node.output[0] in n.input]
        if len(products) != 1 or products[0].op_type != "MatMul" or products[0].input[1] != node.output[0]:
            return False
        product, flat = products[0], False
        value, result = product.input[0], product.output[0]
        used.append(product)
        if site.bias is not None:
            sums = [n for n in graph.node if result in n.input]
            if len(sums) != 1 or sums[0].op_type != "Add" or f"{site.name}.bias" not in sums[0].input:
                return False
            used.append(sums[0])
            result = sums[0].output[0]
    elif node.op_type in ("Conv", "ConvTranspose", "Gemm") and node.input[1] == weight:
        value = node.input[0]
    else:
        return False
    # The name is an attribute too: the optimiser would merge two sites that read the same value.
    marker = helper.make_node("Site", [value], [result], name=site.name, domain=DOMAIN, flat=int(flat), site=site.name)
    _swap(graph, used, marker)
    _drop_initializers(graph, {weight, f"{site.name}.bias"})
    if not any(e.domain == DOMAIN for e in proto.opset_import):
        proto.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return True


def _swap(graph: onnx.GraphProto, used: list[onnx.NodeProto], marker: onnx.NodeProto) -> None:
    outputs, last = {n.output[0] for n in used}, used[-1].output[0]
    for i in reversed(range(len(graph.node))):
        if graph.node[i].output and graph.node[i].output[0] in outputs:
            if graph.node[i].output[0] == last:
                graph.node[i].CopyFrom(marker)
            else:
                del graph.node[i]


def _drop_initializers(graph: onnx.GraphProto, names: set[str]) -> None:
    """Take a site's tensors out; one that another layer shares stays, under a name that the site does not take."""

    def renamed(name: str) -> str:
        return f"{name}~" if name in names else name

    for tensor in graph.initializer:
        tensor.name = renamed(tensor.name)
    _rename_values(graph.node, renamed)
    drop_unused(graph)


def _norms(proto: onnx.ModelProto) -> tuple[tuple[str, str], ...]:
    """Sites whose only reader is a BatchNorm, with that module's name."""
    graph = proto.graph
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for value in node.input:
            readers.setdefault(value, []).append(node)
    outputs = {o.name for o in graph.output}
    pairs = []
    for node in graph.node:
        after = readers.get(node.output[0], []) if node.domain == DOMAIN and node.output[0] not in outputs else []
        if len(after) == 1 and after[0].op_type == "BatchNormalization" and after[0].input[1].endswith(".weight"):
            gain = after[0].input[1]
            if len(readers[gain]) == 1:  # a BatchNorm that runs twice stays
                pairs.append((node.name, gain.removesuffix(".weight")))
    return tuple(pairs)
