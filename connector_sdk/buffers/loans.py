"""What `protocol.lease` puts over loans that a backend cannot give by itself: drained, renewed from outside, without `fail`."""

from __future__ import annotations

import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import NoReturn, Protocol, TypeAlias, cast

import anyio

from connector_sdk.buffers.dead_letters import Evidence
from connector_sdk.errors import EventBufferError, LeaseError
from connector_sdk.observe import RateLimitedLogger
from connector_sdk.options import check_seconds
from connector_sdk.payloads import Payload

__all__ = ["BorrowedLoan", "DrainedLoan", "PlainLoan", "renewed", "takes"]

#: Puts events back that are not wanted after all.
PutBack: TypeAlias = Callable[[list[Payload]], Awaitable[None]]

_log = RateLimitedLogger(logging.getLogger(__name__))


class PlainLoan(Protocol):
    """What the lease of any `Leasing` backend has: `BackendLease` less `fail`, which came later."""

    @property
    def events(self) -> Sequence[Payload]:
        """All events."""

    async def ack(self, events: Iterable[Payload] | None = None) -> None:
        """Acknowledge."""

    async def extend(self, timeout: float) -> None:
        """Move the end."""

    async def give_back(self) -> None:
        """Put back."""


def takes(lease: Callable[..., object], name: str) -> bool:
    """Whether the `lease` method of a backend has the parameter *name*, which came later."""
    try:
        parameters = inspect.signature(lease).parameters.values()
    except (TypeError, ValueError):  # a callable that cannot tell
        return False
    return any(one.name == name or one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters)


class BorrowedLoan:
    """A backend's loan, with what it lacks; `timeout` is what it was given last."""

    def __init__(self, backend: object, loan: PlainLoan, timeout: float) -> None:
        self._backend = backend
        self._loan = loan
        self.timeout = timeout

    @property
    def events(self) -> Sequence[Payload]:
        """All events."""
        return self._loan.events

    def __iter__(self) -> Iterator[Payload]:
        return iter(self.events)

    def __len__(self) -> int:
        return len(self.events)

    def __repr__(self) -> str:
        return f"<BorrowedLoan {self._loan!r}>"

    async def ack(self, events: Iterable[Payload] | None = None) -> None:
        """Acknowledge: see `BackendLease.ack`."""
        await self._loan.ack(events)

    async def fail(self, event: Payload, error: BaseException | Evidence) -> None:
        """Give an event up: see `BackendLease.fail`."""
        fail = getattr(self._loan, "fail", None)
        if fail is None:
            refuse_to_bury(self._backend)
        await cast("Callable[[Payload, BaseException | Evidence], Awaitable[None]]", fail)(event, error)

    async def extend(self, timeout: float) -> None:
        """Move the end: see `BackendLease.extend`."""
        await self._loan.extend(timeout)
        self.timeout = timeout

    async def give_back(self) -> None:
        """Put the rest back: see `BackendLease.give_back`."""
        await self._loan.give_back()


@asynccontextmanager
async def renewed(loan: BorrowedLoan) -> AsyncIterator[None]:
    """Extend *loan* by its time-out each third of that, in a task, while the block runs and the loan is open."""
    failure: BaseException | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_renew, loan, name="renew lease")
        try:
            yield
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as error:  # noqa: BLE001 - raised below, as itself: the task group would wrap it
            failure = error
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def _renew(loan: BorrowedLoan) -> None:
    while True:
        await anyio.sleep(loan.timeout / 3)
        try:
            await loan.extend(loan.timeout)
        except LeaseError:
            return  # it ended, or ran out: its block learns of that when it is left
        except Exception as error:  # noqa: BLE001 - of a backend that is not ours; there is time for another attempt
            _log.warning("renew", "a lease could not be renewed: %s", type(error).__name__)


class DrainedLoan:
    """Events that were drained, and are added again unless they are acknowledged."""

    def __init__(self, backend: object, events: list[Payload], put_back: PutBack) -> None:
        self._backend = backend
        self._put_back = put_back
        self.events: Sequence[Payload] = events
        self._pending = list(events)
        self.is_open = True

    def __iter__(self) -> Iterator[Payload]:
        return iter(self.events)

    def __len__(self) -> int:
        return len(self.events)

    async def ack(self, events: Iterable[Payload] | None = None) -> None:
        """Acknowledge: see `BackendLease.ack`."""
        self._require_open()
        if events is None:
            self.is_open = False
            self._pending.clear()
            return
        ours = {id(payload) for payload in self.events}
        done = {id(payload) for payload in events}
        if not done <= ours:
            raise LeaseError("only events that this lease handed out can be acknowledged")
        self._pending = [payload for payload in self._pending if id(payload) not in done]

    async def fail(self, event: Payload, error: BaseException | Evidence) -> None:
        """Give an event up: see `BackendLease.fail`."""
        self._require_open()
        refuse_to_bury(self._backend)

    async def extend(self, timeout: float) -> None:
        """Move the end: see `BackendLease.extend`."""
        check_seconds("timeout", timeout, above=0)
        self._require_open()

    async def give_back(self) -> None:
        """Put the rest back: see `BackendLease.give_back`."""
        self._require_open()
        self.is_open = False
        pending, self._pending = self._pending, []
        await self._put_back(pending)

    def _require_open(self) -> None:
        if not self.is_open:
            raise LeaseError("the lease was acknowledged or given back")


def refuse_to_bury(backend: object) -> NoReturn:
    """Raise, for *backend* has no place for dead letters; the event is still on the lease."""
    raise EventBufferError(
        f"{type(backend).__name__} keeps no dead letters, so the event stays on the lease: give DrainJob another place for "
        "them, as `dead_letters=`, or acknowledge the event yourself once its evidence is safe"
    )
