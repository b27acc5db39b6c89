"""Web workers get a hundred requests for a page that is not there yet; one renders it.

The app is FastAPI's, and uvicorn runs it in several processes, which share nothing but a
folder.  Rendering is a decorated coroutine function::

    @cache.memoize
    async def page(name: str) -> str: ...

    return await page(name)

Whoever asks for a page that is being rendered waits for it without blocking its event
loop, in whichever process.  If the process that renders is killed, another one renders.

Run it::

    python examples/pages.py    # start the server, visit it with two crowds, stop it

or only the server, with pages of your own (FOLDER/*.txt)::

    PAGES=FOLDER python -m uvicorn --app-dir examples --workers 4 pages:app

What one sees: how many processes answered a crowd, and how often the page was rendered;
then the same for the next crowd, after the page was edited and forgotten.
"""

from __future__ import annotations

import argparse
import asyncio
import html
import os
import socket
import subprocess
import sys
import tempfile
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fastapi import FastAPI, HTTPException
from fastapi.responses import HTMLResponse

from atomcache import Cache

FOLDER = Path(os.environ.get("PAGES", "."))
SECONDS = float(os.environ.get("PAGES_SECONDS", "0.5"))
"""What rendering takes; in real life a database and a few other services do."""

app = FastAPI()
cache = Cache(FOLDER / "cache")


@cache.memoize
async def page(name: str) -> str:
    """Render a page, slowly, and write down that it was done."""
    with open(FOLDER / "renders.log", "a") as log:
        log.write(f"{os.getpid()} {name}\n")
    text = await asyncio.to_thread((FOLDER / f"{name}.txt").read_text)
    await asyncio.sleep(SECONDS)
    return f"<h1>{html.escape(name)}</h1><p>{html.escape(text)}</p>"


@app.get("/{name}")
async def show(name: str) -> HTMLResponse:
    """Answer with a page."""
    try:
        return HTMLResponse(await page(name), headers={"X-Worker": str(os.getpid())})
    except FileNotFoundError:
        raise HTTPException(404, "there is no such page") from None


@app.delete("/{name}")
async def forget(name: str) -> bool:
    """Forget a page, because it was edited: the next request renders it."""
    return await asyncio.to_thread(page.forget, name)


def visit(url: str) -> None:
    """Ask for one page with a hundred requests at the same time, and say what came."""

    def ask(_: int) -> tuple[str, str]:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return answer.headers["X-Worker"], answer.read().decode()

    with ThreadPoolExecutor(100) as crowd:
        answers = list(crowd.map(ask, range(100)))
    workers, texts = map(set, zip(*answers, strict=True))
    print(f"{len(answers)} requests, answered by {len(workers)} processes: {' '.join(texts)}")


def start(folder: Path, listener: socket.socket, workers: int) -> subprocess.Popen[str]:
    """Start a server of the pages in a folder, for what comes in at a socket."""
    command = [sys.executable, "-m", "uvicorn", "--app-dir", str(Path(__file__).parent)]
    command += [f"--workers={workers}", f"--fd={listener.fileno()}", "--no-access-log"]
    return subprocess.Popen(
        [*command, "pages:app"],
        env={**os.environ, "PAGES": str(folder)},
        pass_fds=[listener.fileno()],
        stderr=subprocess.PIPE,
        text=True,
    )


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--workers", type=int, default=4, metavar="N", help="processes (4)")
    workers = parser.parse_args().workers

    any_port = ("127.0.0.1", 0)
    with tempfile.TemporaryDirectory() as temporary, socket.create_server(any_port) as listener:
        folder = Path(temporary)
        (folder / "hello.txt").write_text("Good morning.")
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/hello"
        server = start(folder, listener, workers)
        try:
            assert server.stderr is not None
            for _ in range(workers):  # all should be there to get their share
                next(line for line in server.stderr if "startup complete" in line)
            visit(url)
            (folder / "hello.txt").write_text("Good evening.")
            urllib.request.urlopen(urllib.request.Request(url, method="DELETE")).close()
            visit(url)
        finally:
            server.terminate()
            server.communicate()
        renders = (folder / "renders.log").read_text().split()[::2]
        print(f"{len(renders)} renders, by the processes {' and '.join(renders)}")


if __name__ == "__main__":
    main()
