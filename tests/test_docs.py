"""The pages are true: links lead somewhere, code runs as printed, and verdicts are those of the reference run."""

import re
import subprocess
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from repsim.paper.claims import saved_numbers
from repsim.paper.findings import findings
from repsim.tables import load_table

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^( *)```.*?^\1```$", re.M | re.S)


def pages() -> list[Path]:
    """All pages that git knows, or, in a copy without git, the pages of the folders that have some."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "*.md"], cwd=ROOT, capture_output=True)
    names = listed.stdout.decode().split("\n") if listed.returncode == 0 else []
    tracked = [ROOT / name for name in names if name and (ROOT / name).exists()]
    folders = ("", "docs", "data", "figures", "tests/benchmarks")
    return tracked or sorted(path for folder in folders for path in (ROOT / folder).glob("*.md"))


def anchors(page: Path) -> set[str]:
    """The anchors of a page, for links with `#`: its headings in small letters, with hyphens for spaces."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page):
    text = re.sub(r"`[^`\n]*`", "", FENCE.sub("", page.read_text()))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        place, _, anchor = link.partition("#")
        target = (page.parent / place).resolve() if place else page
        assert target.exists(), f"{link} leads nowhere"
        assert not anchor or anchor in anchors(target), f"{link} names no heading of {target.name}"


@pytest.mark.parametrize("page", ["README.md", "docs/index.md", "docs/python.md"])
def test_the_code_of_a_page_runs_as_printed(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.S)
    shown = {}
    exec(code, shown)
    assert {"model_a", "layer_a", "model_b", "layer_b", "cka", "se"} <= set(shown["cka"].table)
    assert "runs/mine" not in code or (tmp_path / "runs/mine/cka.csv").exists()


@pytest.mark.parametrize("page", ["README.md", "figures/README.md"])
def test_pages_count_the_verdicts_of_the_reference_run(page):
    text = " ".join((ROOT / page).read_text().split())
    checks, agrees, disagrees, undecided = re.search(
        r"Of (\d+) checks .*? (?:bear|bears) out (\d+), contradicts? (\d+) and leaves? (\d+) undecided", text
    ).groups()
    counts = Counter(load_table(ROOT / "figures" / "claims.csv")["verdict"])
    assert counts == {"agrees": int(agrees), "disagrees": int(disagrees), "undecided": int(undecided)}
    assert counts.total() == int(checks)


def test_the_readme_tells_the_findings_of_the_pretrained_networks():
    run = ROOT / "figures" / "pretrained"
    text = (ROOT / "README.md").read_text().partition("| the paper finds |")[2].partition("\n\n")[0]
    rows = [line.split(" | ") for line in text.splitlines()[2:]]
    verdicts = list(findings(saved_numbers(run))["verdict"])
    assert all(row[1].startswith(verdict) for row, verdict in zip(rows, verdicts, strict=True))
    assert_told(text, run, 4)


def test_the_page_of_the_pretrained_networks_tells_what_was_measured():
    run = ROOT / "figures" / "pretrained"
    text = (run / "README.md").read_text()
    assert_told(text, run, 7)
    counts = Counter(load_table(run / "claims.csv")["verdict"])
    told = re.search(r"Of (\d+) checks (\d+) agree with the paper, (\d+) disagree and (\d+) are undecided", text)
    assert [counts.total(), counts["agrees"], counts["disagrees"], counts["undecided"]] == list(map(int, told.groups()))


def assert_told(text: str, run: Path, at_least: int):
    """Check that every number with an interval is a claim of the run, of either sign: "less, by 0.2" is -0.2."""
    claims = load_table(run / "claims.csv")[["measured", "low", "high"]]
    claims = pd.concat([claims, -claims[["measured", "high", "low"]].set_axis(claims.columns, axis=1)])
    number = r"-?\d+\.\d+"
    told = re.findall(rf"({number})[^()|]*?\(({number}) to ({number})\)", " ".join(text.split()))
    told += re.findall(rf"({number}), ({number}) to ({number})\b", " ".join(text.split()))
    assert len(told) >= at_least
    for interval in told:
        measured = claims.round(len(interval[0].partition(".")[2]))
        near = (measured == [float(number) for number in interval]).all(axis=1)
        assert near.any(), f"no claim measures {interval[0]} ({interval[1]} to {interval[2]})"


def test_the_readme_is_narrow():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert max(map(len, lines)) <= 120 and len(lines) <= 140
