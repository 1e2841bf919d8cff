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
from repsim.paper.claims import (
    COVERED,
    after_holm,
    between_runs,
    by_chance,
    check,
    claims_of,
    interval_in_words,
    saved_numbers,
)
from repsim.paper.exhibits import Exhibit, Made
from repsim.paper.figures import FIGURES
from repsim.paper.files import check_claims_own, load_figure, picture_file, save_claims
from repsim.paper.findings import findings
from repsim.paper.how import COLUMNS, INTERVALS, how
from repsim.plots.matrices import paper_range
from repsim.plots.style import SIMILARITY_CMAP
from repsim.tables import RECORD, check_own, load_record, regular, save_text

POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
BUTTONS = [["toImage", "zoom2d", "pan2d", "resetScale2d"]]
BEGINS = '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="generator" content="repsim">'
"""The first line of every page, by which repsim knows it as its own."""
LIGHT = {
    "page": "#ffffff",
    "card": "#ffffff",
    "ink": "#1c1c1e",
    "note": "#595c63",
    "line": "#d4d6db",
    "link": "#0b57d0",
    "agrees": "#00664f",
    "disagrees": "#a33200",
    "undecided": "#595c63",
}
DARK = {
    "page": "#16181c",
    "card": "#1f2228",
    "ink": "#e9eaec",
    "note": "#b0b4bc",
    "line": "#3b4049",
    "link": "#8ab4ff",
    "agrees": "#5ed3b0",
    "disagrees": "#ff9d70",
    "undecided": "#b0b4bc",
}
"""Colours of the page. All but `page`, `card` and `line` are of text, on both of these, 4.5 : 1 at least (WCAG AA)."""
PICTURE = 0.6
"""CSS pixels for each pixel of a picture, which has 200 to an inch: a quarter larger than on paper."""
LEGIBLE = 0.45
"""CSS pixels, likewise, below which a picture is scrolled rather than made smaller."""
LAYOUT = """
* { box-sizing: border-box; }
html { scroll-padding-top: 4rem; }
body { font: 16px/1.55 system-ui, sans-serif; margin: 0; background: var(--page); color: var(--ink); }
h1 { font-size: 1.75rem; } h2 { font-size: 1.3rem; margin-top: 2.5rem; } h1, h2 { line-height: 1.25; }
a { color: var(--link); }
header, main { padding: 0 1rem; max-width: 68rem; margin: 0 auto; }
nav { position: sticky; top: 0; z-index: 5; background: var(--page); border-bottom: 1px solid var(--line); }
nav ul { display: flex; gap: 0.25rem; margin: 0; padding: 0.4rem 1rem; list-style: none; overflow-x: auto; }
nav a { display: block; padding: 0.25rem 0.5rem; white-space: nowrap; text-decoration: none; }
nav a:hover, nav a:focus-visible { text-decoration: underline; }
nav span { display: none; }
p, li { max-width: 46rem; }
figure { margin: 1rem 0; }
.card { background: #fff; border: 1px solid var(--line); border-radius: 6px; overflow-x: auto; width: fit-content; }
.card { max-width: 100%; }
.card img { display: block; height: auto; }
.maps { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(26rem, 100%), 1fr)); gap: 1rem; }
.maps figure { min-width: 0; max-width: 34rem; margin: 0; }
.map { aspect-ratio: 1; background: var(--card); border: 1px solid var(--line); border-radius: 6px; }
.map .main-svg { background: transparent !important; }
.map .cartesianlayer text, .map .infolayer text { fill: var(--ink) !important; }
.table { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: 0.9rem; }
td, th { padding: 0.35rem 0.75rem 0.35rem 0; text-align: left; border-bottom: 1px solid var(--line); }
td, th { vertical-align: top; overflow-wrap: anywhere; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.agrees { color: var(--agrees); } .disagrees { color: var(--disagrees); } .undecided { color: var(--undecided); }
td.agrees, td.disagrees, td.undecided { font-weight: 600; white-space: nowrap; }
td, th, figcaption, code { white-space: pre-wrap; }
code { overflow-wrap: anywhere; }
.note { color: var(--note); font-size: 0.925rem; }
details { margin: 0.75rem 0; } summary { cursor: pointer; color: var(--link); width: fit-content; }
pre { overflow-x: auto; font-size: 0.8rem; background: var(--card); border: 1px solid var(--line); padding: 0.75rem; }
@media (min-width: 72rem) {
  html { scroll-padding-top: 1rem; }
  body { display: grid; grid-template-columns: 17rem minmax(0, 1fr); grid-template-rows: auto 1fr; }
  header, main { grid-column: 2; width: 100%; padding: 0 2rem; }
  nav { grid-column: 1; grid-row: 1 / 3; height: 100vh; overflow-y: auto; border: 0; }
  nav { border-right: 1px solid var(--line); }
  nav ul { display: block; padding: 1rem 0.75rem; }
  nav a { display: flex; gap: 0.5rem; white-space: normal; font-size: 0.875rem; line-height: 1.35; }
  nav b { flex: none; min-width: 2rem; } nav span { display: inline; }
}
@media screen and (max-width: 44rem) {
  .claims thead { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
  .claims tr { display: grid; grid-template-columns: auto 1fr; padding: 0.5rem 0; }
  .claims tr { border-bottom: 1px solid var(--line); column-gap: 0.75rem; }
  .claims td { border: 0; padding: 0.1rem 0; text-align: left !important; white-space: normal !important; }
  .claims td:not([data-of]) { grid-column: 1 / 3; }
  .claims td[data-of] { display: contents; }
  .claims td[data-of]::before { content: attr(data-of); color: var(--note); }
}
@media print {
  nav { display: none; } body { display: block; font-size: 10pt; } header, main { max-width: none; padding: 0; }
  details.how::details-content { content-visibility: visible; block-size: auto; }
  details.how > summary { color: inherit; }
  .modebar { display: none !important; } h2 { break-after: avoid; } figure, tr { break-inside: avoid; }
  .maps { display: block; } .maps figure { max-width: none; margin: 1rem 0; } .map { border: 0; }
  .card, .table { overflow: visible; } .card img { width: auto !important; min-width: 0 !important; max-width: 100%; }
}
"""


