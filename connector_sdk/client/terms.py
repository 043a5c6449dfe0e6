"""Receiving in terms: only while this process leads, each time behind what was finished before, here or elsewhere."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

import anyio

from connector_sdk.client.hooks import Hooks
from connector_sdk.client.intake import Intake
from connector_sdk.client.keeper import CheckpointKeeper
from connector_sdk.client.lanes import Lanes
from connector_sdk.client.session import ConnectionState, Session
from connector_sdk.errors import ConnectorError
from connector_sdk.leadership import Leadership, Term

__all__ = ["Terms"]


class Run(Protocol):
    """What the terms need of the engine."""

    session: Session
    lanes: Lanes
    intake: Intake
    hooks: Hooks
    keeper: CheckpointKeeper
    failure: BaseException | None
    closed_reason: str

    @property
    def is_stopping(self) -> bool: ...

    def move(self, state: ConnectionState, reason: str = "") -> None: ...

    def reading_under(self, scope: anyio.CancelScope | None) -> None: ...

    def start_over(self) -> None: ...

    async def drain(self) -> bool: ...


class Terms:
    """
    The terms of one run.

    Args:
        receive: receives until the run is to end, the term is not current, or it is cancelled.
    """

    def __init__(self, run: Run, leader: Leadership, receive: Callable[[Term], Awaitable[None]]) -> None:
        self._run = run
        self._leader = leader
        self._receive = receive

    async def receive(self) -> bool:
        """Receive in one term after the other, until a term ends with the run; returns as the engine's `drain`."""
        run = self._run
        drained = True
        run.move(ConnectionState.STANDBY)
        while True:
            try:
                with anyio.CancelScope() as scope:
                    run.reading_under(scope)
                    if run.is_stopping:
                        return drained
                    async with self._leader.term() as term:
                        try:
                            is_last = await self._receive_in(term)
                            # Before another may lead: what it would repeat is finished, and the place to go on is stored.
                            drained = await run.drain()
                        finally:
                            await run.keeper.end_term()
                        if is_last:
                            return drained
            except ConnectorError as error:
                run.failure = run.failure or error
            if run.failure is not None or run.is_stopping:
                return drained

    async def _receive_in(self, term: Term) -> bool:
        """Receive until the run is to end (True), or *term* has (False)."""
        run = self._run
        with anyio.CancelScope() as scope:
            run.reading_under(scope)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_cancel_when_lost, term, tasks.cancel_scope)
                if await self._begin(term):
                    await self._receive(term)
                tasks.cancel_scope.cancel()
        if term.is_current or run.failure is not None or run.is_stopping or run.closed_reason:
            return True
        was_open = run.session.state in (ConnectionState.OPEN, ConnectionState.STALE)
        if run.session.state is not ConnectionState.STANDBY:
            run.move(ConnectionState.STANDBY, "the leadership is lost")
        if was_open:
            await run.hooks.call("disconnect")
        return False

    async def _begin(self, term: Term) -> bool:
        """Go on behind what this process or another has finished; False when that cannot be known."""
        run = self._run
        try:
            stored = await run.keeper.load()
        except ConnectorError as error:
            run.failure = run.failure or error
            return False
        # What was received in an earlier term and not finished comes again, and must not pass for a duplicate.
        run.intake.forget()
        run.lanes.resume_after(stored or run.lanes.finished_id or "")
        run.session.cursor = run.lanes.finished_id or ""
        run.start_over()
        # Not before: with the new token an old finished id would be taken over what the leaders between have saved.
        run.keeper.begin_term(term.token)
        return True


async def _cancel_when_lost(term: Term, scope: anyio.CancelScope) -> None:
    await term.lost()
    scope.cancel()
