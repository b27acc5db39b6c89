"""What the workers of an example say is not mixed, however their output is buffered."""

from __future__ import annotations

import importlib.util
import io
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


class Calls(io.StringIO):
    """Remembers what was written by each call; with ``python -u``, each is one of the system."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def write(self, text: str) -> int:
        if text:
            self.calls.append(text)
        return len(text)


@pytest.mark.parametrize("name", ["c_extension", "table", "thumbnails"])
def test_a_worker_writes_a_line_by_one_call(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    written = Calls()
    monkeypatch.setattr(sys, "stdout", written)
    example.say("worker 1 compiles")
    assert written.calls == ["worker 1 compiles\n"]
