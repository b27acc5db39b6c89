"""The checks for overlapping builds and torn reads, and the loop that they must catch.

Each scenario is played twice: by the library, which must pass, and by the document's
loop, in which the same check must find the fault it is there for.
"""

import os

import pytest

from atomcache import Cache

from . import document_loop
from .crew import sleepers, until
from .test_single_flight import claim_of

WHOLE = "first half, second half"


def build_by_halves(line):
    def build(file):
        line.tell("building")
        file.write(WHOLE[:10])
        file.flush()
        line.hear("go on")
        file.write(WHOLE[10:])
        file.flush()

    return build


def ask_loop(line, place):
    return document_loop.get_or_create(place, build_by_halves(line))


def ask_library(line, place):
    def build(target):
        with target.open("w") as file:
            build_by_halves(line)(file)

    path = Cache(place).get_or_create_path("key", build, name="data")
    return path.read_text()


def comes_to_rest(member, place):
    """Wait until a second caller sleeps or builds; tell which."""
    claim = claim_of(Cache(place), kind=b"p")
    return until(
        lambda: (member.connection.poll() and "builds") or (sleepers(claim) and "sleeps"),
        "the second caller sleeps or builds",
    )


def play(crew, ask, place):
    """Let two callers ask; return how many built at once and what each one read.

    The second caller comes while the first builds.  If it builds too, the first ends
    before it, so that the first publishes what the second has half written.
    """
    first = crew.start(ask, place)
    first.hear("building")
    second = crew.start(ask, place)
    overlap = comes_to_rest(second, place) == "builds"
    if overlap:
        second.hear("building")
    first.tell("go on")
    read_first = first.result()
    if overlap:
        second.kill()
        return 2, [read_first]
    return 1, [read_first, second.result()]


def check(builders, answers):
    """Return the faults that one scenario shows."""
    faults = []
    if builders > 1:
        faults.append("overlapping builds")
    if any(answer != WHOLE for answer in answers):
        faults.append("torn read")
    return faults


@pytest.fixture
def place(tmp_path):
    place = tmp_path / "place"
    place.mkdir()
    return str(place)


def test_the_library_neither_overlaps_nor_tears(crew, place):
    assert check(*play(crew, ask_library, place)) == []


@pytest.mark.skipif(os.name == "nt", reason="on Windows the document's loop is right")
def test_the_documents_loop_is_caught_overlapping_and_tearing(crew, place):
    assert check(*play(crew, ask_loop, place)) == ["overlapping builds", "torn read"]
