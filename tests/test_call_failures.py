"""Every call through the door fails once, with every error that a system may give.

The process itself gets the right result or an error of the library's family, keeps no
claim, and lives on while a fresh process gets the whole value; nothing hangs.  With
``on_store_error="bypass"`` it gets the right result wherever the factory can run.  See
`crash_door` for how a case is played.
"""

import errno
import os

import pytest

from .crash_door import CHANGES, SCENARIOS, Case, playing, refusals

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the cases are forked")


@pytest.fixture(scope="module")
def players(tmp_path_factory):
    with playing(tmp_path_factory, on_disk=False) as players:
        yield players


@pytest.mark.parametrize("scenario", [each for each in SCENARIOS if each != "notes"])
def test_a_call_that_fails_gives_the_right_result_or_a_clear_error_and_frees_the_claim(
    scenario, players, thorough, record_property
):
    cases = refusals(scenario, players.count(scenario))
    if not thorough and scenario != "value":
        heart = [case for case in cases if case.name == "start_heartbeat"]
        step = 29 if SCENARIOS[scenario].polls else 17  # primes: errors and choices take turns
        cases = list(dict.fromkeys(cases[::step] + heart))
    players.must_pass(cases, record_property)


@pytest.mark.parametrize(
    "scenario",
    ["value", "file", "refresh value", "refresh folder", "take over folder", "reap", "remove"],
)
def test_a_call_that_is_carried_out_and_reported_as_failed_does_no_harm(
    scenario, players, thorough, record_property
):
    """A network filesystem that loses a reply does so."""
    cases = [
        case
        for case in refusals(scenario, players.count(scenario), "lost")
        if case.name in CHANGES and case.error == errno.EIO
    ]
    players.must_pass(cases, record_property)


@pytest.mark.parametrize("scenario", ["value", "folder"])
def test_a_builder_that_got_over_a_failing_call_can_be_killed_like_any_other(
    scenario, players, thorough, record_property
):
    cases = [
        case
        for case in refusals(scenario, players.count(scenario), "fail-then-die")
        if case.error == errno.EMFILE or case.name == "start_heartbeat"
    ]
    players.must_pass(cases if thorough else cases[::2], record_property)


def test_a_claim_that_stays_locked_in_a_living_process_is_caught(players):
    mutant = "keep_lock_after_failing_unlink"

    def play(scenario):
        calls = players.count(scenario, mutant)
        number = max(n for n, name in enumerate(calls) if name == "unlink")
        case = Case(scenario, number, "unlink", "fail", errno.EIO, bound=2.0, mutant=mutant)
        return players.play([case]).complaints

    # Published: nobody asks for the claim, but the descriptor is seen to be open.
    complaints = play("value")
    assert any("keeps open" in each for each in complaints), complaints
    # Not published: the next one to ask sleeps on the claim for ever.
    complaints = play("failure")
    assert any("the fresh process hangs" in each for each in complaints), complaints
