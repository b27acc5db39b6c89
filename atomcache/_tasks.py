"""The tasks of event loops, which must never block their loop.

What it is for: a task that misses takes part in the same election as the threads of its
process.  The one that leads has a thread tell the protocol's story for it, so there is one
protocol and not two; a factory that is a coroutine runs as a task of the loop that
asked.  Those that follow wait for a callback, without a thread.

Cancellation: a task that waits just leaves; if it led, its thread goes on waiting for those
who followed, and builds nothing for a caller that is gone.  A task that builds takes its
coroutine with it and abandons the claim, so another caller builds.  A factory that is a plain
function runs in a thread, which can't be stopped: it runs to its end, and what it made is
published.

A loop may stand still.  Where its thread waits in a call that is not awaited, no coroutine is
begun on it (`_circles` sees to those that have begun); where nobody runs it for some seconds, what
its coroutines build is given up.  The task asks anew when its loop runs again.

Who calls it: the ``aget`` methods of `Cache`.  What may go wrong: as in `_protocol`, and
`RuntimeError` if there are no more threads to be had.
"""

from __future__ import annotations

import asyncio
import inspect
from _thread import allocate_lock, start_new_thread
from contextlib import suppress
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from ._build import running
from ._claim import claim_path, living_record
from ._flight import LOOK, GivenUp, Outcome
from ._freshness import Want
from ._loops import need, need_no_more
from ._patience import Patience
from ._publish import LARGE, MISS

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._door import Door
    from ._flight import Flight
    from ._protocol import Entry, Protocol

INLINE = 262_144
"""Bytes of a value that a loop reads by itself, in some 100 us; more is read in a thread, to
which to hop and back takes about as long."""

FIRST_INLINE = Want(largest=INLINE, quiet=True)
"""What a loop wants to be read before it asks the protocol."""

_LOOK_AT_LOOP = 1.0
"""Seconds after which a thread looks whether the loop that runs its coroutine still runs."""

_STANDSTILL = 5
"""How many of these looks in a row find a loop stopped before its build is given up: between two
``run_until_complete`` it is none, and what draws windows turns a loop for moments only."""


class Abandoned(GivenUp):
    """The task that was to build is gone, so the claim is, and another one builds."""


class Halted(GivenUp):
    """The loop that was to build stands still, so others may; its task asks anew later."""


class Errand:
    """A factory of a task, to be run by whichever thread leads for that task."""

    def __init__(self, factory: Callable[..., Any]) -> None:
        self._factory = factory
        self._loop = asyncio.get_running_loop()
        self._making: _Making | None = None
        self._cancelled = False

    def __call__(self, *given: Any) -> Any:
        """Run the factory: here, or on its loop if it is a coroutine."""
        if self._cancelled:
            raise Abandoned
        made = self._factory(*given)
        if not inspect.isawaitable(made):
            return made
        build = running.get()[-1]
        if not need(self._loop, build):
            _close(made)
            raise Halted
        try:
            self._making = _Making(self._loop, made)
            if self._cancelled:  # since the look above: `cancel` may not have seen it
                self._making.cancel()
            return self._making.result()
        finally:
            self._making = None
            need_no_more(self._loop, build)

    def cancel(self) -> bool:
        """Stop; tell whether a coroutine has to be waited for."""
        self._cancelled = True
        making = self._making
        return making is not None and making.cancel()


