"""What leadership is to those who want it: one of many processes holds it at a time, in terms that are numbered upwards."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol, TypeVar, runtime_checkable

import anyio

__all__ = ["Leadership", "Term", "run_while_leading"]

ResultT = TypeVar("ResultT")


@runtime_checkable
class Term(Protocol):
    """One stretch of leadership, from the election to its end."""

    @property
    def token(self) -> int:
        """The fencing token: above that of every earlier term, so that whoever is written to can refuse the deposed."""
        ...

    @property
    def is_current(self) -> bool:
        """Whether it lasts, by the clock of this very moment. Once false it stays so. May be read from any thread."""
        ...

    async def lost(self) -> None:
        """Wait until it is over. Who was paused for long should trust `is_current`, which needs no turn of the event loop."""
        ...


@runtime_checkable
class Leadership(Protocol):
    """
    What clients and jobs need to run on one of many processes only; `Leader` is one, on Redis.

    Implement it to elect by other means. At no moment may two processes hold terms of the same leadership that both are
    current.
    """

    @property
    def is_leader(self) -> bool:
        """Whether this process leads now. May be read from any thread."""
        ...

    def term(self) -> AbstractAsyncContextManager[Term]:
        """
        Stand for election: entering waits, for as long as it takes, until this process leads.

        Leaving gives the leadership up, at once for the others, unless it was lost before. The block goes on when it is
        lost: wait for `term.lost()` beside the work, or use `run_while_leading`. One block at a time.
        """
        ...


async def run_while_leading(leader: Leadership, work: Callable[[Term], Awaitable[ResultT]]) -> ResultT:
    """
    Run `work(term)` while this process leads, and return its result once it ends by itself.

    When the leadership is lost meanwhile *work* is cancelled; then this process stands again and *work* runs anew, in a
    later term. An error of *work* is raised, after the leadership was given up.
    """
    while True:
        async with leader.term() as term:
            results: list[ResultT] = []
            errors: list[Exception] = []
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_cancel_when_lost, term, tasks.cancel_scope)
                try:
                    results.append(await work(term))
                except Exception as error:  # noqa: BLE001 - raised below, outside of the group that would wrap it
                    errors.append(error)
                tasks.cancel_scope.cancel()
            if errors:
                raise errors[0]
            if results:
                return results[0]


async def _cancel_when_lost(term: Term, scope: anyio.CancelScope) -> None:
    await term.lost()
    scope.cancel()
