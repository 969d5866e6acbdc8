"""Open a trained network: an ONNX file, a ``.pt2`` program, a Python factory with weights, or a module in memory."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import sys
import tempfile
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from smidgen.errors import LoadError
from smidgen.model.sites import contained


@dataclass(frozen=True, eq=False)
class Network:
    """A network ready to be compressed.

    Args:
        module: in evaluation mode; a lone layer stands in an ``nn.Sequential``, where another can take its place.
        name: short name for messages and reports.
        input_shape: one input with its batch axis, None where a size is free; empty when unknown.
        input_name, output_names: names for written files; no output names where torch shall choose.
        source: the given ONNX file, when it was one, with all its weights: what written files are compared with.
    """

    module: nn.Module
    name: str
    input_shape: tuple[int | None, ...] = ()
    input_name: str = "input"
    output_names: tuple[str, ...] = ()
    source: Path | None = None


def load_network(given: str | Path | nn.Module, weights: str | Path | None = None) -> Network:
    """Open a network.

    Args:
        given: path of an ``.onnx`` or ``.pt2`` file, ``file.py:factory`` or ``package.module:factory``, or a module.
        weights: ``.safetensors`` or weights-only ``.pth`` file for a factory.

    Raises:
        LoadError: when it cannot be read, or computes in float64; the message says what to do.

    >>> load_network(nn.Linear(2, 1)).name
    'Linear'
    """
    if isinstance(given, nn.Module):
        network = Network(copy.deepcopy(given).eval(), type(given).__name__)  # the user's own stays as it is
    elif ":" in str(given) and not Path(str(given)).exists():
        network = Network(_from_factory(str(given)).eval(), str(given).rpartition(":")[2])
    else:
        network = _from_file(Path(given))
    if weights is not None:
        if not isinstance(given, nn.Module) and network.source is not None:
            raise LoadError(f"load: '{given}' holds its own weights; leave --weights out")
        load_weights(network.module, Path(weights))
    _check_precision(network.module, given)
    return replace(network, module=contained(network.module))


def _check_precision(module: nn.Module, given: str | Path | nn.Module) -> None:
    """Inputs, curvature and written files are float32: a float64 network would come back as another one."""
    name = next((n for n, p in module.named_parameters() if p.dtype == torch.float64), None)
    if name is not None:
        mend = "call .float() on it" if isinstance(given, nn.Module) or ":" in str(given) else "convert it to float32"
        raise LoadError(f"load: the network's {name} is float64, smidgen computes in float32; {mend} first")


def _from_file(path: Path) -> Network:
    if not path.exists():
        raise LoadError(f"load: there is no file '{path}'; give an .onnx or .pt2 file, or file.py:factory")
    if path.suffix == ".pt2":
        return _from_program(path)
    if path.suffix == ".py":
        raise LoadError(f"load: '{path}' is code; name the function that builds the network: {path}:factory")
    if path.suffix in (".pth", ".pt", ".safetensors", ".ckpt"):
        raise LoadError(f"load: '{path}' holds weights without the network; give file.py:factory and --weights {path}")
    if path.suffix in (".keras", ".h5", ".tflite", ".pb"):
        raise LoadError(f"load: '{path}' is a TensorFlow file; convert it first: see docs/tensorflow.md")
    return _from_onnx(path, given=True)


def _from_onnx(path: Path, given: bool) -> Network:
    from smidgen.model.onnx import load_onnx, whole_onnx

    loaded = load_onnx(path)
    if len(loaded.inputs) != 1:
        names = ", ".join(i.name for i in loaded.inputs)
        raise LoadError(
            f"load: '{path}' takes {len(loaded.inputs)} inputs ({names}); networks with one input are supported"
        )
    spec, source = loaded.inputs[0], whole_onnx(path) if given else None
    if spec.dtype == "float64":
        raise LoadError(f"load: '{path}' takes float64 inputs, smidgen gives float32; convert it to float32 first")
    return Network(loaded.module, path.stem, tuple(spec.shape), spec.name, tuple(loaded.output_names), source)


def _from_program(path: Path) -> Network:
    """A ``.pt2`` program holds operators, not layers: through ONNX it becomes layers again."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # notices of the loader about its own format
            program = torch.export.load(path)
            with tempfile.TemporaryDirectory() as folder:
                between = Path(folder) / f"{path.stem}.onnx"
                written = torch.onnx.export(program, dynamo=True, external_data=False, verbose=False)
                assert written is not None  # for the type checker: None comes of the old exporter alone
                written.save(between)
                return _from_onnx(between, given=False)
    except LoadError:
        raise
    except Exception as error:
        raise LoadError(
            f"load: '{path}' is not a program that torch.export.save wrote: {_first_line(error)}"
        ) from error


def _from_factory(spec: str) -> nn.Module:
    place, _, name = spec.rpartition(":")
    module = _import(place)
    factory = getattr(module, name, None)
    if not callable(factory):
        there = sorted(k for k, v in vars(module).items() if callable(v) and not k.startswith("_"))
        raise LoadError(f"load: '{place}' has no function '{name}'; it has: {', '.join(there[:12]) or 'none'}")
    try:
        network = factory()
    except Exception as error:
        raise LoadError(
            f"load: calling {spec} failed: {_first_line(error)}; the factory must work without arguments"
        ) from error
    if not isinstance(network, nn.Module):
        raise LoadError(f"load: {spec} returned a {type(network).__name__}; it must return a torch.nn.Module")
    return network


def import_factory(spec: str) -> None:
    """Run the code that a factory is in, so that what it built can be read in another process.

    Args:
        spec: ``file.py:factory`` or ``package.module:factory``.

    Raises:
        LoadError: when it cannot be imported.
    """
    _import(spec.rpartition(":")[0])


def _import(place: str) -> Any:
    try:
        if not place.endswith(".py"):
            return importlib.import_module(place)
        path = Path(place)
        if not path.is_file():
            raise LoadError(f"load: there is no file '{place}'")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None  # a .py file always has a spec …
        assert spec.loader is not None  # … and a loader
        module = importlib.util.module_from_spec(spec)
        sys.modules.setdefault(path.stem, module)
        # The user's folder is not ours to leave a cache in.
        kept, sys.dont_write_bytecode = sys.dont_write_bytecode, True
        try:
            spec.loader.exec_module(module)
        finally:
            sys.dont_write_bytecode = kept
        return module
    except LoadError:
        raise
    except (Exception, SystemExit) as error:  # a script may end itself when imported
        raise LoadError(f"load: cannot import '{place}': {_first_line(error)}") from error


def load_weights(module: nn.Module, path: Path) -> None:
    """Load a ``.safetensors`` or weights-only ``.pth`` file into a network; never unpickles code.

    Raises:
        LoadError: when the file is missing, damaged, not weights only, or does not fit the network.
    """
    if not path.is_file():
        raise LoadError(f"load: there is no weights file '{path}'")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            tensors: Any = load_file(path)
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
            tensors = tensors.get("state_dict", tensors) if isinstance(tensors, dict) else tensors
    except Exception as error:
        raise LoadError(
            f"load: '{path}' is not a weights file smidgen can read safely: {_first_line(error)}; "
            "save it with safetensors, or torch.save(model.state_dict())"
        ) from error
    try:
        module.load_state_dict(tensors)
    except Exception as error:
        detail = " ".join(str(error).split())
        raise LoadError(f"load: '{path}' does not fit the network: {detail[:300]}") from error


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__
