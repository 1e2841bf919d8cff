"""The page of a report has all its parts, loads nothing from elsewhere, and works in a real browser."""

import html
import json
import os
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

from repsim.cli import main
from repsim.paper.exhibits import Exhibit
from repsim.paper.figures import FIGURES
from repsim.paper.how import COLUMNS, INTERVALS, how
from repsim.paper.report import DARK, INHERITED, LAYOUT, LIGHT, category
from repsim.plots.style import Figure, save
from repsim.tables import NUMBERS, SIMILARITY, save_table

HOSTILE = "<img src=x onerror=alert(1)></script><script>alert(2)</script>"


@pytest.fixture
def directory(tmp_path):
    """A run of Figure 1 with three layers, of a network with a hostile name."""
    return write(tmp_path, HOSTILE, [f"layer.{i}" for i in range(3)])


def write(tmp_path, model, layers):
    """Write a run of Figure 1 of a network with these layers."""
    folder = tmp_path / "figure-1"
    folder.mkdir()
    rows = [
        (model, a, "block", i, i / 2, model, b, "block", j, j / 2, (10 * i + j) / 100, 0.0123, 0)
        for i, a in enumerate(layers)
        for j, b in enumerate(layers)
    ]
    save_table(pd.DataFrame(rows, columns=SIMILARITY), folder / "cka.csv")
    both = ("low_with_high_difference", '["a", "b"]', "low with high layers, a - b", 0.2, 0.1, 0.3, 19, 1, None)
    numbers = pd.DataFrame([both, (HOSTILE, HOSTILE, HOSTILE, 0, None, None, 19, 1, None)], columns=NUMBERS)
    numbers.to_csv(folder / "numbers.csv", index=False)
    record = {"command": f"repsim figures {HOSTILE}", "date": "today", "images": {"used": 9, "data": HOSTILE}}
    record |= {"preset": "mini", "random": False, "notices": [HOSTILE]}
    transform = {"input_size": [3, 64, 48], "crop_pct": 0.9, HOSTILE: HOSTILE}
    network = {
        "name": HOSTILE,
        "class": f"timm.models.{HOSTILE}",
        "weights": HOSTILE,
        "weights_sha256": "0123456789abcdef00",
    }
    record["networks"] = [{**network, "parameters": 1234567, "transform": transform, "accuracy": 0.5}, {}]
    for place in (folder, tmp_path):
        (place / "run.json").write_text(json.dumps(record))
    return tmp_path


def report(*arguments):
    return CliRunner().invoke(main, ["report", *map(str, arguments)])


def test_names_are_text(directory):
    assert report(directory).exit_code == 0
    page = (directory / "report.html").read_text()
    own = page[: page.index("<script>")] + page[page.index("</head>") :]  # without plotly's own script
    assert HOSTILE not in own and "<img src=x" not in own and "alert(2)</script>" not in own
    assert "Figure 1. Similarity of layers within networks" in own and "agrees" in own
    assert "http" not in own.split("<h2>Run record")[0].replace("http-equiv", "")
    assert len(page) < 15e6


def test_the_same_run_at_another_hour_makes_the_same_page(directory):
    pages = []
    for time, seconds in (("2026-12-01T08:00:00+00:00", 10.5), ("2026-12-01T23:59:59+00:00", 99)):
        for place in (directory / "figure-1", directory):
            record = json.loads((place / "run.json").read_text())
            (place / "run.json").write_text(json.dumps({**record, "date": time, "seconds": seconds}))
        assert report(directory).exit_code == 0
        pages.append((directory / "report.html").read_text())
    assert pages[0] == pages[1] and "2026-12-01" in pages[0]


ODD = [
    "0.10",
    "0.1",
    "NA",
    "null",
    "1e5",
    "<b>",
    "&lt;b&gt;",
    "&amp;",
    "a,b",
    'a"b',
    "a\nb",
    "a\r",
    " a ",
    "constructor",
    "é",
]


def test_layers_of_any_name(tmp_path):
    """Two layers never become one in a picture, though Plotly reads markup and entities in categories."""
    assert [html.unescape(category(name).replace("<br>", "\n")) for name in ODD] == ODD
    assert not {category(name) for name in INHERITED} & INHERITED
    write(tmp_path, "NA", ODD)
    assert report(tmp_path).exit_code == 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<figcaption>NA (up) and NA (right)</figcaption>" in page
    drawn = page[page.index("[", page.index('"map-1-0",', page.index("Plotly.newPlot("))) :]
    (heatmap,), _ = json.JSONDecoder().raw_decode(drawn)
    assert heatmap["x"] == heatmap["y"] == [category(name) for name in ODD]


