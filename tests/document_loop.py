"""The control: the published pattern that this library grew out of, in our words.

``data`` is made by way of ``data.temp``.  Whoever can create the temp file exclusively
builds; a temp file in the way is removed first, and where that works its builder is
taken for dead.  On Windows an open file can't be removed, so the removal proves it;
elsewhere it proves nothing, and two builders come to write at the same time.

It is kept as it is so that every check of this suite can be shown to catch it.
"""

import os
import time


def get_or_create(directory, build):
    """Return the content of ``data``, built by ``build(file)`` if it is not there."""
    data = os.path.join(directory, "data")
    temp = os.path.join(directory, "data.temp")
    while True:
        try:
            os.remove(temp)
        except FileNotFoundError:
            try:
                with open(data, encoding="utf-8") as file:
                    return file.read()
            except FileNotFoundError:
                pass
        except PermissionError:
            time.sleep(0.01)
            continue
        try:
            with open(temp, "x", encoding="utf-8") as file:
                build(file)
        except FileExistsError:
            time.sleep(0.01)
            continue
        try:
            os.replace(temp, data)
        except FileNotFoundError:
            continue
