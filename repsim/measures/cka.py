r"""Centred kernel alignment (CKA) with linear kernels: 1 for the same representation, 0 for unrelated.

For representations X (n, p1) and Y (n, p2) of the same n images, K = XX^T and L = YY^T:

    CKA(K, L) = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))

The paper (section 3) estimates HSIC without bias and over minibatches (Song et al. 2012; Nguyen
et al. 2021): with K~, L~ the Grams with zero diagonal,

    HSIC_1(K, L) = [ tr(K~ L~) + (1'K~1)(1'L~1) / ((n-1)(n-2)) - 2 (1'K~L~1) / (n-2) ] / (n (n-3))

and CKA is mean_b HSIC_1(K_b, L_b) over the root of the product of the means of the two others.

The three terms nearly cancel, which float32 does not survive. The same number is the inner product
of the two *U-centred* Grams (Szekely & Rizzo 2014, eq. 3.1), which is what is computed here: features
centred per batch, Gram in float32, everything after it in float64.

Unbiased values of unrelated representations scatter around 0, so some are negative. They stay so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from repsim.errors import RepsimError, UsageError
from repsim.measures import bounds
from repsim.measures.inputs import real_images, tensor, whole
from repsim.measures.intervals import effective_groups
from repsim.measures.running import BatchMeans, kept

BLOCK = 2048
"""Features multiplied at a time; a Gram is a sum of products of blocks of this width."""
ROUNDING = 3e-6
"""Error of a CKA through float32 products (one standard deviation) from which features are centred first."""
ROUNDED = 1e-6
"""What is left of a Gram of norm 1 without some images is rounding, if its square is of this size."""
SCRATCH, SCRATCH_ELSEWHERE = 2**20, 2**26
"""Numbers centred at a time: on the CPU what fits into a core's cache, so that centring costs little; on other devices
so many that starting the operations costs little."""


def flatten(x: Tensor) -> Tensor:
    """(n, ...) -> (n, p), without a copy where the examples lie one after another in memory.

    A Gram does not depend on the order of the features, so a dense tensor (channels-last maps,
    say) is read in the order in which it lies in memory.
    """
    x = real_images(x, "x", fewest=1, measure="flatten")
    p = x[0].numel()
    expected = 1
    for size, stride in sorted(zip(x.shape[1:], x.stride()[1:]), key=lambda axis: axis[1]):
        if size != 1 and stride != expected:
            return x.reshape(len(x), p)
        expected *= size
    if x.stride(0) != p:
        return x.reshape(len(x), p)
    return x.as_strided((len(x), p), (p, 1))


def gram(x: Tensor) -> tuple[Tensor, Tensor]:
    """XX^T for x (n, p): products in x's precision on blocks of features, summed in float64.

    Returns:
        (n, n) float64, and () float64, by how much rounding is likely to have moved an entry: 5 units
        in the last place of each block's mean diagonal (as measured), independent between blocks.
    """
    x = tensor(x, "x", "(n, p)")
    n, p = x.shape
    width = _block_width(p)
    blocks = p // width
    whole = x[:, : blocks * width].view(n, blocks, width).transpose(0, 1)
    if n < 128:
        products = torch.bmm(whole, whole.transpose(1, 2))
        total = products.sum(0, dtype=torch.float64)
        sizes = products.diagonal(dim1=1, dim2=2).mean(1, dtype=torch.float64)
    else:  # a Gram is symmetric: a quarter of it need not be computed
        half = n // 2
        upper = torch.bmm(whole[:, :half], whole.transpose(1, 2))
        lower = torch.bmm(whole[:, half:], whole[:, half:].transpose(1, 2))
        across = upper[:, :, half:].sum(0, dtype=torch.float64)
        total = torch.empty(n, n, dtype=torch.float64, device=x.device)
        total[:half, :half] = upper[:, :, :half].sum(0, dtype=torch.float64)
        total[half:, half:] = lower.sum(0, dtype=torch.float64)
        total[:half, half:], total[half:, :half] = across, across.T
        first, rest = (part.diagonal(dim1=1, dim2=2).sum(1, dtype=torch.float64) for part in (upper, lower))
        sizes = (first + rest) / n
    squares = sizes.square().sum()
    if blocks * width < p:
        rest = x[:, blocks * width :]
        product = rest @ rest.T
        total += product
        squares += product.diagonal().double().mean().square()
    return total, 5 * torch.finfo(x.dtype).eps / 2 * squares.sqrt()


@lru_cache(maxsize=256)
def _block_width(p: int) -> int:
    """About BLOCK features, so that no product of a remainder is needed where p has such a divisor."""
    divisors = [w for w in range(BLOCK // 2, 2 * BLOCK + 1) if p % w == 0]
    return min(divisors, key=lambda w: abs(w - BLOCK), default=min(BLOCK, p))


def centred_gram(
    x: Tensor, scratch: Tensor | None = None, *, exact: bool = False, given: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """Gram matrix of features centred over the batch, X_c X_c^T.

    The products are taken in float32 (float64 for float64 input, or if `exact`) on blocks of features centred
    just before, and summed in float64. Only a block is ever copied.

    Args:
        x: (n, p) one row per example.
        scratch: 1-D float32 memory to centre in, used again by the next call; see `scratch_for`.
        exact: take the products in float64 whatever x is.
        given: the type in which the features came, if it is not that of x.

    Returns:
        (n, n) float64, exactly zero if the features do not vary (`bounds.varies`); and how
        far rounding is likely to have moved an entry, as `gram` has it.
    """
    x = tensor(x, "x", "(n, p)")
    n, p = x.shape
    dtype = torch.float64 if exact or x.dtype == torch.float64 else torch.float32
    at_a_time = SCRATCH if x.device.type == "cpu" else SCRATCH_ELSEWHERE
    width = max(BLOCK, at_a_time // n // BLOCK * BLOCK)
    if scratch is None or scratch.dtype != dtype or scratch.device != x.device or len(scratch) < n * min(width, p):
        scratch = torch.empty(n * min(width, p), dtype=dtype, device=x.device)
    total = torch.zeros(n, n, dtype=torch.float64, device=x.device)
    squares = torch.zeros((), dtype=torch.float64, device=x.device)
    for piece in x.split(width, dim=1):
        piece = piece.to(dtype)
        centred = scratch[: piece.numel()].view(piece.shape)
        torch.sub(piece, piece[0], out=centred)  # first, so that constant features are exactly 0
        centred -= centred.mean(0)
        part, off_by = gram(centred)
        total += part
        squares += off_by.square()
    size = torch.linalg.vector_norm(x[0], dtype=torch.float64)
    varies = bounds.varies(total.trace(), size, n, bounds.eps_of(given or x.dtype))
    return torch.where(varies | total.isnan(), total, 0), squares.sqrt()


def scratch_for(n: int, device: torch.device) -> Tensor | None:
    """Memory for `centred_gram` on batches of n, where fresh memory for each Gram would cost more than it: the CPU."""
    return torch.empty(max(SCRATCH, n * BLOCK), dtype=torch.float32) if device.type == "cpu" else None


def u_centre(gram: Tensor) -> Tensor:
    """U-centred Gram (Szekely & Rizzo 2014): zero diagonal, and rows that sum to zero.

    Args:
        gram: (n, n) symmetric, n >= 4. Centred features or not: it makes no difference beyond rounding.

    Returns:
        (n, n); the inner product of two such matrices over n(n-3) is HSIC_1.
    """
    n = len(gram)
    off_diagonal = gram - torch.diag(gram.diagonal())
    means = off_diagonal.sum(0) / (n - 2)
    means = means - means.sum() / (2 * (n - 1))
    off_diagonal = off_diagonal - means[:, None] - means[None, :]
    return off_diagonal - torch.diag(off_diagonal.diagonal())


def double_centre(gram: Tensor) -> Tensor:
    """HKH with H = I - 11^T/n; the inner product of two over (n-1)^2 is the biased HSIC."""
    return gram - gram.mean(0, keepdim=True) - gram.mean(1, keepdim=True) + gram.mean()


def hsic(gram_x: Tensor, gram_y: Tensor, *, unbiased: bool = True) -> Tensor:
    """Hilbert-Schmidt independence criterion of two (n, n) Grams, in float64: HSIC_1, or the biased HSIC_0."""
    gram_x, gram_y = (tensor(g, name, "(n, n)").double() for g, name in ((gram_x, "gram_x"), (gram_y, "gram_y")))
    n = len(gram_x)
    if not gram_x.shape == gram_y.shape == (n, n):
        shapes = f"{tuple(gram_x.shape)} and {tuple(gram_y.shape)}"
        raise UsageError(f"hsic needs two Grams (n, n) of the same images, got {shapes}")
    if n < 4:
        raise UsageError(f"hsic needs at least 4 examples, got {n}")
    if unbiased:
        return (u_centre(gram_x) * u_centre(gram_y)).sum() / (n * (n - 3))
    return (double_centre(gram_x) * double_centre(gram_y)).sum() / (n - 1) ** 2


def cka(x: Tensor | np.ndarray, y: Tensor | np.ndarray, *, unbiased: bool = True) -> float:
    """Linear CKA of two representations of the same examples, in float64.

    Args:
        x: (n, ...) features of n >= 4 examples; all axes but the first are flattened.
        y: (n, ...) features of the same examples in the same order.
        unbiased: HSIC_1 (default), which does not depend on n and may come out slightly negative;
            else the biased HSIC_0, which tends to 1 for any two representations with p >> n.

    Returns:
        At most 1. NaN where CKA is undefined, 0 / 0: if x or y is the same for all examples and, of HSIC_1, if it is
        the same for all but one, or says of all but how far they are from one point. What rounding leaves of
        these counts as zero (`measures/bounds.py`).

    Raises:
        UsageError: different numbers of examples, or fewer than 4; no dense real numbers.
        RepsimError: NaN or infinite features.

    >>> x = np.random.default_rng(0).normal(size=(64, 10))
    >>> round(cka(x, 3 * x), 6)
    1.0

    Reference: paper section 3 and 2.1 of Kornblith et al. (2019); Song et al. (2012), eq. 5.
    """
    x, y = tensor(x, "x"), tensor(y, "y")
    if x.ndim == 0 or y.ndim == 0 or len(x) != len(y):
        sizes = " and ".join(f"{len(t)} rows" if t.ndim else "no rows" for t in (x, y))
        raise UsageError(f"cka needs the same images in both: got {sizes}; pass one set of images through both")
    gram_x, gram_y = _scaled_gram(x, "x"), _scaled_gram(y, "y").to(x.device)
    if not (_defined(gram_x, unbiased) and _defined(gram_y, unbiased)):
        return float("nan")
    cross, own_x, own_y = (
        hsic(a, b, unbiased=unbiased).item() for a, b in ((gram_x, gram_y), (gram_x, gram_x), (gram_y, gram_y))
    )
    return cross / (own_x**0.5 * own_y**0.5)


def _scaled_gram(x: Tensor, name: str) -> Tensor:
    """The Gram of centred features over their largest magnitude, in float64."""
    x = real_images(x, name)
    if not torch.isfinite(x).all():
        raise RepsimError(f"cka needs finite features: {name} holds NaN or infinity")
    return centred_gram(_unit_scale(x.reshape(len(x), -1).double()), given=x.dtype)[0]


def _defined(gram: Tensor, unbiased: bool) -> bool:
    """Whether the HSIC of centred features' Gram with itself is more than rounding."""
    norm = torch.linalg.matrix_norm(u_centre(gram)) if unbiased else gram.trace()
    return bool(bounds.nonzero(norm, gram.trace(), bounds.eps_of(torch.float64)))


