"""Write the bundled sample of Fashion-MNIST, repsim/sample/fashion_mnist.npz (3.5 MB).

    python analyses/make_sample.py

It takes 2 s and needs Fashion-MNIST (data/README.md). The sample has 5,000 of the 10,000 test images, and 300 training
images of each of the ten classes, chosen with a fixed seed; images and labels are as published, uint8.
"""

import numpy as np

from repsim.images.sources import SAMPLE, read_fashion_mnist

rng = np.random.default_rng(0)
test_images, test_labels = read_fashion_mnist("test")
train_images, train_labels = read_fashion_mnist("train")
test = np.sort(rng.permutation(len(test_labels))[:5000])
train = np.sort(np.concatenate([rng.permutation(np.flatnonzero(train_labels == c))[:300] for c in range(10)]))

SAMPLE.parent.mkdir(exist_ok=True)
np.savez_compressed(
    SAMPLE,
    test_images=test_images[test],
    test_labels=test_labels[test],
    test_index=test.astype(np.uint16),
    train_images=train_images[train],
    train_labels=train_labels[train],
    train_index=train.astype(np.uint16),
)
print(f"{SAMPLE}: {len(test)} test and {len(train)} training images, {SAMPLE.stat().st_size / 1e6:.2f} MB")
