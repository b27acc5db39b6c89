"""What the summary of a test run tells: what was built, by whom, and what that saved.

Who calls it: the plugin, with what the processes of the run have noted.  What may go wrong:
nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any


def summary(events: list[dict[str, Any]]) -> Iterator[str]:
    """Yield a line for each thing that was built or used, and one for all."""
    used: dict[str, list[dict[str, Any]]] = {}
    for event in events:
        if event["what"] == "used":
            used.setdefault(event["name"], []).append(event)
    took = 0.0
    for event in events:
        if event["what"] != "used":
            took += event["seconds"]
            by = f" by {event['worker']}" if event["worker"] else ""
            yield (
                f"{event['name']}: {event['what']}{by} in "
                f"{event['seconds']:.2f} s{_use(used.pop(event['name'], []))}"
            )
    for name, uses in used.items():
        yield f"{name}{_use(uses)}"
    saved = sum(event["seconds"] for event in events if event["what"] == "used")
    if took or saved:
        yield f"{took:.2f} s of building saved {saved:.2f} s"


def _use(uses: list[dict[str, Any]]) -> str:
    if not uses:
        return ""
    workers = " ".join(sorted({event["worker"] for event in uses}))
    saved = sum(event["seconds"] for event in uses)
    return f", given to {workers or 'tests'}, {saved:.2f} s saved"