def _unit_scale(x: Tensor) -> Tensor:
    """x over its largest magnitude: CKA does not depend on scale, squares of 1e-200 would vanish."""
    largest = x.abs().max() if x.numel() else x.new_ones(())
    return x / largest if largest > 0 else x


class GramRow(NamedTuple):
    """A U-centred Gram as a vector: all that the similarity of layers needs of an activation."""

    direction: Tensor
    """(n(n-1)/2,) float32: the entries above the diagonal, scaled so that twice their squares sum to 1."""
    norm: Tensor
    """() float64: the Frobenius norm; 0 where CKA is undefined, NaN or infinite for broken activations."""


@lru_cache(maxsize=8)
def _above_diagonal(n: int, device: torch.device) -> Tensor:
    rows, columns = torch.triu_indices(n, n, 1, device=device)
    return rows * n + columns


def gram_row(x: Tensor, scratch: Tensor | None = None) -> GramRow:
    """Reduce the activations of one batch, (n, p), to their U-centred Gram.

    U-centring makes the centring of features redundant but for rounding, and centring costs more
    than the product. So on the CPU the product is taken of the features as they are; where rounding could
    change a CKA by more than `ROUNDING`, of centred ones; and where that is not enough either, or float32 overflows
    (`bounds.fits_float32`), in float64.

    >>> x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    >>> gram_row(x).direction.shape  # one entry for each of the 15 pairs of examples
    torch.Size([15])
    """
    x = real_images(tensor(x, "x", "(n, p)"), "x")
    bounds.check_magnitude(x, "features for minibatch CKA")
    on_cpu = x.device.type == "cpu" and x.dtype != torch.float64  # elsewhere a look at the values would wait
    if on_cpu and x.dtype == torch.float32:
        plain, off_by = gram(x)
        row = _row(plain)
        if bounds.fits_float32(plain.trace()) and off_by < ROUNDING * row.norm:
            return row
    centred, off_by = centred_gram(x, scratch)
    row = _row(centred, eps=bounds.eps_of(x.dtype))
    if on_cpu and not (bounds.fits_float32(centred.trace()) and off_by < ROUNDING * row.norm):
        exact = centred_gram(x, exact=True)[0]
        row = _row(exact, eps=bounds.eps_of(torch.float64))
    return row