def test_what_the_page_says(directory):
    """Every entry of the contents leads somewhere, networks are named, and a missing interval is said to be missing."""
    second = directory / "figure-7"
    second.mkdir()
    (second / "run.json").write_text((directory / "figure-1" / "run.json").read_text())
    figure = Figure(figsize=(4, 2))
    save(figure, second / "figure-7")
    assert report(directory).exit_code == 0
    page = (directory / "report.html").read_text()
    own = page[page.index("</head>") :]
    links, places = re.findall(r'<a href="#([^"]+)"', own), re.findall(r' id="([^"]+)"', own)
    assert links == ["summary", "claims", "networks", "images", "figure-1", "figure-7", "record"]
    assert set(links) <= set(places) and len(places) == len(set(places))
    assert '<b class="agrees">1 agrees</b>' in own
    assert "1,234,567" in own and '<code class="note">0123456789abcdef</code>' in own and "0.500" in own
    assert "3 x 64 x 48, crop pct 0.9" in own
    assert "no interval" in own and "nan" not in re.sub(r"base64,[^\"]*", "", own).lower().split("<h2>run record")[0]
    (alt,) = re.findall(r'<img alt="([^"]+)"', own)
    assert alt.startswith("Figure 7: Skip connection over branch.")
    assert 'style="width: 480px; max-width: 100%; min-width: 360px"' in own


def test_every_kind_of_figure_says_how_it_is_made():
    assert all(len(how(exhibit)) > 100 for exhibit in FIGURES.values())
    assert all((Path(__file__).parents[2] / page).exists() for page in (COLUMNS, INTERVALS))
    assert how(Exhibit(number="0", title="", shows="", roles=())) == ""


def luminance(colour):
    """Relative luminance, as WCAG 2 defines it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    parts = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), parts))


@pytest.mark.parametrize("scheme", [LIGHT, DARK])
def test_text_stands_out(scheme):
    """Text has the contrast that WCAG AA asks of text of any size, on every ground on which it may lie."""
    for name in set(scheme) - {"page", "card", "line"}:
        for ground in ("page", "card"):
            high, low = sorted((luminance(scheme[name]), luminance(scheme[ground])), reverse=True)
            assert (high + 0.05) / (low + 0.05) >= 4.5, (name, ground)
    assert set(re.findall(r"var\(--(\w+)\)", LAYOUT)) <= set(scheme)


def test_nothing_to_report(tmp_path):
    result = report(tmp_path)
    assert result.exit_code == 2 and "there are no figures in" in result.output


def rgb(colour):
    """A colour as browsers write it."""
    return f"rgba({', '.join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))}, 1)"


def test_in_a_browser(directory):
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    from selenium.webdriver.support.wait import WebDriverWait

    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (binary and driver):
        pytest.skip("chromium and chromedriver are not installed (Debian: chromium, chromium-driver)")
    assert report(directory).exit_code == 0
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    axe = os.environ.get("AXE_CORE")  # axe.min.js, of `npm pack axe-core`
    try:
        for width, scheme in ((1200, "light"), (400, "light"), (1200, "dark"), (400, "dark")):
            media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
            browser.set_window_size(width, 900)
            browser.get(f"file://{directory}/report.html")
            page, nav = (browser.find_element("css selector", name) for name in ("body", "nav"))
            assert page.value_of_css_property("background-color") == rgb((DARK if scheme == "dark" else LIGHT)["page"])
            browser.execute_script("window.scrollTo(0, document.body.scrollHeight)")
            assert (
                abs(browser.execute_script("return arguments[0].getBoundingClientRect().top", nav)) < 1
            )  # it stays in view
            if axe:
                browser.execute_cdp_cmd("Runtime.evaluate", {"expression": Path(axe).read_text()})
                audit = browser.execute_async_script("axe.run(document).then(arguments[0])")
                assert audit["violations"] == [] and len(audit["passes"]) > 20
            assert browser.get_log("browser") == []  # a hostile name that ran would raise an alert before this
            assert browser.execute_script("return document.documentElement.scrollWidth") <= width
            heatmap = browser.find_element("id", "map-1-0")
            browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", heatmap)
            cell = browser.execute_script(
                "const a = arguments[0]._fullLayout, r = arguments[0].getBoundingClientRect();"
                "return [a.xaxis._offset + a.xaxis.d2p('layer.2') - r.width / 2,"
                "        a.yaxis._offset + a.yaxis.d2p('layer.1') - r.height / 2]",
                heatmap,
            )
            webdriver.ActionChains(browser).move_to_element_with_offset(heatmap, *map(round, cell)).perform()
            shown = WebDriverWait(browser, 10).until(
                lambda b, heatmap=heatmap: heatmap.find_elements("css selector", ".hoverlayer text")
            )
            text = " ".join(label.text for label in shown)
            assert "layer.1" in text and "layer.2" in text and "0.1200 ± 0.0123" in text
    finally:
        browser.quit()
