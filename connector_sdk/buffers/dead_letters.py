"""Dead letters: events given up after their attempts failed, kept with the evidence, to be looked at and replayed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import Final, Protocol, TypeAlias

import msgspec

from connector_sdk.evidence import describe_error
from connector_sdk.payloads import Payload

__all__ = [
    "Attempt",
    "BlockingDeadLetters",
    "DeadLetter",
    "DeadLetters",
    "Evidence",
    "Replayed",
    "Where",
    "evidence_of",
]

#: Characters of an error's message that are kept.
_LONGEST_MESSAGE: Final = 2000


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One failed attempt at an event, alone or in a batch."""

    at: float  #: when it failed, in Unix seconds
    error_type: str  #: the qualified name of the exception's class
    message: str  #: its text, cut at 2,000 characters
    traceback_digest: str = (
        ""  #: equal for equal places: 12 hexadecimal digits of the SHA-256 of the frames, "" without
    )
    batch_size: int = 1  #: events that failed together

    @classmethod
    def of(cls, error: BaseException, *, at: float, batch_size: int = 1) -> Attempt:
        """Describe *error*, raised at *at* for a batch of *batch_size* events."""
        error_type, message, digest = describe_error(error, _LONGEST_MESSAGE)
        return cls(at=at, error_type=error_type, message=message, traceback_digest=digest, batch_size=batch_size)


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """Why an event was given up, once."""

    attempts: Sequence[Attempt]  #: oldest first, 1 or more
    consumer: str = ""  #: who gave it up: a job's name, host and process


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """An event that was given up, with everything known about why."""

    id: str  #: names it within its buffer, for good: the same when it was replayed and died again
    payload: Payload
    deaths: Sequence[Evidence]  #: one for each time that it was given up, oldest first, 1 or more
    died_at: float  #: the last time, in Unix seconds of the buffer's clock

    @property
    def attempts(self) -> list[Attempt]:
        """All failed attempts, oldest first."""
        return [attempt for death in self.deaths for attempt in death.attempts]

    @property
    def last(self) -> Attempt:
        """The attempt that was the last."""
        return self.deaths[-1].attempts[-1]

    @property
    def replays(self) -> int:
        """How often it was replayed and died again."""
        return len(self.deaths) - 1


#: Chooses dead letters: true for those that are meant.
Where: TypeAlias = Callable[[DeadLetter], bool]


class Replayed(msgspec.Struct, frozen=True, kw_only=True):
    """What a replay did."""

    matched: int  #: dead letters that were chosen
    replayed: int  #: of those, the ones that wait in the buffer again; 0 for a dry run


class DeadLetters(Protocol):
    """The dead letters of an async buffer. Any number of tasks and processes use them at once."""

    async def count(self) -> int:
        """Return how many there are."""

    async def list(self, limit: int = 100) -> list[DeadLetter]:
        """Return up to *limit* (1 or more), those that died first."""

    def __aiter__(self) -> AsyncIterator[DeadLetter]:
        """Iterate over all, those that died first, page by page; which died meanwhile may or may not come."""

    async def get(self, id: str) -> DeadLetter | None:  # noqa: A002 - the name of the field
        """Return one, None when there is none of that name."""

    async def replay(
        self,
        ids: Iterable[str] | None = None,
        *,
        where: Where | None = None,
        limit: int | None = None,
        dry_run: bool = False,
    ) -> Replayed:
        """
        Let dead letters wait in the buffer again, each in one atomic step: all, or those of *ids* for which *where* is true.

        *limit* (1 or more) bounds how many. With *dry_run* nothing is moved. If the event dies again it has the same id
        and one more of `deaths`.
        """

    async def purge(self, ids: Iterable[str] | None = None, *, where: Where | None = None) -> int:
        """Discard dead letters for good, all or the chosen; return how many."""


class BlockingDeadLetters(Protocol):
    """The dead letters of a sync buffer: the same as `DeadLetters`, without await."""

    def count(self) -> int:
        """Return how many there are."""

    def list(self, limit: int = 100) -> list[DeadLetter]:
        """Return up to *limit* (1 or more), those that died first."""

    def __iter__(self) -> Iterator[DeadLetter]:
        """Iterate over all, those that died first."""

    def get(self, id: str) -> DeadLetter | None:  # noqa: A002 - the name of the field
        """Return one, None when there is none of that name."""

    def replay(
        self,
        ids: Iterable[str] | None = None,
        *,
        where: Where | None = None,
        limit: int | None = None,
        dry_run: bool = False,
    ) -> Replayed:
        """Let dead letters wait in the buffer again: see `DeadLetters.replay`."""

    def purge(self, ids: Iterable[str] | None = None, *, where: Where | None = None) -> int:
        """Discard dead letters for good, all or the chosen; return how many."""


def evidence_of(error: BaseException | Evidence, *, at: float, consumer: str = "") -> Evidence:
    """Return *error* as evidence: one attempt, unless it is evidence already."""
    if isinstance(error, Evidence):
        return error
    return Evidence(attempts=[Attempt.of(error, at=at)], consumer=consumer)
