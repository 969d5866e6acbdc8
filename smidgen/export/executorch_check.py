"""What ExecuTorch cannot compute, told by operator and layer, and a program run beside the network it was made from."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from smidgen.calibrate.answers import outputs_of
from smidgen.errors import DataError, LoadError, VerificationError, one_line
from smidgen.export.tflite import layer_in
from smidgen.runtimes.executorch import quiet, runner_of

# How torch.export's verifier and ExecuTorch's lowering name an operator that they refuse.
_REFUSED = re.compile(r"Operator torch\._ops\.([\w.]+?)\.\w+ is not|Missing out variants: \{'([\w:]+)'")
HELP = "use another target, or replace the layer"


@contextlib.contextmanager
def told(graphs: Sequence[torch.fx.Graph] = ()) -> Iterator[None]:
    """One line where a lowering fails, and none of what it prints.

    Args:
        graphs: of torch.export, to find the layer of a refused operator in; may be filled in the block.
    """
    fault = None
    with quiet():
        try:
            yield
        except Exception as error:  # torch, the lowerings and the backends each raise their own
            fault = error
    if fault is not None:
        text = " ".join(str(fault).split())
        found = _REFUSED.search(text)
        reason = (one_line(text) or type(fault).__name__) if found is None else _lacks(found[1] or found[2], graphs)
        raise LoadError(f"export: this network cannot become an ExecuTorch program: {reason}; {HELP}")


def check_operators(program: Any, graph: torch.fx.Graph) -> None:
    """LoadError, with the operator and its layer, where the runtime has no kernel for one that XNNPACK left over.

    Args:
        program: ExecuTorch's own object of the lowered program.
        graph: what it was lowered from.
    """
    with quiet():
        from executorch.runtime import Runtime  # pyright: ignore[reportMissingImports]

        known = set(Runtime.get().operator_registry.operator_names)
    for name, overload in left_over(program):
        if f"{name}.{overload}".rstrip(".") not in known:
            raise LoadError(f"export: {_lacks(name, [graph])}; {HELP}")


def left_over(program: Any) -> list[tuple[str, str]]:
    """Names and overloads of the operators that XNNPACK does not compute."""
    return [(each.name, each.overload) for plan in program.execution_plan for each in plan.operators]


def check_answers(content: bytes, network: nn.Module, x: torch.Tensor, tolerance: float, rest: Sequence[str]) -> None:
    """The program answers as the network does, ‖p(x) − f(x)‖ ≤ t ‖f(x)‖ for each output.

    Args:
        content: of the program.
        network: what it was made from.
        x: inputs ``[n, …]``, given to the network one at a time.
        tolerance: t.
        rest: operators that XNNPACK does not compute, to be named where the program does not run.

    Raises:
        LoadError: it does not run.
        VerificationError: it answers otherwise.
    """
    with torch.no_grad():
        each = [outputs_of(network(x[n : n + 1])) for n in range(len(x))]
    try:
        with runner_of(content) as runner:
            written = [runner.run(x[n : n + 1].numpy()) for n in range(len(x))]
    except (LoadError, DataError) as fault:
        named = f" ({', '.join(sorted(set(rest)))} are not XNNPACK's)" if rest else ""
        raise LoadError(f"export: ExecuTorch does not run the written program{named}: {fault}; {HELP}") from None
    for want, got in zip(zip(*each, strict=True), zip(*written, strict=True), strict=True):
        expected, found = (np.nan_to_num(np.stack(each).astype(np.float64)) for each in (want, got))
        size, error = np.linalg.norm(expected), np.linalg.norm(found - expected)
        if not error <= tolerance * max(size, 1e-6):
            raise VerificationError(
                f"export: the ExecuTorch program differs from the network by {error / max(size, 1e-6):.2g} "
                "of its outputs; please report this network"
            )


def _lacks(operator: str, graphs: Sequence[torch.fx.Graph]) -> str:
    """The sentence about an operator, ``aten.sort`` or ``aten::sort``, and its layer where that can be told."""
    name = operator.replace("::", ".")
    layer = next((found for graph in graphs if (found := layer_in(graph, name))), None)
    return f"ExecuTorch has no operator for {name}" + (f" of layer '{layer}'" if layer else "")
