"""The oldest releases that are tested are those that the package asks for."""

import re
from pathlib import Path

from repsim.networks.libraries import DISTRIBUTIONS, OLDEST, PACKAGES

ROOT = Path(__file__).parents[1]
PINS = ROOT / "tests" / "constraints" / "oldest.txt"


def floors():
    """The oldest release that the package or one of its extras asks for, by the name of the library."""
    requirements = re.findall(r'"([\w-]+)(?:\[\w+\])?>=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    return {name.lower().replace("_", "-"): oldest for name, oldest in requirements}


def as_numbers(release):
    return [int(number) for number in re.sub(r"(\.0)+$", "", release).split(".")]


def test_the_pins_are_the_oldest_that_pyproject_allows():
    pins = dict(re.findall(r"^([\w-]+)==([\d.]+)", PINS.read_text(), re.M))
    asked = floors()
    both = pins.keys() & asked.keys()
    assert len(both) >= 20
    assert {name: as_numbers(pins[name]) for name in both} == {name: as_numbers(asked[name]) for name in both}


def test_libraries_of_networks_are_refused_below_what_their_extra_asks_for():
    asked = floors()
    for scheme, oldest in OLDEST.items():
        package = DISTRIBUTIONS.get(PACKAGES[scheme], PACKAGES[scheme])
        assert as_numbers(oldest) == as_numbers(asked[package.lower().replace("_", "-")])
