"""NNCodec from smidgen's side: its process, a network's weights for it, and the network it made, scored.

NNCodec wants an older numpy, so it runs in an environment of its own (README.md) and `nncodec_peer.py` serves it there.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from smidgen.data import Dataset
from smidgen.measure.scores import Judge, Outputs
from smidgen.runtimes.onnxruntime import open_onnx
from smidgen.runtimes.opening import run_dataset

PEER = Path(__file__).resolve().with_name("nncodec_peer.py")
# Shorter tensors are left to NNCodec's reader, uncounted: bounds of a clip, not weights.
SHORTEST = 9


@dataclass(frozen=True)
class Coded:
    """What NNCodec made of some arrays.

    Args:
        nbytes: of its bitstream.
        payload: bytes of each tensor's arithmetic code alone.
        values: as decoded from the bitstream.
        integers: as its entropy coder took them.
    """

    nbytes: int
    payload: dict[str, int]
    values: dict[str, np.ndarray]
    integers: dict[str, np.ndarray]


class Peer:
    """NNCodec's process; a context manager.

    Args:
        python: interpreter of NNCodec's environment.
        threads: for its numerical libraries.
    """

    def __init__(self, python: str, threads: int) -> None:
        environment = {**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))}
        self.folder = tempfile.TemporaryDirectory()
        self.noise = tempfile.TemporaryFile("w+")  # noqa: SIM115  # as long as the process
        self.process = subprocess.Popen(
            [python, "-I", str(PEER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.noise, text=True,
            env=environment,
        )  # fmt: skip
        self.version = self._reply()["version"]

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self.noise.close()
        self.folder.cleanup()

    def code(
        self,
        arrays: Mapping[str, np.ndarray],
        settings: Mapping[str, Any],
        quality: Callable[[dict[str, np.ndarray]], float] | None = None,
    ) -> Coded:
        """Compress and decompress.

        Args:
            arrays: float32 or int32.
            settings: of nncodec.nnc.compress.
            quality: of a network with these values, the higher the better; used with `ioq` only.
        """
        given, made = Path(self.folder.name, "given.npz"), Path(self.folder.name, "made.npz")
        # NNCodec reads "_G" and "_H" in a name as factors; numbers mean nothing to it.
        names = {f"t{number:04}": name for number, name in enumerate(arrays)}
        np.savez(given, **{short: arrays[name] for short, name in names.items()})
        reply = self._told({"arrays": str(given), "out": str(made), "settings": dict(settings)})
        while "score" in reply:
            if quality is None:
                raise ValueError("ioq needs a measure of quality")
            reply = self._told(quality({names[k]: v for k, v in _loaded(reply["score"]).items()}))
        payload, back = {names[short]: nbytes for short, nbytes in reply["payload"].items()}, _loaded(made)
        values, integers = (
            {name: back[f"{what}/{short}"] for short, name in names.items()} for what in ("values", "integers")
        )
        return Coded(reply["nbytes"], payload, values, integers)

    def _told(self, line: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(line) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # what it said tells why
        return self._reply()

    def _reply(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        reply = self.process.stdout.readline()
        if not reply:
            self.noise.seek(0)
            raise SystemExit(f"NNCodec's process ended: {self.noise.read().strip()[-800:]}")
        return json.loads(reply)


def _loaded(path: str | Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


@dataclass(frozen=True)
class Scored:
    """One file of a network, and what it scored on the test inputs.

    Args:
        asked: what it was made with.
        option: a name for all settings but the step.
        nbytes: counted.
        ratio: original bytes / counted bytes.
        accuracy, agreement: fractions.
        lost, lost_low, lost_high: points of accuracy lost, and their paired 95 % interval.
        kl: KL(original ‖ compressed) in nats a sample.
    """

    asked: str
    option: str
    nbytes: int
    ratio: float
    accuracy: float
    agreement: float
    lost: float
    lost_low: float
    lost_high: float
    kl: float | None

    def as_dict(self) -> dict[str, Any]:
        """The fields, ready for JSON."""
        return asdict(self)


class Network:
    """An ONNX file whose weights are taken out, changed and put back.

    Args:
        path: of the file.
        threads: for the runtime.
    """

    def __init__(self, path: Path, threads: int) -> None:
        self.path, self.threads, self.nbytes = path, threads, path.stat().st_size
        self.model = onnx.load(path)
        self.weights = {
            tensor.name: numpy_helper.to_array(tensor)
            for tensor in self.model.graph.initializer
            if tensor.data_type == onnx.TensorProto.FLOAT and np.prod(tensor.dims) >= SHORTEST
        }

    def answers(self, data: Dataset, values: Mapping[str, np.ndarray] | None = None) -> Outputs:
        """Outputs in ONNX Runtime.

        Args:
            data: the inputs.
            values: in place of the weights; the original's without.
        """
        with tempfile.TemporaryDirectory() as folder:
            path = self.path if values is None else self._written(values, Path(folder, "model.onnx"))
            with open_onnx(path, self.threads) as runner:
                return run_dataset(runner, data.batches())

    def judge(self, data: Dataset) -> Judge:
        """Compares with the original on these inputs."""
        with open_onnx(self.path, self.threads) as runner:
            return Judge(run_dataset(runner, data.batches()), runner.output_names, data.labels)

    def _written(self, values: Mapping[str, np.ndarray], path: Path) -> Path:
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        for tensor in model.graph.initializer:
            if tensor.name in values:
                array = np.ascontiguousarray(values[tensor.name], np.float32).reshape(tuple(tensor.dims))
                tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
        onnx.save(model, path)
        return path


def scored(asked: str, option: str, nbytes: int, network: Network, judge: Judge, outputs: Outputs) -> Scored:
    """A point of a curve."""
    scores, loss = judge.judge(outputs), judge.loss(outputs)
    if scores.accuracy is None or scores.agreement is None:
        raise ValueError("the test inputs need labels and the network must be a classifier")
    return Scored(
        asked, option, nbytes, network.nbytes / nbytes, scores.accuracy, scores.agreement, loss.points, loss.low,
        loss.high, scores.kl,
    )  # fmt: skip
