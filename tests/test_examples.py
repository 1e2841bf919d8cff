"""`rs.` completes to documented names, and every one of them has an example that runs."""

import doctest
import inspect
import sys

import pytest

import repsim as rs

PUBLIC = [*rs.__all__, *(f"paper.{name}" for name in rs.paper.__all__)]


def test_completion_has_the_public_names_alone():
    names = [name for name in dir(rs) if not name.startswith("_")]
    assert names == sorted(rs.__all__)
    assert sorted(dir(rs.paper)) == sorted(rs.paper.__all__)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_has_a_sentence_and_an_example(name):
    described = inspect.getdoc(inspect.unwrap(_named(name)))
    assert described and described.splitlines()[0].endswith("."), "its docstring begins with a sentence"
    assert ">>> " in described, "its docstring has an example"


def _named(name):
    value = rs
    for part in name.split("."):
        value = getattr(value, part)
    return value


def decorated():
    """Public names that `pytest --doctest-modules` passes over: a decorator of another module stands in their place."""
    return [name for name in PUBLIC if inspect.unwrap(_named(name)) is not _named(name)]


@pytest.mark.parametrize("name", decorated())
def test_examples_of_decorated_functions_run(name):
    function = inspect.unwrap(_named(name))
    names = dict(vars(sys.modules[function.__module__]))
    (example,) = doctest.DocTestFinder(recurse=False).find(function, name, module=False, globs=names)
    said = []
    failed, tried = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, out=said.append)
    assert tried and not failed, "".join(said)
