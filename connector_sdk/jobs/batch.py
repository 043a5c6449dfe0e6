"""
One batch: its lease, the search for what makes it fail, and the wait for the suspects.

The first pass hands the events to the handler, in halves of halves where that fails, and puts suspects aside together with
the later events of their sessions. Then the next batch may begin, while this one keeps its lease and tries its suspects
again: each session in order, all sessions at once.
"""

from __future__ import annotations

import enum
import inspect
import random
import time
from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple

import anyio
import anyio.abc

from connector_sdk.buffers.dead_letters import Attempt, Evidence
from connector_sdk.buffers.protocol import BackendLease
from connector_sdk.errors import BufferUnavailableError, EventBufferError, LeaseExpiredError
from connector_sdk.jobs.attempts import RetryLater, Suspect, Verdict, halves
from connector_sdk.jobs.handling import Handling
from connector_sdk.jobs.turns import SessionKey, Turn, session_key
from connector_sdk.ledger import DropReason
from connector_sdk.payloads import Payload

__all__ = ["Batch", "Outcome"]

_PROBES: Final = 4
_ROUNDS: Final = 5  # attempts of a batch in an outage when attempts have no limit


class Outcome(enum.Enum):
    """How the first pass of a batch ended."""

    DONE = "done"
    EMPTY = "empty"  #: nothing waited
    EXPIRED = "the lease ran out"
    BUFFER_AWAY = "the buffer does not answer"
    HANDLER_AWAY = "the handler fails for everything"


class _Part(NamedTuple):
    """Events that are to be handed over together; when they first failed, and how."""

    events: list[Payload]
    since: float | None = None
    history: tuple[Attempt, ...] = ()


class _Aside(NamedTuple):
    """Events of one session that wait, for a suspect among them or for an earlier batch."""

    turn: Turn
    events: list[Payload]


class _HandlerAwayError(Exception):
    def __init__(self, cause: BaseException) -> None:
        self.cause = cause
        super().__init__()


class _ComesAgainError(Exception):
    """Leaves the block of a lease, so that what is not settled goes back."""


