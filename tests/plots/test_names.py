"""Names are text: a network or a layer of any name is read from its table, and its picture shows just that name."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from matplotlib.transforms import Bbox

import repsim as rs
from repsim import plots, tables
from repsim.plots.compare import layer_matrices, networks_map, networks_matrix
from repsim.plots.sensitivity import sensitivity
from repsim.plots.style import Figure, legend, note, shortened, tick_names, undrawn

NAMES = [
    *("0.10", "0.1", "NA", "null", "nan", "1e5", "True", "007"),  # pandas takes these for numbers, or for missing
    *("_x", "__", "$a", "$x_1$", "$\\frac$", "\\alpha", "100 %", "%s", "{x}", "^"),  # matplotlib reads these as markup
    *("<b>", "&amp;", "a,b", 'a "q"', "it's", " a ", "two\nlines", "a\r", "=1+1", "#"),  # CSV and HTML do
    *("Ünïcode", "a\tb", "-", "."),
]
LONG = "".join(map(str, range(1000)))


def rows(columns: list[str], names: list[dict]) -> pd.DataFrame:
    """A table of these names and places; all other columns hold the number 0.5."""
    table = pd.DataFrame(names)
    return table.assign(**{column: 0.5 for column in columns if column not in table})[columns]


def similarity(models, layers):
    places = list(enumerate(layers))
    pairs = [
        {"model_a": a, "layer_a": p, "index_a": i, "model_b": b, "layer_b": q, "index_b": j}
        for a, b, (i, p), (j, q) in product(models, models, places, places)
    ]
    return rows(tables.SIMILARITY, pairs).assign(kind_a="block", kind_b="block")


def over_layers(columns, models, layers, **more):
    entries = [{"model": m, "layer": x, "index": i, "depth": i / 3} for m, (i, x) in product(models, enumerate(layers))]
    return rows(columns, [{**entry, **more} for entry in entries])


def attention(models, layers):
    return rows(
        tables.ATTENTION,
        [{"model": models[0], "layer": x, "block": i, "head": h} for i, x in enumerate(layers) for h in range(2)],
    )


def heads(models, layers):
    return rows(
        tables.HEADS,
        [{"model_a": models[0], "heads": "0 1", "model_b": models[1], "layer_b": x} for x in layers],
    )


def matched(models, layers):
    entries = [{"model_a": "ref", "model_b": m, "layer": x, "index": i} for m in models for i, x in enumerate(layers)]
    return rows(tables.MATCHED, entries)


def residual(models, layers):
    entries = [
        {"model": m, "layer": f"b.{b}", "depth": b, "block": b, "sublayer": s, "token": t}
        for m, s, b, t in product(models, layers, range(2), ["cls", "0", "1"])
    ]
    return rows(tables.RESIDUAL, entries)


def lesion(models, layers):
    kinds = [("nothing", -1), *((kind, b) for kind in layers for b in range(2))]
    entries = [{"model": models[0], "removed": kind, "block": b, "layer": x} for kind, b in kinds for x in layers]
    return rows(tables.LESION, entries)


def single_tokens(models, layers):
    parts = [
        over_layers(tables.PROBE, models, layers, token_row=r, token_col=c, seed=0) for r in range(2) for c in range(2)
    ]
    return pd.concat(parts).assign(aggregation="token", shots="10")


def localization(models, layers):
    entries = [
        {"model": m, "layer": x, "token_row": r, "token_col": c, "patch_row": p, "patch_col": q}
        for m, x, r, c, p, q in product(models, layers, *[range(2)] * 4)
    ]
    return rows(tables.LOCALIZATION, entries)


def receptive_fields(table):
    return plots.receptive_fields(table, {layer: np.eye(3) for layer in table["layer"]})


def last(models, layers):
    return [*models, layers[-1]]


def both(models, layers):
    return [*models, *layers]


def alone(models, layers):
    return models


PICTURES = {
    "heatmap": (similarity, plots.heatmap, both),
    "panel": (similarity, lambda t: plots.panel(t, *t["model_a"].unique()), both),
    "panels": (similarity, lambda t: plots.panels(t, [tuple(t["model_a"].unique())], title=t["model_a"][0]), both),
    "matched": (matched, plots.matched, alone),
    "attention_distance": (attention, plots.attention_distance, lambda models, layers: models[:1]),
    "side_by_side": (
        attention,
        lambda t: plots.side_by_side(plots.attention_distance, [t, t], title=t["model"][0]),
        lambda models, layers: models[:1],
    ),
    "head_similarity": (heads, plots.head_similarity, both),
    "residual": (residual, plots.residual, both),
    "norm_ratios": (residual, plots.norm_ratios, both),
    "cosines": (residual, plots.cosines, both),
    "lesion": (lesion, plots.lesion, lambda models, layers: [models[0], *layers]),
    "probes": (
        lambda *names: over_layers(tables.PROBE_SUMMARY, *names, aggregation="cls", shots="10"),
        plots.probes,
        alone,
    ),
    "compared": (
        lambda *names: over_layers(tables.PROBE_SUMMARY, *names, aggregation="cls", shots="10"),
        plots.compared,
        alone,
    ),
    "probe_tokens": (single_tokens, plots.probe_tokens, both),
    "neighbours": (lambda *names: over_layers(tables.NEIGHBOURS, *names, aggregation="cls"), plots.neighbours, alone),
    "receptive_fields": (
        lambda models, layers: over_layers(tables.RECEPTIVE, models[:1], layers),
        receptive_fields,
        lambda models, layers: [models[0], *layers],
    ),
    "localization": (localization, plots.localization, last),
    "localization_summary": (
        lambda *names: over_layers(tables.LOCALIZATION_SUMMARY, *names, where="edge"),
        plots.localization_summary,
        alone,
    ),
}


def written(figure) -> list[Text]:
    figure.draw_without_rendering()
    return [text for text in figure.findobj(Text) if text.get_text()]


def test_every_picture_of_a_table_is_tried():
    assert set(plots.__all__) - set(PICTURES) == {"save", "attention_maps"}


@pytest.mark.parametrize("picture", PICTURES)
def test_names_are_written_as_they_are(picture, tmp_path):
    """A picture of a table that was read from its file, as for redrawing, shows each name as it is."""
    make, draw, shown = PICTURES[picture]
    for i in range(0, len(NAMES), 4):
        models, layers = [NAMES[i], NAMES[(i + 5) % len(NAMES)]], [NAMES[(i + j) % len(NAMES)] for j in (0, 1, 2, 3)]
        tables.save_table(make(models, layers), tmp_path / "t.csv")
        drawn = draw(tables.load_table(tmp_path / "t.csv"))
        texts = written(getattr(drawn, "figure", drawn))
        for name in shown(models, layers):
            holding = [text for text in texts if name in text.get_text()]
            assert holding, (name, [text.get_text() for text in texts])
            assert not any(text.get_parse_math() or text.get_usetex() for text in holding if "$" in name or "_" in name)


def test_ticks_and_legends_hold_each_name_once_and_whole():
    ax = plots.panel(similarity(["vit"], NAMES[:14]), "vit", "vit")
    assert [text.get_text() for text in ax.get_yticklabels()] == NAMES[:14]
    assert [text.get_text() for text in ax.get_xticklabels()] == NAMES[:14]
    ax = plots.matched(matched(NAMES, ["a", "b"]))
    assert [text.get_text() for text in ax.get_legend().get_texts()] == NAMES


def test_names_that_are_no_text_are_refused():
    """A number is refused as a name: if pandas has read 0.10 as 0.1, the picture would name another layer."""
    for name in (0.1, np.nan, 100000, True, None):
        for picture, (make, draw, _) in PICTURES.items():
            if picture != "residual":
                with pytest.raises(rs.UsageError, match=r"names must be text, and column .*load_table"):
                    draw(make([name, "b"], ["c", "d"]))


def test_of_very_long_names_at_ticks_the_middle_is_left_out():
    figure = Figure()
    ax = figure.subplots()
    tick_names(ax.xaxis, [0], [LONG])
    (text,) = (label.get_text() for label in ax.get_xticklabels())
    assert text == shortened(LONG) and len(text) == 200 and text.startswith("0123") and text.endswith("999")


@pytest.mark.parametrize("picture", sorted(PICTURES.keys() - {"lesion"}))  # no names, but words
def test_names_as_long_as_a_line_have_room(picture):
    make, draw, _ = PICTURES[picture]
    drawn = draw(make([LONG[:120], LONG[:119] + "'"], ["a" * 120, "b"]))
    getattr(drawn, "figure", drawn).draw_without_rendering()


def test_file_names_that_are_no_utf8():
    drawn = plots.matched(matched(["net@\udcff", "b"], ["a"]))
    assert drawn.get_legend().get_texts()[0].get_text() == "net@\\udcff"
    drawn.figure.draw_without_rendering()


def test_characters_that_the_font_lacks_are_told():
    figure = Figure()
    ax = figure.subplots()
    (line,) = ax.plot([0, 1])
    legend(ax, [(line, "网 _x")])
    assert undrawn(figure) == "网"
    figure.draw_without_rendering()


# The places of titles

NETWORKS = [
    "hf:facebook/dinov2-with-registers-small:Dinov2Model@my_checkpoint_final_v2",
    "timm/vit_base_patch16_clip_224.laion2b_ft_in12k_in1k@WWWWMMMM_EMA_MODEL_BEST_OF_WWWWMMMM",
]
RECORD = {"images": {"used": 5000, "data": "/data/of/mine/" + "a_rather_long_folder/" * 4, "split": "val"}}
SLACK = 2
"""Pixels, 100 per inch, by which boxes may overlap, as boxes hold room above and below their letters."""


def compared(models):
    rows = [
        {"measure": m, "model_a": a, "model_b": b, "last": 1.0 if a == b else 0.5}
        for m in ("cka", "cka-rbf", "rsa-spearman")
        for a in models
        for b in models
    ]
    return networks_matrix(pd.DataFrame(rows))


def mapped(models):
    rows = [
        {
            "measure": m,
            "model": a,
            "x": k % 2,
            "y": k // 2,
            "x_se": 0.1,
            "y_se": 0.1,
            "xy_cov": 0.0,
            "df": 9,
            "stress": 0.0,
        }
        for m in ("cka", "cka-rbf", "rsa-spearman")
        for k, a in enumerate(models)
    ]
    return networks_map(pd.DataFrame(rows))


def changed(models):
    rows = over_layers(tables.SENSITIVITY, models[:1], ["blocks.0", "blocks.1"], measure="cka", amount=0.5)
    return sensitivity(pd.concat([rows.assign(change=change) for change in ("components", "outlier")]))


def layers_of(models):
    table = similarity(models, ["a", "b"]).rename(columns={"cka": "value"}).assign(measure="cka")
    return layer_matrices(table, [tuple(models)])["cka"]


def of_table(name):
    make, draw, _ = PICTURES[name]
    return lambda models: draw(make(models, ["blocks.0", "blocks.10"]))


MORE = {"networks_matrix": compared, "networks_map": mapped, "sensitivity": changed, "layer_matrices": layers_of}
ALL = {**{name: of_table(name) for name in PICTURES}, **MORE}


def boxes(figure):
    """(text, box) of each title, label and legend entry of a drawn figure, and (axes, box) of each panel and bar."""
    canvas = FigureCanvasAgg(figure)
    for _ in range(2):  # a layout takes two rounds, as matplotlib runs before it saves
        figure.draw_without_rendering()
    renderer = canvas.get_renderer()
    parts, axes = [figure, *figure.subfigs], [ax for ax in figure.axes if ax.get_visible()]
    texts = [text for part in parts for text in (part._suptitle, part._supxlabel) if text is not None]
    texts += [text for ax in axes for text in (ax.title, *ax.texts)]
    texts += [axis.label for ax in axes if ax.axison for axis in (ax.xaxis, ax.yaxis)]
    texts += [text for part in parts for entries in part.legends for text in entries.get_texts()]
    written = [(text, text.get_window_extent(renderer)) for text in texts if text.get_text()]
    return written, [(ax, ax.get_window_extent(renderer)) for ax in axes]


def overlap(a: Bbox, b: Bbox) -> bool:
    return min(a.x1, b.x1) - max(a.x0, b.x0) > SLACK and min(a.y1, b.y1) - max(a.y0, b.y0) > SLACK


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("picture", sorted(ALL))
def test_titles_meet_nothing_and_stay_on_the_figure(picture, count):
    models = NETWORKS if count == 2 else ["vit_mini", NETWORKS[0]]
    drawn = ALL[picture](models)
    figure = getattr(drawn, "figure", drawn)
    note(figure, RECORD)
    written, panels = boxes(figure)
    for text, box in written:
        for low, high, end in ((box.x0, box.x1, figure.bbox.x1), (box.y0, box.y1, figure.bbox.y1)):
            assert low > -SLACK and high < end + SLACK, (text, box, figure.bbox)
        inside = text.axes is not None and text in text.axes.texts
        met = [ax for ax, panel in panels if overlap(box, panel) and not inside]
        assert not met, (text, box, met)
    for k, (text, box) in enumerate(written):
        met = [other for other, its in written[k + 1 :] if overlap(box, its)]
        assert not met, (text, met)
