"""What `examples/pages.py` promises, tested with uvicorn, several workers and real requests.

A page whose text is a named pipe is being rendered until the test writes into the pipe.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from .crew import PATIENCE, leftovers, until

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "pages.py"
WORKERS = 3

pytestmark = pytest.mark.skipif(
    not os.path.exists("/proc/locks"), reason="counts sleepers in Linux's table of locks"
)

Answer = tuple[int, str]
"""The worker that answered, and what it said."""


class Site:
    """A running server and its folder."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.url = f"http://127.0.0.1:{port}"

    def ask(self, page: str, method: str = "GET") -> Answer:
        request = urllib.request.Request(f"{self.url}/{page}", method=method)
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return int(answer.headers.get("X-Worker", 0)), answer.read().decode()

    def renders(self, page: str) -> list[int]:
        """Return the workers that rendered a page."""
        log = self.folder / "renders.log"
        lines = log.read_text().splitlines() if log.exists() else []
        return [int(line.split()[0]) for line in lines if line.split()[1] == page]

    def write_later(self, page: str) -> None:
        os.mkfifo(self.folder / f"{page}.txt")

    def write(self, page: str, text: str) -> None:
        """Write what somebody who renders waits for."""

        def reader() -> int | None:
            with contextlib.suppress(OSError):  # nobody reads yet
                return os.open(self.folder / f"{page}.txt", os.O_WRONLY | os.O_NONBLOCK)
            return None

        with open(until(reader, "somebody reads"), "w") as pipe:
            pipe.write(text)

    def asleep(self) -> set[str]:
        """Return the workers that sleep on a claim; the table may list one twice."""
        claims = [os.stat(claim).st_ino for claim in leftovers(self.folder / "cache")]
        with open("/proc/locks") as table:
            waiting = [line.split() for line in table if "->" in line]
        return {line[5] for line in waiting if int(line[6].split(":")[2]) in claims}

    def crowd(self, page: str, pool: ThreadPoolExecutor) -> list[Future[Answer]]:
        """Ask 100 times, then on until every worker was asked: one renders, the rest sleep."""
        asked = [pool.submit(self.ask, page) for _ in range(100)]

        def all_asked() -> bool:
            if len(self.asleep()) == WORKERS - 1:
                return True
            asked.append(pool.submit(self.ask, page))
            return False

        until(all_asked, "all workers were asked")
        return asked


@contextlib.contextmanager
def server(folder: Path) -> Iterator[Site]:
    """Start the server as the example's docstring says, on a free port; end all of it."""
    folder.mkdir()
    command = [sys.executable, "-m", "uvicorn", "--app-dir", str(EXAMPLE.parent)]
    log = folder / "uvicorn.log"
    with socket.create_server(("127.0.0.1", 0)) as listener, log.open("w") as said:
        fd = listener.fileno()
        process = subprocess.Popen(
            [*command, f"--workers={WORKERS}", f"--fd={fd}", "pages:app"],
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "PAGES": str(folder),
                "PAGES_SECONDS": "0",
            },
            pass_fds=[fd],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
            start_new_session=True,
        )
        try:
            ready = "Application startup complete"
            until(lambda: log.read_text().count(ready) == WORKERS, "all workers are there")
            yield Site(folder, listener.getsockname()[1])
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(PATIENCE)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with server(tmp_path_factory.mktemp("site") / "pages") as site:
        yield site


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(500)
    yield pool
    pool.shutdown(cancel_futures=True)


def test_100_requests_for_a_cold_page_cost_one_render(
    site: Site, pool: ThreadPoolExecutor
) -> None:
    site.write_later("cold")
    asked = site.crowd("cold", pool)
    site.write("cold", "a < b")
    answers = [each.result(PATIENCE) for each in asked]
    assert len(answers) >= 100
    assert {said for _, said in answers} == {"<h1>cold</h1><p>a &lt; b</p>"}
    assert len({worker for worker, _ in answers}) == WORKERS
    assert len(site.renders("cold")) == 1


def test_a_page_that_was_edited_and_forgotten_is_rendered_once_more(
    site: Site, pool: ThreadPoolExecutor
) -> None:
    page = site.folder / "edited.txt"
    page.write_text("old")
    site.ask("edited")
    page.unlink()
    site.write_later("edited")
    assert "old" in site.ask("edited")[1]
    assert site.ask("edited", "DELETE")[1] == "true"
    asked = site.crowd("edited", pool)
    site.write("edited", "new")
    answers = [each.result(PATIENCE) for each in asked]
    assert {said for _, said in answers} == {"<h1>edited</h1><p>new</p>"}
    assert len(site.renders("edited")) == 2


def test_a_page_that_is_missing_is_looked_for_again_by_the_next_request(site: Site) -> None:
    with pytest.raises(urllib.error.HTTPError) as missing:
        site.ask("missing")
    missing.value.close()
    assert missing.value.code == 404
    (site.folder / "missing.txt").write_text("found")
    assert "found" in site.ask("missing")[1]


def test_workers_answer_other_requests_while_they_wait(
    site: Site, pool: ThreadPoolExecutor
) -> None:
    site.write_later("slow")
    asked = site.crowd("slow", pool)
    (site.folder / "quick.txt").write_text("quick")
    answered = {site.ask("quick")[0]}

    def all_answered() -> bool:
        answered.add(site.ask("quick")[0])
        return len(answered) == WORKERS

    until(all_answered, "all workers answered")
    assert not any(each.done() for each in asked)
    site.write("slow", "at last")
    assert {each.result(PATIENCE)[1] for each in asked} == {"<h1>slow</h1><p>at last</p>"}


def test_another_worker_renders_when_the_first_is_killed(
    tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    with server(tmp_path / "pages") as site:
        site.write_later("cold")
        asked = site.crowd("cold", pool)
        # The others may sleep before the first has come to write that down.
        [killed] = until(lambda: site.renders("cold"), "the first renders")
        os.kill(killed, signal.SIGKILL)
        until(lambda: len(site.renders("cold")) == 2, "another one renders")
        site.write("cold", "warm")
        answers = []
        for each in asked:
            try:
                answers.append(each.result(PATIENCE))
            except urllib.error.HTTPError:
                raise
            except OSError:  # the connection ended with the worker that had it
                continue
    assert len({worker for worker, _ in answers} - {killed}) >= WORKERS - 1
    assert {said for _, said in answers} == {"<h1>cold</h1><p>warm</p>"}
    first, second = site.renders("cold")
    assert first == killed != second


def test_the_example_counts_two_renders_for_two_crowds() -> None:
    example = subprocess.Popen(
        [sys.executable, str(EXAMPLE), "--workers=2"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PAGES_SECONDS": "0.1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = example.communicate(timeout=PATIENCE)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(example.pid, signal.SIGKILL)
    assert (example.returncode, errors) == (0, ""), output + errors
    said = re.findall(r"^100 requests, answered by \d processes: (.+)$", output, re.MULTILINE)
    assert said == [f"<h1>hello</h1><p>Good {time}.</p>" for time in ("morning", "evening")]
    assert "2 renders" in output
