"""Any number of networks and features by several measures of similarity, from one pass over the images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from typing_extensions import Unpack

from repsim.errors import UsageError, one_of
from repsim.features.arrays import FeatureNetwork
from repsim.images.image_set import Batch, Counts
from repsim.measures.catalogue import MEASURES, Held, LeftOut, Streamed
from repsim.measures.cka import normalise
from repsim.measures.inputs import whole
from repsim.measures.intervals import interval
from repsim.measures.mds import mds, turned
from repsim.measures.running import FEWEST, GROUPS, BatchMeans, GroupedSums, Joined, kept
from repsim.networks.layers import Layer, find_layers
from repsim.networks.models import Network, load_model
from repsim.networks.tokens import Tokens
from repsim.passes.plan import Takes
from repsim.passes.seen import Seen
from repsim.passes.study import Study
from repsim.passes.sweep import Passing, require_finite, sweep
from repsim.studies.results import AnyImages, AnyNetwork, Result, begin, study
from repsim.studies.similarity import BATCH, BYTES_OF_ROW, MOST, pairs_of_layers, slices
from repsim.tables import COMPARE, COMPARE_MAP, COMPARE_NETWORKS

LAST = "last"
"""Of `layers`: the output of each network's last block, or the last layer of features."""
FEATURES = "features"
ONE = 1e-9
"""By how much rounding may keep the similarity of a layer with itself from 1."""
BUNDLED = "repsim.networks.minis:"
"""How the source of a bundled network begins; the rest is its name."""


@kept
class _Sums(NamedTuple):
    streamed: dict[str, BatchMeans]
    """Name of a measure -> products of the rows of all layers."""
    null: dict[str, GroupedSums]
    """The same with the images of one side permuted, (orders, N, N)."""
    held: list[Joined]
    """Features of each layer."""
    groups: Joined
    """In which group of the jackknife each image is, where images come in groups."""


