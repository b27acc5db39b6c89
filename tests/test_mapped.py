"""Large arrays are mapped: whole, writable, private, and verified."""

import logging
import os
import subprocess
import sys

import pytest

from atomcache import Cache
from atomcache import _value as value_module

np = pytest.importorskip("numpy")


@pytest.fixture
def array():
    return np.arange(100_000, dtype=np.float64)


def test_a_large_array_is_mapped_not_copied(cache, array):
    cache.set("key", array)
    back = cache.get("key")
    base = back
    while getattr(base, "base", None) is not None:
        base = base.base
    assert "mmap" in repr(getattr(base, "obj", base))
    assert (back == array).all()
    assert back.ctypes.data % 64 == 0


@pytest.mark.parametrize("what", ["replace", "remove", "clear"])
def test_a_mapped_value_stays_whole_while_its_entry_is_replaced_or_removed(cache, array, what):
    cache.set("key", array)
    back = cache.get("key")
    if what == "replace":
        cache.set("key", np.zeros_like(array))
    elif what == "remove":
        cache.remove("key")
    else:
        cache.clear()
    assert (back == array).all()


def test_writing_to_a_mapped_value_is_private(cache, array):
    cache.set("key", array)
    mine = cache.get("key")
    mine[:] = -1
    assert (cache.get("key") == array).all()


def test_a_mapped_file_that_changes_after_it_was_verified_is_found_out(
    cache, array, monkeypatch, caplog
):
    monkeypatch.setattr(value_module, "RACY_SECONDS", -1.0)
    cache.set("key", array)
    cache.get("key")
    path = cache._asking.place("key")[1]
    assert path in value_module._verified
    with open(path, "r+b") as file:
        file.seek(-1000, os.SEEK_END)
        file.write(b"damage")
    with caplog.at_level(logging.WARNING, "atomcache"):
        assert cache.get("key") is None
    assert "checksum" in caplog.text


def test_a_mapped_file_is_summed_once_per_process_while_it_is_the_same(cache, array, monkeypatch):
    monkeypatch.setattr(value_module, "RACY_SECONDS", -1.0)
    cache.set("key", array)
    summed = []
    real = value_module.xxh3_64_intdigest
    monkeypatch.setattr(
        value_module, "xxh3_64_intdigest", lambda data: summed.append(len(data)) or real(data)
    )
    cache.get("key")
    assert max(summed) >= array.nbytes
    summed.clear()
    cache.get("key")
    assert max(summed, default=0) < 1000


def test_a_file_changed_a_moment_ago_is_summed_every_time(cache, array):
    cache.set("key", array)
    cache.get("key")
    assert cache._asking.place("key")[1] not in value_module._verified


@pytest.mark.parametrize("package", ["pandas", "pyarrow"])
def test_what_speaks_pickle_buffers_is_mapped_under_the_codec_pickle(tmp_path, package):
    pytest.importorskip(package, reason=f"{package} is not installed")
    code = f"""
import mmap, sys
import numpy as np, {package}
from atomcache import Cache
cache = Cache(sys.argv[1], codec="pickle")
numbers = np.arange(200_000, dtype=float)
table = (
    {package}.DataFrame({{"n": numbers}}) if {package!r} == "pandas"
    else {package}.table({{"n": numbers}})
)
cache.set("key", table)
assert cache.get("key").equals(table)
"""
    (tmp_path / "cache").mkdir(mode=0o700)
    subprocess.run([sys.executable, "-c", code, tmp_path / "cache"], check=True, timeout=60)


def test_eight_readers_of_one_array_share_its_pages(tmp_path):
    if not os.path.exists("/proc/self/smaps_rollup"):
        pytest.skip("reads private memory from Linux's smaps")
    cache = Cache(tmp_path / "cache")
    cache.set("key", np.ones(4_000_000))  # 32 MB
    os.sync()  # pages not yet written count as private to whoever alone has them mapped
    code = """
import sys
from atomcache import Cache
import numpy
cache = Cache(sys.argv[1])
cache.get("warm")
def private():
    with open("/proc/self/smaps_rollup") as file:
        fields = dict(line.split(":", 1) for line in list(file)[1:])
    return sum(int(fields[name].split()[0]) for name in ("Private_Dirty",))
before = private()
array = cache.get("key")
assert array.sum() == 4_000_000
print(private() - before)
sys.stdout.flush()
sys.stdin.read()
"""
    readers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(cache.directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(8)
    ]
    try:
        grown = [int(reader.stdout.readline()) for reader in readers]
    finally:
        for reader in readers:
            reader.communicate(timeout=60)
    assert max(grown) < 10_000, grown  # kB, of 32 MB
