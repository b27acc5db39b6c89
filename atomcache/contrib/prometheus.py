"""Metrics of a cache for Prometheus.

What it is for: a `Collector`, registered with a registry of `prometheus_client`, shows

====================================  =========  ==================================================
``atomcache_hits_total``              counter    calls that found a fresh entry
``atomcache_misses_total``            counter    calls that did not
``atomcache_builds_total``            counter    factories that ended with an entry published
``atomcache_failures_total``          counter    factories that ended with an error
``atomcache_duplicates_total``        counter    factories that ended when it was there already
``atomcache_fetched_total``           counter    entries that came from the bucket
``atomcache_waits_total``             counter    calls that waited for somebody else's build
``atomcache_takeovers_total``         counter    claims of dead builders that were taken over
``atomcache_stale_total``             counter    old values that were served
``atomcache_evictions_total``         counter    entries removed to make room
``atomcache_corrupt_total``           counter    entries whose checksum was wrong
``atomcache_errors_total``            counter    calls that could not read or write the folder
``atomcache_not_stored_total``        counter    factories whose value was not to be kept
``atomcache_saved_seconds_total``     counter    hits, each times the seconds its build took
``atomcache_built_seconds_total``     counter    what the builds took
``atomcache_build_seconds``           histogram  how long builds took, by ``outcome``
``atomcache_wait_seconds``            histogram  how long calls waited
``atomcache_builds_in_progress``      gauge      builds under way
====================================  =========  ==================================================

``outcome`` is ``stored``, ``failed``, or ``not_stored`` when what was built was not kept.  No
metric ever carries a key.  Counters are read when Prometheus asks, so they cost a hit nothing; the
histograms need a subscription, which costs each hit about a microsecond.

Several processes
-----------------
If each process is scraped by itself, do nothing: each tells of itself, and Prometheus adds up.

If one process of several answers for all, such as a worker of gunicorn, have it say
``everyone=True``: counters and gauge are then those of all processes that use the cache folder,
from what they wrote down there.  That needs no set-up and survives restarts.

Histograms are known to one process only, unless `prometheus_client` runs in its multiprocess mode
(``PROMETHEUS_MULTIPROC_DIR`` is set).  In that mode, make one collector when each worker starts
and keep it, and register it, and nothing else than it and the library's own
``MultiProcessCollector``, with the registry of each scrape::

    collector = Collector(cache, everyone=True)  # once, when the worker starts

    def metrics(environ, start_response):
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # shows the histograms of all workers
        registry.register(collector)  # shows counters and the gauge
        return make_wsgi_app(registry)(environ, start_response)

Who calls it: programs.  What may go wrong: `ImportError` if `prometheus_client` is not installed;
`ValueError` from the registry for two collectors of one `namespace`.  A scrape while the cache
folder can't be read leaves out what it can't tell, and logs it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from atomcache._log import logger

from . import BUCKETS, Builds

try:
    from prometheus_client import Histogram
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
    from prometheus_client.registry import Collector as _Collector
except ImportError as error:
    raise ImportError(
        "atomcache.contrib.prometheus needs prometheus_client: pip install prometheus-client"
    ) from error

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client import Metric

    from atomcache import Cache, Counts, Event

    from . import Running

__all__ = ["Collector"]

_COUNTERS = {
    "hits": ("hits", "Calls that found a fresh entry"),
    "misses": ("misses", "Calls that found no fresh entry"),
    "builds": ("builds", "Factories that ended with an entry published"),
    "failures": ("failures", "Factories that ended with an error"),
    "duplicates": (
        "duplicates",
        "Factories that ended when somebody else had published the entry already",
    ),
    "fetched": ("fetched", "Entries that came from the bucket and were not built"),
    "waits": ("waits", "Calls that waited for somebody else's build"),
    "takeovers": ("takeovers", "Claims of dead builders that were taken over"),
    "stale": ("stale", "Old values that were served"),
    "evictions": ("evictions", "Entries removed to make room"),
    "corrupt": ("corrupt", "Entries whose checksum was wrong"),
    "errors": ("errors", "Calls that could not read or write the folder"),
    "not_stored": ("not_stored", "Factories whose value was not to be kept"),
    "requests": ("requests", "What was asked of the bucket"),
    "seconds_saved": ("saved_seconds", "Hits, each times the seconds its build took"),
    "seconds_built": ("built_seconds", "Seconds that builds took"),
}
"""What each field of `Counts` is called here, and what it means."""


class Collector(_Collector):
    """Shows Prometheus what a cache does; to be registered with a registry.

    Parameters
    ----------
    cache
        The cache.
    everyone
        Whether counters and gauge are those of all processes that use the cache folder, and
        not of this one.  The gauge then needs a walk over the folder at each scrape.
    namespace
        With which the metrics' names begin.  Two caches of one program need two.

    Examples
    --------
    >>> import tempfile
    >>> from prometheus_client import CollectorRegistry
    >>> from atomcache import Cache
    >>> cache = Cache(tempfile.mkdtemp())
    >>> registry = CollectorRegistry()
    >>> registry.register(Collector(cache))
    >>> for _ in range(3):
    ...     answer = cache.get_or_create("answer", lambda: 42)
    >>> registry.get_sample_value("atomcache_hits_total")
    2.0
    """

    def __init__(
        self, cache: Cache, everyone: bool = False, *, namespace: str = "atomcache"
    ) -> None:
        self._cache = cache
        self._everyone = everyone
        self._namespace = namespace
        self._builds_took = Histogram(
            f"{namespace}_build_seconds",
            "How long builds took",
            ["outcome"],
            registry=None,
            buckets=BUCKETS,
        )
        self._waits_took = Histogram(
            f"{namespace}_wait_seconds",
            "How long calls waited for somebody else's build",
            registry=None,
            buckets=BUCKETS,
        )
        self._builds = Builds(lambda event: None, self._ended)
        self._end = cache.on(self._see)

    def end(self) -> None:
        """Let go of the cache; to be called after the registry's ``unregister``."""
        self._end()
        self._builds.catch_up()

    def describe(self) -> Iterator[Metric]:
        """Yield the metrics without their samples, for the registry to find double names."""
        for name, documentation in _COUNTERS.values():
            yield CounterMetricFamily(f"{self._namespace}_{name}", documentation)
        yield self._gauge(None)
        if not _shown_by_all():
            yield from self._builds_took.describe()
            yield from self._waits_took.describe()

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics as they are now."""
        self._builds.catch_up()
        try:
            counts, building = self._counts(), self._count_builds()
        except OSError as error:
            logger().warning("a scrape leaves out what can't be read: %s", error)
        else:
            for field, (name, documentation) in _COUNTERS.items():
                value = float(getattr(counts, field))
                yield CounterMetricFamily(f"{self._namespace}_{name}", documentation, value)
            yield self._gauge(building)
        if not _shown_by_all():
            yield from self._builds_took.collect()
            yield from self._waits_took.collect()

    def _gauge(self, value: float | None) -> GaugeMetricFamily:
        return GaugeMetricFamily(
            f"{self._namespace}_builds_in_progress", "Builds under way", value
        )

    def _counts(self) -> Counts:
        if self._everyone:
            return self._cache.stats().everyone
        return self._cache._keep_up()[1].counts()  # without a look at the disk

    def _count_builds(self) -> int:
        return sum(1 for _ in self._cache.builds()) if self._everyone else len(self._builds)

    def _see(self, event: Event) -> None:
        self._builds.see(event)
        if event.kind == "waited":
            self._waits_took.observe(event.seconds or 0.0)

    def _ended(self, running: Running, outcome: str, error: BaseException | None) -> None:
        self._builds_took.labels(outcome).observe(running.seconds)


def _shown_by_all() -> bool:
    """Tell whether the library's own multiprocess collector shows the histograms."""
    return any(
        name in os.environ for name in ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir")
    )
