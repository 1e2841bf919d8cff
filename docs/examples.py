"""Examples in docstrings (`>>> `) are shown as code; the parser takes only those below a heading for examples."""

from __future__ import annotations

import re

import griffe


class Examples(griffe.Extension):
    """Put every run of lines that begins with `>>> ` into a fence."""

    def on_object(self, *, obj: griffe.Object, **_) -> None:
        """Called of every module, class, function and attribute that has been read."""
        if obj.docstring:
            runs = re.compile(r"^>>> .*(?:\n(?!\s*$).*)*", re.M)
            obj.docstring.value = runs.sub(lambda run: f"```pycon\n{run.group()}\n```", obj.docstring.value)
