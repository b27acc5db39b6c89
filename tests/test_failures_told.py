"""What those who wait are told of a failure, whatever the error is made of."""

import subprocess
import urllib.error

import pytest

from atomcache import BuildFailedError, Cache, StorageError
from atomcache._failure import again, describe, restore


class Needy(Exception):
    """Says what its own constructor has put together."""

    def __init__(self, code, *, where):
        super().__init__(code)
        self.where = where
        self.handle = object()  # no plain data

    def __str__(self):
        return f"{self.args[0]} at {self.where} by {self.handle.__class__.__name__}"


class Proxy:
    """As those that stand for an object of a request, and fail without one."""

    @property
    def __class__(self):
        raise RuntimeError("no request")


class Hostile(ValueError):
    @property
    def __dict__(self):
        raise RuntimeError("no attributes")


def http_error():
    return urllib.error.HTTPError("http://localhost/", 404, "Not Found", None, None)


ERRORS = {
    "plain": lambda: ValueError("plain", 1),
    "of the system": lambda: FileNotFoundError(2, "No such file", "a path"),
    "of HTTP": http_error,
    "needy": lambda: Needy(5, where="home"),
    "long": lambda: ValueError("x" * 2_000_000),
    "with much output": lambda: subprocess.CalledProcessError(1, "cc", output=b"w" * 600_000),
    "of a proxy": lambda: ValueError(Proxy()),
    "without attributes": lambda: Hostile("no dict"),
    "group": lambda: ExceptionGroup("many", [ValueError(1), ExceptionGroup("x", [KeyError("k")])]),
}


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_is_told_and_is_of_its_type_and_says_the_same(name):
    error = ERRORS[name]()
    told = describe(error)
    assert len(told) < 700_000
    restored = restore(told)
    assert isinstance(restored, type(error))
    if name != "of a proxy":  # which nothing can be said of
        assert str(restored)[:1000] == str(error)[:1000]
    assert getattr(restored, "__notes__", []) == []


def test_a_group_is_told_with_what_is_in_it():
    restored = restore(describe(ERRORS["group"]()))
    one, group = restored.exceptions
    assert (type(one), one.args) == (ValueError, (1,))
    assert (type(group.exceptions[0]), group.exceptions[0].args) == (KeyError, ("k",))


def test_the_attributes_that_are_plain_data_are_told_though_others_are_not():
    assert restore(describe(Needy(5, where="home"))).args[0]
    error = ValueError("x")
    error.code, error.handle = 7, object()
    assert restore(describe(error)).code == 7


@pytest.mark.parametrize("name", ERRORS)
def test_a_thread_gets_an_error_that_says_the_same(name):
    error = ERRORS[name]()
    other = again(error)
    assert type(other) is type(error)
    if name != "of a proxy":
        assert str(other) == str(error)


def test_a_class_that_is_not_known_here_is_said_to_be_so():
    told = describe(ValueError("x")).replace('"ValueError"', '"NoSuchError"')
    error = restore(told)
    assert isinstance(error, BuildFailedError)
    assert "has not loaded that type" in str(error)


def test_the_tale_of_who_could_not_store_is_not_the_failure_of_who_need_not(tmp_path, monkeypatch):
    cache = Cache(tmp_path / "cache", on_store_error="bypass")
    entry = type("Entry", (), {"options": cache._options})()
    assert cache._protocol._may_do_without(entry, StorageError(28, "No space", "path"))
    assert not cache._protocol._may_do_without(entry, OSError(28, "No space", "path"))
