r"""Where in the image a token belongs: CKA of single tokens with single input patches, all pairs at once.

Token t and patch j have Grams K_t = X_t X_t^T and L_j = Y_j Y_j^T over the same n images, and CKA is that of
`measures/cka.py`: 1 if the token is the patch up to rotation and scale, about 0, also slightly below, if
they are unrelated. HSIC_1 is the inner product of U-centred Grams over n (n - 3), so those of all t x j
pairs are one product, (t, n^2) @ (n^2, j), and nothing loops over pairs.

Nor does U-centring cost a pass over those n^2 numbers. Of features centred over the batch, the Gram with zero
diagonal has row sums r_i = -|x_i|^2, and the U-centred Gram (Szekely & Rizzo 2014, eq. 3.1) is, off its diagonal,

    U_ik = x_i . x_k - m_i - m_k        m_i = (r_i - sum_k r_k / (2 (n - 1))) / (n - 2)

which is a product of features with two columns more: [X, -m, -1] [X, 1, m]^T.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from repsim.errors import UsageError
from repsim.measures import bounds
from repsim.measures.cka import ROUNDING, own_without_groups, without_groups
from repsim.measures.inputs import tensor, whole
from repsim.measures.running import GROUPS, BatchMeans, kept

BUDGET = 2**26
"""Bytes that the Grams of tokens held at one time may take, roughly."""
PLACES = ("interior", "edge", "corner")


class Grams(NamedTuple):
    """U-centred Grams of several representations of the same n examples, each a row."""

    rows: Tensor
    """(t, n*n)."""
    norms: Tensor
    """(t,) float64: Frobenius norms; 0 where nothing varies, NaN or infinite for broken activations."""
    sure: Tensor
    """(t,) whether rounding is likely to move a CKA by less than `ROUNDING`, one standard deviation."""


def u_centred_grams(x: Tensor, dtype: torch.dtype) -> Grams:
    """U-centred Grams of t representations (t, n, d) in one product, in the precision asked for.

    A representation whose features do not vary, or which has no U-centred Gram (of whose images but one all are the
    same, for one), has norm 0: see `measures/bounds.py`.
    """
    x = _checked(x, "x", "(t, n, d)", images=1)
    t, n, d = x.shape
    left = torch.empty(t, n, d + 2, dtype=dtype, device=x.device)
    features = left[..., :d]
    features.copy_(x)
    features -= features[:, :1].clone()  # first, so that constant features are exactly 0
    features -= features.mean(1, keepdim=True)
    squares = torch.linalg.vector_norm(features, dim=2).double().square()
    trace = squares.sum(1)
    means = (trace[:, None] / (2 * (n - 1)) - squares) / (n - 2)
    left[..., d], left[..., d + 1] = -means, -1
    right = left.clone()
    right[..., d], right[..., d + 1] = 1, means
    grams = torch.bmm(left, right.transpose(1, 2))
    grams.diagonal(dim1=1, dim2=2).zero_()
    norms = torch.linalg.vector_norm(grams, dim=2).double().square().sum(1).sqrt()  # by rows, in case of float32

    eps = torch.finfo(dtype).eps
    size = torch.linalg.vector_norm(x[:, 0], dim=1, dtype=torch.float64)
    norms = norms * bounds.varies(trace, size, n, bounds.eps_of(x.dtype)) * bounds.nonzero(norms, trace, eps)
    in_range = bounds.fits_float32(trace.square())  # for norms, a float32 Gram is squared
    return Grams(grams.flatten(1), norms, in_range & (2.5 * eps * trace / n < ROUNDING * norms))


class Patches(NamedTuple):
    """What the localization of tokens needs of the images of a batch."""

    directions: Tensor
    """(j, n*n) float32: U-centred Grams scaled to norm 1; 0 for patches that do not vary."""
    norms: Tensor
    """(j,) float64."""


def cut(images: Tensor, grid: tuple[int, int]) -> Tensor:
    """Images (n, c, height, width) cut into patches that do not overlap: (n, j, c * p * p), row by row."""
    images = tensor(images, "images", "(n, c, height, width)")
    rows, columns = (whole(count, "cells of the grid") for count in grid)
    if images.shape[2] % rows or images.shape[3] % columns:
        raise UsageError(f"images of {tuple(images.shape[2:])} px cannot be cut into {rows} x {columns} equal patches")
    cells = images.unflatten(3, (columns, -1)).unflatten(2, (rows, -1))  # (n, c, rows, p, columns, p)
    return cells.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def patch_grams(patches: Tensor) -> Patches:
    """Reduce the patches of one batch, (n, j, q), to their U-centred Grams, computed in float64."""
    patches = _checked(patches, "patches", "(n, j, q)")
    directions, norms = list[Tensor](), list[Tensor]()
    for part in _parts(patches, torch.float64):
        grams = u_centred_grams(part, torch.float64)
        directions.append((grams.rows / torch.where(grams.norms > 0, grams.norms, torch.inf)[:, None]).float())
        norms.append(grams.norms)
    return Patches(torch.cat(directions), torch.cat(norms))


def bordered_hsic(tokens: Tensor, patches: Patches, group: Tensor | None = None) -> Tensor:
    """HSIC_1 of every token with every patch on one batch, bordered by that of each with itself.

    Args:
        tokens: (n, t, d), n >= 4. Products are taken in float32; of tokens where that could change a CKA by
            more than `ROUNDING` (one image far from all others, say), or overflows, again in float64.
        patches: of the same n images.
        group: (n,) of each image: beside what all images give, what they give without one group at a time.

    Returns:
        (t+1, j+1) float64: tokens down, patches across; the last column is HSIC(K, K) of the tokens, the last
        row HSIC(L, L) of the patches, the corner 0. Not finite where activations are not. With groups
        (1 + groups, t+1, j+1), all images first.
    """
    tokens = _checked(tokens, "tokens", "(n, t, d)")
    n, t, _ = tokens.shape
    if not isinstance(patches, Patches) or patches.directions.shape[1] != n**2:
        raise UsageError(f"bordered_hsic needs the patch_grams of the patches of the same {n} images")
    dtype = torch.float64 if tokens.dtype == torch.float64 else torch.float32
    products = [_products(part, patches.directions, dtype) for part in _parts(tokens, dtype)]
    cross, norms = (torch.cat(part) for part in zip(*products))
    hsics = torch.zeros(t + 1, len(patches.norms) + 1, dtype=torch.float64, device=tokens.device)
    hsics[:-1, :-1] = cross * patches.norms
    hsics[:-1, -1], hsics[-1, :-1] = norms.square(), patches.norms.square()
    hsics /= n * (n - 3)
    if group is None:
        return hsics
    return torch.cat([hsics[None], _without_groups(tokens, norms, patches, group)])


def _without_groups(tokens: Tensor, norms: Tensor, patches: Patches, group: Tensor) -> Tensor:
    """What `bordered_hsic` gives without one group of images at a time, (groups, t+1, j+1)."""
    n, t, _ = tokens.shape
    of_patches, done = patches.directions.unflatten(1, (n, n)), 0
    hsics = tokens.new_zeros(len(group.unique()), t + 1, len(of_patches) + 1, dtype=torch.float64)
    for part in _parts(tokens, torch.float64):
        of_part = torch.where(norms > 0, norms, torch.inf)[done : done + len(part), None]
        grams = (u_centred_grams(part, torch.float64).rows / of_part).unflatten(1, (n, n))
        own = slice(done, done + len(part))
        hsics[:, own, :-1] = without_groups(grams, of_patches, group) * norms[own, None] * patches.norms
        hsics[:, own, -1] = own_without_groups(grams, group) * norms[own].square()
        done += len(part)
    hsics[:, -1, :-1] = own_without_groups(of_patches, group) * patches.norms.square()
    return hsics


def _checked(x: Tensor, name: str, axes: str, *, images: int = 0) -> Tensor:
    """Three axes, one of them of at least 4 images, with features, in the range of magnitudes."""
    x = tensor(x, name, axes)
    if x.shape[images] < 4:
        raise UsageError(f"CKA needs at least 4 examples, got {x.shape[images]}")
    if not x.numel():
        raise UsageError(f"CKA needs features: {name}, {tuple(x.shape)}, holds none")
    bounds.check_magnitude(x, name)
    return x


def _parts(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """(n, t, d) as (t, n, d), so many at a time that their Grams stay within the budget."""
    return x.transpose(0, 1).split(max(1, BUDGET // (len(x) ** 2 * dtype.itemsize)))


def _products(x: Tensor, directions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Inner products of the U-centred Grams of x (t, n, d) with all directions, (t, j), and their norms, (t,)."""
    grams = u_centred_grams(x, dtype)
    cross = (grams.rows @ directions.T.to(dtype)).double()
    norms, doubtful = grams.norms, ~grams.sure
    if dtype != torch.float64 and doubtful.any():
        cross[doubtful], norms[doubtful] = _products(x[doubtful], directions, torch.float64)
    return torch.where(norms[:, None] > 0, cross, 0), norms


