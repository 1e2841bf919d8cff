"""One self-contained page from a directory of `repsim figures`: claims, figures, heatmaps to hover over. No torch.

Everything is in the file: pictures as data, plotly's script as plotly ships it; the page may load nothing else. Names
come from files and may be anyone's, so all text is escaped.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from repsim.errors import UsageError
from repsim.paper.claims import COVERED, between_runs, by_chance, check, claims_of, interval_in_words, saved_numbers
from repsim.paper.exhibits import Exhibit, Made
from repsim.paper.figures import FIGURES
from repsim.paper.files import check_claims_own, load_figure, picture_file, save_claims
from repsim.paper.findings import findings
from repsim.plots.matrices import colour_range
from repsim.plots.style import SIMILARITY_CMAP
from repsim.tables import RECORD, check_own, load_record, regular, save_text

POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
BUTTONS = [["toImage", "zoom2d", "pan2d", "resetScale2d"]]
BEGINS = '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="generator" content="repsim">'
"""The first line of every page, by which repsim knows it as its own."""
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 0 auto; padding: 1rem; color: #222; }
h1, h2 { line-height: 1.2; }
figure, .maps { margin: 1rem 0; }
figure img { max-width: 100%; height: auto; }
.maps { display: flex; flex-wrap: wrap; gap: 0.5rem; }
.maps figure { flex: 1 1 20rem; min-width: 0; max-width: 34rem; margin: 0; }
.map { aspect-ratio: 1; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.875rem; }
td, th { padding: 0.2rem 0.6rem; text-align: left; border-bottom: 1px solid #ddd; vertical-align: top; }
td.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.agrees { color: #00735c; } .disagrees { color: #b33c00; } .undecided { color: #666; }
td, th, figcaption, code { white-space: pre-wrap; }
.note { color: #666; } pre { overflow-x: auto; font-size: 0.8rem; } nav a { margin-right: 0.6rem; }
"""


def write_report(directory: Path, file: Path | None = None) -> Path:
    """The page of a directory of figures; written whole or not at all.

    Args:
        directory: what `repsim figures --out` wrote.
        file: the page; None: `report.html` in it.

    Raises:
        UsageError: there are no figures in it, plotly is not installed, or another file than such a page is there.
    """
    file = file or directory / "report.html"
    found = [(exhibit, made) for exhibit in FIGURES.values() if (made := load_figure(exhibit, directory)) is not None]
    if not found:
        raise UsageError(f"there are no figures in {directory}; make some with `repsim figures --out {directory}`")
    check_own(file, BEGINS)
    save_text("\n".join(_page(directory, found)), file)
    return file


def check_pages(directory: Path) -> None:
    """Raise `UsageError` where `conclude` is to write, and a file lies there that is not repsim's."""
    check_claims_own(directory)
    check_own(directory / "report.html", BEGINS)


def conclude(directory: Path) -> tuple[list[Path], str]:
    """What is said of all figures in a directory: their claims, if there are some, and the page, if plotly is here.

    Returns:
        The files, and why there is no page.
    """
    written = save_claims(directory) if len(claims_of(saved_numbers(directory))) else []
    try:
        _plotly()
    except UsageError as error:
        return written, str(error)
    return [*written, write_report(directory)], ""


def _page(directory: Path, found: list[tuple[Exhibit, Made]]) -> Iterator[str]:
    script = _plotly().offline.get_plotlyjs()
    record = load_record(directory / RECORD)
    yield BEGINS
    yield f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>repsim: {escape(directory.resolve().name)}</title><style>{STYLE}</style>"
    yield f"<script>{script}</script></head><body>"
    yield "<h1>Do Vision Transformers See Like Convolutional Neural Networks?</h1>"
    yield '<p class="note">The figures of Raghu et al. (NeurIPS 2021), made anew.</p>'
    for notice in record.get("notices", []):
        yield f'<p class="note">{escape(str(notice))}</p>'
    yield "<nav>" + "".join(f'<a href="#figure-{e.number}">{e.number}</a>' for e, _ in found) + "</nav>"
    yield from _findings(directory)
    yield from _claims(directory)
    for exhibit, made in found:
        yield from _figure(directory, exhibit, made)
    yield f"<h2>Run record</h2><details><summary>{RECORD}</summary>"
    yield f"<pre>{escape(json.dumps(record, indent=2, ensure_ascii=False))}</pre></details></body></html>"


def _plotly() -> Any:
    try:
        import plotly
        import plotly.graph_objects
        import plotly.offline
    except ImportError:
        raise UsageError("the report needs plotly: pip install 'repsim-vision[report]'") from None
    return plotly


def _images(record: dict[str, Any]) -> str:
    images = record.get("images", {})
    return f"{images.get('used') or images.get('chosen')} images of {images.get('data')}"


def _findings(directory: Path) -> Iterator[str]:
    """The summary: what the paper found, and what was found here."""
    yield "<h2>In half a minute</h2><ol>"
    for row in findings(saved_numbers(directory)).itertuples():
        yield f"<li>{escape(row.finding)}: <b>{escape(row.verdict)}</b>. {escape(row.found)}</li>"
    yield "</ol>"


