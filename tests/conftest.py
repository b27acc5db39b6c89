"""Fixtures that all tests share."""

import pytest

from atomcache import Cache

from .crew import Crew


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache")


@pytest.fixture
def crew():
    with Crew() as crew:
        yield crew