@kept
def normalise(hsics: Tensor) -> Tensor:
    """Bordered HSIC (..., t+1, j+1) -> CKA (..., t, j); NaN where HSIC of a token or patch with itself is 0."""
    roots = hsics[..., :-1, -1:].sqrt() * hsics[..., -1:, :-1].sqrt()
    return hsics[..., :-1, :-1] / torch.where(roots > 0, roots, torch.nan)


def token_patch_cka(groups: int = GROUPS) -> BatchMeans:
    """Sums that give CKA of t tokens with j patches from minibatches: HSICs are averaged, then divided.

    Feed it the `bordered_hsic` of each batch, of one layer or of several stacked. `compute` gives CKA and its
    jackknife standard error over minibatches, both (..., t, j) float64. Batches must all have the same size n.

    Reference: paper section 3; Nguyen, Raghu & Kornblith (2021), eq. 3.
    """
    return BatchMeans(normalise, groups)


def undefined(hsics: Tensor) -> tuple[Tensor, Tensor]:
    """Which tokens, (..., t), and which patches, (..., j), have no CKA, for they do not vary within batches.

    Args:
        hsics: the mean over batches of `bordered_hsic`, (..., t+1, j+1).
    """
    return ~(hsics[..., :-1, -1] > 0), ~(hsics[..., -1, :-1] > 0)