class _Making:
    """A coroutine of a factory, run by its loop for a thread that waits for what it makes."""

    def __init__(self, loop: asyncio.AbstractEventLoop, making: Any) -> None:
        self._loop = loop
        self._making = making
        self._task: asyncio.Task[Any] | None = None
        self._refused: Exception | None = None
        self._cancelled = False
        self._context = copy_context()
        self._ended = allocate_lock()
        self._ended.acquire()
        self._turned = False
        self._looks = 0

    def result(self) -> Any:
        """Wait for the end and return what was made."""
        try:
            self._loop.call_soon_threadsafe(self._start)
            while not self._ended.acquire(timeout=_LOOK_AT_LOOP):
                if self._stands_still():
                    self._cancelled = True  # should the loop come to begin it before the next line
                    self._loop.call_soon_threadsafe(self.cancel)
                    raise Halted
        except RuntimeError:  # the loop is closed
            self._leave()
            raise Abandoned from None
        if self._refused is not None:
            raise self._refused
        if self._task is None or self._task.cancelled():
            raise Abandoned
        return self._task.result()

    def cancel(self) -> bool:
        """Stop; tell whether the coroutine has begun and has yet to end."""
        self._cancelled = True
        if self._task is None or self._task.done():
            return False
        if not self._task.cancelling():  # a loop that ends cancels all tasks itself
            self._task.cancel()
        return True

    def _leave(self) -> None:
        """Leave a coroutine behind whose loop is closed."""
        if self._task is not None:
            # A loop that ends cancels its tasks and then turns on for a moment, in which this one
            # may have begun: asyncio would complain of what is nobody's mistake.
            self._task._log_destroy_pending = False  # type: ignore[attr-defined]
        with suppress(Exception):  # it can't await any more what it needs to clean up
            if self._task is not None:
                _close(self._task.get_coro())
            _close(self._making)

    def _start(self) -> None:
        if self._cancelled:
            _close(self._making)
            self._ended.release()
            return
        running = self._run()
        try:
            self._task = self._loop.create_task(running, context=self._context)
        except Exception as error:  # of a task factory of the program's own
            self._refused = error
            _close(running)
            _close(self._making)
            self._ended.release()
            return
        self._task.add_done_callback(self._end)

    async def _run(self) -> Any:
        if self._cancelled:  # while the loop stood still, after it was to begin this
            raise asyncio.CancelledError
        return await self._making

    def _end(self, task: asyncio.Task[Any]) -> None:
        _close(self._making)  # it may have been cancelled before its first step
        self._ended.release()

    def _stands_still(self) -> bool:
        """Tell whether the loop was stopped some looks ago, and not turned since."""
        if self._loop.is_running() or self._turned:
            self._looks, self._turned = 0, False
            return False
        if self._looks == 0 or self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._turn)
        self._looks += 1
        return self._looks > _STANDSTILL

    def _turn(self) -> None:
        self._turned = True


async def get(protocol: Protocol, entry: Entry, errand: Errand, started: float) -> Any:
    """Return an entry's value or path as `Protocol.get` does, without blocking the loop."""
    protocol.miss(entry)
    old = protocol.stale.serve(entry, lambda build: _start_behind(protocol.door, build))
    if old is not MISS:
        return old
    try:
        return await _get(protocol, entry, errand, started)
    except Exception as error:
        old = protocol.stale.rescue(entry, error)
        if old is MISS:
            raise
        return old


async def _get(protocol: Protocol, entry: Entry, errand: Errand, started: float) -> Any:
    patience = Patience(protocol.door, entry, protocol.on_wait)
    while True:
        flight, lead = protocol.flights.board(entry.path)
        if lead is not None:
            try:
                answer = _in_thread(protocol.lead, entry, lead, started, patience)
                lead.leave()
            except BaseException:
                lead.land(None)
                raise
            try:
                outcome = await _answer(answer, errand)
            except Halted:
                continue
        else:
            outcome = await _follow(protocol, entry, errand, flight, started, patience)
        if outcome is not None:
            return outcome.result()


async def get_unstored(protocol: Protocol, entry: Entry, errand: Errand, error: OSError) -> Any:
    """Do as `Protocol.get_unstored`, without blocking the loop."""
    return await _apart(protocol.get_unstored, entry, error, errand)


async def _apart(step: Callable[..., Any], entry: Entry, error: OSError, errand: Errand) -> Any:
    while True:
        try:
            return await _answer(_in_thread(step, entry, error), errand)
        except Halted:
            continue


