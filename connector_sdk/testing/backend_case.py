"""What the tests of a `BufferBackend` have in common: the backend under test, payloads with a number."""

from __future__ import annotations

import abc
from collections.abc import Awaitable, Iterable
from typing import Final, NoReturn

import anyio
import pytest

from connector_sdk.buffers.protocol import BufferBackend
from connector_sdk.payloads import ActionsPayload, Payload, SummaryPayload, UnknownPayload, decode_payload

__all__ = ["START", "BackendCase", "Opened", "actions", "fill", "lacks", "numbers", "summary", "unknown"]

#: The time of payload 0.
START: Final = 1_700_000_000.0


def summary(number: int) -> SummaryPayload:
    """Make a payload that is younger than those with a lower number, of one session."""
    return SummaryPayload("shop", "session-1", f"summary {number}", number, START + number, f"id-{number}")


def actions(number: int) -> ActionsPayload:
    """Make a payload of another type."""
    return ActionsPayload("shop", "session-1", forwarded_at=START + number, event_id=f"id-{number}")


def unknown(number: int) -> UnknownPayload:
    """Make a payload of a type that this version does not know."""
    raw = b'{"type": "survey", "session_id": "session-1", "forwarded_at": %d, "answer": {"deep": [1]}}' % (
        START + number
    )
    payload = decode_payload(raw, event_id=f"id-{number}")
    assert isinstance(payload, UnknownPayload)
    return payload


def numbers(payloads: Iterable[Payload]) -> list[int]:
    """Return the numbers of payloads in their order."""
    return [int((payload.event_id or "id-0")[3:]) for payload in payloads]


class BackendCase(abc.ABC):
    """What a subclass says of its backend."""

    #: Seconds after which a lease of the tests runs out; longer for a backend that counts in whole seconds.
    lease_timeout: float = 0.2
    #: Seconds that a test waits for what must happen before it fails.
    patience: float = 10.0

    @abc.abstractmethod
    def make_backend(self) -> BufferBackend | Awaitable[BufferBackend]:
        """Return a new, empty backend with room for 500 payloads; may be a coroutine function."""

    async def close_backend(self, backend: BufferBackend) -> None:  # noqa: B027 - most have nothing to close
        """Release what `make_backend` opened; does nothing unless overridden."""

    async def until_size(self, backend: BufferBackend, size: int) -> None:
        """Wait until at least *size* events wait."""
        with anyio.fail_after(self.patience):
            while await backend.size() < size:  # noqa: ASYNC110 - a protocol of three methods has nothing to wait on
                await anyio.sleep(self.lease_timeout / 10)


class Opened:
    """A backend for the length of a test."""

    def __init__(self, case: BackendCase) -> None:
        self._case = case
        self._backend: BufferBackend | None = None

    async def __aenter__(self) -> BufferBackend:
        made = self._case.make_backend()
        self._backend = made if isinstance(made, BufferBackend) else await made
        return self._backend

    async def __aexit__(self, *error: object) -> None:
        if self._backend is not None:
            await self._case.close_backend(self._backend)


def lacks(backend: BufferBackend, ability: str) -> NoReturn:
    """Skip a test that is for backends with *ability*."""
    pytest.skip(f"{type(backend).__name__} is not {ability}, and only a backend that is promises this")


async def fill(backend: BufferBackend, count: int) -> None:
    """Add summaries 0 to *count* - 1."""
    for number in range(count):
        await backend.add(summary(number))
