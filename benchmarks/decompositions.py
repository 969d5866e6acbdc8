"""Truncated SVD against full SVDs of numpy, torch and scipy, and Tucker-2 and CP against tensorly: error and time.

Every pair works on the same float32 arrays, in turn; times are medians. OMP_NUM_THREADS sets the threads of all of them
(one when unset). tensorly is no dependency: `pip install tensorly==0.10.0`, or its part is left out.

    python benchmarks/decompositions.py
    OMP_NUM_THREADS=2 python benchmarks/decompositions.py --sizes 250 1000
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read by numpy, scipy and torch when they load

import argparse
import gc
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import onnx
import scipy.linalg
import scipy.sparse.linalg
import torch
from claims import Claim, save, show
from onnx import numpy_helper
from sets import model

from smidgen.numerics.cp import cp_als, cp_full
from smidgen.numerics.lowrank import svd_truncated
from smidgen.numerics.tucker import tucker2_curve

TITLE = "Truncated SVD, Tucker-2 and CP: error and time beside other libraries"
RANK = 32
OURS, PEER = "svd_truncated", "scipy svds"
# Repeats by side: a full SVD of 4096² takes a minute.
REPEATS = {250: 7, 1000: 5, 2000: 3, 4096: 1}
NETWORKS = {"resnet20": "resnet20_cifar10_jpegft.onnx", "squeezenet": "squeezenet1_1_imagenet.onnx"}
TENSORLY_SWEEPS = 100  # its default for both


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=int, choices=list(REPEATS), default=list(REPEATS))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    threads = int(os.environ["OMP_NUM_THREADS"])
    torch.set_num_threads(threads)
    claims: list[Claim] = []
    found: dict[str, Any] = {}
    for side in args.sizes:
        for spectrum in ("flat", "decaying"):
            runs = svds(matrix(side, spectrum, args.seed), REPEATS[side])
            found[f"svd {side}² {spectrum}"] = runs
            claims += svd_claims(side, spectrum, runs)
    for name, file in NETWORKS.items():
        runs = tensors(largest_kernel(file), args.seed)
        found[name] = runs
        claims += tensor_claims(name, runs)
    show(TITLE, claims)
    print(save("decompositions", TITLE, claims, threads=threads, seed=args.seed, runs=found))


def matrix(side: int, spectrum: str, seed: int) -> np.ndarray:
    """Flat: independent normal entries, the hardest case for sampling. Decaying: singular values 1/k."""
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(side, side, generator=generator, dtype=torch.float64)
    if spectrum == "decaying":
        left = torch.linalg.qr(dense).Q
        right = torch.linalg.qr(torch.randn(side, side, generator=generator, dtype=torch.float64)).Q
        dense = left / torch.arange(1, side + 1) @ right
    return dense.to(torch.float32).numpy()


def svds(dense: np.ndarray, repeats: int) -> dict[str, Any]:
    """Relative error at rank 32 and median time of each."""
    tensor = torch.from_numpy(dense)
    ways: dict[str, Callable[[], tuple[Any, Any, Any]]] = {
        OURS: lambda: svd_truncated(tensor, RANK),
        "numpy": lambda: np.linalg.svd(dense, full_matrices=False),
        "torch": lambda: tuple(torch.linalg.svd(tensor, full_matrices=False)),
        "scipy": lambda: scipy.linalg.svd(dense, full_matrices=False),
        PEER: lambda: scipy.sparse.linalg.svds(dense, RANK, rng=0),
    }
    return interleaved(ways, repeats, lambda triple: truncation_error(dense, *triple))


def truncation_error(dense: np.ndarray, u: Any, s: Any, vh: Any) -> float:
    """‖M − U S V‖/‖M‖ of the 32 largest triples, in float64."""
    u, s, vh = (np.asarray(each, dtype=np.float64) for each in (u, s, vh))
    keep = np.argsort(-s)[:RANK]
    left = dense.astype(np.float64) - (u[:, keep] * s[keep]) @ vh[keep]
    return float(np.linalg.norm(left) / np.linalg.norm(dense.astype(np.float64)))


def interleaved(ways: dict[str, Callable[[], Any]], repeats: int, error: Callable[[Any], float]) -> dict[str, Any]:
    """Each way once a round, so that a busy moment slows all of them; one unmeasured round of the quick ones first."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    errors: dict[str, float] = {}
    if repeats > 1:
        for way in ways.values():
            way()
    for _ in range(repeats):
        for name, way in ways.items():
            gc.collect()
            begun = time.perf_counter()
            answer = way()
            seconds[name].append(time.perf_counter() - begun)
            errors[name] = error(answer)
    return {name: {"seconds": median(seconds[name]), "error": errors[name], "repeats": repeats} for name in ways}