def _colours(scheme: dict[str, str]) -> str:
    return " ".join(f"--{name}: {colour};" for name, colour in scheme.items())


STYLE = f"""
:root {{ color-scheme: light dark; {_colours(LIGHT)} }}
@media screen and (prefers-color-scheme: dark) {{ :root {{ {_colours(DARK)} }} }}
{LAYOUT}"""


def write_report(directory: Path, file: Path | None = None) -> Path:
    """The page of a directory of figures; written whole or not at all.

    Args:
        directory: a directory that `repsim figures --out` wrote.
        file: the page; None: `report.html` in it.

    Raises:
        UsageError: there are no figures in it, plotly is not installed, or a file that is no such page has its name.
    """
    file = file or directory / "report.html"
    figures = [
        (exhibit, figure) for exhibit in FIGURES.values() if (figure := load_figure(exhibit, directory)) is not None
    ]
    if not figures:
        raise UsageError(f"there are no figures in {directory}; make some with `repsim figures --out {directory}`")
    check_own(file, BEGINS)
    save_text("\n".join(_page(directory, figures)), file)
    return file


def check_pages(directory: Path) -> None:
    """Raise `UsageError` where `conclude` is to write, and a file lies there that is not repsim's."""
    check_claims_own(directory)
    check_own(directory / "report.html", BEGINS)


def conclude(directory: Path) -> tuple[list[Path], str]:
    """Write the claims of all figures in a directory, if they have some, and the page, if plotly is installed.

    Returns:
        The files, and why there is no page.
    """
    written = save_claims(directory) if len(claims_of(saved_numbers(directory))) else []
    try:
        _plotly()
    except UsageError as error:
        return written, str(error)
    return [*written, write_report(directory)], ""


def _page(directory: Path, figures: list[tuple[Exhibit, Made]]) -> Iterator[str]:
    script = _plotly().offline.get_plotlyjs()
    record, claims = load_record(directory / RECORD), _claims_of(directory)
    networks = [network for network in record.get("networks", []) if isinstance(network, dict)]
    yield BEGINS
    yield f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>repsim: {escape(directory.resolve().name)}</title><style>{STYLE}</style>"
    yield f"<script>{script}</script></head><body>"
    yield from _contents(figures, claims is not None, bool(networks))
    yield "<header><h1>Do Vision Transformers See Like Convolutional Neural Networks?</h1>"
    yield '<p class="note">The figures of Raghu et al. (NeurIPS 2021), made anew.</p></header><main>'
    if claims is not None:
        yield from _summary(directory, claims)
        yield from _claims(claims)
    if networks:
        yield from _networks(networks)
    yield from _images_and_notices(record)
    for exhibit, figure in figures:
        yield from _figure(directory, exhibit, figure)
    # When and how long it ran is in the file alone, so that the same run makes the same page.
    shown = {name: value for name, value in record.items() if name not in ("date", "seconds")}
    yield f'<section id="record"><h2>Run record</h2><details><summary>{RECORD}</summary>'
    yield f'<pre tabindex="0">{escape(json.dumps(shown, indent=2, ensure_ascii=False))}</pre></details></section>'
    yield "</main></body></html>"


