"""Every public measure on drawn strange inputs: `python tests/fuzz.py --minutes 10 --seed 0`.

A call must give a value in its documented range, NaN, or a `RepsimError` of one line; where its definition can be
computed in float64, CKA must be it. Each draw has its own seed, which is printed with what failed; `--only SEED` runs
it again. It prints counts of what came of the calls, and exits with 1 if any was wrong.
"""

from __future__ import annotations

import argparse
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch

import repsim as rs
from repsim.measures import attention, localization, neighbours, probe, receptive, residual
from repsim.measures.cka import gram_row, hsic, minibatch_cka, stacked_hsic
from repsim.measures.running import Moments

Rng = np.random.Generator


class Wrong(AssertionError):
    """A value that the documentation excludes."""


def must(holds: Any, what: str) -> None:
    if not bool(holds):
        raise Wrong(what)


# What is drawn


def numbers(rng: Rng, *shape: int) -> np.ndarray:
    """Float64 of a drawn magnitude and structure along the first axis, the images'."""
    x = rng.normal(size=shape)
    n = shape[0]
    kind = rng.choice(["plain", "repeated", "outlier", "constant", "orthogonal", "offset", "columns", "zero", "broken"])
    if kind == "repeated" and n:
        x = x[rng.integers(0, rng.integers(1, n + 1), n)]
    elif kind == "outlier" and n:
        x[:] = x[:1]
        x[rng.integers(n)] = rng.normal(size=shape[1:]) * 10.0 ** rng.integers(-3, 4)
    elif kind == "constant":
        x[:] = x[:1]
    elif kind == "orthogonal" and len(shape) == 2:
        x = np.eye(*shape) * rng.uniform(1, 2, (n, 1)) + rng.integers(0, 2)
    elif kind == "offset":
        x += 10.0 ** rng.integers(0, 9)
    elif kind == "columns":
        x *= 10.0 ** rng.integers(-6, 7, shape[-1])
    elif kind == "zero":
        x[:] = 0
    elif kind == "broken" and x.size:
        x[tuple(rng.integers(0, size) for size in shape)] = rng.choice([np.nan, np.inf, -np.inf])
    exponent = rng.choice([0, rng.integers(-8, 9), rng.integers(-300, 301)])
    with np.errstate(over="ignore"):
        return x * 10.0 ** float(exponent)