class Comparison(Study):
    """The study: several measures between all layers of all networks.

    Args:
        networks: the networks; each sees every image once.
        layers: of each network.
        measures: names of `MEASURES`.
        tokens: the part of each layer that stands for an image.
        null: number of permutations of the images of one side, for values by chance; 0: none.
        seed: of these orders.
    """

    name = "compare"

    def __init__(
        self,
        networks: Sequence[Network],
        layers: Sequence[Sequence[Layer]],
        measures: Sequence[str] = ("cka",),
        tokens: Tokens = "pooled",
        *,
        null: int = 0,
        seed: int = 0,
    ) -> None:
        self.networks, self.layers, self.tokens = networks, layers, tokens
        self.null, self.seed = whole(null, "null", 0), seed
        self.measures = measures_of(measures)
        self.streamed = [measure for measure in self.measures if isinstance(measure, Streamed)]
        self.held = [measure for measure in self.measures if isinstance(measure, Held)]
        self.sums = _Sums(
            {measure.name: BatchMeans(measure.finish) for measure in self.streamed},
            {measure.name: GroupedSums(1) for measure in self.streamed if null},
            [Joined() for layers_of_one in layers for _ in layers_of_one] if self.held else [],
            Joined(),
        )

    def watch(self, index: int, network: Network, seen: Seen) -> AbstractContextManager[None]:
        return seen.layers(self.layers[index], partial(self._reduce, seen))

    def _reduce(self, seen: Seen, layer: Layer, activation: Tensor) -> dict[str, Tensor]:
        x = layer.select(activation, self.tokens).flatten(1)
        reduced = {measure.name: measure.row(x) for measure in self.streamed}
        if self.held or seen.groups is not None:
            reduced[FEATURES] = x.float().clone() if x.dtype.itemsize < 4 else x.clone()
        return reduced

    def update(self, seen: Sequence[Seen], batch: Batch) -> None:
        reduced = [rows[layer.name] for rows, layers in zip(seen, self.layers) for layer in layers]
        named = [(network.name, layer.name) for network, layers in zip(self.networks, self.layers) for layer in layers]
        features = [rows_of_layer[FEATURES] for rows_of_layer in reduced if FEATURES in rows_of_layer]
        device = self.networks[0].device
        if features:
            require_finite([x.abs().amax().to(device) for x in features], named, batch)
        for measure in self.streamed:
            rows = torch.stack([rows_of_layer[measure.name].to(device) for rows_of_layer in reduced])
            if measure.finish is normalise:  # a correlation may be undefined, and is NaN then
                require_finite(list(rows.abs().amax(1)), named, batch)
            without = partial(_without_groups, measure, features)
            self.sums.streamed[measure.name].update(rows @ rows.T, batch.group, without)
            if self.null:
                self.sums.null[measure.name].update(self._by_chance(rows, batch))
        for joined, x in zip(self.sums.held, features):
            joined.update(batch.positions, x.cpu())
        if self.sums.held and batch.groups is not None:
            self.sums.groups.update(batch.positions, batch.groups.cpu())

    def _by_chance(self, rows: Tensor, batch: Batch) -> Tensor:
        """(orders, N, N) products of rows with those of images in other orders."""
        count = len(batch.positions)
        above = torch.triu_indices(count, count, 1)
        place = torch.zeros(count, count, dtype=torch.int64)
        place[above[0], above[1]] = place[above[1], above[0]] = torch.arange(above.shape[1])
        products = []
        for order in orders_of(count, self.null, self.seed, batch.number):
            again = place[order[above[0]], order[above[1]]].to(rows.device)
            products.append(rows @ rows[:, again].T)
        return torch.stack(products)

    def takes(self, size: int, batches: int) -> Takes:
        layers = [layer for layers_of_one in self.layers for layer in layers_of_one]
        count, widths = len(layers), [layer.selected(self.tokens).numel for layer in layers]
        square, images = 8 * count**2, size * batches
        features = 4 * images * sum(widths) if self.held else 0
        prepared = 3 * 8 * images * sum(min(width, images) for width in widths) if self.held else 0
        rows = 4 * size**2 * count * (1 + bool(self.null))
        return Takes(
            sums=len(self.streamed) * (min(GROUPS, batches) + self.null) * square + features,
            batch=len(self.streamed) * rows + 12 * 8 * size**2 + 4 * size * sum(widths),
            tables=len(self.measures) * (8 * square + BYTES_OF_ROW * count**2) + features + prepared,
            waiting=4 * size * sum(layer.numel for layer in layers),
            less="fewer --layers, --tokens pooled, or fewer --images",
        )

    def result(self, counts: Counts) -> Result:
        table, other_tables = self.tables()
        return Result(self.name, table, {"protocol": self.protocol(counts)}, other_tables)

    def protocol(self, counts: Counts) -> dict[str, Any]:
        """Settings that the numbers depend on."""
        return {
            "measures": [measure.name for measure in self.measures],
            "over_minibatches": [measure.name for measure in self.streamed],
            "of_all_images": [measure.name for measure in self.held],
            "tokens": self.tokens,
            "batch_size": counts.batch_size,
            "batches": counts.batches,
            "null": self.null,
        }

    def found(self) -> Iterator[Found]:
        """Results of each measure; measures that share a `prepare` follow each other, so that it is called once."""
        rows = [joined.values for joined in self.sums.held]
        prepare, prepared = None, []
        for measure in self.measures:
            if isinstance(measure, Streamed):
                yield self._streamed(measure)
                continue
            if measure.prepare is not prepare:
                prepare, prepared = measure.prepare, [measure.prepare(x) for x in rows]
            yield self._held(measure, rows, prepared)

    def _streamed(self, measure: Streamed) -> Found:
        sums, by_chance = self.sums.streamed[measure.name], None
        if self.null:
            products = self.sums.null[measure.name].mean()
            own = torch.eye(products.shape[-1], dtype=torch.bool, device=products.device)
            by_chance = torch.stack([measure.finish(torch.where(own, sums.mean(), product)) for product in products])
        return Found(measure, measure.finish(sums.mean()), sums, by_chance)

    def _held(self, measure: Held, rows: Sequence[Tensor], prepared: Sequence[Any]) -> Found:
        count, images = len(rows), len(rows[0])
        groups = self.sums.groups.values if self.sums.groups else torch.arange(images) % GROUPS
        groups = groups.unique(return_inverse=True)[1]
        pairs = [(i, j) for i in range(count) for j in range(i if measure.symmetric else 0, count)]

        def matrix(values: Tensor) -> Tensor:
            full = values.new_zeros(count, count)
            first, second = torch.tensor(pairs).T
            if measure.symmetric:
                full[second, first] = values
            full[first, second] = values
            return full

        by_chance = None
        if self.null:
            across, tried = [(i, j + count) for i, j in pairs], []
            for order in orders_of(images, self.null, self.seed):
                mixed = [measure.prepare(x[order]) for x in rows]
                tried.append(matrix(measure.values([*prepared, *mixed], across)))
            by_chance = torch.stack(tried)
        without = measure.without(prepared, pairs, groups)
        left_out = LeftOut(matrix(measure.values(prepared, pairs)), torch.stack(list(map(matrix, without))), groups)
        return Found(measure, left_out.values, left_out, by_chance)

    def tables(
        self, untrained: Comparison | None = None, network_numbers: Sequence[int] = ()
    ) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
        """The tables of layers, of networks, and of the map of networks.

        Args:
            untrained: the same measures between networks without training.
            network_numbers: the numbers of the networks that these are without training.
        """
        rows_of = slices([*map(len, self.layers)])
        names = [network.name for network in self.networks]
        pairs = pairs_of_layers(self.networks, self.layers)
        at = (
            torch.cat([torch.arange(rows_of[-1].stop)[rows_of[number]] for number in network_numbers])
            if network_numbers
            else torch.arange(0)
        )
        twins = [None] * len(self.measures) if untrained is None else [measured.value for measured in untrained.found()]
        layers, networks, maps = [], [], []
        for measured, twin in zip(self.found(), twins):
            value, se, of_networks = measured.with_errors(rows_of)
            low, high = interval(value, se, measured.df)
            null, null_95 = measured.null()
            random = torch.full_like(value, torch.nan)
            if twin is not None:
                random[at[:, None], at] = twin
            columns = {"value": value, "se": se, "low": low, "high": high, "null": null, "null_95": null_95}
            columns["untrained"] = random
            flat = {column: values.cpu().flatten().numpy() for column, values in columns.items()}
            layers.append(pairs.assign(measure=measured.measure.name, df=measured.df, **flat)[COMPARE])
            networks.append(table_of_networks(measured, names, of_networks))
            maps.append(table_of_map(measured, names, rows_of))
        table, *other_tables = (pd.concat(parts, ignore_index=True) for parts in (layers, networks, maps))
        return table, dict(zip(("networks", "networks_map"), other_tables, strict=True))


