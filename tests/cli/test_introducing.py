"""The lines on networks that commands print before they run."""

from torch import nn

from repsim.cli.introducing import differences, introduced
from repsim.networks.models import Network


def network(name: str, transform: str) -> Network:
    return Network(nn.Conv2d(3, 4, 1), name, weights="random", transform=transform)


HALF = "size=224 mean=0.5,0.5,0.5 std=0.5,0.5,0.5 crop=0.9"


def test_one_line_for_each_network():
    assert introduced(network("a", HALF)) == "a: 224 x 224 px, 3 channels, mean 0.5, std 0.5, crop 0.9, weights random"
    assert "mean 0.485/0.456/0.406, std 0.229/0.224/0.225, crop 0.875" in introduced(network("b", "imagenet"))
    assert introduced(Network(nn.Linear(1, 1), "c")) == "c: weights as given"


def test_other_sizes_and_normalisations_are_said():
    a, b, c = network("a", HALF), network("b", "imagenet"), network("c", HALF.replace("224", "32x48"))
    assert differences([a, a]) == differences([a]) == []
    (scale,) = differences([a, b])
    assert "normalised differently" in scale and "a mean 0.5 and std 0.5; b mean 0.485/0.456/0.406" in scale
    (size,) = differences([a, c])
    assert "of different sizes" in size and size.endswith("a 224 x 224 px, 3 channels; c 32 x 48 px, 3 channels")
    assert len(differences([b, c])) == 2
