"""How help is laid out: text is folded to the terminal's width, examples stay as they are.

What it is for: the subcommands write down their help without minding where lines end.  A heading
is a line that ends with a colon.  Below it, lines are indented; one that begins with a word and at
least two spaces is an item, which is folded beside that word.

Who calls it: the parser, and the dispatcher for the help on it all.  What may go wrong: nothing.
"""

from __future__ import annotations

import argparse
import re
import shutil
from textwrap import wrap

_WIDEST = 100
"""Columns beyond which lines are hard to read."""

_EXAMPLES = "examples:"
_LINE = re.compile(r"( *)(\S+ {2,}(?=\S))?(.*)")


def columns() -> int:
    """Return how wide help may be: as the terminal, and 80 columns on a pipe."""
    return min(shutil.get_terminal_size().columns, _WIDEST) - 1


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Lays out the help of a subcommand."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=columns())

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return lay_out(text, width)


def lay_out(text: str, width: int) -> str:
    r"""Fold a text.

    Examples
    --------
    >>> print(lay_out("exit status:\n  0  done,\n     all of it, and for ever\n  1  not", 26))
    exit status:
      0  done, all of it, and
         for ever
      1  not
    """
    page = _Page(width)
    for line in text.split("\n"):
        page.add(line)
    page.end()
    return "\n".join(page.lines)


class _Page:
    def __init__(self, width: int) -> None:
        self.lines: list[str] = []
        self._width = width
        self._words = self._first = ""
        self._hang = -1
        self._in_examples = False

    def add(self, line: str) -> None:
        """Add a line, to the paragraph before it if it belongs there."""
        found = _LINE.fullmatch(line)
        assert found is not None
        indent, label, words = found[1], found[2] or "", found[3]
        heading = not indent and line.endswith(":")
        example = self._in_examples and len(indent) == 2
        if heading or example or not line:
            self.end()
            self.lines.append(line)
            self._in_examples = line == _EXAMPLES if heading else self._in_examples
        elif label or len(indent) != self._hang:
            self.end()
            self._first, self._words = indent + label, words
            self._hang = len(self._first)
        else:
            self._words += f" {words}"

    def end(self) -> None:
        """Fold the paragraph, if there is one."""
        if self._hang >= 0:
            self.lines += wrap(
                self._words,
                max(self._width, self._hang + 20),
                initial_indent=self._first,
                subsequent_indent=" " * self._hang,
                break_long_words=False,
                break_on_hyphens=False,
            )
        self._hang = -1
