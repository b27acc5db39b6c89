"""What the summary of a test run tells: what was built, by whom, and what that saved.

Who calls it: the plugin, with what the processes of the run have noted.  What may go wrong:
nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any


def summary(events: list[dict[str, Any]]) -> Iterator[str]:
    """Yield a line for each thing that was built or used, and one for all.

    What was saved is the time that building again would have taken, for each use by whoever had
    not built it: the sum over all workers, and not time on the clock.
    """
    used: dict[str, list[dict[str, Any]]] = {}
    for event in events:
        if event["what"] == "used":
            used.setdefault(event["id"], []).append(event)
    show = _names(events)
    took = saved = 0.0
    seen: set[str] = set()
    for event in events:
        if event["what"] == "used":
            continue
        took += event["seconds"]
        what = event["what"] + (" again" if event["identity"] in seen else "")
        seen.add(event["identity"])
        by = f" by {event['worker']}" if event["worker"] else ""
        given, spared = _use(used.pop(event["id"], []), event)
        saved += spared
        yield f"{show(event)}: {what}{by} in {event['seconds']:.2f} s{given}"
    for uses in used.values():  # who has only built, or emptied a cache, was given nothing
        given, spared = _use([use for use in uses if use["seconds"]], None)
        saved += spared
        if spared:
            yield f"{uses[0]['name']}{given}"
    if took or saved:
        yield f"{took:.2f} s of building saved {saved:.2f} s in all workers together"


def _names(events: list[dict[str, Any]]) -> Callable[[dict[str, Any]], str]:
    """Return what tells the name of a thing; it says where it is from if others have its name."""
    alike: dict[str, set[str]] = {}
    for event in events:
        alike.setdefault(event["name"], set()).add(event["identity"])

    def show(event: dict[str, Any]) -> str:
        name: str = event["name"]
        return f"{name} ({event['place']})" if len(alike[name]) > 1 and event["place"] else name

    return show


def _use(uses: list[dict[str, Any]], built: dict[str, Any] | None) -> tuple[str, float]:
    """Return what to say of the uses of one build, and the seconds that they saved."""
    if not uses:
        return "", 0.0
    each = None if built is None else built["seconds"]
    saved = sum(use["times"] * (use["seconds"] if each is None else each) for use in uses)
    builder = None if built is None else built["worker"]
    workers = " ".join(sorted({use["worker"] for use in uses} - {builder}))
    return f", given to {workers or 'tests'}, {saved:.2f} s saved", saved
