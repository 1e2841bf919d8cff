import gzip
from pathlib import Path

import numpy as np


def read_fashion_mnist(split):
    stem = {"train": "train", "test": "t10k"}[split]
    d = Path("/usr/share/datasets/fashion-mnist")
    i = np.frombuffer(gzip.open(d / f"{stem}-images-idx3-ubyte.gz").read(), np.uint8, offset=16).reshape(-1, 28, 28)
    l = np.frombuffer(gzip.open(d / f"{stem}-labels-idx1-ubyte.gz").read(), np.uint8, offset=8)
    return i, l
