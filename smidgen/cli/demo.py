"""``smidgen demo``: scikit-learn's handwritten digits, a small network trained on the spot, and all files to play with.

The test images are set aside before training: neither the training nor the compression sees them before the last score.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from smidgen.budget import Budget
from smidgen.cli.folder import undisturbed
from smidgen.data import Dataset, Preprocess, open_data
from smidgen.errors import UserError
from smidgen.export.onnx import write
from smidgen.export.prepare import prepare
from smidgen.model.load import load_network
from smidgen.pipeline.task import Progress
from smidgen.site import untouched

BUDGET = Budget(ratio=8)
TEST_IMAGES = 500
EPOCHS = 15
BATCH = 64
GRAY_STEP = 15  # the digits have 17 shades, 0..16: stored as 0, 15, …, 240
PREPROCESS = Preprocess(scale=1 / 240, channels="gray")


@dataclass(frozen=True, eq=False)
class Demo:
    """The demo's network and data, as files and opened.

    Args:
        network: the trained network's ONNX file.
        data_file, test_file: its images and labels.
        data, test: the same, opened.
    """

    network: Path
    data_file: Path
    test_file: Path
    data: Dataset
    test: Dataset


def make_demo(folder: Path, seed: int, threads: int | None, progress: Progress) -> Demo:
    """Train the network and write it with its data.

    Args:
        folder: where files go.
        seed: of the division, the first weights and the order of training.
        threads: for torch.
        progress: called with (stage, done, total).

    Raises:
        UserError: scikit-learn is not installed.
    """
    images, labels = _digits(seed)
    train, test = (images[TEST_IMAGES:], labels[TEST_IMAGES:]), (images[:TEST_IMAGES], labels[:TEST_IMAGES])
    files = [folder / "digits.npz", folder / "digits-test.npz"]
    with undisturbed():
        for path, (x, y) in zip(files, (train, test), strict=True):
            np.savez_compressed(path, x=x, y=y)
            path.with_suffix(".toml").write_text('scale = "1/240"\nchannels = "gray"\n', encoding="utf-8")
    data, held_back = (open_data(path, preprocess=PREPROCESS) for path in files)
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        model = _train(data, seed, progress)
    finally:
        torch.set_num_threads(before)
    network = folder / "digits.onnx"
    prepared = prepare(replace(load_network(model), output_names=("logits",)), torch.from_numpy(next(data.batches(1))))
    write(prepared.base, prepared.sites, {site.name: untouched(site) for site in prepared.sites}, network)
    return Demo(network, files[0], files[1], data, held_back)


def digits_net() -> nn.Module:
    """A small network for 8×8 images: two convolutions, two dense layers, 151k weights."""
    layers = {
        "conv1": nn.Conv2d(1, 32, 3, padding=1), "relu1": nn.ReLU(),
        "conv2": nn.Conv2d(32, 64, 3, padding=1), "relu2": nn.ReLU(), "pool": nn.MaxPool2d(2), "flatten": nn.Flatten(),
        "fc1": nn.Linear(64 * 4 * 4, 128), "relu3": nn.ReLU(),
        "fc2": nn.Linear(128, 10),
    }  # fmt: skip
    return nn.Sequential(OrderedDict(layers))


def _digits(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 8, 8) as bytes and their labels, in a random order."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserError("demo: scikit-learn is not installed; install it with pip install 'smidgen[demo]'") from None
    digits: Any = load_digits()
    order = np.random.default_rng(seed).permutation(len(digits.images))
    return (digits.images[order] * GRAY_STEP).astype(np.uint8), digits.target[order].astype(np.int64)


def _train(data: Dataset, seed: int, progress: Progress) -> nn.Module:
    # Its own stream of random numbers: the caller's is left where it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = digits_net()
        x, y = torch.from_numpy(np.asarray(data)), torch.tensor(data.labels)
        steps = EPOCHS * (len(x) // BATCH)
        optimizer = torch.optim.Adam(model.parameters())
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
        for epoch in range(EPOCHS):
            progress("train", epoch, EPOCHS)
            for batch in torch.randperm(len(x))[: steps // EPOCHS * BATCH].split(BATCH):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
                optimizer.step()
                schedule.step()
    return model.eval()
