"""The command line. Nothing heavy is imported before a command needs it."""

from repsim.cli import (  # noqa: F401  each adds its commands to main
    attention,
    compare,
    doctor,
    extract,
    heads,
    lesion,
    localization,
    look,
    paper,
    probe,
    receptive,
    residual,
    sensitivity,
    similarity,
)
from repsim.cli.base import main
from repsim.cli.job import default_data

__all__ = ["default_data", "main"]
