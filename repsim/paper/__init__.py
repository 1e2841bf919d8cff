"""The figures of the paper: which roles, which studies, which pictures and numbers each is made of.

>>> import repsim as rs
>>> rs.paper.replicate({"vit": "vit_mini"}, rs.ImageSet("sample", images=32), figures=["3"]).findings.columns.tolist()
['finding', 'verdict', 'found']
"""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["plan", "replicate"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("repsim.paper.run"), name)
    raise AttributeError(f"module 'repsim.paper' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