def _contents(figures: list[tuple[Exhibit, Made]], claims: bool, networks: bool) -> Iterator[str]:
    """The table of contents, which stays: beside the page, or above it where that is narrow."""
    yield '<nav aria-label="Contents"><ul>'
    parts = [("summary", "Summary", claims), ("claims", "Claims", claims), ("networks", "Networks", networks)]
    for name, title, there in [*parts, ("images", "Images", True)]:
        if there:
            yield f'<li><a href="#{name}">{title}</a></li>'
    for exhibit, _ in figures:
        title = f"<b>{exhibit.number}</b> <span>{escape(exhibit.title)}</span>"
        yield f'<li><a href="#figure-{exhibit.number}">{title}</a></li>'
    yield '<li><a href="#record">Record</a></li></ul></nav>'


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


def _claims_of(directory: Path) -> pd.DataFrame | None:
    try:
        return check(directory)
    except UsageError:  # none of these figures has a claim
        return None


def _summary(directory: Path, claims: pd.DataFrame) -> Iterator[str]:
    """The summary: the findings of the paper, the findings of the run, and counts of the verdicts on claims."""
    yield '<section id="summary"><h2>In half a minute</h2><ol>'
    for row in findings(saved_numbers(directory)).itertuples():
        yield f"<li>{escape(row.finding)}: <b>{escape(row.verdict)}</b>. {escape(row.found)}</li>"
    counts = claims["verdict"].value_counts()
    yield "</ol><p>Of the numbers by which the paper's claims are checked, "
    yield ", ".join(f'<b class="{escape(v)}">{n} {escape(v)}</b>' for v, n in counts.items())
    yield f". {escape(by_chance(claims))}</p></section>"


def _claims(table: pd.DataFrame) -> Iterator[str]:
    """The table of claims."""
    yield '<section id="claims"><h2>What the paper claims</h2>'
    yield f"<p>A claim agrees or disagrees if the 95 % interval lies on one side of the boundary. {escape(COVERED)}</p>"
    yield '<div class="table" tabindex="0" role="region" aria-label="Claims"><table class="claims"><thead><tr>'
    yield '<th>claim</th><th>verdict</th><th class="n">measured</th><th class="n">95 % interval</th>'
    yield '<th class="n">the paper finds</th><th>of its own networks</th></tr></thead><tbody>'
    for row in table.itertuples():
        yield f'<tr><td>{escape(row.claim)}<br><span class="note">{escape(row.source)}</span></td>'
        holm = after_holm(row.verdict, row.verdict_holm)
        why = row.why + between_runs(row.seeds, row.sd_seeds, row.se)
        yield f'<td class="{row.verdict}">{row.verdict}{holm}<br><span class="note">{escape(why)}</span></td>'
        cells = {"measured": _value(row.measured), "95 % interval": interval_in_words(row.low, row.high)}
        cells["the paper finds"] = escape(row.direction)
        yield "".join(f'<td class="n" data-of="{column}"><span>{cell}</span></td>' for column, cell in cells.items())
        yield f'<td data-of="of its own networks"><span>{escape(row.paper)}</span></td></tr>'
    yield "</tbody></table></div></section>"


def _value(value: float) -> str:
    return "no value" if pd.isna(value) else f"{value:.3f}"


def _networks(networks: list[dict[str, Any]]) -> Iterator[str]:
    """The networks that were compared; accuracies where the record has some."""
    known = any("accuracy" in network for network in networks)
    yield '<section id="networks"><h2>Networks</h2>'
    yield '<div class="table" tabindex="0" role="region" aria-label="Networks"><table><thead><tr><th>network</th>'
    yield '<th class="n">parameters</th><th>weights</th><th>images go in as</th>'
    yield ('<th class="n">accuracy</th>' if known else "") + "</tr></thead><tbody>"
    for network in networks:
        library, _, kind = str(network.get("class")).partition(".")
        kind = f"{kind.rpartition('.')[2]} ({library})" if kind else library
        yield f'<tr><td>{_text(network.get("name"))}<br><span class="note">{escape(kind)}</span></td>'
        parameters = network.get("parameters")
        yield f'<td class="n">{f"{parameters:,}" if isinstance(parameters, int) else "unknown"}</td>'
        digest = _text(network.get("weights_sha256"))[:16]
        yield f'<td>{_text(network.get("weights"))}<br><code class="note">{digest}</code></td>'
        yield f"<td>{escape(_transform(network.get('transform')))}</td>"
        if known:
            accuracy = network.get("accuracy")
            yield f'<td class="n">{f"{accuracy:.3f}" if isinstance(accuracy, int | float) else "unknown"}</td>'
        yield "</tr>"
    yield "</tbody></table></div>"
    yield '<p class="note">The table has the first digits of the SHA-256 of weights; run.json has all.</p></section>'


