"""Worker processes need the same C extension; one compiles it and all import it.

The usual way to do this once is a lock file that the others wait for.  If whoever compiles
is killed, by a scheduler or for want of memory, that file stays, and the job hangs until
somebody removes it by hand.  Here one call does it, and another worker takes over::

    path = cache.get_or_create_path(key, compile_extension, name="collatz.so")

Run it::

    python examples/c_extension.py                # one compiles, all import
    python examples/c_extension.py --kill         # ... though the first to compile is killed
    python examples/c_extension.py --cache DIR    # keep the compiled module

It needs a C compiler (``CC``, or ``cc``) and Python's headers.  The exit status is 0 if all
workers that were not to be killed could use the module.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
import sysconfig
import tempfile
from typing import TYPE_CHECKING

from atomcache import Cache

if TYPE_CHECKING:
    from multiprocessing.synchronize import Semaphore
    from pathlib import Path

SOURCE = r"""
#define PY_SSIZE_T_CLEAN
#include <Python.h>

static PyObject *
steps(PyObject *module, PyObject *start)
{
    unsigned long long number = PyLong_AsUnsignedLongLong(start);
    long count = 0;
    if (PyErr_Occurred())
        return NULL;
    for (; number > 1; count++)
        number = number % 2 ? 3 * number + 1 : number / 2;
    return PyLong_FromLong(count);
}

static PyMethodDef functions[] = {
    {"steps", steps, METH_O, "Return how many steps of Collatz lead to 1."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef collatz = {
    PyModuleDef_HEAD_INIT, "collatz", NULL, 0, functions, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC
PyInit_collatz(void)
{
    return PyModuleDef_Init(&collatz);
}
"""

COMMAND = [
    *shlex.split(os.environ.get("CC", "cc")),
    *("-O2", "-shared", "-fPIC"),
    *(["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []),
    *shlex.split(os.environ.get("CFLAGS", "")),
    f"-I{sysconfig.get_path('include')}",
]
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
KEY = {"source": SOURCE, "command": COMMAND, "python": sys.version, "suffix": SUFFIX}
"""All that the compiled module depends on: if any of it changes, it is compiled anew."""


def say(line: str) -> None:
    """Print a line by one call, so that those of several processes don't mix."""
    print(f"{line}\n", end="", flush=True)


def compile_extension(target: Path, doom: Semaphore) -> None:
    """Compile the module; the first to take from `doom` is killed while it does."""
    say(f"worker {os.getpid()} compiles")
    source = target.with_name("collatz.c")  # in a folder of this build's own
    source.write_text(SOURCE)
    command = [*COMMAND, str(source), "-o", str(target)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as compiler:
        if doom.acquire(block=False):
            say(f"worker {os.getpid()} is killed")
            os.kill(os.getpid(), signal.SIGKILL)
        _, complaints = compiler.communicate()
    if compiler.returncode != 0:
        raise RuntimeError(f"{shlex.join(command)} failed:\n{complaints}")


def work(cache: Cache, doom: Semaphore) -> None:
    """Import the module and use it: what each worker process does."""
    path = cache.get_or_create_path(
        KEY, lambda target: compile_extension(target, doom), name=f"collatz{SUFFIX}"
    )
    spec = importlib.util.spec_from_file_location("collatz", path)
    assert spec is not None
    assert spec.loader is not None
    collatz = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(collatz)
    longest = max(range(1, 100_000), key=collatz.steps)
    say(f"worker {os.getpid()}: {longest} takes {collatz.steps(longest)} steps")


def main() -> int:
    """Run the example."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kill", action="store_true", help="kill the first that compiles")
    parser.add_argument("--workers", type=int, default=4, metavar="N", help="how many (4)")
    parser.add_argument("--cache", metavar="DIR", help="keep the module here (not at all)")
    options = parser.parse_args()

    context = multiprocessing.get_context("spawn")
    doom = context.Semaphore(1 if options.kill else 0)
    with contextlib.ExitStack() as stack:
        cache = Cache(options.cache or stack.enter_context(tempfile.TemporaryDirectory()))
        workers = [
            context.Process(target=work, args=(cache, doom)) for _ in range(options.workers)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    died = [worker.pid for worker in workers if worker.exitcode != 0]
    print(f"{len(workers) - len(died)} of {len(workers)} workers used the module")
    return 0 if len(died) == int(options.kill) else 1


if __name__ == "__main__":
    sys.exit(main())