@dataclass(frozen=True)
class Found:
    """Values of a measure, (N, N) for the layers of all networks, and the values without each group of images."""

    measure: Streamed | Held
    value: Tensor
    sums: BatchMeans | LeftOut
    """By which statistics of the values have errors."""
    by_chance: Tensor | None
    """(orders, N, N), with the images of one side permuted."""

    @property
    def df(self) -> int:
        """Degrees of freedom of standard errors."""
        groups = sum(0 < size < self.sums.batches for size in self.sums.counts.tolist())
        return max(self.measure.degrees(groups) if isinstance(self.measure, Held) else groups - 1, 0)

    def with_errors(self, layer_slices: Sequence[slice]) -> tuple[Tensor, Tensor, Tensor]:
        """Values (N, N), their standard errors, and summaries for pairs of networks.

        The latter is (4, K, K): the value of the last layers and its standard error; the mean over layers of the first
        of the best match among those of the second, and its standard error.
        """
        last, count = [rows.stop - 1 for rows in layer_slices], len(layer_slices)

        def statistics(value: Tensor) -> Tensor:
            best = [value[a, b].amax(1).mean() for a in layer_slices for b in layer_slices]
            return torch.cat([value.flatten(), value[last][:, last].flatten(), torch.stack(best)])

        value, se = self.sums.compute(statistics)
        square = layer_slices[-1].stop
        parts = [estimates.split([square**2, count**2, count**2]) for estimates in (value, se)]
        (layers, *networks), (layers_se, *networks_se) = parts
        own = torch.eye(square, dtype=torch.bool, device=value.device) & ((1 - layers.view(square, square)).abs() < ONE)
        layers_se = layers_se.view(square, square).masked_fill(own, 0)  # of a layer with itself, which is no estimate
        pairs = [summary.view(count, count) for pair in zip(networks, networks_se) for summary in pair]
        return layers.view(square, square), layers_se, torch.stack(pairs)

    def null(self) -> tuple[Tensor, Tensor]:
        """Mean and 95 % quantile of the values over permutations of the images, (N, N); NaN without permutations."""
        if self.by_chance is None:
            nothing = torch.full_like(self.value, torch.nan)
            return nothing, nothing
        own = torch.eye(len(self.value), dtype=torch.bool, device=self.value.device)
        tried = self.by_chance.masked_fill(own, torch.nan)
        return tried.mean(0), tried.quantile(0.95, 0)


