"""The lab is only as good as what it catches: every planted fault must be found.

``pytest tests/simulation/test_mutants.py -rP`` prints the shortest history of each.
"""

import re

import pytest

from .mutants import MUTANTS
from .scenario import Scenario
from .scheduler import hunt


@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_fault_is_caught(name, monkeypatch):
    plant, scenario, search = MUTANTS[name]
    plant(monkeypatch)
    found, tried = hunt(scenario, **search)
    assert found is not None, f"{name} survived {tried} histories"
    broken = re.search(r"raised (Type|Attribute|Name|FileExists)Error.*", str(found))
    assert broken is None, f"{name} does not fit the library any more: it {broken.group()}"
    print(f"{name}: {plant.__doc__}\nshortest of {tried} histories:\n{found}")


def test_the_documents_loop_is_caught():
    found, tried = hunt(Scenario(("loop", "loop")), most=200)
    assert found is not None
    print(f"the document's loop, shortest of {tried} histories:\n{found}")


def test_where_nothing_is_planted_the_same_searches_find_nothing():
    searches = {}
    for _, scenario, search in MUTANTS.values():
        searches[scenario, tuple(search.items())] = None
    for scenario, search in searches:
        found, _ = hunt(scenario, **dict(search), most=200)
        assert found is None, found
