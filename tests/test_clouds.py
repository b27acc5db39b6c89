"""What the client of a store makes of the dialects of clouds, and of their failures."""

import contextlib
import logging
import socket
import threading
import time

import pytest

from atomcache import Cache, _following
from atomcache._keys import digest
from atomcache._object import object_name

from .clouds import Cloud
from .crew import PATIENCE

pytest.importorskip("obstore")


@pytest.fixture(autouse=True)
def nobody_looks_at_following(monkeypatch):
    monkeypatch.setattr(_following.Follower, "start", lambda follower: None)


@pytest.fixture
def cloud():
    cloud = Cloud()
    yield cloud
    cloud.close()


def machine(cloud, folder, dialect="s3", **options):
    address, settings = cloud.remote(dialect)
    usual = {"remote_timeout": PATIENCE, "codec": "bytes"}
    return Cache(folder, remote=address, remote_options=settings, **{**usual, **options})


def never():
    raise AssertionError("it is built again")


def warnings(caplog):
    return [each for each in caplog.records if each.levelno >= logging.WARNING]


@pytest.mark.parametrize("size", [6 << 20, 30 << 20, 60 << 20])
@pytest.mark.parametrize("write", ["sync", "async"])
def test_a_large_result_is_returned_and_kept_though_its_upload_fails(
    cloud, tmp_path, caplog, size, write
):
    cloud.refuse = lambda kind, path: 403 if kind == "part" else None
    cache = machine(cloud, tmp_path, write=write)
    assert len(cache.get_or_create("key", lambda: b"x" * size)) == size
    assert len(cache.get_or_create("key", never)) == size
    if write == "sync":
        assert len(warnings(caplog)) == 1
    assert not any(name.count(".") == 0 and "/v1/" in name for name in cloud.objects)


def test_parts_that_share_a_slow_line_may_each_take_longer_than_a_request(cloud, tmp_path):
    def slow(kind, path):
        if kind == "part":
            time.sleep(6.5)  # the store's own pace; the limit of a request is 6 s, of a part 12 s

    cloud.refuse = slow
    cloud.lock = contextlib.nullcontext()
    machine(cloud, tmp_path / "a", remote_timeout=6).get_or_create("key", lambda: b"x" * 9_000_000)
    cloud.refuse = lambda kind, path: None
    assert len(machine(cloud, tmp_path / "b").get_or_create("key", never)) == 9_000_000


def test_a_store_object_that_never_answers_costs_its_time_limit_once(tmp_path, caplog):
    from obstore.store import S3Store

    with socket.create_server(("127.0.0.1", 0), backlog=50) as silent:
        store = S3Store(
            "bucket",
            endpoint=f"http://127.0.0.1:{silent.getsockname()[1]}",
            access_key_id="x",
            secret_access_key="x",
            region="x",
            client_options={"allow_http": True},
        )
        cache = Cache(tmp_path, remote=store, remote_timeout=0.3)
        # by its own limits it would answer in three minutes: then the test's time is over
        assert ends(lambda: cache.get_or_create("key", lambda: 1)) == 1
    assert cache._protocol.remote.bucket.requests == 1
    assert len(warnings(caplog)) == 1


def ends(step):
    """Return what a step returns within the time that tests have."""
    answer = []
    thread = threading.Thread(target=lambda: answer.append(step()), daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert answer, "it hangs"
    return answer[0]


@pytest.mark.parametrize("dialect", ["s3", "gs", "az"])
def test_a_store_object_is_used_with_all_its_settings(cloud, tmp_path, dialect):
    from obstore.store import from_url

    address, settings = cloud.remote(dialect)
    store = from_url(address, **settings)
    for name in "ab":
        cache = Cache(tmp_path / name, remote=store, codec="bytes")
        assert cache.get_or_create("key", (lambda: b"x") if name == "a" else never) == b"x"
    assert any(name.endswith(object_name(digest(b"v", "key"))) for name in cloud.objects)


@pytest.mark.parametrize("dialect", ["s3", "gs", "az"])
def test_machines_share_through_every_kind_of_store(cloud, tmp_path, dialect):
    a, b = (machine(cloud, tmp_path / name, dialect) for name in "ab")
    for key, size in (("small", 10), ("large", 1_000_000), ("in parts", 12_000_000)):
        assert len(a.get_or_create(key, lambda size=size: bytes(size))) == size
        assert len(b.get_or_create(key, never)) == size
    assert a.get_or_create("old", lambda: b"1") == b"1"
    assert b.refresh("old", lambda: b"2") == b"2"
    assert machine(cloud, tmp_path / "c", dialect).get("old") == b"2"
    conditions = {"gs": {"x-goog-if-generation-match"}}
    assert cloud.conditions == conditions.get(dialect, {"if-match", "if-none-match"})
    assert a.remove("large")
    left = [name for name in cloud.objects if object_name(digest(b"v", "large")) in name]
    assert [name for name in left if not name.endswith(".temp")] == []


@pytest.mark.parametrize("dialect", ["s3", "gs", "az"])
def test_what_is_there_is_removed_whatever_is_not(cloud, tmp_path, dialect):
    bucket = machine(cloud, tmp_path, dialect)._protocol.remote.bucket
    for name in "bd":
        bucket.put(name, b"x")
    bucket.delete("a", "b", "c", "d", "e")
    assert cloud.objects == {}


@pytest.mark.parametrize("size", [10, 300_000, 6_000_000, 22_000_000])
@pytest.mark.parametrize("dialect", ["s3", "gs"])
def test_all_requests_are_counted(cloud, tmp_path, dialect, size):
    a, b = (machine(cloud, tmp_path / name, dialect) for name in "ab")
    a.get_or_create("key", lambda: bytes(size))
    counted = a._protocol.remote.bucket.requests
    assert counted == sum(cloud.asked.values())
    b.get_or_create("key", never)
    assert counted + b._protocol.remote.bucket.requests == sum(cloud.asked.values())
