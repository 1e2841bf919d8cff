"""The closing sentences of a command: the one or two numbers of its tables that readers look for first.

Nothing is computed anew. A number has an interval where the table has one, or where the record gives the number of
groups of images behind a standard error; else it has the standard error, `se`; and a mean over rows whose errors
belong together has neither, which the sentence says. No interval goes beyond the range of its number, though Student's
t would where images are few. A number that is picked as the highest or the lowest is a little too high or too low for
that, so the sentence says from how many it is picked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import pandas as pd

from repsim.plots.style import GROUPS, groups_of, groups_of_images, half_widths

if TYPE_CHECKING:
    from repsim.studies.results import Result

NO_INTERVAL = "no interval: the table has the errors of its rows alone"
MANY = 12
"""The most networks, or pairs of networks, in the sentences."""
Range = tuple[float, float]
ANY: Range = (-math.inf, math.inf)
LENGTH: Range = (0, math.inf)
SHARE: Range = (0, 1)
CORRELATION: Range = (-1, 1)
"""Also of CKA, which is unbiased, and so may be below 0."""
DIFFERENCE: Range = (-2, 2)
"""The range of a difference of two of these."""


def said(result: Result) -> list[str]:
    """The sentences on the result of a study; empty if all numbers are missing, or for a study without sentences."""
    return list(SENTENCES[result.name](result)) if result.name in SENTENCES else []


# Numbers in words


def _between(value: float, low: float, high: float, within: Range, digits: int = 2) -> str:
    """A number with the part of its 95 % interval that is within what it can be."""
    if math.isnan(low) or math.isnan(high):
        return f"{value:.{digits}f} (interval unknown)"
    low, high = max(low, within[0]), min(high, within[1])
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _by_groups(value: float, se: float, groups: int | None, within: Range, digits: int = 2) -> str:
    """A number with its 95 % interval, from its standard error over groups; None: with the standard error alone."""
    if groups is not None:
        return _by_t(value, se, groups - 1, within, digits)
    return f"{value:.{digits}f} (se {'not known' if math.isnan(se) else f'{se:.{digits}f}'})"


def _by_t(value: float, se: float, df: float, within: Range, digits: int = 2) -> str:
    """A number with its 95 % interval by Student's t."""
    half = float(half_widths(pd.Series([se]), df).iloc[0])
    return _between(value, value - half, value + half, within, digits)


def _count(number: int, noun: str) -> str:
    """So many of something."""
    return f"{number} {noun}{'s' * (number != 1)}"


def _images(result: Result) -> int | None:
    """Number of images, or of groups of images, behind standard errors over images; None: not in the record."""
    return groups_of_images(result.record) or result.record.get("images", {}).get("used")


def _ends(table: pd.DataFrame) -> list[pd.Series]:
    """The rows of the first and the last layer; a single layer gives one row."""
    ordered = table.sort_values("index", kind="stable")
    return [ordered.iloc[0], *([ordered.iloc[-1]] if len(ordered) > 1 else [])]


def _models(table: pd.DataFrame, column: str = "model") -> Iterator[tuple[str, pd.DataFrame]]:
    """The rows of each network, of the first `MANY`."""
    return iter(list(table.groupby(column, sort=False))[:MANY])


# One function per study