def _transform(settings: Any) -> str:
    """The preparation of an image, in words."""
    if not isinstance(settings, dict):
        return "unknown" if settings is None else str(settings)
    size = settings.get("input_size")
    parts = [" x ".join(map(str, size)) if isinstance(size, list) else ""]
    parts += [f"{name.replace('_', ' ')} {settings[name]}" for name in settings if name != "input_size"]
    return ", ".join(part for part in parts if part)


def _text(value: Any) -> str:
    return "unknown" if value is None else escape(str(value))


def _images_and_notices(record: dict[str, Any]) -> Iterator[str]:
    """The images of the run, the coverage of its intervals, and its notices."""
    yield f'<section id="images"><h2>Images</h2><p>{escape(_images(record))}.</p>'
    if "intervals" in record:
        yield f"<p>{escape(str(record['intervals']))}</p>"
    if notices := record.get("notices", []):
        yield "<ul>" + "".join(f'<li class="note">{escape(str(notice))}</li>' for notice in notices) + "</ul>"
    yield "</section>"


def _figure(directory: Path, exhibit: Exhibit, results: Made) -> Iterator[str]:
    yield f'<section id="figure-{exhibit.number}"><h2>Figure {exhibit.number}. {escape(exhibit.title)}</h2>'
    yield f"<p>The paper shows: {escape(exhibit.shows)}</p>"
    if notes := exhibit.caption(results.record).partition("\n")[2]:
        yield f'<p class="note">{escape(notes)}</p>'
    if "cka" in results.tables:
        yield '<div class="maps">' + "".join(_heatmaps(exhibit, results.tables["cka"])) + "</div>"
    else:
        yield from _picture(Path(f"{picture_file(exhibit, results, directory)}.png"), exhibit)
    numbers = results.tables.get("numbers")
    if numbers is not None and len(numbers):
        label = f"Numbers of figure {exhibit.number}"
        yield f'<div class="table" tabindex="0" role="region" aria-label="{label}"><table><thead><tr><th>number</th>'
        yield '<th class="n">value</th><th class="n">95 % interval</th></tr></thead><tbody>'
        for row in numbers.itertuples():
            yield f'<tr><td>{escape(row.label)}</td><td class="n">{_value(row.value)}</td>'
            yield f'<td class="n">{interval_in_words(row.low, row.high)}</td></tr>'
        yield "</tbody></table></div>"
    yield from _how(exhibit, results)
    yield "</section>"


def _picture(file: Path, exhibit: Exhibit) -> Iterator[str]:
    """A picture as large as it can be read, scrolled where the page is narrower."""
    if not file.exists():
        return
    data = regular(file).read_bytes()
    width = int.from_bytes(data[16:20], "big")  # of a PNG, in its header
    size = f"width: {PICTURE * width:.0f}px; max-width: 100%; min-width: {LEGIBLE * width:.0f}px"
    label = escape(f"Figure {exhibit.number}: {exhibit.title}. {exhibit.shows} Its numbers are in the table below it.")
    name = f"Picture of figure {exhibit.number}"
    yield f'<figure><div class="card" tabindex="0" role="region" aria-label="{name}">'
    source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    yield f'<img alt="{label}" style="{size}" src="{source}"></div></figure>'


def _how(exhibit: Exhibit, results: Made) -> Iterator[str]:
    """How the numbers of a figure were made."""
    record, tables = results.record, ", ".join(f"{name}.csv" for name in results.tables)
    yield f'<details class="how"><summary>How figure {exhibit.number} was made</summary><p>{escape(how(exhibit))}</p>'
    yield f'<p class="note"><code>{escape(str(record.get("command")))}</code>, {escape(str(record.get("date"))[:10])}, '
    yield f"{escape(_images(record))}. What is drawn is in figure-{exhibit.number}/ ({escape(tables)}); "
    yield f"{COLUMNS} says what the columns mean, {INTERVALS} what intervals cover.</p></details>"


INHERITED = frozenset(
    [
        *("__proto__", "__defineGetter__", "__defineSetter__", "__lookupGetter__", "__lookupSetter__", "constructor"),
        *("hasOwnProperty", "isPrototypeOf", "propertyIsEnumerable", "toLocaleString", "toString", "valueOf"),
    ]
)
"""Properties of every JavaScript object; plotly keeps categories in one, and takes these for known categories."""


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
    low, high = paper_range(cka)
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