def svd_claims(side: int, spectrum: str, runs: dict[str, Any]) -> list[Claim]:
    """Ours against the fastest full SVD, which has the least error there is, and against scipy's iterative one."""
    ours, peer = runs[OURS], runs[PEER]
    full = {name: run for name, run in runs.items() if name not in (OURS, PEER)}
    fastest = min(full, key=lambda name: full[name]["seconds"])
    least = min(run["error"] for run in full.values())
    faster, worse = full[fastest]["seconds"] / ours["seconds"], ours["error"] / least
    asked = "≥ 30× faster, error ≤ 1.01×" if side == 4096 else ""
    times = ", ".join(f"{name} {run['seconds']:.3g} s" for name, run in full.items())
    return [
        Claim(
            f"rank-{RANK} SVD, {side}², {spectrum}", asked,
            f"{faster:.1f}× faster than {fastest}, error {worse:.4f}× ({ours['seconds']:.3g} s; {times})",
            faster >= 30 and worse <= 1.01 if asked else None,
        ),
        Claim(
            f"rank-{RANK} SVD, {side}², {spectrum}, against scipy's svds", "",
            f"{peer['seconds'] / ours['seconds']:.1f}× faster, error {ours['error'] / peer['error']:.4f}×",
        ),
    ]  # fmt: skip


def largest_kernel(file: str) -> np.ndarray:
    """The largest weight with a window of more than one tap."""
    arrays = [numpy_helper.to_array(each) for each in onnx.load(model(file)).graph.initializer]
    return max((each for each in arrays if each.ndim == 4 and each.shape[2] > 1), key=lambda each: each.size)


def tensors(kernel: np.ndarray, seed: int) -> dict[str, Any]:
    """Relative error and median time at half the channels (Tucker-2) and a third of the weights (CP)."""
    weight = torch.from_numpy(kernel.copy())
    out, inp = weight.shape[:2]
    ranks, rank = (inp // 2, out // 2), round(weight.numel() / sum(weight.shape) / 3)
    norm = float(weight.norm())
    tucker: dict[str, Callable[[], torch.Tensor]] = {"smidgen": lambda: tucker2_curve(weight, [ranks])[0].full()}
    cp: dict[str, Callable[[], torch.Tensor]] = {
        "smidgen": lambda: cp_full(cp_als(weight, rank, seed=seed).factors),
        "smidgen without ridge": lambda: cp_full(cp_als(weight, rank, seed=seed, ridge=0.0).factors),
    }
    peers = tensorly(weight, ranks, rank, seed)
    if peers is not None:
        tucker["tensorly"], cp["tensorly"] = peers
    runs = {
        name: interleaved(ways, 3, lambda answer: float((answer - weight).norm()) / norm)
        for name, ways in (("tucker2", tucker), ("cp", cp))
    }
    return {"shape": list(weight.shape), "tucker_ranks": list(ranks), "cp_rank": rank, **runs}


def tensorly(
    weight: torch.Tensor, ranks: tuple[int, int], rank: int, seed: int
) -> tuple[Callable[[], torch.Tensor], Callable[[], torch.Tensor]] | None:
    """Its Tucker-2 and CP with default settings on the same tensor; None where it is not installed."""
    try:
        import tensorly as tl
        from tensorly.decomposition import parafac, partial_tucker
    except ImportError:
        print("tensorly is not installed; its columns are left out (pip install tensorly==0.10.0)")
        return None
    tl.set_backend("pytorch")

    def tucker() -> torch.Tensor:
        (core, factors), _ = partial_tucker(
            weight, rank=[ranks[1], ranks[0]], modes=[0, 1], n_iter_max=TENSORLY_SWEEPS, random_state=seed
        )
        return tl.tenalg.multi_mode_dot(core, factors, modes=[0, 1])

    def cp() -> torch.Tensor:
        return tl.cp_to_tensor(parafac(weight, rank, n_iter_max=TENSORLY_SWEEPS, random_state=seed))

    return tucker, cp


def tensor_claims(name: str, runs: dict[str, Any]) -> list[Claim]:
    shape = "×".join(map(str, runs["shape"]))
    titles = {"tucker2": f"Tucker-2 {tuple(runs['tucker_ranks'])}", "cp": f"CP {runs['cp_rank']}"}
    return [
        Claim(
            f"{name} {shape}, {title}", "",
            "; ".join(f"{who}: error {run['error']:.4f}, {run['seconds']:.3g} s" for who, run in runs[key].items()),
        )
        for key, title in titles.items()
    ]  # fmt: skip


if __name__ == "__main__":
    main()
