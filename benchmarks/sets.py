"""Where the evaluation sets and networks lie, and the sets opened with the preprocessing of their networks.

The folder is $SMIDGEN_DATA, else ../shared/data beside the repository.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from smidgen.data import Dataset, Preprocess, open_data

MNIST_TRAIN, MNIST_TEST = "mnist/train-images-idx3-ubyte.gz", "mnist/t10k-images-idx3-ubyte.gz"
FACES = "utkface_adults_rgb100.npz"
IMAGENET_SAMPLE = "imagenet_sample1000_256.npz"

# What SqueezeNet 1.1's published Caffe weights take: BGR pixels 0..255 less the ImageNet mean, 227x227.
SQUEEZENET = Preprocess(mean=(104, 117, 123), channels="bgr", crop=227)
# What benchmarks/gendernet.py trains with.
GENDERNET = Preprocess(mean=(127.5,), std=(64,))
# What benchmarks/gender_cnn.py trains with: 64x56 is the size that gives its first dense layer 2,288 inputs.
GENDER_CNN = Preprocess(mean=(127.5,), std=(64,), crop=(100, 88), crop_first=True, resize=(64, 56))


def data_folder() -> Path:
    """The folder with sets and networks; ends the program with a reason where there is none."""
    folder = Path(os.environ.get("SMIDGEN_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    if not folder.is_dir():
        raise SystemExit("the evaluation sets are not there; name their folder in $SMIDGEN_DATA")
    return folder


def model(name: str) -> Path:
    """A network of the evaluation set."""
    return data_folder() / "models" / name


def mnist(name: str) -> Dataset:
    """MNIST as raw pixels 0..255, with labels.

    Args:
        name: `MNIST_TRAIN` or `MNIST_TEST`.
    """
    return open_data(data_folder() / name)


def imagenet_sample(calibrate: int, seed: int) -> tuple[Dataset, Dataset]:
    """The 1,000 images, one a class, in two disjoint parts by a fixed permutation (the file is sorted by class).

    Args:
        calibrate: images in the first part; the rest are for scoring.
        seed: of the permutation.
    """
    whole = open_data(data_folder() / IMAGENET_SAMPLE, preprocess=SQUEEZENET)
    order = np.random.default_rng(seed).permutation(len(whole))
    return ready(whole.take(order[:calibrate])), ready(whole.take(order[calibrate:]))


def faces(split: str, preprocess: Preprocess = GENDERNET) -> Dataset:
    """Adult faces and genders.

    Args:
        split: "train" or "test".
        preprocess: `GENDERNET` or `GENDER_CNN`.
    """
    return ready(open_data(data_folder() / FACES, split=split, labels="gender", preprocess=preprocess))


def ready(data: Dataset) -> Dataset:
    """The set decoded once and kept in memory: a sweep reads it dozens of times."""
    return Dataset.from_array(np.asarray(data), data.labels)


# What the networks were trained with; see the data folder's own notes.
CATS = Preprocess(mean=(128,), std=(128,))
CIFAR = Preprocess(scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
MOBILENET = Preprocess(mean=(127.5,), std=(127.5,), crop=224)


def calibration_and_test(name: str, seed: int, count: int = 1000) -> tuple[Dataset, Dataset]:
    """Unlabelled training inputs, and the labelled test split.

    Args:
        name: lenet, resnet20, vgg, catsdogs, squeezenet, mobilenet_v2, gendernet or gender_cnn.
        seed: of the training inputs taken; the ImageNet sample is divided 300 to 700 for good.
        count: training inputs at most.
    """
    if name == "squeezenet":
        calibration, test = imagenet_sample(300, 0)
        return unlabelled(calibration), test
    if name == "mobilenet_v2":
        whole = open_data(data_folder() / IMAGENET_SAMPLE, preprocess=MOBILENET)
        order = np.random.default_rng(0).permutation(len(whole))
        test = ready(whole.take(order[300:]))
        classes = None if test.labels is None else np.asarray(test.labels) + 1  # 1001 outputs, the first for nothing
        return unlabelled(whole.take(order[:300])), Dataset.from_array(np.asarray(test), classes)
    if name in ("gendernet", "gender_cnn"):
        preprocess = GENDERNET if name == "gendernet" else GENDER_CNN
        train, test = faces("train", preprocess), faces("test", preprocess)
    elif name == "lenet":
        train, test = mnist(MNIST_TRAIN), mnist(MNIST_TEST)
    else:
        cifar, cats = ("cifar10_jpeg.npz", CIFAR), ("cats_dogs_128.npz", CATS)
        file, preprocess = {"resnet20": cifar, "vgg": cifar, "catsdogs": cats}[name]
        train, test = (open_data(data_folder() / file, split=s, preprocess=preprocess) for s in ("train", "test"))
    order = np.random.default_rng(seed).permutation(len(train))[:count]
    return unlabelled(train.take(order)), ready(test)


def write_photos(name: str, seed: int, folder: Path, count: int = 1000) -> list[str]:
    """The same inputs as of `calibration_and_test`, as two files of JPEG images: a tenth of the memory.

    Args:
        name: squeezenet, mobilenet_v2 or gendernet.
        seed, count: see `calibration_and_test`.
        folder: where ``calibration.npz`` and ``test.npz`` go.

    Returns:
        The preprocessing, as arguments of the command line.
    """
    preprocess = {"squeezenet": SQUEEZENET, "mobilenet_v2": MOBILENET, "gendernet": GENDERNET}[name]
    with np.load(data_folder() / (FACES if name == "gendernet" else IMAGENET_SAMPLE), allow_pickle=False) as file:
        jpeg, offsets = file["jpeg"], file["offsets"]
        if name == "gendernet":
            labels, split = file["gender"].astype(np.int64), file["split"]
            train, test = np.flatnonzero(split == 0), np.flatnonzero(split == 1)
            train = train[np.random.default_rng(seed).permutation(len(train))[:count]]
        else:
            order = np.random.default_rng(0).permutation(len(offsets) - 1)
            train, test = order[:300], order[300:]
            labels = file["labels"].astype(np.int64) + (name == "mobilenet_v2")  # 1001 outputs, the first for nothing
    for place, chosen, answers in (("calibration", train, {}), ("test", test, {"labels": labels[test]})):
        pieces = [jpeg[offsets[i] : offsets[i + 1]] for i in chosen.tolist()]
        ends = np.cumsum([0, *map(len, pieces)])
        np.savez(folder / f"{place}.npz", jpeg=np.concatenate(pieces), offsets=ends, **answers)
    arguments = ["--mean", ",".join(map(str, preprocess.mean)), "--channels", preprocess.channels]
    arguments += ["--std", ",".join(map(str, preprocess.std))] if preprocess.std else []
    return arguments + (["--crop", str(preprocess.crop)] if preprocess.crop else [])


def unlabelled(data: Dataset) -> Dataset:
    """The inputs alone."""
    return Dataset.from_array(np.asarray(data))
