"""The thread that does the work on a file of a buffer, for callers in an event loop of any kind."""

from __future__ import annotations

import collections
import contextlib
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Final, Generic, TypeVar

import anyio
import anyio.lowlevel
from anyio.lowlevel import EventLoopToken

from connector_sdk.buffers.sqlite_file import StoreFile
from connector_sdk.errors import BufferUnavailableError
from connector_sdk.wakeups import Waker, current_waker

__all__ = ["Worker"]

AnswerT = TypeVar("AnswerT")

_IDLE: Final = 10.0  # seconds after which a thread without work ends
_SLACK: Final = 0.05  # seconds that an answer may be late, so that who made it says what was wrong
_FORK_PATIENCE: Final = 5.0  # seconds that a fork waits for the end of a transaction
_MOST_JOINED: Final = 1024  # events that go into one transaction, from several requests


class _Request(Generic[AnswerT]):
    """One step that somebody waits for."""

    __slots__ = (
        "answer", "deadline", "done", "error", "events", "started", "synced", "waker", "withdrawn", "work", "writes",
    )  # fmt: skip

    def __init__(
        self,
        work: Callable[[sqlite3.Connection], AnswerT],
        waker: Waker,
        deadline: float,
        *,
        writes: bool,
        synced: bool,
        events: int,
    ) -> None:
        self.work = work
        self.deadline = deadline
        self.writes = writes
        self.synced = synced
        self.events = events
        self.started = False
        self.withdrawn = False
        self.answer: AnswerT | None = None
        self.error: BaseException | None = None
        self.done = anyio.Event()
        self.waker = waker

    def finish(self, answer: AnswerT | None, error: BaseException | None) -> None:
        """Wake who waits; called in the thread."""
        self.answer, self.error = answer, error
        self.waker(self.done.set)


