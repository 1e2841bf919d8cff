"""The names, networks and commands of an installed wheel work without the checkout, on few images.

    python tests/smoke.py        with the Python of the environment that holds the wheel, in an empty folder

It takes about a minute on two cores, and ends with a line of counts, or with an error that names the missing part.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import metadata, version
from importlib.resources import files
from pathlib import Path

import repsim as rs
from repsim.cli import main
from repsim.networks import minis

CHECKOUT = Path(__file__).resolve().parents[1]
FEW = ["--images", "32", "--batch-size", "16", "--quiet"]
COMMANDS = [
    ["attention", *FEW],
    ["heads", *FEW],
    ["receptive", "--channels", "1", *FEW],
    ["residual", *FEW],
    ["lesion", *FEW],
    ["localize", *FEW],
    ["probe", "--shots", "1", "--no-tokens", *FEW],
    ["figures", "8", "G.1", "H.2", *FEW],
    ["models"],
]
"""Commands that name no networks and no data, so that the wheel's own networks and images are used."""


def smoke() -> None:
    """Try every name, network and command; an AssertionError or the command's own error says what is wrong."""
    home = Path(rs.__file__).resolve().parent
    assert not home.is_relative_to(CHECKOUT), f"this is the checkout's repsim, not the wheel's: {home}"
    assert version("repsim-vision") == rs.__version__
    assert metadata("repsim-vision")["License-Expression"] == "Apache-2.0"
    for name in ("py.typed", "sample/LICENSE"):
        assert files("repsim").joinpath(name).is_file(), f"the wheel lacks repsim/{name}"
    for name in rs.__all__:
        getattr(rs, name)
    kept = {path.stem for path in (CHECKOUT / "repsim" / "weights").glob("*.safetensors")}
    assert set(minis.bundled()) == kept, f"the wheel's networks are not the checkout's: {set(minis.bundled()) ^ kept}"
    for name in kept:
        rs.load_model(name)
    subprocess.run([Path(sys.executable).with_name("repsim"), "cka", *FEW], check=True)
    for command in COMMANDS:
        main(command, standalone_mode=False)
    print(f"repsim {rs.__version__} from {home}: {len(kept)} networks and {len(COMMANDS) + 1} commands work")


if __name__ == "__main__":
    smoke()
