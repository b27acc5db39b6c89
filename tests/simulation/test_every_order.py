"""Every interleaving of small cases, with one process killed anywhere."""

import pytest

from .scenario import Scenario
from .scheduler import explore

COMPLETE = {
    "two ask": (Scenario(("get", "get")), 0),
    "two ask, one is killed": (Scenario(("get", "get")), 1),
    "two threads ask, their process is killed": (Scenario(("get", "get"), threads=True), 1),
    "one asks, one sets": (Scenario(("get", "set")), 1),
    "one asks, one removes": (Scenario(("get", "remove")), 1),
    "two replace what expired": (Scenario(("refresh", "refresh")), 0),
    "two machines, all quick": (Scenario(("get", "get"), "nfs", 2, prompt=True), 0),
}

LONG = {
    "two ask for a file": (Scenario(("get_path", "get_path")), 1),
    "two ask for a folder": (Scenario(("get_folder", "get_folder")), 1),
    "two ask in a folder yet to be made": (Scenario(("get", "get"), made=False), 1),
    "two fail": (Scenario(("fail", "fail")), 1),
    "two replace what expired": (Scenario(("refresh", "refresh")), 1),
    "two ask, one removes": (Scenario(("get", "get", "remove")), 1),
    "one asks for a folder, one removes": (Scenario(("get_folder", "remove")), 1),
    "one asks, one reaps": (Scenario(("get", "reap")), 1),
    "three ask": (Scenario(("get", "get", "get")), 1),
    "Windows": (Scenario(("get", "get"), "windows"), 1),
    "a folder on Windows": (Scenario(("get_folder", "get_folder"), "windows"), 1),
    "two machines": (Scenario(("get", "get"), "nfs", 2), 1),
    "two machines, nothing excludes": (Scenario(("get", "get"), "hostile", 2), 1),
}
"""Cases with too many orders for every run: a first part, or with --thorough far more."""


def told(record_property, runs, states):
    record_property("schedules", runs)
    print(f"{runs} orders explored, {states} states seen")


@pytest.mark.parametrize("case", COMPLETE)
def test_no_order_of_events_breaks_a_promise(case, record_property):
    scenario, kills = COMPLETE[case]
    runs, states, complete = explore(scenario, kills)
    told(record_property, runs, states)
    assert complete


@pytest.mark.parametrize("case", LONG)
def test_of_too_many_orders_to_try_the_first_break_no_promise(case, thorough, record_property):
    scenario, kills = LONG[case]
    most = 15_000 if thorough else 700
    runs, states, complete = explore(scenario, kills, 4000, most)
    told(record_property, runs, states)
    assert complete or runs == most
