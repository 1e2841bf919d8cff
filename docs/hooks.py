"""What the site has beside the pages of this folder: pages and pictures of the repository, a gallery, and the API.

mkdocs calls these functions. Nothing is copied into this folder: files are taken from where they lie, and the gallery
and the API are written in memory, from the records of the reference run and from the names of `repsim`.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import repsim

ROOT = Path(__file__).parents[1]
TAKEN = [
    "CHANGELOG.md",
    "CITATION.cff",
    "CONTRIBUTING.md",
    "LICENSE",
    "data/README.md",
    "figures/**/*.csv",
    "figures/**/*.json",
    "figures/**/*.md",
    "figures/**/*.png",
    "repsim/sample/LICENSE",
    "tests/benchmarks/*.csv",
    "tests/benchmarks/README.md",
]
"""Pages of the repository, and what they link to, under the paths that they have there."""
PARTS = {
    "studies": "Studies",
    "networks": "Networks and layers",
    "images": "Images",
    "passes": "A study of your own",
    "measures": "Measures",
    "errors": "Errors",
}
"""Parts of the package in the order of the page, and what each is called there."""
NOTEBOOKS = ["tour.ipynb", "your-networks.ipynb"]


@event_priority(100)  # before the plugin of notebooks takes its own
def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files of the repository, the notebooks, the gallery and the API."""
    os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"  # of the notebooks' kernels: the pages have no widgets
    for pattern in TAKEN:
        for path in sorted(ROOT.glob(pattern)):
            files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    for name in NOTEBOOKS:
        files.append(File(name, str(ROOT / "analyses"), config.site_dir, config.use_directory_urls))
    files.append(File.generated(config, "gallery.md", content=gallery()))
    files.append(File.generated(config, "api.md", content=api()))
    return files


def on_page_markdown(markdown: str, page: Page, **_) -> str:
    """Links as the site needs them: this folder is its root, and the rest of the repository lies beside its pages."""
    if "/" in page.file.src_uri or not (ROOT / "docs" / page.file.src_uri).exists():
        return re.sub(r"(\]\((?:\.\./)*)docs/", r"\1", markdown)
    return markdown.replace("](../analyses/", "](").replace("](../", "](")


def gallery() -> str:
    """Every figure of the reference run, with its title and what the paper shows there."""
    parts = [
        "# Gallery",
        "",
        "Here is every figure of the paper, made of the bundled networks by `repsim figures`. "
        "[What they show](figures/README.md) says it in words.",
        "",
    ]
    for folder in sorted((ROOT / "figures").glob("figure-*"), key=_order):
        record = json.loads((folder / "run.json").read_text())
        title, name = f"Figure {record['number']}. {record['title']}", f"figures/{folder.name}"
        pictures = [f"![{title}]({name}/{path.name}){{ loading=lazy }}" for path in sorted(folder.glob("*.png"))]
        shows = record["paper_shows"]
        said = f"The paper shows this: {shows}" if shows else ""
        kept = f"Its [numbers]({name}/numbers.csv) and its [record]({name}/run.json) are kept."
        parts += [f"## {title}", "", *pictures, "", said, "", kept, ""]
    return "\n".join(parts)


def _order(folder: Path) -> tuple[str, int]:
    letter, _, number = folder.name.removeprefix("figure-").rpartition(".")
    return letter, int(number)


def api() -> str:
    """A page of the names of `repsim`, in the parts of the package, in the order in which `repsim` has them."""
    parts = ["# API", "", "The names of `import repsim as rs`; [In Python](python.md) has most of them in use.", ""]
    paths = [f"{home}.{name}" for name, home in repsim._HOME.items()]
    for part in dict.fromkeys([*PARTS, *(path.split(".")[1] for path in paths)]):
        own = [path for path in paths if path.split(".")[1] == part]
        parts += [f"## {PARTS.get(part, part.capitalize())}", "", *[f"::: {path}\n" for path in own]] if own else []
    parts += ["## The figures of the paper", "", *[f"::: repsim.paper.run.{name}\n" for name in repsim.paper.__all__]]
    return "\n".join(parts)
