"""The program of a helper: it does one task after another, as it is told.

What it is for: each line of the standard input is a task and its arguments, as JSON.  Each line of
the standard output says how it ended: an answer, an error of the system, or the traceback of a
mistake in the task itself.  When the input ends, what the helper holds is given back.

Who calls it: the crew, by ``python -m``; nobody imports it, so that it is loaded once.  What may
go wrong: status 1 if the folder of the trials could not be removed.
"""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING

from .changing import (
    append,
    count_lines,
    exchange_often,
    link,
    make_folder,
    remove_and_list,
    rename_folders,
    replace_often,
    watch,
    write,
)
from .holding import Holdings
from .looking import (
    access,
    find,
    identity,
    longest_name,
    longest_path,
    map_file,
    pickles,
    rights,
    room,
    spell,
    sync,
    times,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def main() -> int:
    """Do one task after another, as the lines on the standard input say."""
    holdings = Holdings()
    tasks = {each.__name__: each for each in _tasks(holdings)}
    try:
        for line in sys.stdin:
            task, *arguments = json.loads(line)
            try:
                answer = [tasks[task](*arguments), None, None]
            except OSError as error:
                answer = [None, [error.errno, error.strerror or str(error)], None]
            except Exception:
                import traceback

                answer = [None, None, traceback.format_exc()]
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()
    except BrokenPipeError:  # nobody wants to know any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0 if holdings.end() else 1


def _tasks(holdings: Holdings) -> tuple[Callable[..., Any], ...]:
    return (
        *(holdings.make, holdings.race, holdings.end_race, holdings.lock, holdings.let_go),
        *(holdings.wait, holdings.hold_open, holdings.read_held),
        *(write, make_folder, watch, replace_often, exchange_often, rename_folders, link),
        *(append, count_lines, remove_and_list),
        *(find, spell, longest_name, longest_path, times, access, map_file, identity, sync),
        *(rights, pickles, room),
    )


if __name__ == "__main__":
    sys.exit(main())
