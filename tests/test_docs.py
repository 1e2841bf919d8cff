"""What the pages say holds: links lead somewhere, code runs as printed, and verdicts are those of the reference run."""

import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from repsim.paper.claims import saved_numbers
from repsim.paper.findings import findings
from repsim.tables import load_table

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^( *)```.*?^\1```$", re.M | re.S)


def pages() -> list[Path]:
    """All pages that git knows, or in a copy without git those of the folders that hold pages."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "*.md"], cwd=ROOT, capture_output=True)
    names = listed.stdout.decode().split("\n") if listed.returncode == 0 else []
    found = [ROOT / name for name in names if name and (ROOT / name).exists()]
    folders = ("", "docs", "data", "figures", "tests/benchmarks")
    return found or sorted(path for folder in folders for path in (ROOT / folder).glob("*.md"))


def anchors(page: Path) -> set[str]:
    """What `#...` may follow a link to the page: its headings in small letters, with hyphens for spaces."""
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
    assert {"model_a", "layer_a", "model_b", "layer_b", "cka", "se"} <= set(shown["found"].table)
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


def test_the_readme_tells_the_findings_of_the_reference_run():
    text = (ROOT / "README.md").read_text().partition("| the paper finds |")[2].partition("\n\n")[0]
    rows = [line.split(" | ") for line in text.splitlines()[2:]]
    assert [row[1].partition(":")[0] for row in rows] == list(findings(saved_numbers(ROOT / "figures"))["verdict"])
    claims = load_table(ROOT / "figures" / "claims.csv")
    told = re.findall(r"(\d+\.(\d+))[^()|]*\((\d\S+) to (\d\S+)\)", text)
    assert len(told) == 5
    for value, decimals, low, high in told:
        measured = claims[["measured", "low", "high"]].round(len(decimals))
        near = (measured == [float(value), float(low), float(high)]).all(axis=1)
        assert near.any(), f"no claim measures {value} ({low} to {high})"


def test_the_readme_is_narrow():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert max(map(len, lines)) <= 120 and len(lines) <= 140