async def _follow(
    protocol: Protocol,
    entry: Entry,
    errand: Errand,
    flight: Flight,
    started: float,
    patience: Patience,
) -> Outcome | None:
    path = claim_path(entry.path)
    began = protocol.door.monotonic()
    try:
        with protocol.circles.waiting(path, stops_loop=False) as waiting:
            protocol.circles.check(entry, waiting)
            patience.begin()
            if not await _landed(flight, patience.left()):
                raise patience.ended(living_record(protocol.door, path))
    finally:
        patience.end()
        protocol.watch.tell("waited", entry.key, seconds=protocol.door.monotonic() - began)
    outcome = protocol.learn(entry, flight, started)
    if outcome is not LOOK:
        return outcome
    try:
        value = entry.look(started, INLINE)
        if value is LARGE:
            value = await asyncio.to_thread(entry.look, started)
    except OSError as error:
        unstored: Outcome = await _apart(protocol.get_apart, entry, error, errand)
        return unstored
    return None if value is MISS else Outcome(value)


async def _landed(flight: Flight, timeout: float | None) -> bool:
    """Wait for the end of a flight; `False` if `timeout` seconds passed first."""
    loop = asyncio.get_running_loop()
    landed: asyncio.Future[None] = loop.create_future()

    def ring() -> None:
        _tell(loop, landed, None, None)

    flight.when_over(ring)
    try:
        async with asyncio.timeout(None if timeout is None else max(0.0, timeout)):
            await landed
    except TimeoutError:
        return False
    finally:
        flight.forget_bell(ring)
    return True


def _in_thread(step: Callable[..., Any], *given: Any) -> asyncio.Future[Any]:
    """Run `step` in a thread of its own, in the caller's context.

    The loop's pool has a few threads for all, and these may sleep for minutes: a build that
    waits for another one's thread would never end.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Any] = loop.create_future()
    answer.add_done_callback(lambda ended: ended.cancelled() or ended.exception())

    def run() -> None:
        try:
            result = step(*given)
        except StopIteration as error:  # which no future can hold, as no generator can
            failure = RuntimeError("a factory raised StopIteration")
            failure.__cause__ = error
            _tell(loop, answer, None, failure)
        except BaseException as error:
            _tell(loop, answer, None, error)
        else:
            _tell(loop, answer, result, None)

    context = copy_context()
    _start_thread(lambda: context.run(run))
    return answer


def _start_thread(function: Callable[[], None]) -> None:
    """Run `function` in a thread that keeps no process from ending: its loop may be gone.

    `threading.Thread.start` would wait until the thread runs: the loop stood still for 50 to
    100 ms when 50 were started at once.
    """
    start_new_thread(function, ())


def _start_behind(door: Door, build: Callable[[], None]) -> None:
    """Run a build in a thread that the process waits for, without the loop waiting for its start.

    A coroutine's build ends when its loop does; so the process does not wait for long.
    """

    def start() -> None:
        try:
            door.start_thread(build)
        except RuntimeError:  # the interpreter ends, or there are no more threads but this one
            build()

    _start_thread(start)


async def _answer(answer: asyncio.Future[Any], errand: Errand) -> Any:
    """Wait for what a thread finds; if cancelled, leave it to itself, or end its build."""
    try:
        await asyncio.wait([answer])
    except asyncio.CancelledError:
        if errand.cancel():
            await asyncio.wait([answer])  # the coroutine cleans up, as if awaited here
        raise
    try:
        return answer.result()
    except Abandoned:  # the factory ended by cancelling itself
        raise asyncio.CancelledError from None


def _tell(
    loop: asyncio.AbstractEventLoop,
    future: asyncio.Future[Any],
    result: Any,
    error: BaseException | None,
) -> None:
    """Settle a future from another thread."""

    def settle() -> None:
        if future.done():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    try:
        loop.call_soon_threadsafe(settle)
    except RuntimeError:  # the loop is closed: nobody is left to tell
        return


def _close(making: Any) -> None:
    """Spare a coroutine that will never run the warning that it was not awaited."""
    if hasattr(making, "close"):
        making.close()