def _claims(directory: Path) -> Iterator[str]:
    try:
        table = check(directory)
    except UsageError:  # none of these figures has a claim
        return
    counts = table["verdict"].value_counts()
    yield "<h2>What the paper claims</h2><p>" + ", ".join(f"{n} {escape(v)}" for v, n in counts.items()) + ". "
    yield f"A claim agrees or disagrees if the 95 % interval lies on one side of the boundary. {escape(COVERED)} "
    yield f"{escape(by_chance(table))}</p>"
    yield '<div class="table"><table><tr><th>claim</th><th></th><th>measured</th>'
    yield "<th>95 % interval</th><th>paper</th><th>its own networks</th></tr>"
    for row in table.itertuples():
        yield f'<tr><td>{escape(row.claim)}<br><span class="note">{escape(row.source)}</span></td>'
        holm = f", {row.verdict_holm} after Holm" if row.verdict_holm != row.verdict else ""
        why = row.why + between_runs(row.seeds, row.sd_seeds, row.se)
        yield f'<td class="{row.verdict}">{row.verdict}{holm}<br><span class="note">{escape(why)}</span></td>'
        yield f'<td class="n">{row.measured:.3f}</td><td class="n">{interval_in_words(row.low, row.high)}</td>'
        yield f'<td class="n">{escape(row.direction)}</td><td>{escape(row.paper)}</td></tr>'
    yield "</table></div>"


def _figure(directory: Path, exhibit: Exhibit, made: Made) -> Iterator[str]:
    yield f'<section id="figure-{exhibit.number}"><h2>Figure {exhibit.number}. {escape(exhibit.title)}</h2>'
    yield f"<p>The paper shows: {escape(exhibit.shows)}</p>"
    of = made.record
    notes = exhibit.caption(of).partition("\n")[2]
    yield f'<p class="note">{escape(notes)} <code>{escape(str(of.get("command")))}</code>, '
    yield f"{escape(str(of.get('date')))}, {escape(_images(of))}.</p>"
    if "cka" in made.tables:
        yield '<div class="maps">' + "".join(_heatmaps(exhibit, made.tables["cka"])) + "</div>"
    else:
        picture = Path(f"{picture_file(exhibit, made, directory)}.png")
        if picture.exists():
            data = base64.b64encode(regular(picture).read_bytes()).decode()
            what = escape(f"Figure {exhibit.number}: {exhibit.title}")
            yield f'<figure><img alt="{what}" src="data:image/png;base64,{data}"></figure>'
    numbers = made.tables.get("numbers")
    if numbers is not None and len(numbers):
        yield '<div class="table"><table><tr><th>number</th><th>value</th><th>95 % interval</th></tr>'
        for row in numbers.itertuples():
            yield f'<tr><td>{escape(row.label)}</td><td class="n">{row.value:.3f}</td>'
            yield f'<td class="n">{interval_in_words(row.low, row.high)}</td></tr>'
        yield "</table></div>"
    yield "</section>"


INHERITED = frozenset(
    [
        *("__proto__", "__defineGetter__", "__defineSetter__", "__lookupGetter__", "__lookupSetter__", "constructor"),
        *("hasOwnProperty", "isPrototypeOf", "propertyIsEnumerable", "toLocaleString", "toString", "valueOf"),
    ]
)
"""What every object of JavaScript has; plotly, which keeps categories in one, takes them for categories it knows."""


def category(name: str) -> str:
    """A name as a category of plotly's, which reads markup in text; entities are none, and it knows few by name.

    >>> category("<b>")
    '&lt;b&gt;'
    """
    text = name.encode("utf-8", "backslashreplace").decode()
    text = escape(text, quote=False).replace("\r", "&#13;").replace("\n", "<br>")
    return f"&#{ord(text[0])};{text[1:]}" if text in INHERITED else text


def _heatmaps(exhibit: Exhibit, cka: pd.DataFrame) -> Iterator[str]:
    """A plotly heatmap of each pair of networks."""
    graph = _plotly().graph_objects
    low, high = colour_range(cka)
    for number, ((a, b), part) in enumerate(cka.groupby(["model_a", "model_b"], sort=False)):
        matrix, se = (
            part.pivot(index="index_a", columns="index_b", values=value).sort_index().sort_index(axis=1)
            for value in ("cka", "se")
        )
        names = {
            side: [category(name) for name in part.sort_values(f"index_{side}")[f"layer_{side}"].drop_duplicates()]
            for side in "ab"
        }
        heatmap = graph.Heatmap(
            z=matrix.to_numpy(),
            x=names["b"],
            y=names["a"],
            customdata=se.to_numpy(),
            zmin=low,
            zmax=high,
            colorscale=SIMILARITY_CMAP,
            hovertemplate="%{y}<br>%{x}<br>CKA %{z:.4f} ± %{customdata:.4f}<extra></extra>",
            colorbar={"title": "CKA", "thickness": 12},
        )
        layout = {
            "margin": {"l": 90, "r": 10, "t": 30, "b": 80},
            "xaxis": {"type": "category"},
            "yaxis": {"type": "category"},
        }
        html = graph.Figure(heatmap, layout).to_html(
            full_html=False,
            include_plotlyjs=False,
            div_id=f"map-{exhibit.number}-{number}",
            default_width="100%",
            default_height="100%",
            config={"responsive": True, "displaylogo": False, "modeBarButtons": BUTTONS},
        )
        yield f"<figure><figcaption>{escape(a)} (up) and {escape(b)} (right)</figcaption>"
        yield f'<div class="map">{html}</div></figure>'