class Worker:
    """
    Runs steps on a file, one after the other, in a thread that is there while there is work.

    Steps that add events and wait at the same time share one transaction, and so one sync of the disk. A fork waits until
    no step is under way and the file is closed: SQLite cannot be carried across one.
    """

    def __init__(self, file: StoreFile) -> None:
        self._file = file
        self._waker: tuple[EventLoopToken, Waker] | None = None
        self._begin()
        _workers.add(self)

    def _begin(self) -> None:
        self._requests: collections.deque[_Request[object]] = collections.deque()
        self._changed = threading.Condition(threading.Lock())
        self._turn = threading.Lock()  # who holds it may use the file
        self._thread: threading.Thread | None = None

    async def ask(
        self,
        work: Callable[[sqlite3.Connection], AnswerT],
        timeout: float,
        *,
        writes: bool = True,
        synced: bool = True,
        events: int = 0,
    ) -> AnswerT:
        """
        Do *work* in a transaction; with *events* above 0 it may share one with others that add.

        Raises what `StoreFile.transact` does, and BufferUnavailableError when there was no answer in time. If it is
        cancelled the step is not done, or completely.
        """
        request = _Request(
            work, self._current_waker(), time.monotonic() + timeout, writes=writes, synced=synced, events=events
        )
        self._put(request)
        try:
            with anyio.move_on_after(timeout + _SLACK):
                await request.done.wait()
        except BaseException:
            self._withdraw(request)
            raise
        if not request.done.is_set():
            in_doubt = self._withdraw(request)
            raise BufferUnavailableError(f"no answer within {timeout:g} s", in_doubt=in_doubt)
        if request.error is not None:
            raise request.error
        return request.answer  # type: ignore[return-value]  # the thread put in what `work` returned

    async def close(self) -> None:
        """Close the file when what was asked for is done; another request opens it again."""
        if self._thread is None:
            with self._turn:
                self._file.close()
            return
        closing: _Request[None] = _Request(
            _nothing, self._current_waker(), time.monotonic(), writes=False, synced=False, events=-1
        )
        self._put(closing)
        await closing.done.wait()

    # -- in the thread of the caller

    def _current_waker(self) -> Waker:
        token = anyio.lowlevel.current_token()
        if self._waker is None or self._waker[0] != token:
            self._waker = token, current_waker()
        return self._waker[1]

    def _put(self, request: _Request[AnswerT]) -> None:
        with self._changed:
            self._requests.append(request)  # type: ignore[arg-type]  # finished with what its own work returns
            if self._thread is None:
                self._thread = threading.Thread(target=_run, args=(self,), name="connector_sdk sqlite", daemon=True)
                self._thread.start()
            else:
                self._changed.notify()

    def _withdraw(self, request: _Request[AnswerT]) -> bool:
        """See to it that a step does not begin; return whether it may be done."""
        with self._changed:
            request.withdrawn = True
            return request.started

    # -- in the thread

    def run(self) -> None:
        """Do what is asked for, until there has been nothing for a while."""
        while requests := self._next():
            with self._turn:
                self._serve(requests)
            del requests

    def _next(self) -> list[_Request[object]]:
        with self._changed:
            while True:
                taken = self._take()
                if taken:
                    return taken
                if not self._changed.wait(_IDLE) and not self._requests:
                    self._thread = None
                    return []

    def _take(self) -> list[_Request[object]]:
        """Take the first request, and with it others that add and wait by now."""
        taken: list[_Request[object]] = []
        events = 0
        while self._requests:
            request = self._requests[0]
            if taken and (request.events <= 0 or events + request.events > _MOST_JOINED):
                break
            self._requests.popleft()
            if request.withdrawn:
                continue
            request.started = True
            taken.append(request)
            events += request.events
            if request.events <= 0:
                break
        return taken

    def _serve(self, requests: list[_Request[object]]) -> None:
        if len(requests) == 1:
            self._serve_one(requests[0])
            return

        def work(connection: sqlite3.Connection) -> list[object]:
            return [request.work(connection) for request in requests]

        deadline = min(request.deadline for request in requests)
        try:
            answers = self._file.transact(work, writes=True, adds=True, deadline=deadline)
        except BufferUnavailableError as error:
            for request in requests:
                request.finish(None, _copy_of(error))
        except BaseException:  # noqa: BLE001 - a bug in one of them: the others must not suffer
            for request in requests:
                self._serve_one(request)
        else:
            _finish_all(requests, answers)

    def _serve_one(self, request: _Request[object]) -> None:
        if request.events < 0:
            self._file.close()
            request.finish(None, None)
            return
        try:
            answer = self._file.transact(
                request.work,
                writes=request.writes,
                synced=request.synced,
                adds=request.events > 0,
                deadline=request.deadline,
            )
        except BaseException as error:  # noqa: BLE001 - it is raised where the step was asked for
            request.finish(None, error)
        else:
            request.finish(answer, None)

    # -- forks

    def before_fork(self) -> bool:
        """Wait for the end of a transaction and close the file; return whether the turn is ours."""
        if not self._turn.acquire(timeout=_FORK_PATIENCE):
            return False
        self._file.close()
        return True

    def after_fork_in_parent(self) -> None:
        """Go on."""
        self._turn.release()

    def after_fork_in_child(self) -> None:
        """Start anew: the thread and its callers are the parent's."""
        self._file.forget()
        self._begin()


def _finish_all(requests: Sequence[_Request[object]], answers: Sequence[object]) -> None:
    """Wake all of one event loop at once: it would begin with the first, and this thread would wait for it."""
    groups: dict[Waker, list[_Request[object]]] = {}
    for request, answer in zip(requests, answers, strict=True):
        request.answer = answer
        groups.setdefault(request.waker, []).append(request)
    for waker, group in groups.items():

        def wake(group: list[_Request[object]] = group) -> None:
            for request in group:
                request.done.set()

        waker(wake)


def _run(worker: Worker) -> None:
    worker.run()


def _nothing(connection: sqlite3.Connection) -> None:
    pass


def _copy_of(error: BufferUnavailableError) -> BufferUnavailableError:
    copy = BufferUnavailableError(str(error), in_doubt=error.in_doubt, full=error.full)
    copy.__cause__ = error.__cause__
    return copy


_workers: weakref.WeakSet[Worker] = weakref.WeakSet()
_paused: list[Worker] = []


def _before_fork() -> None:
    _paused[:] = [worker for worker in list(_workers) if worker.before_fork()]


def _after_fork_in_parent() -> None:
    for worker in _paused:
        worker.after_fork_in_parent()
    _paused.clear()


def _after_fork_in_child() -> None:
    _paused.clear()
    for worker in list(_workers):
        with contextlib.suppress(Exception):
            worker.after_fork_in_child()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