class Batch:
    """Up to `batch_size` events."""

    def __init__(self, handling: Handling) -> None:
        self._handling = handling
        self._suspects = handling.suspects
        self._parts: list[_Part] = []  # the next one last
        self._probed: set[int] = set()  # events that were settled or put aside before their part came
        self._accused: set[bytes] = set()
        self._aside: dict[SessionKey, _Aside] = {}
        self._left = 0
        self._broken: EventBufferError | None = None
        self.outcome = Outcome.DONE

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Take a batch and work through it; "started" when the first pass is over, however it ended."""
        held = 0
        try:
            async with self._handling.source.lease() as lease:
                self._take(lease)
                await self._first_pass()
                if self._aside:
                    held = sum(len(aside.events) for aside in self._aside.values())
                    self._handling.hold(held)
                    task_status.started()
                    await self._try_again()
                if self._left:
                    raise _ComesAgainError
        except _ComesAgainError:
            pass
        except LeaseExpiredError as error:
            self.outcome = Outcome.EXPIRED
            self._handling.counts.expired_leases += 1
            self._handling.failed("a lease", error)
        except BufferUnavailableError as error:
            self.outcome = Outcome.BUFFER_AWAY
            self._handling.counts.outages += 1
            self._handling.buffer_failed(error)
        except _HandlerAwayError:
            self.outcome = Outcome.HANDLER_AWAY
        finally:
            self._handling.counts.settled(given_back=self._left)
            for session, aside in self._aside.items():
                self._handling.turns.end(session, aside.turn, settled=False)
            if held:
                self._handling.let_go(held)
        if not held:
            task_status.started()

    def _take(self, lease: BackendLease) -> None:
        handling, events = self._handling, list(lease.events)
        self._lease = lease
        self._left = len(events)
        handling.buffer_answered()
        handling.counts.leased(len(events))
        if events:
            self._parts.append(_Part(events))
        else:
            self.outcome = Outcome.EMPTY
            handling.trouble = ""

    # -- the first pass

    async def _first_pass(self) -> None:
        rounds = self._handling.options.max_attempts or _ROUNDS
        while True:
            try:
                await self._work_through()
                return
            except _HandlerAwayError as away:
                after = away.cause.after if isinstance(away.cause, RetryLater) else None
                pause = self._suspects.outage(after=after)
                self._handling.counts.handler_outages += 1
                self._handling.trouble = f"the handler fails for everything: {type(away.cause).__name__}"
                rounds -= 1
                if rounds <= 0:
                    raise
            await self._handling.sleep(pause)

    async def _work_through(self) -> None:
        while self._parts:
            part = self._parts.pop()
            events = self._admit(part.events)
            if not events:
                continue
            part = part._replace(events=events)
            if self._suspects.is_outage:
                self._parts.append(part)
                await self._probe_after_outage()
                continue
            error = await self._handling.attempt(events)
            if error is None:
                await self._settle(events)
            else:
                await self._failed(part, error)

    def _admit(self, events: list[Payload]) -> list[Payload]:
        """Return those that may be handed over now; the others are put aside, behind what they must not overtake."""
        admitted: list[Payload] = []
        for payload in events:
            if id(payload) in self._probed:
                continue
            session = session_key(payload)
            if session in self._aside or session in self._handling.turns or self._suspects.find(payload) is not None:
                self._put_aside(session, payload)
            else:
                admitted.append(payload)
        return admitted

    def _put_aside(self, session: SessionKey, payload: Payload) -> None:
        aside = self._aside.get(session)
        if aside is None:
            aside = self._aside[session] = _Aside(self._handling.turns.take(session), [])
        aside.events.append(payload)

    async def _failed(self, part: _Part, error: BaseException) -> None:
        if isinstance(error, RetryLater):
            self._parts.append(part)
            raise _HandlerAwayError(error)
        since = time.monotonic() if part.since is None else part.since
        history = (*part.history, self._handling.attempt_of(error, len(part.events)))
        if len(part.events) > 1:
            self._handling.counts.splits += 1
            self._parts += [_Part(half, since, history) for half in reversed(halves(part.events))]
            return
        if not self._suspects.succeeded_since(since):
            try:
                await self._probe(error, beside=part.events[0])
            except _HandlerAwayError:
                self._parts.append(_Part(part.events))
                raise
        self._accuse(part.events[0], since, history)

    def _accuse(self, payload: Payload, since: float, history: Sequence[Attempt]) -> None:
        *before, last = history
        suspect = self._suspects.accuse(payload, since, before)
        suspect.failed(last, time.monotonic())
        self._accused.add(suspect.key)
        self._put_aside(session_key(payload), payload)

    # -- is it the events, or the handler?

    async def _probe_after_outage(self) -> None:
        """Ask whether the handler works again, with single events."""
        candidates = self._candidates()
        if len(candidates) == 1:
            # One session alone tells nothing about the others: from here on it is as if nobody had failed.
            self._suspects.is_outage = False
            return
        await self._probe(None)

    async def _probe(self, error: BaseException | None, beside: Payload | None = None) -> None:
        """
        Try the first events of other sessions, in no order, until one succeeds; _HandlerAwayError if none does.

        In no order, so that events that all fail cannot hide the others behind them for ever.
        """
        candidates = self._candidates(beside)
        failed: list[tuple[Payload, float, Attempt]] = []
        for payload in random.sample(candidates, min(_PROBES, len(candidates))):
            last = await self._handling.attempt([payload])
            if last is None:
                self._probed.add(id(payload))
                await self._settle([payload])
                break
            error = last
            if isinstance(last, RetryLater):
                raise _HandlerAwayError(last)
            failed.append((payload, time.monotonic(), self._handling.attempt_of(last, 1)))
        else:
            if candidates and error is not None:
                raise _HandlerAwayError(error)
        for payload, since, attempt in failed:
            self._probed.add(id(payload))
            self._accuse(payload, since, [attempt])

    def _candidates(self, beside: Payload | None = None) -> list[Payload]:
        """Return the first event of each session that nothing holds back, but not of the session of *beside*."""
        first: dict[SessionKey, Payload] = {}
        for part in reversed(self._parts):
            for payload in part.events:
                if id(payload) not in self._probed:
                    first.setdefault(session_key(payload), payload)
        if beside is not None:
            first.pop(session_key(beside), None)
        return [
            payload
            for session, payload in first.items()
            if session not in self._aside
            and session not in self._handling.turns
            and self._suspects.find(payload) is None
        ]

    # -- what was put aside

    async def _try_again(self) -> None:
        async with anyio.create_task_group() as tasks:
            for session in list(self._aside):
                tasks.start_soon(self._try_session, session, tasks.cancel_scope)
        if self._broken is not None:
            raise self._broken

    async def _try_session(self, session: SessionKey, scope: anyio.CancelScope) -> None:
        turn, events = self._aside[session]
        rest = deque(events)
        try:
            await turn.came.wait()
            if not turn.is_void:
                await self._in_order(rest)
        except EventBufferError as error:
            # Whatever ails the lease ails it for all; noted here because a group would wrap it.
            self._broken = self._broken or error
            scope.cancel()
        if not rest:
            # Otherwise the turn lasts until the events are back in the buffer, so that no others overtake them.
            del self._aside[session]
            self._handling.turns.end(session, turn, settled=True)

    async def _in_order(self, rest: deque[Payload]) -> None:
        """Work through events of one session until all are settled, or one of them has to come again."""
        size = len(rest)
        since: float | None = None
        history: list[Attempt] = []
        while rest:
            suspect = self._suspects.find(rest[0])
            if suspect is not None:
                if not await self._try_suspect(rest[0], suspect):
                    return
                rest.popleft()
                size, since, history = len(rest), None, []
                continue
            part = list(rest)[:size]
            error = await self._handling.attempt(part)
            if error is None:
                await self._settle(part)
                for _ in part:
                    rest.popleft()
                size = len(rest)
                continue
            if isinstance(error, RetryLater):
                return
            since = time.monotonic() if since is None else since
            history.append(self._handling.attempt_of(error, size))
            if size == 1:
                suspect = self._suspects.accuse(rest[0], since, history[:-1])
                suspect.failed(history[-1], time.monotonic(), counts=not self._suspects.is_outage)
                self._accused.add(suspect.key)
            else:
                self._handling.counts.splits += 1
                size //= 2

    async def _try_suspect(self, payload: Payload, suspect: Suspect) -> bool:
        """Try a suspect again until it is settled; False when it has to come again."""
        while True:
            if suspect.key in self._accused:
                verdict = self._suspects.verdict(suspect, time.monotonic())
                if verdict is Verdict.WAIT:
                    return False
                if verdict is Verdict.GIVE_UP:
                    return await self._bury(payload, suspect)
            await anyio.sleep(max(0.0, suspect.next_try - time.monotonic()))
            error = await self._handling.attempt([payload], again=True)
            if error is None:
                self._suspects.close(suspect)
                await self._settle([payload])
                return True
            if isinstance(error, RetryLater):
                return False
            suspect.failed(self._handling.attempt_of(error, 1), time.monotonic(), counts=not self._suspects.is_outage)
            self._accused.add(suspect.key)
            if self._suspects.is_outage:
                return False

    # -- the ends

    async def _settle(self, events: list[Payload]) -> None:
        await self._lease.ack(events)
        self._left -= len(events)
        self._handling.counts.settled(delivered=len(events))

    async def _bury(self, payload: Payload, suspect: Suspect) -> bool:
        """Give an event up; False when the place for it failed."""
        handling = self._handling
        evidence = Evidence(attempts=list(suspect.attempts), consumer=handling.consumer)
        bury = handling.options.bury
        if bury is None:
            await self._lease.fail(payload, evidence)
        else:
            try:
                result = bury(payload, evidence)
                if inspect.isawaitable(result):
                    await result
            except Exception as error:  # noqa: BLE001 - the event comes again, and is given up another time
                handling.failed("the place for dead letters", error)
                return False
            await self._lease.ack([payload])
        self._left -= 1
        self._suspects.close(suspect)
        handling.counts.settled(dead_lettered=1)
        handling.notifier.tell("events_dropped", source="job", reason=str(DropReason.DEAD_LETTER), count=1)
        handling.rare.warning(
            "given up", "%s: gave an event up after it failed alone %d times", handling.options.name, suspect.failures
        )
        return True
