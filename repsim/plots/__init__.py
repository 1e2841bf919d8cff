"""Pictures of tables. Nothing here imports torch, so every figure can be redrawn from its saved table.

>>> import repsim as rs
>>> cka = rs.layer_cka("vit_mini", rs.ImageSet("sample", images=32), batch_size=16)
>>> heatmap(cka.table)
<Figure size 430x430 with 2 Axes>
"""

from repsim.plots.curves import attention_distance, head_similarity, localization_summary, matched, side_by_side
from repsim.plots.lesion import lesion
from repsim.plots.maps import attention_maps, localization, receptive_fields
from repsim.plots.matrices import heatmap, panel, panels
from repsim.plots.probe import compared, neighbours, probe_tokens, probes
from repsim.plots.residual import cosines, norm_ratios, residual
from repsim.plots.style import save

__all__ = [
    "attention_distance",
    "attention_maps",
    "head_similarity",
    "compared",
    "cosines",
    "heatmap",
    "lesion",
    "localization",
    "localization_summary",
    "matched",
    "neighbours",
    "norm_ratios",
    "panel",
    "panels",
    "probe_tokens",
    "probes",
    "receptive_fields",
    "residual",
    "save",
    "side_by_side",
]
