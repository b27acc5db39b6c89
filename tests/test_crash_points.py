"""A process is killed at every call through the door, on the real thing.

After each kill a fresh process gets the whole value with one build at most, `reap()`
leaves nothing but entries, and nothing hangs.  See `crash_door` for how a case is played.
"""

import os
from dataclasses import replace

import pytest

from .crash_door import SCENARIOS, Case, kills, playing

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the cases are forked")


@pytest.fixture(scope="module")
def players(tmp_path_factory, thorough):
    with playing(tmp_path_factory, on_disk=thorough) as players:
        yield players


def chosen(scenario, calls, thorough):
    """Return the kills of a scenario: all of them, or those that differ on the disk.

    A kill after a call and one before the next differ in nothing that is left behind.
    """
    cases = kills(scenario, calls)
    if thorough or scenario == "value":
        return cases
    few = [case for case in cases if case.when != "after" or case is cases[-1]]
    return few[::4] if SCENARIOS[scenario].polls else few


@pytest.mark.parametrize("scenario", [each for each in SCENARIOS if each != "notes"])
def test_a_process_killed_at_any_call_costs_the_next_one_a_build_at_most(
    scenario, players, thorough, record_property
):
    cases = chosen(scenario, players.count(scenario), thorough)
    players.must_pass(cases, record_property)


@pytest.mark.parametrize(
    "scenario",
    ["value", "file", "folder", "refresh folder", "failure of a folder", "take over folder"],
)
def test_reap_alone_clears_away_whatever_a_killed_process_left(
    scenario, players, thorough, record_property
):
    cases = chosen(scenario, players.count(scenario), thorough)
    cases = [replace(case, reap_first=True) for case in cases if case.when != "after"]
    if not thorough:
        cases = cases[:: 2 if scenario == "value" else 5]
    players.must_pass(cases, record_property)


def test_the_notes_in_a_new_cache_folder_are_whole_whenever_their_writer_was_killed(
    players, record_property
):
    calls = players.count("notes")
    before_claim = calls[: calls.index("lock_exclusive>flock")]
    players.must_pass(kills("notes", before_claim), record_property)


def test_a_publisher_that_writes_into_the_entry_is_caught(players):
    mutant = "publish_in_place"
    calls = players.count("file", mutant)
    synced = max(n for n, name in enumerate(calls) if name.startswith("sync_folder"))
    number = max(n for n, name in enumerate(calls[:synced]) if name == "write>os.write")
    case = Case("file", number, calls[number], "half", mutant=mutant)
    complaints = players.play([case]).complaints
    assert any("the fresh process got" in each for each in complaints), complaints


def test_a_reaper_that_forgets_scratch_is_caught(players):
    calls = players.count("take over folder")
    case = Case("take over folder", 0, calls[0], "before", mutant="reap_claims_only")
    complaints = players.play([case]).complaints
    assert any("reap() leaves" in each for each in complaints), complaints