class Grams:
    """Reduces activations to the rows of their Grams, one after another in the same memory; see `gram_row`."""

    def __init__(self) -> None:
        self._scratch: Tensor | None = None

    def __call__(self, x: Tensor) -> GramRow:
        """Of one batch, (n, ...)."""
        x = flatten(x)
        if self._scratch is None or self._scratch.device != x.device:
            self._scratch = scratch_for(len(x), x.device)
        return gram_row(x, self._scratch)


def _row(gram: Tensor, *, eps: float = 0.0) -> GramRow:
    """The row of a Gram whose products have this eps; of one that is known to be precise, without it."""
    trace, gram = gram.trace(), u_centre(gram)
    norm = torch.linalg.matrix_norm(gram)
    zero = norm <= bounds.ZERO * eps * trace
    norm = torch.where(zero, 0, norm)
    direction = gram.flatten()[_above_diagonal(len(gram), gram.device)] / torch.where(zero, torch.inf, norm)
    return GramRow(direction.float(), norm)


def stacked_hsic(rows: Sequence[GramRow], n: int, columns: int = 2**18) -> Tensor:
    """HSIC_1 of every pair of L layers on one batch of n examples, as one product. (L, L) float64.

    Raises:
        UsageError: no rows of Grams, or not of n images each.

    >>> x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    >>> hsic = stacked_hsic([gram_row(x), gram_row(2 * x)], len(x))
    >>> (hsic / hsic[0, 0]).round(decimals=4).tolist()
    [[1.0, 4.0], [4.0, 16.0]]
    """
    n = whole(n, "n", 4)
    if not isinstance(rows, Sequence) or not rows or not all(isinstance(row, GramRow) for row in rows):
        raise UsageError("stacked_hsic takes a list of GramRow, one for each layer; gram_row(x) makes one of x (n, p)")
    if any(len(row.direction) != n * (n - 1) // 2 for row in rows):
        raise UsageError(f"stacked_hsic needs rows of the same images: not all are of n = {n}")
    directions = torch.stack([row.direction for row in rows])
    norms = torch.stack([row.norm for row in rows])
    inner = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=directions.device)
    for piece in directions.split(columns, dim=1):
        piece = piece.double()
        inner += piece @ piece.T
    return 2 * inner * (norms[:, None] * norms[None, :]) / (n * (n - 3))


