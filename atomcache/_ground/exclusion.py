"""Trials of what has one winner: exclusive creation, and locks.

What it is for: a claim is made by exclusive creation, and its lock tells whether the owner lives.
Several helpers race for the same names; then one holds a lock that others try for, sleep on, and
get when it is let go or its owner is killed.

Who calls it: the examination.  What may go wrong: `OSError` and `NoAnswer` as the crew passes them
on.  Where there are no locks, that is a finding.
"""

from __future__ import annotations

from time import monotonic, sleep
from typing import TYPE_CHECKING

from .._claim import LEASE, NO_LOCKS
from .._patience import LONGEST_PAUSE
from .crew import RACERS
from .findings import FAILS, HOLDS, UNKNOWN, Finding, often, short_time

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .crew import Crew, Helper

PROMPT = 5.0
"""Seconds within which those who sleep on a lock have to wake.  They take a few milliseconds; this
is for crowded machines, and short of any lease."""

LOCKS = "locks between processes"
_LOCKS_OF_ONE = "locks within a process"
_SLEEP = "sleep on a lock"
_LOCKS_OF_DEAD = "locks after a kill"


def creation(crew: Crew) -> Iterator[Finding]:
    """Try whether one of several wins who create the same file exclusively."""
    rounds, wrong = crew.race("create")
    name = "exclusive creation"
    if not wrong:
        yield Finding(name, HOLDS, f"{RACERS} processes raced {often(rounds)}, one won each time")
        return
    yield Finding(
        name,
        FAILS,
        f"{RACERS} processes raced {often(rounds)}, and {often(wrong)} not exactly one won",
        "Several processes may each take themselves for the one that builds: work is done more "
        "than once. The first result is kept, and nothing torn is ever returned.",
        "several processes can create the same file exclusively, so work is done more than once",
        grave=True,
    )


def locks(crew: Crew) -> Iterator[Finding]:
    """Try whether locks exclude others and the owner itself, wake sleepers, and end with it."""
    path = crew.path("lock")
    holder, other, sleeper = crew.others
    crew.keeper.ask("write", path, "locked")
    try:
        yes = holder.ask("lock", path, True)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        yield _no_locks(error)
        yield from _untried("there are no locks", _LOCKS_OF_ONE, _SLEEP, _LOCKS_OF_DEAD)
        return
    granted = [how for how in (True, False) if other.ask("lock", path, how)]
    if not yes or granted:
        yield _lying(
            "granted to two processes at once" if granted else "refused although nobody has it"
        )
        yield from _untried("locks lie", _LOCKS_OF_ONE, _SLEEP, _LOCKS_OF_DEAD)
        return
    rounds, wrong = crew.race("lock")
    yield Finding(
        LOCKS,
        FAILS if wrong else HOLDS,
        f"refused while another process had it; {RACERS} processes raced {often(rounds)}, "
        + (f"and {often(wrong)} not exactly one won" if wrong else "one won each time"),
        *(("", "locks are granted to several now and then", True) if wrong else ()),
    )
    alone = _locks_of_one(holder, other, path)
    yield alone
    if alone.grave:
        yield from _untried("a lock is not kept", _SLEEP, _LOCKS_OF_DEAD)
        return
    slept = _sleep(holder, sleeper, path)
    yield slept
    if slept.grave:
        yield from _untried("sleeping does not work", _LOCKS_OF_DEAD)
        crew.replace(sleeper)
        return
    yield from _locks_of_dead(crew, path)


def _no_locks(error: OSError) -> Finding:
    return Finding(
        LOCKS,
        FAILS,
        f"there are none: {error.strerror}",
        f"Waiters look at the claim, with a growing pause of at most {LONGEST_PAUSE:g} s, "
        "instead of sleeping. A builder that was killed is replaced when it has been silent "
        f"for a lease ({LEASE:g} s; Cache(lease=...)). Cache.hold keeps nothing from being "
        "evicted.",
        "there are no locks: waiters poll, and a killed builder is replaced after a lease",
    )


def _lying(how: str) -> Finding:
    return Finding(
        LOCKS,
        FAILS,
        how,
        "Waiters take a builder that lives for dead, and build too: work is done more than "
        "once. The first result is kept, and nothing torn is ever returned.",
        "locks lie, so work is done more than once",
        grave=True,
    )


def _untried(why: str, *names: str) -> Iterator[Finding]:
    for name in names:
        yield Finding(name, UNKNOWN, f"not tried: {why}")


def _locks_of_one(holder: Helper, other: Helper, path: str) -> Finding:
    """Try whether who has a lock gets it once more, or loses it by trying."""
    again = holder.ask("lock", path, True)
    lost = other.ask("lock", path, True)
    if lost:
        other.ask("let_go", path)
    if not again and not lost:
        return Finding(
            _LOCKS_OF_ONE, HOLDS, "refused to the process that has it; a second look keeps it"
        )
    return Finding(
        _LOCKS_OF_ONE,
        FAILS,
        "given up when the same process looks a second time"
        if lost
        else "granted a second time to the process that has it",
        "A process that uses two Cache objects for one folder builds twice, and may make others "
        "take its builds for dead.",
        "a process does not exclude itself, so work may be done more than once",
        grave=True,
    )


def _sleep(holder: Helper, sleeper: Helper, path: str) -> Finding:
    """Try whether who sleeps on a lock wakes when it is let go, and not before."""
    sleeper.start("wait", path)
    early = sleeper.answered(0.05)
    began = monotonic()
    holder.ask("let_go", path)
    woke = sleeper.answered(PROMPT)
    took = monotonic() - began
    if early or not woke:
        return Finding(
            _SLEEP,
            FAILS,
            "woken while the lock was held" if early else f"not woken within {PROMPT:g} s",
            "Who waits for somebody else's build may "
            + ("build too." if early else "never wake (unless timeout= is given)."),
            "waiters wake early and build too" if early else "waiters never wake",
            grave=True,
        )
    sleeper.answer()
    return Finding(_SLEEP, HOLDS, f"woke {short_time(took)} after the lock was let go")


def _locks_of_dead(crew: Crew, path: str) -> Iterator[Finding]:
    """Try whether the lock of one who is killed is free, and who sleeps on it wakes."""
    holder, other, sleeper = crew.others
    holder.ask("lock", path, True)
    sleeper.start("wait", path)
    sleeper.answered(0.05)
    began = monotonic()
    holder.kill()
    woke = sleeper.answered(PROMPT)
    took = monotonic() - began
    while not (free := other.ask("lock", path, True)) and monotonic() - began < PROMPT:
        sleep(0.001)
    crew.replace(holder)
    if woke and free:
        sleeper.answer()
        other.ask("let_go", path)
        yield Finding(
            _LOCKS_OF_DEAD,
            HOLDS,
            f"free, and who slept on it awake, {short_time(took)} after the kill",
        )
        return
    yield Finding(
        _LOCKS_OF_DEAD,
        FAILS,
        f"not {'free' if woke else 'free, and who slept on it not awake,'} {PROMPT:g} s after the "
        "kill of its owner",
        "Who waits for a builder that was killed may wait for ever, unless timeout= is given.",
        "a killed builder keeps its lock, so that others wait for ever",
        grave=True,
    )
    crew.replace(sleeper)
