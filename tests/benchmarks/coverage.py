"""How often the 95 % intervals that repsim prints cover the truth, on images of the bundled networks.

    python tests/benchmarks/coverage.py                       # all of it; two hours; rewrites coverage.csv beside it
    python tests/benchmarks/coverage.py 64 --images 3200      # batches of 64 of fewer images

The population is the 10,000 test images of Fashion-MNIST (Debian's `dataset-fashion-mnist`), cut into batches. Every
study sums each batch alone, once. A replicate draws some of the batches with replacement, the same ones for all studies
and networks, joins their sums as if they were a run's, and makes tables and numbers of them by the code that a run
uses; the truth is what all batches give together. Probes draw three of 60 sets of training images beside; nearest
neighbours draw images, and repeats draw sets of batches.

A line is a number of the paper, or all cells of a table: the share of replicates whose interval covers the truth, its
standard error over replicates, the share without an interval (which does not count), and, where cells are flagged as
too skewed, the share of these, their own coverage, and that of the worst cell that is flagged in few replicates.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from scipy.stats import t

import repsim as rs
from repsim.images.image_set import Batch, ImageSet
from repsim.measures.intervals import crossed
from repsim.measures.neighbours import nearest_neighbours, soft_nearest_neighbour, squared_distances
from repsim.measures.running import Accumulator, GroupedSums, Joined, Quantiles, Sums
from repsim.paper import measurements, measuring
from repsim.paper.figures import FIGURES, PRESETS
from repsim.paper.measurements import Measurements, Passes
from repsim.paper.measuring import measure
from repsim.passes.sweep import sweep
from repsim.studies import heads
from repsim.studies.heads import windows
from repsim.studies.localization import Localization
from repsim.studies.probe import Probing
from repsim.studies.receptive import ReceptiveFields, places_of
from repsim.studies.results import begin

HERE = Path(__file__).parent
FIELDS = (
    "line",
    "population",
    "batch",
    "batches",
    "replicates",
    "coverage",
    "error",
    "none",
    "flagged",
    "of_flagged",
    "worst_cell",
)
VIT, RESNET = "vit_mini", "resnet_mini"
CHOSEN = ("1", "2", "3", "4", "5", "7", "9", "10", "12", "G.1", "H.2")
DRAWN = {64: 20, 256: 10, 1024: 5}
"""Images in a batch -> batches that a replicate draws."""
SEEDS, OF_SEEDS = 60, 3
Asked = Mapping[str, tuple[Any, Sequence[Any]]]
"""Number of a figure -> its networks, or groups of them, and which are compared."""
FIELD_IMAGES, FIELDS_DRAWN = 256, 32
PIXELS = 2
"""Of radii that are smaller an interval covers less: a few rings of pixels are no scale."""


# Sums of every batch alone, and of some together


UNLOOKED_AT = (Joined, Quantiles)
"""Sums of which no interval is made; they are large."""


class Nothing:
    """Stands for such sums: all is zero."""

    def compute(self, q: float = 0.5) -> torch.Tensor:
        return torch.tensor(0.0)


class One(NamedTuple):
    """Grouped sums of a single batch."""

    like: GroupedSums
    total: torch.Tensor
    count: torch.Tensor


def alone(sums: Sums) -> Sums:
    """The sums of one batch, small: of grouped ones the only group that has something."""
    if isinstance(sums, GroupedSums):
        group = int(sums.counts.argmax())
        like = sums._empty()
        return One(like, sums.sums[group].clone(), sums.counts[group])
    if isinstance(sums, UNLOOKED_AT):
        return None
    if isinstance(sums, Accumulator):
        return sums
    if isinstance(sums, Mapping):
        return {key: alone(each) for key, each in sums.items()}
    each = [alone(part) for part in sums]
    return type(sums)(*each) if hasattr(sums, "_fields") else type(sums)(each)


def together(parts: Sequence[Sums]) -> Sums:
    """The sums of several batches, each a group of its own, however often it is among them."""
    first = parts[0]
    if isinstance(first, One):
        joined = copy.copy(first.like)
        joined._sums, joined.counts = torch.stack([each.total for each in parts]), torch.stack([p.count for p in parts])
        return joined
    if first is None:
        return Nothing()
    if isinstance(first, Accumulator):
        whole = first
        for part in parts[1:]:
            whole = whole.merge(part)
        return whole
    if isinstance(first, Mapping):
        return {key: together([part[key] for part in parts]) for key in first}
    each = [together(of) for of in zip(*parts)]
    return type(first)(*each) if hasattr(first, "_fields") else type(first)(each)


@dataclass
class Population:
    """The sums of studies, of every batch alone."""

    studies: list[Any] = field(default_factory=list)
    parts: list[list[Sums]] = field(default_factory=list)

    def sweep(self, images: ImageSet, studies: Sequence[Any], **how: Any) -> Any:
        """Take the place of `sweep`: the studies are known afterwards, and their sums are those of the last batch."""
        for study in studies:
            if isinstance(study, Passes):
                continue
            self.studies.append(study)
            self.parts.append([])
            self._watch(study, self.parts[-1])
        return sweep(images, studies, **how)

    def _watch(self, study: Any, parts: list[Sums]) -> None:
        empty, update = copy.deepcopy(study.sums), study.update

        def one(seen: Any, batch: Batch) -> None:
            study.sums = copy.deepcopy(empty)
            update(seen, batch)
            parts.append(alone(study.sums))

        study.update = one

    @property
    def batches(self) -> int:
        return len(self.parts[0])

    def draw(self, which: Iterable[int]) -> None:
        """Give all studies the sums of some batches."""
        which = list(which)
        for study, parts in zip(self.studies, self.parts):
            study.sums = together([parts[k] for k in which])


# Coverage


class Printed(NamedTuple):
    """What a run prints of one line: arrays of one shape, or numbers."""

    value: np.ndarray
    se: np.ndarray
    df: np.ndarray | float
    skewed: np.ndarray | None = None


def of_cells(table: pd.DataFrame, value: str, se: str, df: float, keep: Any = slice(None)) -> Printed:
    """The cells of a table, of which `skewed` says whether an interval is to be trusted."""
    table = table[keep]
    flags = table["skewed"].to_numpy() == 1 if "skewed" in table else None
    return Printed(table[value].to_numpy(float), table[se].to_numpy(float), df, flags)


def of_number(row: Any) -> Printed:
    """A row of a table of numbers."""
    half = (row["high"] - row["low"]) / 2
    with np.errstate(invalid="ignore"):
        return Printed(np.array([row["value"]]), np.array([half / t.ppf(0.975, row["df"])]), row["df"])


def coverage(truth: Mapping[str, Printed], replicates: Iterable[Mapping[str, Printed]]) -> pd.DataFrame:
    """A row per line, of what all batches give and what each replicate does."""
    found: dict[str, list[np.ndarray]] = {}
    for replicate in replicates:
        for line, of in replicate.items():
            true = truth[line].value
            half = t.ppf(0.975, of.df) * of.se
            known = np.isfinite(of.value) & np.isfinite(true) & (half > 1e-9)
            flags = np.zeros(known.shape, bool) if of.skewed is None else of.skewed
            found.setdefault(line, []).append(np.stack([abs(of.value - true) <= half, known, flags & known]))
    rows = []
    for line, each in found.items():
        covered, known, flags = np.stack(each, 1).astype(bool)
        trusted = known & ~flags
        by_replicate = (covered & trusted).sum(1) / np.maximum(trusted.sum(1), 1)
        of_flagged = covered[flags].mean() if flags.any() else np.nan
        mostly = trusted.mean(0) > 0.5
        of_cell = (covered & trusted).sum(0)[mostly] / trusted.sum(0)[mostly]
        rows.append(
            {
                "line": line,
                "replicates": len(each),
                "coverage": covered[trusted].mean(),
                "error": by_replicate.std(ddof=1) / len(each) ** 0.5,
                "none": 1 - known.mean() if known.shape[1] == 1 else np.nan,
                "flagged": flags.sum() / known.sum() if truth[line].skewed is not None else np.nan,
                "of_flagged": of_flagged,
                "worst_cell": of_cell.min() if len(of_cell) > 1 else np.nan,
            }
        )
    return pd.DataFrame(rows)


def bundled(chosen: Sequence[str] = CHOSEN) -> Asked:
    """Figures of the bundled networks."""
    cases = {number: PRESETS["mini"].cases(FIGURES[number]) for number in chosen}
    return {number: (FIGURES[number].networks(of), FIGURES[number].compared(of)) for number, of in cases.items()}


def figures(
    images: ImageSet,
    batch: int,
    drawn: int,
    replicates: int,
    asked: Asked | None = None,
    load: Callable[[str], rs.Network] = rs.load_model,
) -> pd.DataFrame:
    """The numbers of figures that no gradients and no probes are needed for, and the cells of their tables."""
    population, m = Population(), Measurements(load, images, None, batch_size=batch)
    asked = bundled() if asked is None else asked
    later = {number: measure(FIGURES[number], m, *of) for number, of in asked.items()}
    with patch.object(measurements, "sweep", population.sweep):
        m.run()

    def printed(batches: Sequence[int]) -> dict[str, Printed]:
        population.draw(batches)
        df, lines = len(batches) - 1, {}
        for number, make in later.items():
            rows = make().tables["numbers"]
            for row in rows[~rows["key"].str.endswith("_p")].to_dict("records"):
                lines[f"figure {number}: {row['label']}"] = of_number(row)
        lines |= cells(m, df)
        return lines

    rng = np.random.default_rng(0)
    draws = (rng.integers(population.batches, size=drawn) for _ in range(replicates))
    nothing = lambda distances, hsics, window, seed: torch.full((1,), torch.nan)  # noqa: E731
    with patch.object(heads, "permutation_test", nothing):  # no interval, and slow
        return coverage(printed(range(population.batches)), (printed(which) for which in draws))


def cells(m: Measurements, df: float) -> dict[str, Printed]:
    """All cells of the tables of those studies that were asked for."""
    lines: dict[str, Printed] = {}
    for (kind, *_), study in m._studies.items():
        if kind in ("similarity", "matched"):
            table = type(study).table([study])
            names = " and ".join(network.name for network in study.networks)
            apart = (
                slice(None)
                if kind == "matched"
                else table["layer_a"] + table["model_a"] != table["layer_b"] + table["model_b"]
            )
            lines[f"{kind}, {names}"] = of_cells(table, "cka", "se", df, apart)
        elif kind == "attention":
            lines[f"attention distance, {study.network.name}"] = of_cells(
                study.table(), "distance_px", "distance_px_se", np.inf
            )
        elif kind == "residual":
            name = study.networks[0].name
            lines[f"residual ratio, {name}"] = of_cells(study.table(), "ratio", "ratio_se", np.inf)
        elif kind == "localization":
            lines |= of_localization(study, df)
        elif kind == "heads":
            distance = m._studies["attention", study.networks[0].name]
            lines["heads, CKA of windows"] = of_cells(windows(study, distance), "cka", "cka_se", df)
    return lines


def of_localization(study: Localization, df: float) -> dict[str, Printed]:
    name = study.networks[0].name
    part, sums = study.parts[0], study.sums[0]
    ends = [part.table(part.layers[k], sums.part(k)) for k in (0, -1)]
    return {
        f"token x patch, first and last layer, {name}": of_cells(pd.concat(ends), "cka", "se", df),
        f"own patch - rest, {name}": of_cells(study.summary(), "own_minus_rest", "se", df),
    }


def receptive(
    images: ImageSet, replicates: int, drawn: int = FIELDS_DRAWN, names: Sequence[str] = (VIT, RESNET)
) -> pd.DataFrame:
    """Radii and shares of receptive fields; each image is a group."""
    fields = []
    for name in names:
        network = rs.load_model(name)
        each = ReceptiveFields(network, places_of(network, say=print), channels=4)
        single: list[Sums] = []
        add = each._add

        def alone_too(layer: str, gradients: torch.Tensor, batch: Batch, each=each, add=add, single=single) -> None:
            for k, position in enumerate(batch.positions):
                one = dataclasses.replace(batch, positions=batch.positions[k : k + 1])
                before, each.sums = each.sums, {}
                add(layer, gradients[k : k + 1], one)
                while len(single) <= int(position):
                    single.append({})
                single[int(position)] |= alone(each.sums)
                each.sums = before

        each._add = alone_too
        each.run(images, batch_size=8)
        fields.append((each, single))

    def tables(which: Sequence[int]) -> list[pd.DataFrame]:
        for each, single in fields:
            each.sums = together([single[k] for k in which])
        return [each.table() for each, _ in fields]

    wide = [table["radius50_px"] > PIXELS for table in tables(range(len(images)))]

    def printed(which: Sequence[int]) -> dict[str, Printed]:
        lines = {}
        for (each, _), table, chosen in zip(fields, tables(which), wide):
            table = table[chosen]
            for column in ("radius50_px", "radius95_px", "centre_share"):
                lines[f"receptive fields, {column}, {each.network.name}"] = of_cells(
                    table, column, f"{column}_se", len(which) - 1
                )
        return lines

    truth = printed(range(len(images)))
    rng = np.random.default_rng(0)
    return coverage(truth, (printed(rng.integers(len(images), size=drawn)) for _ in range(replicates)))


def probes(
    images: ImageSet, train: ImageSet, batch: int, drawn: int, replicates: int, seeds: int = SEEDS
) -> pd.DataFrame:
    """Accuracies of probes, alone and against those of another network and layer."""
    begun = begin([VIT, RESNET], images)
    layers = r"blocks\.(3|11)|layer(2\.0|4\.1)"
    probing = Probing.of(begun, train, layers=layers, seeds=seeds, tokens=False, neighbours=0)
    fitted, _ = probing.fit(batch_size=250)
    testing, population = probing.testing(fitted), Population()
    population.sweep(begun.images, [testing], batch_size=batch)

    def printed(batches: Sequence[int], chosen: Sequence[int]) -> dict[str, Printed]:
        population.draw(batches)
        right = {
            f"{place.layer} {place.aggregation}": of.part(torch.as_tensor(chosen))
            for place, of in testing.sums["right"].items()
        }
        lines = {f"probe, {name}": crossed(of, lambda mean: mean[:, 0]) for name, of in right.items()}
        a, *others = right.items()
        for name, of in others:
            both = measuring.Together([a[1], of])
            lines[f"probe, {a[0]} - {name}"] = crossed(both, lambda means: means[0][:, 0] - means[1][:, 0])
        return {line: Printed(*(np.array([part.item()]) for part in found)) for line, found in lines.items()}

    truth = printed(range(population.batches), range(seeds))
    rng = np.random.default_rng(0)
    return coverage(
        truth,
        (
            printed(rng.integers(population.batches, size=drawn), rng.integers(seeds, size=OF_SEEDS))
            for _ in range(replicates)
        ),
    )


def neighbours(images: ImageSet, train: ImageSet, replicates: int, count: int = 500) -> pd.DataFrame:
    """Nearest neighbours among images that are drawn; the truth is the mean over draws."""
    options = {"layers": ["blocks.11"], "shots": [1], "seeds": 1, "tokens": False, "neighbours": len(images)}
    begun = begin(VIT, images)
    probing = Probing.of(begun, train, **options)
    testing = probing.testing(probing.fit(batch_size=250)[0])
    sweep(begun.images, [testing], batch_size=250, short=True)
    labels = testing.sums["labels"].values
    features = {place.aggregation: kept.values for place, kept in testing.sums["kept"].items()}
    rng = np.random.default_rng(0)
    found: list[dict[str, Printed]] = []
    for _ in range(replicates):
        which = torch.from_numpy(rng.choice(len(labels), count, replace=False))
        lines = {}
        for name, x in features.items():
            distances = squared_distances(x[which])
            right = nearest_neighbours(distances, labels[which], 10).double()
            soft = soft_nearest_neighbour(distances, labels[which])
            df = count - 1
            se = right.std() / count**0.5
            lines[f"nearest neighbours, {name}"] = Printed(right.mean()[None].numpy(), se[None].numpy(), df)
            lines[f"soft nearest neighbours, {name}"] = Printed(np.array([soft.loss]), np.array([soft.se]), df)
        found.append(lines)
    truth = {line: Printed(np.mean([each[line].value for each in found], 0), 0, 0) for line in found[0]}
    return coverage(truth, found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sizes", nargs="*", type=int, default=list(DRAWN), help="images per batch")
    parser.add_argument("--replicates", type=int, default=200)
    parser.add_argument("--images", type=int, default=10_000, help="of the population")
    options = parser.parse_args()
    torch.set_num_threads(1)
    images = ImageSet("fashion-mnist", images=options.images)
    train = ImageSet("fashion-mnist", split="train", images=6000)
    parts: list[pd.DataFrame] = []

    def keep(make: Callable[..., pd.DataFrame], batch: int, drawn: int, *arguments: Any) -> None:
        found = make(*arguments).assign(batch=batch, batches=drawn, population=options.images)
        parts.append(found[list(FIELDS)])
        print(parts[-1].round(3).to_string(index=False), flush=True)
        pd.concat(parts).to_csv(HERE / "coverage.csv", index=False, float_format="%.4f")

    few = images.only(np.arange(FIELD_IMAGES))
    keep(neighbours, 1, 500, images.only(np.arange(min(5000, options.images))), train, options.replicates)
    keep(receptive, 1, FIELDS_DRAWN, few, options.replicates)
    for size in options.sizes:
        drawn = DRAWN.get(size, 20)
        keep(probes, size, drawn, images, train, size, drawn, options.replicates)
        keep(figures, size, drawn, images, size, drawn, options.replicates)


if __name__ == "__main__":
    main()