def own_minus_rest(cka: Tensor) -> Tensor:
    """CKA of each token with its own patch minus the mean over the other patches: 1 would be perfect localization.

    Args:
        cka: (..., t, t), token k's own patch being patch k.

    Returns:
        (..., t). Undefined patches are left out of the mean; NaN for a token that is undefined or whose own patch is.
    """
    cka = tensor(cka, "cka")
    if cka.ndim < 2 or cka.shape[-1] != cka.shape[-2]:
        raise UsageError(
            f"own_minus_rest needs CKA (..., t, t) of tokens with their own patches, got {tuple(cka.shape)}"
        )
    own = torch.eye(cka.shape[-1], dtype=torch.bool, device=cka.device)
    return cka.diagonal(dim1=-2, dim2=-1) - cka.masked_fill(own, torch.nan).nanmean(-1)


def places(grid: tuple[int, int]) -> list[str]:
    """Whether each cell of a grid, row by row, is in its interior, on its edge (no corner), or a corner."""
    rows, columns = grid
    borders = [(r in (0, rows - 1)) + (c in (0, columns - 1)) for r in range(rows) for c in range(columns)]
    return [PLACES[count] for count in borders]


def nearest(grid: tuple[int, int], patches: tuple[int, int]) -> list[tuple[int, int]]:
    """Of a map of h x w, the position nearest to the centre of each patch: row floor((i + 0.5) h / g) for row i of g.

    >>> nearest((28, 28), (2, 2))
    [(7, 7), (7, 21), (21, 7), (21, 21)]
    """
    rows, columns = ([(2 * i + 1) * size // (2 * g) for i in range(g)] for size, g in zip(grid, patches))
    return [(row, column) for row in rows for column in columns]
