"""Metrics and traces of a cache for OpenTelemetry.

What it is for: `instrument` turns the events of a cache into these metrics, and each build into
a span named ``atomcache.build``:

=============================  ==================  ================================================
``atomcache.hits``             counter             calls that found a fresh entry
``atomcache.misses``           counter             calls that did not
``atomcache.build.duration``   histogram, s        builds, by ``outcome``
``atomcache.builds.active``    up-down counter     builds under way in this process
``atomcache.duplicates``       counter             builds that ended when it was there already
``atomcache.fetched``          counter             entries that came from the bucket
``atomcache.wait.duration``    histogram, s        waits for somebody else's build
``atomcache.takeovers``        counter             claims of dead builders that were taken over
``atomcache.reaped``           counter             things of dead builders that were removed
``atomcache.evictions``        counter             entries removed to make room
``atomcache.evicted``          counter, By         bytes that this freed
``atomcache.corrupt``          counter             entries whose checksum was wrong
``atomcache.stale``            counter             old values that were served
``atomcache.errors``           counter             calls that could not read or write the folder
=============================  ==================  ================================================

``outcome`` is ``stored``, ``failed``, or ``not_stored`` when what was built was not kept.  A
failure also has ``error.type``, the name of the exception's class.  No metric ever carries a key.

A span is a child of the one that is current where the entry was asked for.  It is not made
current itself, so spans that the factory makes are its siblings.

Who calls it: programs, once per cache and process.  Each process tells of itself; let the
OpenTelemetry collector add them up.  With processes that are forked, call it in the child, as the
SDK asks for anyway.  What may go wrong: `ImportError` if OpenTelemetry is not installed; what it
raises later is logged and harms no caller of the cache.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from atomcache import AtomcacheError, __version__

from . import BUCKETS, FAILED, Builds

try:
    from opentelemetry import metrics, trace
except ImportError as error:
    raise ImportError(
        "atomcache.contrib.opentelemetry needs OpenTelemetry: pip install opentelemetry-api"
    ) from error

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from opentelemetry.metrics import Meter, MeterProvider
    from opentelemetry.trace import Span, Tracer, TracerProvider

    from atomcache import Cache, Event

    from . import Running

__all__ = ["instrument"]

_COUNTED = {
    "hit": ("atomcache.hits", "{hit}", "Calls that found a fresh entry"),
    "miss": ("atomcache.misses", "{miss}", "Calls that found no fresh entry"),
    "duplicate": (
        "atomcache.duplicates",
        "{build}",
        "Builds that ended when somebody else had published the entry already",
    ),
    "fetched": ("atomcache.fetched", "{entry}", "Entries that came from the bucket"),
    "taken_over": (
        "atomcache.takeovers",
        "{takeover}",
        "Claims of dead builders that were taken over",
    ),
    "reaped": ("atomcache.reaped", "{leftover}", "Things of dead builders that were removed"),
    "evicted": ("atomcache.evictions", "{entry}", "Entries removed to make room"),
    "corrupt": ("atomcache.corrupt", "{entry}", "Entries whose checksum was wrong"),
    "stale": ("atomcache.stale", "{value}", "Old values that were served"),
    "error": ("atomcache.errors", "{error}", "Calls that could not read or write the folder"),
}


def instrument(
    cache: Cache,
    meter_provider: MeterProvider | None = None,
    tracer_provider: TracerProvider | None = None,
    *,
    keys: bool = False,
    attributes: Mapping[str, str] | None = None,
) -> Callable[[], None]:
    """Tell OpenTelemetry what a cache does in this process.

    Parameters
    ----------
    cache
        The cache.
    meter_provider, tracer_provider
        Where metrics and spans go; the global ones by default.
    keys
        Whether spans show keys, as ``atomcache.key``, and the messages of the library's own
        errors, which name them.  Metrics never do.
    attributes
        Attributes of every metric and span, such as ``{"cache": "thumbnails"}`` to tell two
        caches of one program apart.

    Returns
    -------
    callable
        Ends it.

    Examples
    --------
    >>> import tempfile
    >>> from opentelemetry.sdk.metrics import MeterProvider
    >>> from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    >>> from atomcache import Cache
    >>> cache = Cache(tempfile.mkdtemp())
    >>> reader = InMemoryMetricReader()
    >>> end = instrument(cache, MeterProvider([reader]))
    >>> for _ in range(3):
    ...     answer = cache.get_or_create("answer", lambda: 42)
    >>> end()
    >>> told = reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics
    >>> sorted(metric.name for metric in told)
    ['atomcache.build.duration', 'atomcache.builds.active', 'atomcache.hits', 'atomcache.misses']
    >>> [metric.data.data_points[0].value for metric in told if metric.unit == "{hit}"]
    [2]
    """
    meter = metrics.get_meter("atomcache", __version__, meter_provider)
    tracer = trace.get_tracer("atomcache", __version__, tracer_provider)
    adapter = _Adapter(meter, tracer, keys, dict(attributes or {}))
    unsubscribe = cache.on(adapter)

    def end() -> None:
        unsubscribe()
        adapter.stop()

    return end


class _Adapter:
    """Turns the events of one cache into metrics and spans."""

    def __init__(
        self, meter: Meter, tracer: Tracer, keys: bool, attributes: dict[str, str]
    ) -> None:
        self._tracer = tracer
        self._keys = keys
        self._always = attributes
        self._counters = {
            kind: meter.create_counter(name, unit, description)
            for kind, (name, unit, description) in _COUNTED.items()
        }
        self._freed = meter.create_counter(
            "atomcache.evicted", "By", "Bytes freed by removing entries to make room"
        )
        self._building = meter.create_up_down_counter(
            "atomcache.builds.active", "{build}", "Builds under way in this process"
        )
        self._builds_took = meter.create_histogram(
            "atomcache.build.duration",
            "s",
            "How long builds took",
            explicit_bucket_boundaries_advisory=BUCKETS,
        )
        self._waits_took = meter.create_histogram(
            "atomcache.wait.duration",
            "s",
            "How long calls waited for somebody else's build",
            explicit_bucket_boundaries_advisory=BUCKETS,
        )
        self._builds = Builds(self._began, self._ended)

    def __call__(self, event: Event) -> None:
        """Take note of what happened."""
        self._builds.see(event)
        counter = self._counters.get(event.kind)
        if counter is not None:
            number = event.details.get("number", 1)
            counter.add(number if isinstance(number, int) else 1, self._always)
            size = event.details.get("size")
            if event.kind == "evicted" and isinstance(size, int):
                self._freed.add(size, self._always)
        elif event.kind == "waited":
            self._waits_took.record(event.seconds or 0.0, self._always)

    def stop(self) -> None:
        """Let go of the builds that are still under way: their ends will not be told."""
        self._builds.catch_up()
        under_way = self._builds.drop()
        if under_way:
            self._building.add(-under_way, self._always)

    def _began(self, event: Event) -> Span:
        self._building.add(1, self._always)
        span = self._tracer.start_span("atomcache.build", attributes=self._always)
        if self._keys:
            span.set_attribute("atomcache.key", event.key)
        return span

    def _ended(self, running: Running, outcome: str, error: BaseException | None) -> None:
        span: Span = running.mark
        told = {**self._always, "outcome": outcome}
        if error is not None:
            told["error.type"] = type(error).__qualname__
        self._building.add(-1, self._always)
        self._builds_took.record(running.seconds, told)
        span.set_attributes(told)
        if outcome == FAILED:
            span.set_status(trace.StatusCode.ERROR)
            if error is not None and (self._keys or not isinstance(error, AtomcacheError)):
                span.record_exception(error)
        span.end(running.ended)
