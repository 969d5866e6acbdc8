"""The table of `smidgen.bench`."""

from __future__ import annotations

from smidgen.report.benching import Bench

TIMING = {"threads": 1, "latency_ms": 2.0, "latency_quartiles_ms": [1.9, 2.2], "runs": 90, "speedup": 1.0}


def file(path: str, nbytes: int, **timing: float) -> dict[str, object]:
    return {"path": path, "nbytes": nbytes, "timings": [{**TIMING, **timing}]}


def test_a_row_says_how_much_smaller_and_faster() -> None:
    table = Bench({
        "original": file("a/model.onnx", 4000),
        "files": [file("b/model.onnx", 1000, latency_ms=1.0, speedup=1.98, speedup_error=0.03), file("c/x.onnx", 5000)],
    }).table()  # fmt: skip
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in table.splitlines() if line.startswith("│")]
    assert rows == [
        ["a/model.onnx", "4.00 kB", "–", "1", "2 ms", "1.9 – 2.2", "–", "90"],
        ["b/model.onnx", "1.00 kB", "4.0×", "1", "1 ms", "1.9 – 2.2", "1.98 ± 0.03×", "90"],
        ["x.onnx", "5.00 kB", "0.80×", "1", "2 ms", "1.9 – 2.2", "1.00×", "90"],
    ]
