"""bundle(): a folder to copy to a device, where a small script measures the files; merge(): what came back."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from smidgen.errors import LoadError, OutputError
from smidgen.export.files import write_bytes
from smidgen.measure.energy import onnx_energy
from smidgen.measure.files import nbytes, sha256
from smidgen.model.onnx import whole_onnx
from smidgen.pipeline.bench import machine
from smidgen.pipeline.samples import sample_inputs
from smidgen.pipeline.task import Data, as_data
from smidgen.report.devices import merge_results, read_record
from smidgen.report.record import versions
from smidgen.report.result import writable_folder
from smidgen.runtimes.micro import MICRO_END
from smidgen.runtimes.opening import open_file

SAMPLES = 16  # inputs that travel
MOST_SAMPLES = 10_000
SCRIPTS = ("bench.py", "android.sh")
RUNNABLE = (".onnx", ".tflite")  # by what bench.py opens


def bundle(
    folder: str | Path,
    output: str | Path,
    *,
    against: str | Path | None = None,
    data: Data = None,
    samples: int = SAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Write the files of a run, sample inputs with this machine's answers and a script that needs nothing of smidgen.

    Args:
        folder: where `Result.save` or ``smidgen compress -o`` wrote.
        output: where the bundle goes.
        against: the original, which travels as ``original.…`` and is what the others are compared with.
        data: the first of its inputs travel, as for `smidgen.compress`; uniform random numbers when None.
        samples: how many inputs.
        seed: of what is drawn.

    Returns:
        What ``bundle.json`` holds; ``left_out`` has the files that the script cannot run.

    Raises:
        UserError: no such run, nothing in it that runs, or a place that cannot be written.
    """
    source, place = Path(folder), Path(output)
    if not 1 <= samples <= MOST_SAMPLES:
        raise OutputError(f"bundle: samples={samples} is not between 1 and {MOST_SAMPLES}; give e.g. {SAMPLES}")
    if source.resolve() == place.resolve():
        raise OutputError(f"bundle: '{place}' holds the run itself; choose another folder with -o")
    found, left_out = runnable_files(source, against)
    given = None if data is None else as_data(data)
    place = writable_folder(place)
    with tempfile.TemporaryDirectory(prefix=".smidgen-", dir=place) as draft:
        record = _write(Path(draft), found, given, samples, seed)
        record["left_out"] = left_out
        write_bytes((json.dumps(record, indent=1) + "\n").encode(), Path(draft) / "bundle.json")
        for path in sorted(Path(draft).iterdir()):
            path.replace(place / path.name)
    return record


def merge(results: str | Path | Sequence[str | Path], folder: str | Path) -> dict[str, Any]:
    """Take what ``bench.py`` or ``android.sh`` measured into the record of a run, ``result.json``.

    Args:
        results: one file or several that came back from devices.
        folder: the run's.

    Returns:
        The record; ``devices`` has an entry for each device, by name, the latest measurement of it.

    Raises:
        UserError: damaged results, or those of other files than the run's.
    """
    given = [Path(each) for each in ([results] if isinstance(results, (str, Path)) else results)]
    record = merge_results(Path(folder), given)
    write_bytes((json.dumps(record, indent=1) + "\n").encode(), Path(folder) / "result.json")
    return record


def runnable_files(source: Path, against: str | Path | None) -> tuple[dict[str, Path], dict[str, str]]:
    """The files of a run by target, the original first where it is given, and why others are left out.

    Args:
        source: the run's folder.
        against: the original, or None.
    """
    record = read_record(source)
    found: dict[str, Path] = {}
    left_out: dict[str, str] = {}
    if against is not None:
        found["original"] = whole_onnx(against)
    for name, entry in record["files"].items():
        path = source / Path(str(entry.get("path"))).name
        if path.suffix not in RUNNABLE or path.name.endswith(MICRO_END):
            left_out[name] = f"'{path.name}' is run by nothing that travels"
        elif not path.is_file():
            left_out[name] = f"'{path.name}' is not in '{source}'"
        else:
            found[name] = path
    if not found.keys() - {"original"}:
        raise LoadError(
            f"bundle: '{source}' holds no file that runs on a device; compress with --target onnx or tflite"
        )
    return found, left_out


def _write(draft: Path, found: dict[str, Path], data: Any, samples: int, seed: int) -> dict[str, Any]:
    """All that travels; the answers are taken one input at a time, as the device does."""
    entries: list[dict[str, Any]] = []
    inputs: np.ndarray | None = None
    for name, path in found.items():
        target = draft / (f"original{path.suffix}" if name == "original" else path.name)
        with open_file(path) as runner:
            if inputs is None:
                inputs = sample_inputs(runner, data, samples, seed)
                _save(draft / "inputs.npy", inputs)
            each = [runner.run(inputs[i : i + 1]) for i in range(len(inputs))]
            last = bool(getattr(runner, "channels_last", False))
        write_bytes(path.read_bytes(), target)
        references = []
        for number, parts in enumerate(zip(*each, strict=True)):
            references.append(f"{target.name}.reference{number}.npy")
            _save(draft / references[-1], np.concatenate(parts))
        entries.append({
            "name": name, "path": target.name, "nbytes": nbytes(path), "sha256": sha256(path),
            "references": references, "channels_last": last, "energy_estimate": _energy(name, path),
        })  # fmt: skip
    scripts = resources.files("smidgen.measure.device")
    for script in SCRIPTS:
        (draft / script).write_text((scripts / script).read_text(encoding="utf-8"), encoding="utf-8")
        (draft / script).chmod(0o755)
    return {
        "schema_version": 1, "inputs": "inputs.npy", "count": samples if inputs is None else len(inputs),
        "source": "random" if data is None else data.source, "machine": machine(), "versions": versions(),
        "files": entries,
    }  # fmt: skip


def _save(path: Path, array: np.ndarray) -> None:
    with path.open("wb") as stream:
        np.save(stream, array, allow_pickle=False)


def _energy(name: str, path: Path) -> dict[str, Any] | None:
    """An estimate where the file tells its multiplications; only ONNX files do."""
    energy = onnx_energy(path) if path.suffix == ".onnx" else None
    return None if energy is None else energy.as_dict()
