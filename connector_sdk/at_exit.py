"""
The end of a process: what works in the background finishes first, within a budget.

Clients stop, then jobs drain what is there, then buffers send it: in this order, whichever was made first. It happens when
the program ends by itself, by `sys.exit` or by an error, once its threads that are no daemons have ended; and at SIGTERM,
where nobody else handles it. A child of a fork has nothing of its parent's to finish. `os._exit` and SIGKILL end a process
at once.
"""

from __future__ import annotations

import atexit
import contextlib
import enum
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from functools import partial
from types import FrameType
from typing import Final, TypeAlias

__all__ = ["EXIT_TIMEOUT", "Finish", "Stage", "finish_at_exit", "time_to_give_up"]

#: Seconds that all may take together, unless told otherwise.
EXIT_TIMEOUT: Final = 2.0

#: Ends the work of an object within so many seconds, and returns what is left, "" for nothing. May be called in any thread.
Finish: TypeAlias = Callable[[float], str]


class Stage(enum.IntEnum):
    """What ends first."""

    RECEIVE = 1
    WORK = 2
    STORE = 3


#: The part of the budget that is over when a stage has to be, so that one that hangs leaves something to the next.
_SHARE: Final = {Stage.RECEIVE: 0.4, Stage.WORK: 0.9, Stage.STORE: 1.0}
_MARGIN: Final = 0.1  # seconds beyond the time of a stage, to say what is left
_LAST_WORD: Final = 0.4  # seconds of a stage for what follows its work: threads that end, a question to a store
_LOOK: Final = 0.05  # seconds between two looks whether threads have ended


class _Entry:
    """One object that has something to finish. It is not kept alive."""

    def __init__(self, stage: Stage, finish: Finish, timeout: float) -> None:
        self.stage = stage
        self.finish = weakref.WeakMethod(finish, lambda _: self.forget())
        self.timeout = timeout

    def forget(self) -> None:
        _entries.pop(self, None)


class _Finishing:
    """Finishes all that is registered, stage after stage, in threads that nobody has to wait for."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._entries = [entry for entry in list(_entries) if _entries.pop(entry, entry) is None]
        self._budget = max((entry.timeout for entry in self._entries), default=0.0)
        self._left: list[str] = []
        self._over = threading.Event()

    @property
    def is_over(self) -> bool:
        return self._over.is_set()

    def run(self) -> None:
        try:
            for stage in Stage:
                self._run(stage)
            _tell(self._left)
        finally:
            self._over.set()

    def wait(self) -> None:
        """Wait for the end, not much longer than the budget."""
        self._over.wait(max(self._began + self._budget + 2 * _MARGIN - time.monotonic(), 0.0))

    def _run(self, stage: Stage) -> None:
        started: list[tuple[str, threading.Event, float]] = []
        for entry in self._entries:
            finish = entry.finish() if entry.stage is stage else None
            if finish is None:
                continue
            deadline = self._began + entry.timeout * _SHARE[stage]
            done = threading.Event()
            _start(partial(self._finish, finish, deadline, done))
            started.append((type(getattr(finish, "__self__", finish)).__name__, done, deadline))
        for name, done, deadline in started:
            # A moment more than it was told, so that it can say itself what is left.
            if not done.wait(max(deadline + _MARGIN - time.monotonic(), 0.0)):
                self._left.append(f"a {name} did not end in time")

    def _finish(self, finish: Finish, deadline: float, done: threading.Event) -> None:
        try:
            left = finish(max(deadline - time.monotonic(), 0.0))
        except Exception as error:  # noqa: BLE001 - the others are to be finished all the same
            left = f"the end of an object failed with {type(error).__name__}"
        if left:
            self._left.append(left)
        done.set()


def _start(work: Callable[[], None]) -> None:
    try:
        threading.Thread(target=work, name="at exit", daemon=True).start()
    except RuntimeError:  # too late for threads, from Python 3.12 on
        work()


_entries: dict[_Entry, None] = {}  # changed by single steps only: a lock might be held by whom a signal interrupts


def finish_at_exit(stage: Stage, finish: Finish, timeout: float = EXIT_TIMEOUT) -> Callable[[], None]:
    """
    Call *finish*, a bound method, when the process ends, and return what takes that back.

    Its object is not kept alive. *timeout* is in seconds; with 0 nothing is registered, and SIGTERM is left alone.
    """
    entry = _Entry(stage, finish, timeout)
    if timeout > 0:
        _entries[entry] = None
        _process.hook_in()
    return entry.forget


def time_to_give_up(timeout: float) -> float:
    """Return how much of *timeout* is for the work itself, so that time is left to say what is left."""
    return max(timeout - _LAST_WORD, timeout / 2)


class _Process:
    """What is known of this process."""

    def __init__(self) -> None:
        self._is_hooked = False
        self._pid = os.getpid()
        self._finishing: _Finishing | None = None

    def hook_in(self) -> None:
        """See to it that the end is noticed."""
        if not self._is_hooked:
            self._is_hooked = True
            # `atexit` would be too late: from Python 3.12 on no thread can be started there, and a handler may need one.
            register = getattr(threading, "_register_atexit", atexit.register)
            try:
                register(self._before_threads_are_joined)
            except RuntimeError:  # the process is ending already
                atexit.register(self._finish)
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
            with contextlib.suppress(ValueError):  # not the main interpreter
                signal.signal(signal.SIGTERM, self._on_sigterm)

    def after_fork_in_child(self) -> None:
        """Start anew: whatever ends the parent has to finish ends there."""
        _entries.clear()
        self._finishing = None
        self._pid = os.getpid()

    def _before_threads_are_joined(self) -> None:
        if not _entries and not _program_threads():
            return
        try:
            # The interpreter waits for this thread, as for all that are no daemons.
            threading.Thread(target=self._after_the_program, name="at exit", daemon=False).start()
        except RuntimeError:  # Python 3.12.0 and 3.12.1 start no thread any more
            atexit.register(self._finish)

    def _after_the_program(self) -> None:
        while others := _program_threads():
            others[0].join(_LOOK)
        self._finish()

    def _finish(self) -> None:
        """Finish all, and wait for it, also when somebody else does it already."""
        if self._finishing is None or (_entries and self._finishing.is_over):
            self._finishing = _Finishing()
            _start(self._finishing.run)
        self._finishing.wait()

    def _on_sigterm(self, number: int, frame: FrameType | None) -> None:
        try:
            # In another thread, for this one may hold what is needed, and waits no longer than the budget.
            # A child that has only just begun to live may still have what its parent is to finish.
            if self._pid == os.getpid() and (_entries or self._finishing is not None):
                self._finish()
        finally:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
            os._exit(128 + number)  # process 1 of a container does not die of it


def _program_threads() -> list[threading.Thread]:
    """Return the other threads that the interpreter waits for."""
    apart = (threading.main_thread(), threading.current_thread())
    return [thread for thread in threading.enumerate() if not thread.daemon and thread not in apart]


def _tell(left: Iterable[str]) -> None:
    line = "; ".join(left)
    if line and sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):  # closed
            sys.stderr.write(f"connector_sdk: {line}\n")
            sys.stderr.flush()


_process = _Process()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_process.after_fork_in_child)
