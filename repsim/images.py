"""Fashion-MNIST from its files."""

import gzip
from pathlib import Path

import numpy as np

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


def read_fashion_mnist(split: str) -> tuple[np.ndarray, np.ndarray]:
    stem = {"train": "train", "test": "t10k"}[split]
    images = gzip.open(FASHION_MNIST / f"{stem}-images-idx3-ubyte.gz").read()
    labels = gzip.open(FASHION_MNIST / f"{stem}-labels-idx1-ubyte.gz").read()
    return np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28), np.frombuffer(labels, np.uint8, offset=8)
