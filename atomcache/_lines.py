"""Named values as lines of text, the way claims and metas are written.

``name value`` and a newline, any number of times; a name may come again.  A reader can
tell a line that is still being written, because it does not end yet.  Unlike JSON it
can be appended to while others read, and costs no import, which would be most of what a
waiter spends and would come between the end of a build and its publication.

Who calls it: `_claim` and `_header`.  What may go wrong: `UnicodeDecodeError` for bytes
that nobody wrote here.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


def write_lines(fields: Iterable[tuple[str, str]]) -> bytes:
    """Return the lines for some named values."""
    text = ""
    for name, value in fields:
        if "%" in value or "\n" in value:
            value = value.replace("%", "%25").replace("\n", "%0A")
        text += f"{name} {value}\n"
    return text.encode("utf-8", "surrogatepass")


def read_lines(data: bytes) -> list[tuple[str, str]]:
    """Return the named values of all lines that have an end."""
    text = data[: data.rfind(b"\n") + 1].decode("utf-8", "surrogatepass")
    fields = []
    for line in text.split("\n")[:-1]:
        name, _, value = line.partition(" ")
        fields.append((name, value.replace("%0A", "\n").replace("%25", "%")))
    return fields
