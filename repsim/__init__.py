"""Representation analysis of vision networks, after Raghu et al. (NeurIPS 2021).

The notebook names; each is imported when first used, so that `import repsim` costs nothing.

>>> import repsim as rs
>>> cka = rs.layer_cka(["vit_mini", "resnet_mini"], rs.ImageSet("sample", images=32), batch_size=16)
>>> cka.table.shape  # 30 layers with 30; in a notebook `cka` shows its picture
(900, 13)
"""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "cka": "repsim.measures.cka",
    "gram_row": "repsim.measures.cka",
    "stacked_hsic": "repsim.measures.cka",
    "minibatch_cka": "repsim.measures.cka",
    "Accumulator": "repsim.measures.running",
    "BatchMeans": "repsim.measures.running",
    "Moments": "repsim.measures.running",
    "Network": "repsim.networks.models",
    "EvalTransform": "repsim.networks.transforms",
    "load_model": "repsim.networks.models",
    "Layer": "repsim.networks.layers",
    "find_layers": "repsim.networks.layers",
    "capture": "repsim.networks.hooks",
    "ImageSet": "repsim.images.image_set",
    "Features": "repsim.features.arrays",
    "load_features": "repsim.features.files",
    "extract_features": "repsim.studies.extract",
    "Seen": "repsim.passes.seen",
    "Study": "repsim.passes.study",
    "check_study": "repsim.passes.study",
    "compare": "repsim.studies.compare",
    "layer_cka": "repsim.studies.similarity",
    "matched_cka": "repsim.studies.similarity",
    "attention_distance": "repsim.studies.attention",
    "attention_maps": "repsim.studies.attention",
    "head_similarity": "repsim.studies.heads",
    "receptive_fields": "repsim.studies.receptive",
    "token_localization": "repsim.studies.localization",
    "residual_norms": "repsim.studies.residual",
    "lesions": "repsim.studies.lesion",
    "linear_probes": "repsim.studies.probe",
    "sensitivity": "repsim.studies.sensitivity",
    "Result": "repsim.studies.results",
    "Notice": "repsim.errors",
    "RepsimError": "repsim.errors",
    "UsageError": "repsim.errors",
}
__all__ = [*_HOME, "paper", "plots"]
__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    if name in ("paper", "plots"):
        return importlib.import_module(f"repsim.{name}")
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'repsim' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__doc__", "__version__"])
