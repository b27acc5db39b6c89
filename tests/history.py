"""A log of what happened in several processes, and the check of what must never happen.

Every process appends its events to a log of its own, one `write` per event, so that a kill
loses at most the event that was about to be written.  Times are those of the machine's one
monotonic clock.  Afterwards `check` reads them all, in the order of time, as one history:

- a factory ran for no key in two living processes at once; a killed builder's run ends
  with the kill, a stopped builder lives;
- what was returned is what some factory had completed, whole;
- what was removed before somebody asked is not given to them, unless its build was still
  under way (and published after the removal); nor is what had expired;
- an error that was raised is that of a factory which was still at it;
- whoever asked got an answer or an error, unless they were killed.
"""

import bisect
import hashlib
import itertools
import json
import os
import time
from collections import defaultdict
from math import inf

CLOCKS_APART = 0.05
"""Seconds that the wall clock, which expiry is told by, may drift from the monotonic one."""


# -- content that tells whether it is whole ----------------------------------------------


def fill(key, build, size):
    """Return text that says who built it, and whether that is all of it."""
    body = os.urandom(size // 2).hex()
    return f"{key} {build} {_checksum(key, build, body)} {body}."


def read(text, key):
    """Return which build of `key` made a text; `None` if the text is not whole."""
    parts = text.split(" ")
    if len(parts) != 4 or not parts[3].endswith(".") or parts[0] != key:
        return None
    _, build, checksum, body = parts
    return build if checksum == _checksum(key, build, body[:-1]) else None


def _checksum(key, build, body):
    return hashlib.blake2b(f"{key} {build} {body}".encode(), digest_size=16).hexdigest()


# -- the log -----------------------------------------------------------------------------


class Log:
    """Where one process writes down what happens to it."""

    def __init__(self, folder, who) -> None:
        self.who = who
        self._file = os.open(
            os.path.join(folder, f"{who}.log"), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600
        )

    def note(self, event, **more):
        record = {"at": time.monotonic(), "who": self.who, "event": event, **more}
        os.write(self._file, json.dumps(record).encode() + b"\n")

    def close(self):
        os.close(self._file)


def load(folder):
    """Return all events of all processes in the order of time."""
    events = []
    for name in os.listdir(folder):
        with open(os.path.join(folder, name)) as file:
            events += [json.loads(line) for line in file if line.endswith("\n")]
    return sorted(events, key=lambda event: event["at"])


# -- the check ---------------------------------------------------------------------------


class _Build:
    """One run of a factory."""

    def __init__(self, event, killed) -> None:
        self.name = event["build"]
        self.key = event["key"]
        self.ask = event["ask"]
        self.who = event["who"]
        self.began = event["at"]
        self.ended = None
        self.failed = None
        self.killed = killed
        self.over = killed
        """When at the latest its claim was released: its owner's call ended, or was killed."""
        self.seen = killed
        """When at the latest it was published, if it ever was."""

    def last(self):
        """Return until when it ran."""
        return min(x for x in (self.ended, self.failed, self.killed) if x is not None)


class _History:
    def __init__(self, events) -> None:
        self.faults = []
        self.events = events
        self.kills = {e["whom"]: e["at"] for e in events if e["event"] == "kill"}
        self.asks = {e["ask"]: e for e in events if e["event"] == "ask"}
        self.builds = {}
        self.by_key = defaultdict(list)
        self.by_ask = defaultdict(list)
        for event in events:
            self._build(event)
        self.removals = self._removals()
        self.last_removals = {key: _by_end(self.removals, key) for key in self.by_key}

    def _build(self, event):
        kind = event["event"]
        if kind == "begin":
            build = _Build(event, self.kills.get(event["who"], inf))
            self.builds[build.name] = build
            self.by_key[build.key].append(build)
            self.by_ask[build.ask].append(build)
        elif kind == "end":
            self.builds[event["build"]].ended = event["at"]
        elif kind == "fail":
            self.builds[event["build"]].failed = event["at"]
        elif kind == "return" and event["build"] in self.builds:
            build = self.builds[event["build"]]
            build.seen = min(build.seen, event["at"])
        if kind in ("return", "raise", "gone"):
            for build in self.by_ask[event["ask"]]:
                build.over = min(build.over, event["at"])

    def _removals(self):
        begun = {e["removal"]: e for e in self.events if e["event"] == "removing"}
        ended = {e["removal"]: e["at"] for e in self.events if e["event"] == "removed"}
        return [(e["key"], e["at"], ended.get(name, inf)) for name, e in begun.items()]

    def fault(self, kind, text):
        self.faults.append((kind, text))

    def overlaps(self):
        for key, builds in self.by_key.items():
            longest = None
            for build in builds:  # in the order in which they began
                if longest is not None and build.began < longest.last():
                    self.fault(
                        "overlapping builds", f"{key}: {build.name} began during {longest.name}"
                    )
                if longest is None or build.last() > longest.last():
                    longest = build

    def answers(self):
        answered = set()
        for event in self.events:
            kind = event["event"]
            if kind in ("return", "raise", "gone"):
                answered.add(event["ask"])
                getattr(self, f"_{kind}")(event, self.asks[event["ask"]])
        for name, ask in self.asks.items():
            if name not in answered and ask["who"] not in self.kills:
                self.fault("no answer", f"{ask['key']}: {name} got none")

    def _return(self, event, ask):
        key, name = ask["key"], event["build"]
        what = f"{key}: {event['ask']} was given {name}"
        if name is None:
            self.fault("torn", what)
            return
        build = self.builds.get(name)
        if build is None or build.key != key or build.ended is None or build.ended > event["at"]:
            self.fault("unknown value", f"{what}, which no factory had completed")
            return
        ends, begins = self.last_removals[key]
        before = bisect.bisect_left(ends, ask["at"])
        if before and build.seen < begins[before - 1]:
            self.fault("removed value", f"{what}, which was removed before")
        if ask["max_age"] is not None and ask["timeout"] is None:  # else an old value may do
            age = ask["at"] - min(build.over, build.seen)
            if age > ask["max_age"] + CLOCKS_APART:
                self.fault("expired value", f"{what}, {age} s old")

    def _gone(self, event, ask):
        """Judge a path that was no longer there when it was looked at."""
        key = ask["key"]
        removed = any(
            each in (key, None) and began < event["at"] and ended > ask["at"]
            for each, began, ended in self.removals
        )
        renewed = ask["max_age"] is not None and any(
            build.ended is not None and build.ended < event["at"] and build.seen > ask["at"]
            for build in self.by_key[key]
        )
        if not removed and not renewed:
            self.fault("vanished path", f"{key}: what {event['ask']} was given was not there")

    def _raise(self, event, ask):
        what = f"{ask['key']}: {event['ask']} raised {event['error']}"
        if event["build"] is not None:
            build = self.builds.get(event["build"])
            if build is None or build.key != ask["key"] or build.failed is None:
                self.fault("unknown error", f"{what}, which no factory had raised")
            elif build.over < ask["at"]:
                self.fault("old error", f"{what}, of a build that was over before")
        elif not (ask["timeout"] is not None and event["error"].startswith("BuildTimeout(")):
            self.fault("unexpected error", what)


def _by_end(removals, key):
    """Return when the removals of a key ended, and when the last of those had begun."""
    ended = sorted((end, began) for each, began, end in removals if each in (key, None))
    begins = itertools.accumulate((began for _, began in ended), max)
    return [end for end, _ in ended], list(begins)


def check(events):
    """Return the faults in a history, each as its kind and what happened."""
    history = _History(events)
    history.overlaps()
    history.answers()
    return history.faults
