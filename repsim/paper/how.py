"""How the numbers of each kind of figure are made, in a paragraph for people who see the figures only. No torch."""

from __future__ import annotations

from repsim.paper import exhibits
from repsim.paper.exhibits import Exhibit

CKA = (
    "Linear CKA, centred kernel alignment, is 1 where two layers see the same images as alike and unlike, up to "
    "rotation and scale, and about 0 where they have nothing in common. HSIC is estimated without bias in every "
    "minibatch, averaged over minibatches, and then divided."
)
PROBES = (
    "A linear probe is a ridge regression from what a layer says of an image to the image's class, fitted to a few "
    "training images of each class and tried on test images; the strength of the ridge is chosen among training images."
)
RESIDUAL = (
    "At every residual sum the norm of what comes over the skip connection is divided by that of what the branch adds, "
    "for each token of each image; cosines are those of the skip with the branch and with the sum."
)
HOW: dict[type[Exhibit], str] = {
    exhibits.Similarity: CKA,
    exhibits.Matched: CKA,
    exhibits.Attention: "For each head and query, the distance in pixels to each key is weighted by attention and "
    "summed, and averaged over queries and images. What falls on CLS, which has no place, adds nothing.",
    exhibits.Heads: f"{CKA} Heads of the first block are sorted by how far they look, and what windows of them put out "
    "is compared with layers of the other network. The share of orders of the heads in which the correlation is as "
    "strong says whether distance has to do with it.",
    exhibits.Receptive: "The gradient of a layer's centre position is taken with respect to every pixel; its size is "
    "averaged over images, channels and colours. The radius is that around the centre within which half of it lies.",
    exhibits.Residual: RESIDUAL,
    exhibits.Localization: f"{CKA} Here it is that of a single token with a single patch of the input, over images. "
    "Own patch - rest is CKA with the patch at the token's own place less the mean over all other patches.",
    exhibits.ProbesCompared: PROBES,
    exhibits.ProbesAggregated: PROBES,
    exhibits.ProbesOfTokens: PROBES,
}
"""Kind of figure -> the sentence on its method."""
COLUMNS = "docs/tables.md"
"""The page on the columns of all tables."""
INTERVALS = "docs/intervals.md"
"""The page on the coverage of intervals."""


def how(exhibit: Exhibit) -> str:
    """The sentence on the method of a figure; empty for a kind of figure without one."""
    return HOW.get(type(exhibit), "")
