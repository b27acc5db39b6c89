"""The ready adapters, against the real libraries that they adapt to."""

import asyncio
import contextlib
import gc
import os
import subprocess
import sys
import textwrap
import threading

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from atomcache import Cache, CodecError, DontStore, current_build
from atomcache.contrib import BUCKETS, opentelemetry, prometheus

from .crew import PATIENCE

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def never():
    raise AssertionError("this should have been a hit")


def make(cache, key="key", **options):
    return cache.get_or_create(key, lambda: "built", **options)


def refuse():
    raise DontStore("not kept")


def fail():
    raise ZeroDivisionError("secret of the factory")


def interrupt():
    raise KeyboardInterrupt


def build_and_ask(line, cache, key="key"):
    def factory():
        line.tell("building")
        line.hear("go on")
        return "built"

    return cache.get_or_create(key, factory)


def do_everything(cache):
    """Have two hits, four misses, and builds that end in each possible way."""
    make(cache)
    make(cache)
    make(cache)
    with contextlib.suppress(ZeroDivisionError):
        cache.get_or_create("failing", fail)
    cache.get_or_create("refused", refuse)
    with contextlib.suppress(KeyboardInterrupt):
        cache.get_or_create("interrupted", interrupt)
    gc.collect()


# -- OpenTelemetry ---------------------------------------------------------------------


class Telemetry:
    """The real SDK, with what it was told kept in memory."""

    def __init__(self):
        self.reader = InMemoryMetricReader()
        self.meters = MeterProvider([self.reader])
        self.exporter = InMemorySpanExporter()
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))

    def instrument(self, cache, **options):
        return opentelemetry.instrument(cache, self.meters, self.tracers, **options)

    def metrics(self):
        told = self.reader.get_metrics_data()
        scopes = [scope for each in told.resource_metrics for scope in each.scope_metrics]
        return {metric.name: metric for scope in scopes for metric in scope.metrics}

    def points(self, name):
        """Return the data of a metric by its attributes."""
        metric = self.metrics().get(name)
        found = [] if metric is None else metric.data.data_points
        return {tuple(sorted(point.attributes.items())): point for point in found}

    def value(self, name):
        [point] = self.points(name).values()
        return point.value

    def spans(self):
        return self.exporter.get_finished_spans()


@pytest.fixture
def telemetry():
    telemetry = Telemetry()
    yield telemetry
    telemetry.meters.shutdown()
    telemetry.tracers.shutdown()


def test_hits_and_misses_are_counted_for_opentelemetry(cache, telemetry):
    telemetry.instrument(cache)
    do_everything(cache)
    assert telemetry.value("atomcache.hits") == 2
    assert telemetry.value("atomcache.misses") == 4


def test_each_build_is_measured_once_by_its_outcome(cache, telemetry):
    end = telemetry.instrument(cache)
    do_everything(cache)
    end()
    points = telemetry.points("atomcache.build.duration")
    assert {attributes: point.count for attributes, point in points.items()} == {
        (("outcome", "stored"),): 1,
        (("error.type", "ZeroDivisionError"), ("outcome", "failed")): 1,
        (("outcome", "not_stored"),): 2,
    }
    [entry] = cache.entries()
    stored = points[(("outcome", "stored"),)]
    assert stored.sum == pytest.approx(entry.build_seconds)
    assert stored.explicit_bounds == BUCKETS
    assert telemetry.metrics()["atomcache.build.duration"].unit == "s"
    assert telemetry.value("atomcache.builds.active") == 0


def test_a_build_under_way_is_active_until_its_end(cache, telemetry):
    telemetry.instrument(cache)
    active = []

    def factory():
        active.append(telemetry.value("atomcache.builds.active"))
        cache.get_or_create("inner", inner)
        return "built"

    def inner():
        active.append(telemetry.value("atomcache.builds.active"))
        return "built"

    cache.get_or_create("key", factory)
    assert [*active, telemetry.value("atomcache.builds.active")] == [1, 2, 0]