def paired_hsic(rows_a: Sequence[GramRow], rows_b: Sequence[GramRow], n: int) -> Tensor:
    """HSIC_1 of each row of one list with its fellow of the other, on one batch of n examples. (L,) float64."""
    inner = torch.stack([a.direction.double() @ b.direction.double() for a, b in zip(rows_a, rows_b)])
    norms = torch.stack([a.norm * b.norm for a, b in zip(rows_a, rows_b)])
    return 2 * inner * norms / (n * (n - 3))


def matched_hsic(reference: Sequence[GramRow], others: Sequence[Sequence[GramRow]], n: int) -> Tensor:
    """What CKA of the same L layers of one network with each of k others needs of a batch: (1 + 2k, L).

    HSIC_1 of the reference's layers with themselves, then of each other's, then of the reference with each other.
    """
    own = [paired_hsic(rows, rows, n) for rows in (reference, *others)]
    return torch.stack([*own, *(paired_hsic(reference, rows, n) for rows in others)])


def without_groups(a: Tensor, b: Tensor, group: Tensor, *, paired: bool = False) -> Tensor:
    """HSIC_1 of U-centred Grams without the images of one group at a time, for all groups in two products.

    Without the images of S, m are left. U-centring takes away whatever was added to rows and columns, so the
    Grams, U-centred over all images, stand for the plain ones, and of matrices A, B with zero diagonals

        HSIC_1 = (tr AB + (1'A1) (1'B1) / ((m-1) (m-2)) - 2 1'AB1 / (m-2)) / (m (m-3))

    over the images left. Their trace is that over all images, less twice the rows of S, plus what is within S.

    Args:
        a: (t, n, n), each U-centred over the n images, with zero diagonal.
        b: (j, n, n), likewise; of `paired`, j = t.
        group: (n,) of each image; a group leaves 4 images at least, or its row means nothing.
        paired: each of a with its fellow in b, instead of all with all.

    Returns:
        (groups, t, j), or (groups, t), float64, in the order of the groups' numbers.

    Reference: Song et al. (2012), eq. 5.
    """

    def inner(x: Tensor, y: Tensor) -> Tensor:
        x, y = x.double().flatten(1), y.double().flatten(1)
        return (x * y).sum(1) if paired else x @ y.T

    group, rows_without = group.to(a.device), list[Tensor]()
    members = [group == number for number in group.unique()]
    rows = [inner(a[:, out], b[:, out]) for out in members]
    whole, totals = sum(rows), [(x, x.sum(2, dtype=torch.float64)) for x in (a, b)]
    for out, losses in zip(members, rows):
        trace = whole - 2 * losses + inner(a[:, out][:, :, out], b[:, out][:, :, out])
        left_a, left_b = ((total - x[:, :, out].sum(2, dtype=torch.float64))[:, ~out] for x, total in totals)
        m, total_a, total_b = left_a.shape[1], left_a.sum(1), left_b.sum(1)
        product = (total_a * total_b if paired else total_a[:, None] * total_b) / max((m - 1) * (m - 2), 1)
        rows_without.append((trace + product - 2 * inner(left_a, left_b) / max(m - 2, 1)) / max(m * (m - 3), 1))
    return torch.stack(rows_without)


