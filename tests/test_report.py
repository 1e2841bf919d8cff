"""The page: what is in it, that it loads nothing, and, in a real browser, that it works."""

import html
import json
import shutil

import pandas as pd
import pytest
from click.testing import CliRunner

from repsim.cli import main
from repsim.paper.report import INHERITED, category
from repsim.tables import NUMBERS, SIMILARITY, save_table

HOSTILE = "<img src=x onerror=alert(1)></script><script>alert(2)</script>"


@pytest.fixture
def directory(tmp_path):
    """A run of Figure 1 with three layers, of a network whose name means harm."""
    return write(tmp_path, HOSTILE, [f"layer.{i}" for i in range(3)])


def write(tmp_path, model, layers):
    """A run of Figure 1 of a network with these layers."""
    where = tmp_path / "figure-1"
    where.mkdir()
    rows = [
        (model, a, "block", i, i / 2, model, b, "block", j, j / 2, (10 * i + j) / 100, 0.0123)
        for i, a in enumerate(layers)
        for j, b in enumerate(layers)
    ]
    save_table(pd.DataFrame(rows, columns=SIMILARITY), where / "cka.csv")
    both = ("low_with_high_difference", '["a", "b"]', "low with high layers, a - b", 0.2, 0.1, 0.3)
    numbers = pd.DataFrame([both, (HOSTILE, HOSTILE, HOSTILE, 0, 0, 0)], columns=NUMBERS)
    numbers.to_csv(where / "numbers.csv", index=False)
    record = {"command": f"repsim figures {HOSTILE}", "date": "today", "images": {"used": 9, "data": HOSTILE}}
    record |= {"preset": "mini", "random": False, "notices": [HOSTILE]}
    for place in (where, tmp_path):
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
    """Plotly reads markup in categories, and entities in it; two layers must not become one."""
    assert [html.unescape(category(name).replace("<br>", "\n")) for name in ODD] == ODD
    assert not {category(name) for name in INHERITED} & INHERITED
    write(tmp_path, "NA", ODD)
    assert report(tmp_path).exit_code == 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<figcaption>NA (up) and NA (right)</figcaption>" in page
    drawn = page[page.index("[", page.index('"map-1-0",', page.index("Plotly.newPlot("))) :]
    (heatmap,), _ = json.JSONDecoder().raw_decode(drawn)
    assert heatmap["x"] == heatmap["y"] == [category(name) for name in ODD]


def test_nothing_to_report(tmp_path):
    result = report(tmp_path)
    assert result.exit_code == 2 and "there are no figures in" in result.output


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
    try:
        for width in (1200, 400):
            browser.set_window_size(width, 900)
            browser.get(f"file://{directory}/report.html")
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
            text = " ".join(each.text for each in shown)
            assert "layer.1" in text and "layer.2" in text and "0.1200 ± 0.0123" in text
    finally:
        browser.quit()