def float8(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(x).float().to(torch.float8_e5m2)


FAITHFUL: dict[str, Callable[[np.ndarray], Any]] = {
    "float64": lambda x: x,
    "tensor": torch.from_numpy,
    "grad": lambda x: torch.from_numpy(x * 1.0).requires_grad_(),
    "list": lambda x: x.tolist(),
    "list of arrays": list,
    "list of tensors": lambda x: [torch.from_numpy(row) for row in x] if x.ndim > 1 else x,
    "big-endian": lambda x: x.astype(">f8"),
    "backwards": lambda x: x[::-1].copy()[::-1],
    "object": lambda x: x.astype(object),
    "read-only": lambda x: np.frombuffer(x.tobytes()).reshape(x.shape),
    "longdouble": lambda x: x.astype(np.longdouble),
    "every other": lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
    "fortran": np.asfortranarray,
    "frame": lambda x: pd.DataFrame(x) if x.ndim == 2 else x,
    "frame of objects": lambda x: pd.DataFrame(x).astype(object) if x.ndim == 2 else x,
    "nullable frame": lambda x: pd.DataFrame(x).astype("Float64") if x.ndim == 2 and np.isfinite(x).all() else x,
    "series": lambda x: pd.Series(x) if x.ndim == 1 else x,
}
COARSER: dict[str, Callable[[np.ndarray], Any]] = {
    "float32": lambda x: torch.from_numpy(x).float(),
    "float16": lambda x: torch.from_numpy(x).half(),
    "bfloat16": lambda x: torch.from_numpy(x).bfloat16(),
    "numpy float16": lambda x: x.astype(np.float16),
    "float8": float8,
    "int": lambda x: np.nan_to_num(x).clip(-1e15, 1e15).astype(np.int64),
    "bool": lambda x: x > 0,
    "uint8 tensor": lambda x: torch.from_numpy(np.nan_to_num(x).clip(0, 255).astype(np.uint8)),
    "transposed": lambda x: torch.from_numpy(x).float().mT.contiguous().mT if x.ndim > 1 else x,
}
REFUSED: dict[str, Callable[[np.ndarray], Any]] = {
    "complex": lambda x: x + 1j,
    "complex tensor": lambda x: torch.from_numpy(x) + 1j,
    "complex list": lambda x: [1j, *x.tolist()],
    "masked": lambda x: np.ma.masked_array(x, x > 0),
    "list of masked": lambda x: [np.ma.masked_array(row, row > 0) for row in np.atleast_2d(x)],
    "sparse": lambda x: torch.from_numpy(x).to_sparse(),
    "meta": lambda x: torch.empty(x.shape, device="meta"),
    "quantized": lambda x: torch.quantize_per_tensor(torch.ones(x.shape), 0.1, 0, torch.quint8),
    "string": lambda x: "abc",
    "strings": lambda x: x.astype(str),
    "list of strings": lambda x: ["1.5"] * max(1, len(x)),
    "bytes": lambda x: b"1234",
    "none": lambda x: None,
    "list of none": lambda x: [None] * max(1, len(x)),
    "ragged": lambda x: [[1.0, 2.0], [3.0]],
    "dictionary": lambda x: {"x": x},
    "set": lambda x: {1.0, 2.0},
    "generator": lambda x: (row for row in x),
    "dates": lambda x: np.full(x.shape, np.datetime64("2020-01-01")),
    "missing": lambda x: pd.DataFrame({"a": pd.array([1, None], dtype="Int64")}),
    "records": lambda x: np.zeros(len(x), dtype=[("a", "f8")]),
    "nested tensor": lambda x: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
    "long integers": lambda x: np.full(x.shape or (1,), 2**60 + 1),
    "scalar": lambda x: 1.5,
}
WRAPS = {**FAITHFUL, **COARSER, **REFUSED}


def wrapped(rng: Rng, x: np.ndarray) -> Any:
    """In a drawn container: mostly one that is taken."""
    kinds = [FAITHFUL, COARSER, REFUSED][rng.choice(3, p=[0.6, 0.25, 0.15])]
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return kinds[rng.choice(list(kinds))](x)


def size(rng: Rng) -> int:
    return int(rng.choice([rng.integers(0, 4), rng.integers(4, 9), rng.integers(9, 80)], p=[0.1, 0.45, 0.45]))


# The definition


def exact_cka(x: np.ndarray, y: np.ndarray) -> float | None:
    """CKA by HSIC_1 of U-centred distances in extended precision; None where even that has too few digits."""
    found = []
    for each in (x, y):
        each = np.asarray(each, np.longdouble).reshape(len(each), -1)
        each = each / max(np.abs(each).max(), np.finfo(np.longdouble).tiny)
        size = np.sqrt((each[0] ** 2).sum())
        each = each - each[:1]
        each = each - each.mean(0)
        k = each @ each.T
        trace, n = np.trace(k), len(k)
        np.fill_diagonal(k, 0)
        means = k.sum(0) / (n - 2)
        means = means - means.sum() / (2 * (n - 1))
        k = k - means[:, None] - means[None, :]
        np.fill_diagonal(k, 0)
        norm = np.sqrt((k**2).sum())
        if not norm > 1e-12 * trace or not trace > n * (3e-7 * size) ** 2:
            return None
        found.append(k / norm)
    return float((found[0] * found[1]).sum())


# The measures


def similarity(rng: Rng) -> None:
    n = size(rng)
    x, y = (numbers(rng, n, *rng.integers(0 if rng.random() < 0.02 else 1, 12, rng.integers(1, 3))) for _ in range(2))
    if rng.random() < 0.05:
        y = y[: n // 2]
    faithful = rng.random() < 0.5
    given = (FAITHFUL[rng.choice(list(FAITHFUL))](x), y) if faithful else (wrapped(rng, x), wrapped(rng, y))
    value, own, biased = as_it_must(given, x, y) if faithful else cka_three(*given)
    must(np.isnan(value) or abs(value) <= 1 + 1e-9, f"cka {value}")
    must(np.isnan(own) or abs(own - 1) < 1e-9, f"cka with itself {own}")
    must(np.isnan(biased) or -1e-9 <= biased <= 1 + 1e-9, f"biased cka {biased}")
    if faithful:
        expected = exact_cka(x, y)
        must(expected is None or abs(value - expected) < 1e-6, f"cka {value}, by its definition {expected}")
        alone = (x == x[:1]).reshape(n, -1).all(1).sum() in (1, n - 1)
        outlier = len(np.unique(x.reshape(n, -1), axis=0)) == 2 and alone
        must(not outlier or np.isnan(value), f"cka {value} of an outlier alone")


def cka_three(x: Any, y: Any) -> tuple[float, float, float]:
    return rs.cka(x, y), rs.cka(x, x), rs.cka(x, y, unbiased=False)


def as_it_must(given: tuple[Any, Any], x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """What is finite, of 4 images or more, must be taken from any container, and give one number."""
    sound = len(x) == len(y) >= 4 and x.size and y.size and np.isfinite(x).all() and np.isfinite(y).all()
    try:
        found = cka_three(*given)
    except rs.RepsimError as error:
        must(not sound, f"refused {type(given[0]).__name__}: {error}")
        raise
    must(sound, "what is not sound was taken")
    np.testing.assert_array_equal(found, cka_three(x, y))
    return found


def refusals(rng: Rng) -> None:
    x = rng.normal(size=(int(rng.integers(4, 9)), 3))
    kind = rng.choice(list(REFUSED))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        given = REFUSED[kind](x)
    try:
        rs.cka(given, x)
    except rs.RepsimError:
        raise
    raise Wrong(f"{kind} was taken")


def minibatches(rng: Rng) -> None:
    n = size(rng)
    x, y = (numbers(rng, n, int(rng.integers(1, 40))) for _ in range(2))
    with np.errstate(all="ignore"):
        small = x.astype(np.float32), y.astype(np.float32)
        given = small if rng.random() < 0.5 else (wrapped(rng, x), wrapped(rng, y))
    rows = [gram_row(each) for each in map(torch.from_numpy, given)] if given is small else [gram_row(g) for g in given]
    table = minibatch_cka().update(stacked_hsic(rows, n)).compute()[0]
    known = table[~table.isnan()]
    must((known.abs() <= 1 + 1e-6).all(), f"minibatch cka {table.tolist()}")
    if given is small and np.isfinite(small[0]).all() and np.isfinite(small[1]).all():
        expected, value = exact_cka(*small), table[0, 1].item()
        function = rs.cka(*small)
        must(np.isnan(function) == np.isnan(value), f"minibatch cka {value}, cka {function}")
        must(expected is None or abs(value - expected) < 1e-4, f"minibatch cka {value}, by its definition {expected}")


def independence(rng: Rng) -> None:
    n = size(rng)
    value = hsic(wrapped(rng, numbers(rng, n, n)), wrapped(rng, numbers(rng, n, n)), unbiased=bool(rng.random() < 0.5))
    must(value.ndim == 0, "hsic")


def tokens_and_patches(rng: Rng) -> None:
    n, t, j = size(rng), int(rng.integers(1, 4)), int(rng.integers(1, 4))
    tokens, patches = (numbers(rng, n, count, int(rng.integers(1, 20))) for count in (t, j))
    with np.errstate(all="ignore"):
        small = tokens.astype(np.float32), patches.astype(np.float32)
        given = small if rng.random() < 0.5 else (wrapped(rng, tokens), wrapped(rng, patches))
    hsics = localization.bordered_hsic(given[0], localization.patch_grams(given[1]))
    found = localization.normalise(hsics)
    known = found[~found.isnan()]
    must((known.abs() <= 1 + 1e-5).all(), f"localization {found.tolist()}")
    if given is small and np.isfinite(small[0]).all() and np.isfinite(small[1]).all():
        expected = rs.cka(small[0][:, 0], small[1][:, 0])
        value = found[0, 0].item()
        must(np.isnan(expected) == np.isnan(value), f"localization {value}, cka {expected}")
        must(np.isnan(value) or exact_cka(small[0][:, 0], small[1][:, 0]) is None or abs(value - expected) < 1e-4,
             f"localization {value}, cka {expected}")  # fmt: skip
    if t == j:
        localization.own_minus_rest(found)


def near(rng: Rng) -> None:
    n = size(rng)
    far = neighbours.squared_distances(wrapped(rng, numbers(rng, n, int(rng.integers(1, 12)))))
    labels = wrapped(rng, np.arange(len(far)) % rng.integers(1, 5)) if rng.random() < 0.3 else np.arange(len(far)) % 2
    right = neighbours.nearest_neighbours(far, labels, int(rng.integers(0, 8)))
    must(right.shape == (len(far),), "neighbours")
    loss = neighbours.soft_nearest_neighbour(far, labels)
    must(np.isnan(loss.loss) or (loss.loss >= -1e-9 and loss.temperature > 0), f"soft neighbours {loss}")


def probes(rng: Rng) -> None:
    n, d = size(rng), int(rng.integers(1, 12))
    data = probe.training_data(n, d, 3)
    labels = np.arange(n) % 3 if rng.random() < 0.8 else wrapped(rng, np.arange(n) % 4)
    x = wrapped(rng, numbers(rng, n, d))
    fitted = probe.Ridge(data.update(x, labels)).fit(float(2.0 ** rng.integers(-10, 20)))
    must(torch.isfinite(fitted.weight).all() and torch.isfinite(fitted.bias).all(), "probe weights")


def heads(rng: Rng) -> None:
    side, prefix = int(rng.integers(1, 5)), int(rng.integers(0, 3))
    scores = torch.from_numpy(numbers(rng, 2, 3, side**2 + prefix, side**2 + prefix))
    weights = scores.softmax(-1).numpy() if rng.random() < 0.9 else scores.numpy()
    positions = attention.grid_positions(side, side, 16)
    far = attention.distances(positions, positions)
    renormalize = bool(rng.random() < 0.5)
    found = attention.head_statistics(wrapped(rng, weights), far, prefix=prefix, cls=True, renormalize=renormalize)
    for values, most in zip(found, (far.max() * 1.011, np.log(side**2 + prefix) * 1.02 + 0.01, 1.011, 1.011)):
        known = values[~values.isnan()]
        must((known >= 0).all() and (known <= most + 1e-5).all(), f"heads {values.tolist()}, at most {most}")


def fields(rng: Rng) -> None:
    height, width = int(rng.integers(1, 20)), int(rng.integers(1, 20))
    found = receptive.field_statistics(
        wrapped(rng, np.abs(numbers(rng, height, width))), (int(rng.integers(0, 5)), int(rng.integers(1, 5)))
    )
    if not np.isnan(found.radius50_px):
        must(0 <= found.radius50_px <= found.radius95_px <= np.hypot(height, width), f"fields {found}")
        must(0 <= found.centre_share <= 1 + 1e-9, f"fields {found}")


def skips(rng: Rng) -> None:
    shape = (size(rng), int(rng.integers(1, 4)), int(rng.integers(1, 8)))
    found = residual.skip_statistics(wrapped(rng, numbers(rng, *shape)), wrapped(rng, numbers(rng, *shape)))
    must((found.ratio[~found.ratio.isnan()] >= 0).all(), "ratio")
    for cosine in (found.cos_output, found.cos_branch):
        must((cosine[~cosine.isnan()].abs() <= 1 + 1e-5).all(), f"cosine {cosine.tolist()}")


def moments(rng: Rng) -> None:
    x = numbers(rng, size(rng), 3)
    cut = int(rng.integers(0, len(x) + 1))
    parts = [Moments().update(part) for part in (x[:cut], x[cut:])]
    found = parts[0].merge(parts[1])
    if len(x) > 1 and np.isfinite(x).all() and 1e-140 < np.abs(x).max() < 1e140:
        expected = np.asarray(x, np.longdouble).std(0, ddof=1) / len(x) ** 0.5
        close = np.abs(found.se().numpy() - expected) <= 1e-6 * expected + 1e-14 * np.abs(x).max(0)
        must(close.all(), f"standard error {found.se().tolist()}, by its definition {expected}")
    Moments().update(wrapped(rng, x)).se()


MEASURES = (
    similarity,
    refusals,
    minibatches,
    independence,
    tokens_and_patches,
    near,
    probes,
    heads,
    fields,
    skips,
    moments,
)


def outcome(measure: Callable[[Rng], None], seed: int) -> tuple[str, str]:
    """What came of one draw, and what to print of it."""
    try:
        measure(np.random.default_rng(seed))
    except rs.RepsimError as error:
        lines = str(error).splitlines()
        return ("refused", "") if len(lines) == 1 and lines[0] else ("refused in several lines", str(error))
    except Wrong as error:
        return "wrong value", str(error)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return (
            "raw error",
            f"{type(error).__name__}: {str(error)[:150]} ({where.filename.split('/')[-1]}:{where.lineno})",
        )
    return "value", ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="the seed of one draw, to run it again")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", "The PyTorch API of nested tensors|.*quantize_per_tensor|.*torch.ao")
    counts: Counter[tuple[str, str]] = Counter()
    end, seed = time.monotonic() + 60 * chosen.minutes, chosen.seed * 10**9
    while time.monotonic() < end if chosen.only is None else not counts:
        seed = chosen.only if chosen.only is not None else seed + 1
        for measure in MEASURES:
            what, said = outcome(measure, seed)
            counts[measure.__name__, what] += 1
            if said and counts[measure.__name__, what] <= 5:
                print(f"{what}: {measure.__name__}, --only {seed}: {said}", flush=True)
    for (name, what), count in sorted(counts.items()):
        print(f"{name:20} {what:25} {count:9,}")
    print(f"{'all':20} {'calls':25} {sum(counts.values()):9,}")
    return int(any(what not in ("value", "refused") for _, what in counts))


if __name__ == "__main__":
    raise SystemExit(main())