def own_without_groups(a: Tensor, group: Tensor) -> Tensor:
    """HSIC_1 of Grams of norm 1 with themselves, see `without_groups`; 0 where that is rounding. (groups, t)."""
    values = without_groups(a, a, group, paired=True)
    return torch.where(values * len(group) ** 2 > ROUNDED, values, 0)


def squares(rows: Sequence[GramRow]) -> Tensor:
    """The U-centred Grams of rows, scaled to norm 1, as matrices (L, n, n) float32."""
    directions = torch.stack([row.direction for row in rows])
    n = (1 + math.isqrt(1 + 8 * directions.shape[1])) // 2
    grams = torch.zeros(len(rows), n * n, device=directions.device)
    grams[:, _above_diagonal(n, directions.device)] = directions
    grams = grams.unflatten(1, (n, n))
    return grams + grams.transpose(1, 2)


def stacked_without_groups(rows: Sequence[GramRow], group: Tensor) -> Tensor:
    """What `stacked_hsic` gives without one group of images at a time, (groups, L, L)."""
    grams, norms = squares(rows), torch.stack([row.norm for row in rows])
    values = without_groups(grams, grams, group)
    values.diagonal(dim1=1, dim2=2).copy_(own_without_groups(grams, group))
    return values * norms[:, None] * norms