def test_no_metric_carries_a_key_and_no_span_does_unasked(cache, telemetry):
    telemetry.instrument(cache)
    secret = "a key that nobody shall see"
    make(cache, secret)
    make(cache, secret)
    with pytest.raises(CodecError):
        cache.get_or_create(secret + "2", object)  # the library's error names the key
    with pytest.raises(ZeroDivisionError):
        cache.get_or_create(secret + "3", fail)
    cache.prune(max_bytes=1)
    told = telemetry.reader.get_metrics_data().to_json()
    told += "".join(span.to_json() for span in telemetry.spans())
    assert len(telemetry.spans()) == 3
    assert secret not in told


def test_spans_carry_keys_if_asked(cache, telemetry):
    telemetry.instrument(cache, keys=True)
    make(cache, ("page", 1))
    [span] = telemetry.spans()
    assert span.attributes["atomcache.key"] == "('page', 1)"
    assert "page" not in telemetry.reader.get_metrics_data().to_json()


def test_a_build_is_a_span_below_the_callers_and_a_hit_is_none(cache, telemetry):
    telemetry.instrument(cache)
    tracer = telemetry.tracers.get_tracer("test")
    with tracer.start_as_current_span("request") as request:
        make(cache)
        make(cache)
        with tracer.start_as_current_span("afterwards"):
            pass
    build, afterwards, _ = telemetry.spans()
    assert build.name == "atomcache.build"
    assert dict(build.attributes) == {"outcome": "stored"}
    assert build.status.status_code is StatusCode.UNSET
    assert build.parent.span_id == request.get_span_context().span_id
    assert afterwards.parent.span_id == request.get_span_context().span_id
    assert request.start_time <= build.start_time < build.end_time <= afterwards.start_time


def test_a_failed_build_is_a_span_with_the_error(cache, telemetry):
    telemetry.instrument(cache)
    with pytest.raises(ZeroDivisionError):
        cache.get_or_create("key", fail)
    [span] = telemetry.spans()
    assert span.status.status_code is StatusCode.ERROR
    assert dict(span.attributes) == {"outcome": "failed", "error.type": "ZeroDivisionError"}
    [event] = span.events
    assert event.attributes["exception.message"] == "secret of the factory"
    assert "in fail" in event.attributes["exception.stacktrace"]


def test_every_build_that_is_not_kept_is_a_span_that_ends(cache, telemetry):
    end = telemetry.instrument(cache)
    do_everything(cache)
    end()
    outcomes = [span.attributes["outcome"] for span in telemetry.spans()]
    assert outcomes == ["stored", "failed", "not_stored", "not_stored"]


def test_a_build_that_is_not_kept_is_over_at_once(cache, telemetry):
    telemetry.instrument(cache)
    held = []

    def factory():
        held.append(current_build())  # which outlives the build
        raise DontStore("not now")

    cache.get_or_create("refused", factory)
    assert [span.attributes["outcome"] for span in telemetry.spans()] == ["not_stored"]


def test_a_build_that_is_not_kept_is_told_with_the_next_event(cache, telemetry):
    telemetry.instrument(cache)
    cache.get_or_create("refused", refuse)
    make(cache)
    assert [span.attributes["outcome"] for span in telemetry.spans()] == ["not_stored", "stored"]


