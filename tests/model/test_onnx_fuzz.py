"""Damaged ONNX files: an error of ours or the right answer, never a crash, a hang or a flood of memory.

The importer runs in one process under a limit on its address space, onnxruntime in another, so that whatever a mutated
file does to either is seen. Where both accept a file, both must answer alike.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import tempfile
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

# No smidgen and no torch up here: the worker that imports them limits and checks them first.
from tests.model.onnx_damage import mutated
from tests.model.onnx_samples import MODELS

MUTATIONS = 2000
PATIENCE_S = 180.0  # wall clock for one mutation, after which it hangs: a busy machine may take its time
# Of its own time; most take 10 ms, the largest that limits allow some seconds, by processor and caches.
PROCESSOR_S = 45.0
ROOM_BYTES = 4 << 30  # address space on top of what an imported torch has


def feeds(model) -> dict[str, np.ndarray] | None:
    """An input that fits what the file declares; None where it would be too large to run."""
    rng = np.random.default_rng(0)
    stored = {tensor.name for tensor in model.graph.initializer}
    given = {}
    for value in model.graph.input:
        if value.name in stored:
            continue
        dims = [dim.dim_value if dim.HasField("dim_value") else 3 for dim in value.type.tensor_type.shape.dim]
        if any(dim < 0 for dim in dims) or np.prod([float(dim) for dim in dims]) > 1 << 18:
            return None
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
        if dtype.kind not in "fiub":
            return None
        given[value.name] = (rng.normal(size=dims) * 2).astype(dtype)
    return given


def _serve(pipe: Connection, answer) -> None:
    # What the libraries print about damaged files is no news; results go through the pipe.
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    while (content := pipe.recv()) is not None:
        start = time.process_time()  # not the wall clock: other work on the machine is no fault of the file
        result = answer(content)
        pipe.send((*result, time.process_time() - start))


def _importer(pipe: Connection) -> None:
    from tests.annotations import enforce

    enforce("smidgen")
    import torch

    from smidgen.errors import LoadError
    from smidgen.model.onnx import load_onnx

    torch.set_num_threads(1)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + ROOM_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    def answer(content):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "m.onnx"
            path.write_bytes(content)
            try:
                loaded = load_onnx(path)
            except LoadError as error:
                return ("refused" if "\n" not in str(error) else "a message of several lines"), str(error)
        model = onnx.load_model_from_string(content)
        given = feeds(model)
        if given is None:
            return "too large to run", ""
        with torch.no_grad():
            results = loaded.module(*[torch.from_numpy(given[spec.name]) for spec in loaded.inputs])
        results = results if isinstance(results, tuple) else (results,)
        return "ran", [result.float().numpy() for result in results]

    def guarded(content):
        try:
            return answer(content)
        except Exception as error:
            return "raised", f"{type(error).__name__}: {error}"

    _serve(pipe, guarded)


def _runtime(pipe: Connection) -> None:
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    # Optimized, it multiplies by dequantized weights in 8 bits, which is not what the file says.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL

    def answer(content):
        try:
            session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
            results = session.run(None, feeds(onnx.load_model_from_string(content)))
            return "ran", [np.asarray(result, dtype=np.float32) for result in results]
        except Exception as error:
            return "refused", str(error)

    _serve(pipe, answer)


class Process:
    """A worker that is started again when a file kills it."""

    def __init__(self, target) -> None:
        self.target = target
        self.start()

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=self.target, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()

    def ask(self, content: bytes):
        """What the worker says, or 'died' or 'hung'."""
        try:
            self.pipe.send(content)
            if self.pipe.poll(PATIENCE_S * 4 if not hasattr(self, "warm") else PATIENCE_S):
                self.warm = True
                return self.pipe.recv()
            result = ("hung", "", PATIENCE_S)
        except (EOFError, OSError):
            result = ("died", "", 0.0)
        self.stop()
        self.start()
        return result

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _disagree(ours, theirs) -> str | None:
    for mine, wanted in zip(ours, theirs, strict=True):
        if mine.shape != wanted.shape:
            return f"shape {mine.shape} for {wanted.shape}"
        scale = np.abs(wanted).max(initial=0.0)
        # Past these the order of additions decides the answer.
        if not np.isfinite(wanted).all() or scale > 1e6:
            continue
        if not np.allclose(mine, wanted, atol=1e-4 * max(scale, 1e-3), rtol=1e-3):
            return f"values differ by {np.abs(mine - wanted).max()} of {scale}"
    return None


def survey(seeds):
    """(counts of what happened, what must not have happened)."""
    counts, wrong = Counter(), []
    importer, runtime = Process(_importer), Process(_runtime)
    try:
        for seed in seeds:
            how, content = mutated(seed)
            state, result, seconds = importer.ask(content)
            if state not in ("ran", "raised", "refused", "too large to run") or seconds > PROCESSOR_S:
                wrong.append((seed, how, f"importer {state} after {seconds:.1f} s: {result!s:.200}"))
            if state not in ("ran", "raised"):
                counts[state] += 1
                continue
            theirs, wanted, _ = runtime.ask(content)
            if theirs != "ran":  # such as a reshape that only some batch sizes fit
                counts[f"{state}, onnxruntime {theirs}"] += 1
            elif state == "raised":
                wrong.append((seed, how, f"raised where onnxruntime runs: {result!s:.300}"))
            elif (difference := _disagree(result, wanted)) is not None:
                wrong.append((seed, how, difference))
            else:
                counts["agreed"] += 1
    finally:
        importer.stop()
        runtime.stop()
    return counts, wrong


@pytest.mark.slow
def test_damaged_files_give_our_error_or_the_right_answer(capsys: pytest.CaptureFixture[str]):
    start = time.monotonic()
    counts, wrong = survey(range(MUTATIONS))
    with capsys.disabled():
        print(f"\n{MUTATIONS} damaged files in {time.monotonic() - start:.0f} s: {dict(counts)}")
    assert not wrong, "\n".join(map(str, wrong[:20]))
    assert counts["refused"] > MUTATIONS // 4
    assert counts["agreed"] > MUTATIONS // 10


@pytest.mark.parametrize("make", MODELS)
def test_the_undamaged_models_agree(make):
    from smidgen.model.onnx import import_model

    assert import_model(make()).output_names == ("y",)