def matched_without_groups(reference: Sequence[GramRow], others: Sequence[Sequence[GramRow]], group: Tensor) -> Tensor:
    """What `matched_hsic` gives without one group of images at a time, (groups, 1 + 2k, L)."""
    norms = [torch.stack([row.norm for row in rows]) for rows in (reference, *others)]
    first, *rest = (squares(rows) for rows in (reference, *others))
    own = [own_without_groups(grams, group) * norm**2 for grams, norm in zip((first, *rest), norms)]
    across = [without_groups(first, x, group, paired=True) * norms[0] * norm for x, norm in zip(rest, norms[1:])]
    return torch.stack([*own, *across], 1)


NEAR_ZERO = 0.05
"""CKA below which intervals by Student's t cover too little: 0.86 to 0.93 of the time, see docs/intervals.md."""


def skewed(cka: Tensor, sums: BatchMeans, own: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
    """Which CKA have batches too skewed for an interval by Student's t.

    It is near zero, or one of its sides varies in few images, so that fewer than half of the groups of batches give as
    good as all of its HSIC with itself: `effective_groups`. Both by measurement, see docs/intervals.md.

    Args:
        cka: what the sums give.
        sums: of HSIC, see `minibatch_cka`.
        own: maps their mean to HSIC of either side with itself, as the CKA are, or to be spread so.

    Returns:
        As the CKA, of booleans; False where there is no interval, as of one group.
    """
    if sums.groups < 2:
        return torch.zeros_like(cka, dtype=torch.bool)
    few = torch.minimum(*effective_groups(sums, own)) < sums.groups / 2
    return ((cka < NEAR_ZERO) | few) & ~cka.isnan()


@kept
def normalise_matched(hsics: Tensor) -> Tensor:
    """(1 + 2k, L) of `matched_hsic`, or its mean over batches -> CKA (k, L); NaN where a layer is constant."""
    k = len(hsics) // 2
    roots = (hsics[0] * hsics[1 : k + 1]).sqrt()
    return hsics[k + 1 :] / torch.where(roots > 0, roots, torch.nan)


@kept
def normalise(hsics: Tensor) -> Tensor:
    """(L, L) HSIC -> (L, L) CKA. Rows and columns of layers with HSIC(K, K) = 0 become NaN."""
    hsics = (hsics + hsics.T) / 2  # sums over batches may differ in the last bit on the two sides
    root = hsics.diagonal().sqrt()
    root = torch.where(root > 0, root, torch.nan)
    return hsics / (root[:, None] * root[None, :])


def minibatch_cka() -> BatchMeans:
    """Sums that give CKA of every pair of L layers from minibatches: HSICs are averaged, then divided.

    Feed it `stacked_hsic` of one `GramRow` per layer, batch by batch. `compute` gives CKA and its jackknife standard
    error over minibatches, both (L, L) float64.

    >>> images = torch.randn(2, 32, 10, generator=torch.Generator().manual_seed(0))
    >>> sums = minibatch_cka()
    >>> for x in images:
    ...     _ = sums.update(stacked_hsic([gram_row(x), gram_row(2 * x)], len(x)))
    >>> [round(float(each), 6) for each in sums.compute()[0].flatten()]
    [1.0, 1.0, 1.0, 1.0]

    Reference: paper section 3; Nguyen, Raghu & Kornblith (2021), eq. 3.
    """
    return BatchMeans(normalise)