def test_builds_in_builds_and_in_threads_are_each_told_with_their_own_key(cache, telemetry):
    telemetry.instrument(cache, keys=True)

    def outer(number):
        def factory():
            cache.get_or_create(("refused", number), refuse)
            with contextlib.suppress(ZeroDivisionError):
                cache.get_or_create(("failing", number), fail)
            make(cache, ("inner", number))
            return "built"

        cache.get_or_create(("outer", number), factory)

    threads = [threading.Thread(target=outer, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    told = [
        (each.attributes["atomcache.key"], each.attributes["outcome"])
        for each in telemetry.spans()
    ]
    ends = {"refused": "not_stored", "failing": "failed", "inner": "stored", "outer": "stored"}
    wanted = [(repr((kind, number)), end) for kind, end in ends.items() for number in range(4)]
    assert sorted(told) == sorted(wanted)


def test_builds_of_tasks_are_spans_below_their_callers(cache, telemetry):
    telemetry.instrument(cache)
    tracer = telemetry.tracers.get_tracer("test")

    async def factory():
        return "built"

    async def fail_later():
        raise ZeroDivisionError

    async def main():
        with tracer.start_as_current_span("request"):
            await cache.aget_or_create("key", factory)
            await cache.aget_or_create("key", factory)
            with contextlib.suppress(ZeroDivisionError):
                await cache.aget_or_create("failing", fail_later)

    asyncio.run(main())
    stored, failed, request = telemetry.spans()
    assert stored.parent.span_id == failed.parent.span_id == request.context.span_id
    assert [stored.attributes["outcome"], failed.attributes["outcome"]] == ["stored", "failed"]
    assert telemetry.value("atomcache.hits") == 1


def test_waits_takeovers_and_what_was_reaped_are_told(crew, cache, telemetry):
    telemetry.instrument(cache)
    builder = crew.start(build_and_ask, cache)
    builder.hear("building")
    with pytest.raises(TimeoutError):
        make(cache, timeout=0.01)
    [point] = telemetry.points("atomcache.wait.duration").values()
    assert point.count == 1
    assert point.sum >= 0.01
    builder.kill()
    make(cache)
    assert telemetry.value("atomcache.takeovers") == 1
    other = crew.start(build_and_ask, cache, "other")
    other.hear("building")
    other.kill()
    assert cache.reap() == telemetry.value("atomcache.reaped") > 0


def test_duplicates_and_what_was_fetched_are_told(cache, telemetry, registry):
    telemetry.instrument(cache)
    registry.register(prometheus.Collector(cache))
    assert cache.get_or_create("key", lambda: cache.set("key", "set") or "built") == "set"
    assert telemetry.value("atomcache.duplicates") == 1
    assert telemetry.value("atomcache.builds.active") == 0
    assert [span.attributes["outcome"] for span in telemetry.spans()] == ["not_stored"]
    cache._watch.tell("fetched", "other", seconds=0.1)
    assert telemetry.value("atomcache.fetched") == 1
    told = scrape(registry)
    assert told[("atomcache_duplicates_total",)] == 1
    assert told[("atomcache_fetched_total",)] == 1
    assert told[("atomcache_builds_total",)] == 0


def test_evictions_damage_stale_values_and_errors_are_told(cache, telemetry, tmp_path):
    telemetry.instrument(cache)
    for key in range(3):
        make(cache, key)
    pruned = cache.prune(max_entries=1)
    assert telemetry.value("atomcache.evictions") == 2
    assert telemetry.value("atomcache.evicted") == pruned.freed > 0
    assert telemetry.metrics()["atomcache.evicted"].unit == "By"
    cache.clear()
    make(cache)
    [entry] = cache.entries()
    content = entry.path.read_bytes()
    entry.path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    make(cache)
    assert telemetry.value("atomcache.corrupt") == 1
    make(cache, "old", max_age=0)
    with contextlib.suppress(ZeroDivisionError):
        cache.get_or_create("old", fail, max_age=0, stale_on_error=3600)
    assert telemetry.value("atomcache.stale") == 1
    (tmp_path / "file").write_text("not a folder")
    unusable = Cache(tmp_path / "file", on_store_error="bypass")
    telemetry.instrument(unusable)
    make(unusable)
    assert telemetry.value("atomcache.errors") == 1


def test_attributes_tell_two_caches_apart(tmp_path, telemetry):
    for name in ("pages", "tiles"):
        cache = Cache(tmp_path / name)
        telemetry.instrument(cache, attributes={"cache": name})
        make(cache)
        make(cache)
    told = {
        attributes: each.value for attributes, each in telemetry.points("atomcache.hits").items()
    }
    assert told == {(("cache", "pages"),): 1, (("cache", "tiles"),): 1}
    assert [span.attributes["cache"] for span in telemetry.spans()] == ["pages", "tiles"]


def test_after_its_end_opentelemetry_is_told_nothing(cache, telemetry):
    end = telemetry.instrument(cache)
    make(cache)
    end()
    end()
    make(cache)
    make(cache, "other")
    assert "atomcache.hits" not in telemetry.metrics()
    assert len(telemetry.spans()) == 1


def test_an_end_during_a_build_leaves_no_build_active(cache, telemetry):
    end = telemetry.instrument(cache)
    cache.get_or_create("key", lambda: end() or "built")
    assert telemetry.value("atomcache.builds.active") == 0


def test_without_providers_the_global_ones_are_told(tmp_path):
    program = """
        import sys
        from opentelemetry import metrics, trace
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
        from atomcache import Cache
        from atomcache.contrib.opentelemetry import instrument

        reader = InMemoryMetricReader()
        metrics.set_meter_provider(MeterProvider([reader]))
        tracers = TracerProvider()
        tracers.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter()))
        trace.set_tracer_provider(tracers)
        cache = Cache(sys.argv[1])
        instrument(cache)
        cache.get_or_create("key", lambda: "built")
        print(reader.get_metrics_data().to_json())
    """
    told = run_program(tmp_path, program)
    assert "atomcache.misses" in told
    assert "atomcache.build.duration" in told
    assert '"name": "atomcache.build"' in told


# -- Prometheus ------------------------------------------------------------------------


@pytest.fixture
def registry():
    return CollectorRegistry()


def samples(text):
    """Return the samples of an exposition by name and labels; none may be told twice."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            place = (sample.name, *sorted(sample.labels.items()))
            assert place not in found, f"{place} is told twice"
            found[place] = sample.value
    return found


def scrape(registry):
    return samples(generate_latest(registry).decode())


def test_prometheus_is_told_every_count(cache, registry):
    registry.register(prometheus.Collector(cache))
    do_everything(cache)
    told = scrape(registry)
    counts = cache.stats().process
    assert counts[:4] == (2, 4, 1, 1)
    for field, value in counts._asdict().items():
        name = {"seconds_saved": "saved_seconds", "seconds_built": "built_seconds"}
        assert told[(f"atomcache_{name.get(field, field)}_total",)] == pytest.approx(value)
    types = {each.name: each.type for each in registry.collect()}
    assert types["atomcache_hits"] == "counter"
    assert types["atomcache_build_seconds"] == "histogram"
    assert types["atomcache_builds_in_progress"] == "gauge"


def test_prometheus_is_told_each_build_once_by_its_outcome(cache, registry):
    registry.register(prometheus.Collector(cache))
    do_everything(cache)
    told = scrape(registry)
    name = "atomcache_build_seconds_count"
    counts = {place[1:]: value for place, value in told.items() if place[0] == name}
    assert counts == {
        (("outcome", "stored"),): 1,
        (("outcome", "failed"),): 1,
        (("outcome", "not_stored"),): 2,
    }
    [entry] = cache.entries()
    took = told[("atomcache_build_seconds_sum", ("outcome", "stored"))]
    assert took == pytest.approx(entry.build_seconds)


def test_prometheus_is_told_of_waits_and_of_builds_in_progress(crew, cache, registry):
    registry.register(prometheus.Collector(cache))
    together = CollectorRegistry()
    together.register(prometheus.Collector(cache, everyone=True))
    builder = crew.start(build_and_ask, cache)
    builder.hear("building")
    with pytest.raises(TimeoutError):
        make(cache, timeout=0.01)
    seen = []
    place = ("atomcache_builds_in_progress",)
    cache.get_or_create(
        "other", lambda: seen.extend((scrape(registry)[place], scrape(together)[place])) or "built"
    )
    assert seen == [1, 2]  # of this process, of all
    told = scrape(registry)
    assert told[("atomcache_wait_seconds_count",)] == 1
    assert told[("atomcache_wait_seconds_sum",)] >= 0.01
    assert told[place] == 0
    builder.tell("go on")
    builder.result()
    assert scrape(together)[place] == 0


def build_elsewhere(line, cache, key):
    make(cache, key)


def test_one_process_can_tell_prometheus_of_everyone(crew, cache, registry):
    registry.register(prometheus.Collector(cache, everyone=True))
    make(cache)
    for number in range(3):
        member = crew.start(build_elsewhere, cache, number)
        member.result()
        member.process.join(PATIENCE)
    assert scrape(registry)[("atomcache_builds_total",)] == 4


def test_no_metric_of_prometheus_carries_a_key(cache, registry):
    registry.register(prometheus.Collector(cache))
    make(cache, "a_key_that_nobody_shall_see")
    assert "a_key_that_nobody_shall_see" not in generate_latest(registry).decode()


def test_two_caches_need_two_namespaces(tmp_path, registry):
    pages, tiles = Cache(tmp_path / "pages"), Cache(tmp_path / "tiles")
    registry.register(prometheus.Collector(pages))
    with pytest.raises(ValueError, match="Duplicated"):
        registry.register(prometheus.Collector(tiles))
    registry.register(prometheus.Collector(tiles, namespace="tiles"))
    make(tiles)
    told = scrape(registry)
    assert told[("atomcache_builds_total",)] == 0
    assert told[("tiles_builds_total",)] == 1


def test_a_collector_can_be_taken_away_again(cache, registry):
    collector = prometheus.Collector(cache)
    registry.register(collector)
    registry.unregister(collector)
    collector.end()
    make(cache)
    assert scrape(registry) == {}
    assert not cache._watch.callbacks
    registry.register(prometheus.Collector(cache))


def test_a_scrape_does_not_touch_the_cache_folder_unless_it_tells_of_everyone(cache, registry):
    registry.register(prometheus.Collector(cache))
    assert scrape(registry)[("atomcache_hits_total",)] == 0
    assert not cache.directory.exists()


def test_a_scrape_does_not_fail_with_the_cache_folder(tmp_path, registry, caplog):
    (tmp_path / "cache").write_text("not a folder")
    cache = Cache(tmp_path / "cache", on_store_error="bypass")
    registry.register(prometheus.Collector(cache, everyone=True))
    make(cache)
    generate_latest(registry)
    own = CollectorRegistry()
    own.register(prometheus.Collector(cache))
    assert scrape(own)[("atomcache_errors_total",)] == 1


WORKERS = """
    import multiprocessing, os, sys
    from atomcache import Cache
    from atomcache.contrib.prometheus import Collector
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.multiprocess import MultiProcessCollector

    cache = Cache(sys.argv[1])

    def refuse():
        from atomcache import DontStore
        raise DontStore

    def work(number):
        collector = Collector(cache, everyone=True)
        cache.get_or_create(number, lambda: "built")
        for _ in range(5):
            cache.get_or_create(number, lambda: "built")
        cache.get_or_create("refused", refuse)
        collector.end()

    def metrics():
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
        registry.register(collector)
        return generate_latest(registry).decode()

    if __name__ == "__main__":
        context = multiprocessing.get_context(sys.argv[2])
        workers = [context.Process(target=work, args=(number,)) for number in range(3)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
            assert worker.exitcode == 0
        collector = Collector(cache, everyone=True)
        cache.get_or_create("here", lambda: "built")
        print(metrics())
"""


def run_program(tmp_path, program, *args, **environment):
    script = tmp_path / "program.py"
    script.write_text(textwrap.dedent(program))
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", script, tmp_path / "cache", *args],
        env={**os.environ, "PYTHONPATH": HERE, **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("way", ["fork", "spawn"])
def test_in_multiprocess_mode_one_worker_tells_of_all_and_nothing_twice(tmp_path, way):
    (tmp_path / "shared").mkdir()
    shared = str(tmp_path / "shared")
    told = samples(run_program(tmp_path, WORKERS, way, PROMETHEUS_MULTIPROC_DIR=shared))
    assert told[("atomcache_hits_total",)] == 15
    assert told[("atomcache_builds_total",)] == 4
    assert told[("atomcache_build_seconds_count", ("outcome", "stored"))] == 4
    assert told[("atomcache_build_seconds_count", ("outcome", "not_stored"))] == 3
    assert told[("atomcache_builds_in_progress",)] == 0


# -- without the libraries -------------------------------------------------------------


@pytest.mark.parametrize(
    ("adapter", "library", "package"),
    [
        ("opentelemetry", "opentelemetry", "opentelemetry-api"),
        ("prometheus", "prometheus_client", "prometheus-client"),
    ],
)
def test_without_its_library_an_adapter_says_what_to_install(tmp_path, adapter, library, package):
    program = f"""
        import sys

        sys.modules[{library!r}] = None
        import atomcache.contrib

        try:
            import atomcache.contrib.{adapter}
        except ImportError as error:
            print(error)
    """
    assert f"pip install {package}" in run_program(tmp_path, program)


def test_the_package_itself_loads_neither(tmp_path):
    program = """
        import sys
        import atomcache, atomcache.contrib
        from atomcache import Cache

        Cache(sys.argv[1]).get_or_create("key", lambda: "built")
        print([each for each in sys.modules if "prometheus" in each or "telemetry" in each])
    """
    assert run_program(tmp_path, program) == "[]\n"
