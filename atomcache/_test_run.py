"""A test run, seen from one of its processes: its folder, its caches, its workers.

What it is for: the first process of a run has a folder, of which it tells its workers.  In it
are the shared fixtures, the cache of the run, and a journal for the summary at the end.

Who calls it: the hooks and fixtures of the plugin, and the shared fixtures.  What may go
wrong: `pytest.UsageError` where the plugin is switched off; `OSError` where the temporary
folder can't be written.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, suppress
from functools import partial

import pytest

from ._keys import digest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ._cache import Cache
    from ._sharing import Sharing
    from ._watch import Event
    from ._workers import Workers

_FOLDER = "atomcache_folder"
"""What a worker is told by the first process."""

_MAX_IDLE = "30d"
"""After which what nobody asks the persistent cache for is removed."""


class Run:
    """A test run, seen from one of its processes.

    The first process has a folder, which it makes when it is needed and removes at the end;
    its workers are told of it, unless they run on another machine: those are on their own.
    """

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.item: Any = None
        self.told: list[dict[str, Any]] = []
        self._of_workers: list[dict[str, Any]] = []
        self._caches: dict[str, Cache] = {}
        self._hits: dict[str, int] = {}
        self._waited: set[str] = set()
        self._sharing: Sharing | None = None
        self._first = not hasattr(config, "workerinput")
        given = getattr(config, "workerinput", {})
        self.worker: str | None = given.get("workerid")
        self._shared_folder: str | None = given.get(_FOLDER)
        self._own_folder: str | None = None
        self.workers: Workers | None = None
        self._lost = 0
        if self._shared_folder is not None:
            from ._workers import Workers

            self.workers = Workers(self._shared_folder, self.worker)

    def sharing(self) -> Sharing:
        """Return what knows the shared fixtures."""
        if self._sharing is None:
            from ._sharing import Sharing

            told = (self.note, self._stop_timer, self._say_who, self._give_up)
            self._sharing = Sharing(self._shared_folder, self.workers, *told)
        return self._sharing

    def folder(self) -> str:
        """Return the folder of the run, or of this process if it is on its own."""
        if self._shared_folder is not None:
            return self._shared_folder
        if self._own_folder is None:
            import tempfile

            factory = getattr(self.config, "_tmp_path_factory", None)
            place = None if factory is None else factory.getbasetemp()
            self._own_folder = tempfile.mkdtemp(prefix="atomcache-", dir=place)
        return self._own_folder

    # -- caches -----------------------------------------------------------------------

    def shared_cache(self) -> Cache:
        """Return the cache that lives as long as the run."""
        return self._cache("shared_cache", os.path.join(self.folder(), "cache"))

    def persistent_cache(self) -> Cache:
        """Return the cache that outlives the run."""
        from platformdirs import user_cache_dir

        root = str(self.config.rootpath)
        place = f"{os.path.basename(root)}-{digest(b'f', root).hex()[:12]}"
        directory = os.path.join(user_cache_dir("atomcache-pytest", appauthor=False), place)
        return self._cache("persistent_cache", directory, max_idle=_MAX_IDLE)

    def _cache(self, name: str, directory: str, **limits: Any) -> Cache:
        if name not in self._caches:
            from ._cache import Cache

            cache = self._caches[name] = Cache(directory, **limits)

            cache.on(partial(self._listen, name))
        return self._caches[name]

    def _listen(self, cache: str, event: Event) -> None:
        """Note what is built, and count what else is got, by waiting or at once."""
        name = f"{event.key}, in {cache}"
        if event.kind == "build_finished":
            self.note("built", name, event.seconds or 0.0, identity=name)
        if event.kind in ("build_finished", "build_failed"):
            self._waited.discard(name)
        elif cache == "shared_cache" and event.kind == "waited":
            self._waited.add(name)
        elif cache == "shared_cache" and event.kind == "hit":
            self._hits[name] = self._hits.get(name, 0) + 1

    # -- the processes ----------------------------------------------------------------

    def expect(self, node: Any) -> None:
        """Tell a worker of this run, before it is started."""
        if not node.gateway.spec.popen:
            return
        from ._workers import Workers

        if self.workers is None:
            self.workers = Workers(self.folder(), None)
        self.workers.expect(node.gateway.id)
        node.workerinput[_FOLDER] = self.folder()

    def lost(self, node: Any) -> None:
        """Note that a worker died; whether another one follows is what xdist decides just so."""
        if self.workers is None or _FOLDER not in node.workerinput:
            return
        self._lost += 1
        option = self.config.option
        most = getattr(option, "maxworkerrestart", None)
        if most is None and getattr(option, "numprocesses", None):
            most = 4 * option.numprocesses
        replaced = most is None or self._lost <= int(most)
        self.workers.lost(node.gateway.id, replaced=replaced)

    def _stop_timer(self) -> None:
        """Keep time limits from blaming a test for the time that other workers take."""
        has = self.config.pluginmanager.hasplugin
        if has("faulthandler") and float(self.config.getini("faulthandler_timeout") or 0) > 0:
            import faulthandler

            faulthandler.cancel_dump_traceback_later()
        hook = getattr(self.config.hook, "pytest_timeout_cancel_timer", None)
        if hook is not None and self.item is not None:
            hook(item=self.item)

    def _say_who(self, name: str, others: list[str]) -> None:
        """Tell the terminal who is waited for; of what a worker prints, only errors get there."""
        text = f"\natomcache: {self.worker} waits for {' '.join(others)} to end {name!r}\n"
        with ExitStack() as stack:
            stack.enter_context(suppress(OSError))  # nobody may be listening
            capture = self.config.pluginmanager.getplugin("capturemanager")
            if capture is not None:
                stack.enter_context(capture.global_and_fixture_disabled())
            os.write(2, text.encode(errors="replace"))

    def _give_up(self, name: str, silent: list[str]) -> None:
        import warnings

        message = (
            f"the shared fixture {name!r} is ended though {', '.join(silent)} may still use it: "
            "there was no sign of life for so long that it must hang. Look at what it does"
        )
        warnings.warn(pytest.PytestWarning(message), stacklevel=2)

    # -- the end ----------------------------------------------------------------------

    def finish(self) -> None:
        """Tell the others that this process asks for nothing any more."""
        if self.workers is None:
            return
        if self._first:
            self.workers.end()
        else:
            self.workers.over()

    def count_hits(self) -> None:
        """Note what this process was spared by the caches."""
        for name in {*self._hits, *self._waited}:
            times = self._hits.get(name, 0) + (name in self._waited)
            self.note("used", name, 0.0, identity=name, times=times)
        if "persistent_cache" in self._caches:  # what it gave may be built by an earlier run
            saved = self._caches["persistent_cache"]._watch.counts()["seconds_saved"]
            name = "entries of persistent_cache"
            self.note("used", name, saved, identity=name)

    def close(self) -> None:
        """Let go, and remove the run's folder."""
        self.finish()
        if self.workers is not None:
            self.workers.end()
        if self._own_folder is not None:
            import shutil

            shutil.rmtree(self._own_folder, ignore_errors=True)
            self._own_folder = None

    # -- the summary ------------------------------------------------------------------

    def note(
        self,
        what: str,
        name: str,
        seconds: float,
        *,
        identity: str,
        number: int = 0,
        place: str = "",
        times: int = 1,
        told: Any = None,
    ) -> None:
        """Note something for the summary, which the first process writes.

        Many things may have one name; what has one identity is one thing, and a number for
        each time that it was built.
        """
        event = {
            "what": what,
            "name": name,
            "identity": identity,
            "id": f"{identity}.{number}",
            "place": place,
            "worker": self.worker or "",
            "seconds": seconds,
            "times": times,
        }
        if told is not None:
            event["what"] = _VERBS.get(told["outcome"], "failed")
        if self._shared_folder is None:
            self.told.append(event)
            return
        import json

        with open(os.path.join(self._shared_folder, "journal"), "ab", buffering=0) as journal:
            journal.write(json.dumps(event).encode() + b"\n")  # one write, so lines stay whole

    def read_journal(self) -> None:
        """Take in what the workers have noted, while it is there."""
        if self._own_folder is None:
            return
        import json

        try:
            with open(os.path.join(self._own_folder, "journal"), "rb") as journal:
                self._of_workers = [json.loads(line) for line in journal]
        except FileNotFoundError:  # nothing was noted, or pytest has removed its folder
            return

    def events(self) -> list[dict[str, Any]]:
        """Return what all processes have noted."""
        self.read_journal()
        return self.told + self._of_workers


_VERBS = {"skip": "skipped", "xfail": "expected to fail"}
RUN = pytest.StashKey[Run]()


def run_of(config: pytest.Config) -> Run:
    run = config.stash.get(RUN, None)
    if run is None:
        raise pytest.UsageError(
            "the plugin of atomcache is switched off, so no fixture can be shared. Take away "
            "'-p no:atomcache', or pass '-p atomcache.pytest' where no plugin is loaded by itself"
        )
    return run