def orders_of(count: int, orders: int, seed: int, number: int = 0) -> Iterator[Tensor]:
    """Orders of images, drawn anew for each number of a batch."""
    drawn = np.random.default_rng([seed, number])
    for _ in range(orders):
        yield torch.from_numpy(drawn.permutation(count))


def measures_of(names: str | Sequence[str]) -> list[Streamed | Held]:
    """Measures by their names, without duplicates.

    Raises:
        UsageError: a name is unknown.
    """
    chosen = []
    for name in dict.fromkeys([names] if isinstance(names, str) else names):
        if name not in MEASURES:
            raise one_of("measure", name, MEASURES)
        chosen.append(MEASURES[name])
    if not chosen:
        raise UsageError(f"a comparison needs at least one measure; choose among {', '.join(MEASURES)}")
    return chosen


def _without_groups(measure: Streamed, features: Sequence[Tensor], group: Tensor) -> Tensor:
    """(g, N, N) products of the rows of a batch without the images of one group at a time."""
    products = []
    for number in group.unique():
        left = group != number
        if left.sum() < FEWEST:  # which is not looked at
            products.append(torch.zeros(len(features), len(features), dtype=torch.float64, device=group.device))
            continue
        rows = torch.stack([measure.row(x[left.to(x.device)]) for x in features])
        products.append((rows @ rows.T).to(group.device))
    return torch.stack(products).to(features[0].device)


def table_of_networks(measured: Found, names: Sequence[str], values: Tensor) -> pd.DataFrame:
    """One row per ordered pair of networks; see `Found.with_errors`."""
    last, last_se, best, best_se = values
    ends = [*interval(last, last_se, measured.df), *interval(best, best_se, measured.df)]
    columns = [last, last_se, *ends[:2], best, best_se, *ends[2:]]
    rows = [
        (measured.measure.name, a, b, measured.df, *(column[i, j].item() for column in columns))
        for i, a in enumerate(names)
        for j, b in enumerate(names)
        if i != j
    ]
    return pd.DataFrame(rows, columns=COMPARE_NETWORKS)


def table_of_map(measured: Found, names: Sequence[str], layer_slices: Sequence[slice]) -> pd.DataFrame:
    """Where each network is on a map of the angles between last layers, and how sure that is; of two no map is made.

    The map without a group of images is turned to the one of all, from which it began.
    """
    if len(names) < 3:
        return pd.DataFrame(columns=COMPARE_MAP)
    last = [rows.stop - 1 for rows in layer_slices]

    def angles(value: Tensor) -> Tensor:
        between = value[last][:, last].cpu()
        return ((between + between.T) / 2).clamp(-1, 1).acos().fill_diagonal_(0)

    positions, stress = mds(angles(measured.value))

    def placed(value: Tensor) -> Tensor:
        again = turned(mds(angles(value), start=positions)[0], positions)
        x, y = again.T
        # The squared length along the diagonal has the covariance of x and y in it.
        return torch.stack([x, y, (x + y) / 2**0.5])

    _, (x_se, y_se, both_se) = measured.sums.compute(placed)
    covariance = both_se**2 - (x_se**2 + y_se**2) / 2
    rows = zip(names, *(column.tolist() for column in (*positions.T, x_se, y_se, covariance)))
    return pd.DataFrame(
        [(measured.measure.name, *row, measured.df, stress.item()) for row in rows], columns=COMPARE_MAP
    )


