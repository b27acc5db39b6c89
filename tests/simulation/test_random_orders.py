"""Random histories of two to four contenders, with kills, pauses and failing calls."""

import pytest

from .scenario import Scenario
from .scheduler import draw

GROUNDS = {
    "posix": ("posix", 1),
    "windows": ("windows", 1),
    "nfs": ("nfs", 2),
    "nfs of three": ("nfs", 3),
    "hostile": ("hostile", 2),
}

ROLES = (
    ("get", "get"),
    ("get", "get", "get"),
    ("get", "get", "get", "get"),
    ("get_folder", "get_folder", "get_folder"),
    ("get_path", "reap", "get_path"),
    ("get", "fail", "get"),
    ("get", "set", "get"),
    ("get", "remove", "get"),
    ("get_folder", "remove", "get_folder"),
    ("get", "remove", "remove", "get"),
    ("get", "reap", "get"),
    ("get_slow", "get", "get"),
    ("refresh", "refresh", "refresh"),
)


def play(scenario, seeds):
    """Play many histories; return the first that breaks a promise, told."""
    for seed in seeds:
        troubles = {"kills": seed % 3, "pauses": seed % 2, "failures": 2 * (seed % 5 == 0)}
        faults, _ = draw(scenario, seed, **troubles)
        if faults:
            again, run = draw(scenario, seed, **troubles, recording=True)
            return f"seed {seed}: {'; '.join(again)}\n{run.told()}"
    return None


@pytest.mark.parametrize("roles", ROLES, ids="-".join)
@pytest.mark.parametrize("ground", GROUNDS)
def test_no_history_breaks_a_promise(ground, roles, thorough):
    assert play(Scenario(roles, *GROUNDS[ground]), range(1000 if thorough else 120)) is None


@pytest.mark.parametrize("roles", [("get",) * 4, ("get", "fail", "get_slow")], ids="-".join)
def test_no_history_of_threads_of_one_process_breaks_a_promise(roles, thorough):
    assert play(Scenario(roles, threads=True), range(1000 if thorough else 120)) is None


def test_the_same_seed_gives_the_same_history_to_the_step():
    scenario = Scenario(("get", "get", "get"))
    for seed in range(20):
        stories = [
            draw(scenario, seed, kills=1, pauses=1, failures=1, recording=True)[1].told()
            for _ in range(2)
        ]
        assert stories[0] == stories[1]
        assert "open x data.temp" in stories[0]