def cka(result: Result) -> Iterator[str]:
    """CKA of the lowest with the highest layers of each network, and the likest layers of the second for each third."""
    table = result.table
    for model, part in _models(table, "model_a"):
        matrix = _matrix(part[part["model_b"] == model])
        size = -(-len(matrix) // 3)
        value = matrix.iloc[:size, -size:].to_numpy().mean()
        if len(matrix) >= 3 and not math.isnan(value):
            ends = {"model_a": model, "layers_a": "lowest third", "model_b": model, "layers_b": "highest third"}
            average, why = _mean(result, value, CORRELATION, ends)
            yield f"{model}: CKA of the lowest with the highest third of its layers is {average} on average{why}."
    names = list(table["model_a"].unique())
    if len(names) != 2:
        return
    a, b = names
    matrix = _matrix(table[(table["model_a"] == a) & (table["model_b"] == b)])
    size = -(-len(matrix) // 3)
    parts = {"lowest": matrix[:size], "middle": matrix[size:-size], "highest": matrix[-size:]}
    means = {third: best.mean(skipna=False).dropna() for third, best in parts.items() if len(best)}
    likest = []
    for third, best in means.items():
        if len(best):
            pair = {"model_a": a, "layers_a": f"{third} third", "model_b": b, "layers_b": best.idxmax()}
            likest.append(f"the {third} like {best.idxmax()} ({_mean(result, best.max(), CORRELATION, pair)[0]})")
    if len(matrix) >= 3 and likest:
        yield (
            f"Each third of {a}'s layers is most like one of the {matrix.shape[1]} layers of {b}, by mean CKA: "
            f"{', '.join(likest)}."
        )


def _mean(result: Result, value: float, within: Range, names: Mapping[str, str]) -> tuple[str, str]:
    """A mean over layers with its interval, from the record of the run; or without, and the reason to add."""
    for row in result.record.get("means", ()):
        if names.items() <= row.items() and row["se"] is not None:
            return _by_t(value, row["se"], row["df"], within), ""
    return f"{value:.2f}", f" ({NO_INTERVAL})"


def _matrix(part: pd.DataFrame) -> pd.DataFrame:
    """CKA of the layers of one network (rows) with the layers of a second one, as they run."""
    ordered = part.sort_values(["index_a", "index_b"], kind="stable")
    matrix = ordered.pivot_table("cka", "layer_a", "layer_b", sort=False, dropna=False, aggfunc="first")
    return matrix.reindex(index=ordered["layer_a"].unique(), columns=ordered["layer_b"].unique())


def matched(result: Result) -> Iterator[str]:
    """The mean over layers, and the layer that differs most, of each network with the first."""
    groups = groups_of(result.record)
    for model, part in _models(result.table.dropna(subset="cka"), "model_b"):
        least = part.loc[part["cka"].idxmin()]
        pair = {"model_a": least["model_a"], "model_b": model}
        average, why = _mean(result, part["cka"].mean(), CORRELATION, pair)
        yield (
            f"{model} with {least['model_a']}: CKA of the same layers is {average} on average{why}, and in "
            f"{least['layer']}, the lowest of {_count(len(part), 'layer')}, "
            f"{_by_groups(least['cka'], least['se'], groups, CORRELATION)}."
        )


def attention(result: Result) -> Iterator[str]:
    """The nearest and the farthest head of the first and the last block."""
    table, images = result.table.dropna(subset="distance_px"), _images(result)
    for block in dict.fromkeys((table["block"].min(), table["block"].max())) if len(table) else ():
        part = table[table["block"] == block].sort_values("distance_px", kind="stable")
        (near, nearest), (far, farthest) = (
            (int(row["head"]), _by_groups(row["distance_px"], row["distance_px_se"], images, LENGTH, 1))
            for row in (part.iloc[0], part.iloc[-1])
        )
        yield (
            f"In block {block}, of {_count(len(part), 'head')}, head {near} looks nearest, {nearest} px, and head "
            f"{far} farthest, {farthest} px."
        )


def residual(result: Result) -> Iterator[str]:
    """Skip over branch of each network: the mean over residual sums, each a mean over its tokens."""
    for model, part in _models(result.table.dropna(subset="ratio")):
        ratio = part.groupby(["block", "sublayer"])["ratio"].mean().mean()
        average, why = _mean(result, ratio, LENGTH, {"model": model})
        yield f"{model}: a skip is {average} times as long as its branch on average{why}."


def localization(result: Result) -> Iterator[str]:
    """CKA of tokens with their own patches minus that with all other patches, in the first and the last layer."""
    groups = groups_of(result.record)
    for model, part in _models(result.localization_summary.dropna(subset="own_minus_rest")):
        inside = part[part["where"] == "interior"]
        part = inside if len(inside) else part[part["where"] == part["where"].iloc[0]]
        shown = [
            f"{_by_groups(row['own_minus_rest'], row['se'], groups, DIFFERENCE, 3)} in {row['layer']}"
            for row in _ends(part)
        ]
        zone = part["where"].iloc[0]
        yield f"{model}: CKA of {zone} tokens with their own patch, less CKA with the rest, is {', '.join(shown)}."


def probe(result: Result) -> Iterator[str]:
    """The layer by which a linear probe tells classes best, from the most training images."""
    table = result.probe_summary.dropna(subset="accuracy")
    table = table[~table["aggregation"].isin(["token", "token_mean"])]
    for model, part in _models(table):
        counts = part["shots"].astype(str)
        most = "all" if (counts == "all").any() else max(counts, key=int)
        part = part[counts == most]
        best = part.loc[part["accuracy"].idxmax()]
        trained_on = "all training images" if most == "all" else f"{most} training image{'s' * (most != '1')} per class"
        yield (
            f"{model}: the probe on {best['layer']} ({best['aggregation']}) has accuracy "
            f"{_by_t(best['accuracy'], best['se'], best['df'], SHARE)} from {trained_on}, the highest of "
            f"{_count(len(part), 'probe')} on {_count(part['layer'].nunique(), 'layer')}."
        )


def receptive(result: Result) -> Iterator[str]:
    """The radius that holds half of the gradient, of the first and the last layer."""
    images = _images(result)
    groups = None if images is None else min(images, GROUPS)
    for model, part in _models(result.table.dropna(subset="radius50_px")):
        ends = [
            f"{_by_groups(row['radius50_px'], row['radius50_px_se'], groups, LENGTH, 1)} px in {row['layer']}"
            for row in _ends(part)
        ]
        yield f"{model}: the radius that holds half of the gradient is {', and '.join(ends)}."


def lesion(result: Result) -> Iterator[str]:
    """The lesion after which the fewest predictions stay; of networks without classes, the most of layers is lost."""
    table = result.table[result.table["removed"] != "nothing"]
    tried = table.groupby(["removed", "block"], sort=False)[["agreement", "kl", "cka"]].mean()
    if len(known := tried.dropna(subset="agreement")):
        removed, block = known.sort_values(["agreement", "kl"], ascending=[True, False], kind="stable").index[0]
        least = known.loc[(removed, block)]
        effect = f"{100 * least['agreement']:.1f} % of predictions stay, and the divergence is {least['kl']:.2f} nats"
    elif len(known := tried.dropna(subset="cka")):
        removed, block = known["cka"].idxmin()
        effect = f"layers have CKA {known['cka'].min():.2f} with themselves before the lesion, on average"
    else:
        return
    yield f"Of {len(tried)} lesions, removing {_taken(removed, block)} does the most harm: {effect} ({NO_INTERVAL})."


def _taken(removed: str, block: int) -> str:
    """The part that a lesion took out, in words."""
    return f"block {block}" if removed == "block" else f"{removed} of block {block}"


def heads(result: Result) -> Iterator[str]:
    """The rank correlation of distance and CKA, for the first and the last layer of the second network."""
    table = result.heads_correlation.dropna(subset="spearman")
    if not len(table):
        return
    ends = [
        f"{_between(row['spearman'], row['low'], row['high'], CORRELATION)} for {row['layer_b']}"
        for row in _ends(table.rename(columns={"index_b": "index"}))
    ]
    a, b = table[["model_a", "model_b"]].iloc[0]
    yield (
        f"How far heads of {a} look and their CKA with layers of {b} have the rank correlation {', and '.join(ends)}; "
        "below 0, nearer heads are more alike."
    )


def compare(result: Result) -> Iterator[str]:
    """The likest and the unlikest pair of networks by each measure."""
    from repsim.measures.catalogue import MEASURES

    table = result.networks
    table = table[table["model_a"] != table["model_b"]].dropna(subset="last")
    for measure, part in table.groupby("measure", sort=False):
        ordered = part.sort_values("last", ascending=False, kind="stable")
        within = MEASURES[measure].range if measure in MEASURES else ANY
        pairs = [frozenset(pair) for pair in zip(ordered["model_a"], ordered["model_b"])]
        shown = [
            f"{row['model_a']} with {row['model_b']}, "
            f"{_between(row['last'], row['last_low'], row['last_high'], within)}"
            for row in (ordered.iloc[0], ordered.iloc[-1])
        ]
        if len(set(pairs)) == 1:
            yield f"{measure} of the last layers: {shown[0]}."
        else:
            yield (
                f"{measure} of the last layers, of {_count(len(set(pairs)), 'pair')} of networks, is highest for "
                f"{shown[0]}, and lowest for {shown[1]}."
            )


def sensitivity(result: Result) -> Iterator[str]:
    """The value of each measure for layers without 90 % of their components: the mean over layers."""
    table = result.table
    cut = table[(table["change"] == "components") & (table["amount"] == 0.9)].dropna(subset="value")
    means = cut.groupby("measure", sort=False)["value"].mean()
    if len(means):
        shown = ", ".join(f"{measure} {value:.2f}" for measure, value in means.items())
        layers = _count(cut["layer"].nunique(), "layer")
        yield (
            f"Without the smallest 90 % of their principal components, {layers} still have "
            f"a mean similarity to themselves of {shown} (the table has no errors)."
        )


SENTENCES: dict[str, Callable[[Result], Iterator[str]]] = {
    "cka": cka,
    "matched": matched,
    "attention": attention,
    "residual": residual,
    "localization": localization,
    "probe": probe,
    "receptive": receptive,
    "receptive_proxy": receptive,
    "lesion": lesion,
    "heads": heads,
    "compare": compare,
    "sensitivity": sensitivity,
}