@study
def compare(
    networks: AnyNetwork | Sequence[AnyNetwork],
    images: AnyImages = None,
    *,
    measures: str | Sequence[str] = "cka",
    layers: str | Sequence[str] = LAST,
    tokens: Tokens = "pooled",
    null: int = 0,
    untrained: bool = False,
    batch_size: int | None = None,
    **pass_options: Unpack[Passing],
) -> Result:
    """Similarity of any number of networks and features by several measures, from one pass over the images.

    Measures over minibatches need memory for a batch, the others for the features of all images; docs/measures.md says
    which are which, and what each sees and misses. Intervals are over images: a jackknife over minibatches, or over 32
    groups of images.

    Args:
        networks: two or more networks, modules, names or `Features`; or one, whose layers are compared.
        images: see `layer_cka`.
        measures: one or several names of `repsim.measures.catalogue.MEASURES`.
        layers: `last`, the output of each last block; or a choice of `find_layers`.
        tokens: the part of each layer that stands for an image: `pooled`, `cls`, `spatial` or `all`, but for features.
        null: number of permutations of the images of one side, for values by chance.
        untrained: whether the same architectures are measured without training too, because these are also alike.
        batch_size: images per minibatch, at least 4; the last short one is dropped. None: 256, or for few images
            fewer, see `layer_cka`.
        pass_options: see `repsim.passes.sweep.Passing`.

    Returns:
        `table`: one row per measure and ordered pair of layers: measure, model_a, layer_a, kind_a, index_a, depth_a,
        the same of b, value, se, low and high (its 95 % interval), null and null_95 (mean and 95 % quantile over
        orders of the images), untrained. `networks`: one row per measure and ordered pair of networks: last (value of
        the last layers) and best (mean over layers of a of the largest value among layers of b), each with its error
        and interval. `networks_map`, of three or more: where each is on a map of the angles between last layers (metric
        MDS), x, y, x_se, y_se, their covariance xy_cov, and the map's stress.

    Raises:
        UsageError: no such measure or layers, too few images, or more memory needed than there is.

    Reference: docs/measures.md, for each measure.

    >>> import repsim as rs
    >>> images = rs.ImageSet("sample", images=32)
    >>> comparison = rs.compare(["vit_mini", "resnet_mini"], images, measures=["cka", "procrustes"], batch_size=16)
    >>> sorted(set(comparison.networks["measure"])), len(comparison.networks)  # both ways
    (['cka', 'procrustes'], 4)
    """
    measured = measures_of(measures)
    begun = begin(
        networks,
        images,
        most=MOST,
        layers=None if layers == LAST else layers,
        batch_size=batch_size,
        usual=BATCH,
        over_batches=any(isinstance(m, Streamed) for m in measured),
    )
    for measure in measured:
        count = min(begun.batch_size, len(begun.images)) if isinstance(measure, Streamed) else len(begun.images)
        if count < measure.fewest:
            place = " in a batch" if isinstance(measure, Streamed) else ""
            raise UsageError(f"{measure.name} needs at least {measure.fewest} images{place}, got {count}")
    options = {"measures": [measure.name for measure in measured]}
    chosen = chosen_layers(begun.networks, layers, tokens)
    if sum(map(len, chosen)) < 2:
        raise UsageError("a comparison needs two or more networks, or several layers of one network (layers='blocks')")
    study = Comparison(begun.networks, chosen, tokens=tokens, null=null, seed=begun.images.seed, **options)
    studies, computing = [study], []
    if untrained:
        computing = [number for number, network in enumerate(begun.networks) if not isinstance(network, FeatureNetwork)]
        twins = [without_training(begun.networks[number]) for number in computing]
        studies.append(Comparison(twins, chosen_layers(twins, layers, tokens), tokens=tokens, **options))
    counts = sweep(begun.images, studies, batch_size=begun.batch_size, **pass_options)
    table, other_tables = study.tables(*studies[1:], network_numbers=computing)
    undefined = table.loc[table["value"].isna(), "measure"].value_counts(sort=False)
    for measure, rows in undefined.items():
        begun.notices.say(f"{measure} is undefined for {rows} of {(table['measure'] == measure).sum()} pairs of layers")
    protocol = {"layers": layers, "untrained": untrained, **study.protocol(counts)}
    return begun.result(study.name, table, counts, protocol, tables=other_tables)


def chosen_layers(networks: Sequence[Network], layers: str | Sequence[str], tokens: Tokens) -> list[list[Layer]]:
    """The chosen layers of each network; features keep their own tokens."""

    def of(network: Network) -> list[Layer]:
        taken = "all" if isinstance(network, FeatureNetwork) else tokens
        if layers != LAST:
            return find_layers(network, layers, tokens=taken)
        last = find_layers(network, "all" if isinstance(network, FeatureNetwork) else "blocks", tokens=taken)[-1]
        return [replace(last, index=0)]

    return [of(network) for network in networks]


def without_training(network: Network) -> Network:
    """A network of the same architecture with random weights, which sees the images in the same way.

    Raises:
        UsageError: it is not known how the network was built.
    """
    if not network.source:
        raise UsageError(
            f"{network.name} was handed over as a module, so nothing says how it is built without training; give it "
            "by a name, or as package.module:factory"
        )
    name = network.source.removeprefix(BUNDLED)
    options = {"device": network.device, "seed": network.seed or 0, "precision": network.precision}
    return load_model(name, weights="random", transform=network.transform, **options, **network.model_args)
