"""Pictures of tables. Nothing here imports torch, so every figure can be redrawn from its saved table."""

from repsim.plots.matrices import heatmap, panel
from repsim.plots.style import save

__all__ = ["heatmap", "panel", "save"]
