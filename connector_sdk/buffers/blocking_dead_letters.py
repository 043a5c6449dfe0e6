"""The dead letters of any async buffer, for sync code: one class for every backend."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from typing import Final, Protocol, TypeAlias, TypeVar

from connector_sdk.buffers.dead_letters import DeadLetter, DeadLetters, Replayed, Where

__all__ = ["HostedDeadLetters"]

ResultT = TypeVar("ResultT")

#: Dead letters that iteration fetches at a time.
_PAGE: Final = 100
#: The class below has a method of the name of the type.
_Letters: TypeAlias = list[DeadLetter]


class WaitFor(Protocol):
    """Runs a coroutine function elsewhere and waits for its result: `BlockingBuffer.wait_for`."""

    def __call__(self, call: Callable[[], Awaitable[ResultT]]) -> ResultT: ...


class HostedDeadLetters:
    """
    The dead letters of the buffer inside a `BlockingBuffer`: see `DeadLetters` for what each method does.

    Any number of threads may use them. `where` is called in the thread of the buffer, and everybody waits for it meanwhile:
    it must be quick, and cannot call the `BlockingBuffer`.
    """

    def __init__(self, letters: DeadLetters, wait_for: WaitFor) -> None:
        self._letters = letters
        self._wait_for = wait_for

    def count(self) -> int:
        """Return how many there are."""
        return self._wait_for(self._letters.count)

    def list(self, limit: int = 100) -> _Letters:
        """Return up to *limit* (1 or more), those that died first."""
        return self._wait_for(lambda: self._letters.list(limit))

    def __iter__(self) -> Iterator[DeadLetter]:
        """Iterate over all, those that died first, page by page."""
        letters = aiter(self._letters)
        try:
            while page := self._wait_for(lambda: _page(letters)):
                yield from page
        finally:
            self._wait_for(lambda: _close(letters))

    def get(self, id: str) -> DeadLetter | None:  # noqa: A002 - the name of the field
        """Return one, None when there is none of that name."""
        return self._wait_for(lambda: self._letters.get(id))

    def replay(
        self,
        ids: Iterable[str] | None = None,
        *,
        where: Where | None = None,
        limit: int | None = None,
        dry_run: bool = False,
    ) -> Replayed:
        """Let dead letters wait in the buffer again: see `DeadLetters.replay`."""
        return self._wait_for(lambda: self._letters.replay(ids, where=where, limit=limit, dry_run=dry_run))

    def purge(self, ids: Iterable[str] | None = None, *, where: Where | None = None) -> int:
        """Discard dead letters for good, all or the chosen; return how many."""
        return self._wait_for(lambda: self._letters.purge(ids, where=where))

    def __repr__(self) -> str:
        return f"<HostedDeadLetters of {self._letters!r}>"


async def _page(letters: AsyncIterator[DeadLetter]) -> _Letters:
    page: _Letters = []
    while len(page) < _PAGE:
        try:
            page.append(await anext(letters))
        except StopAsyncIteration:
            break
    return page


async def _close(letters: AsyncIterator[DeadLetter]) -> None:
    aclose: Callable[[], Awaitable[object]] | None = getattr(letters, "aclose", None)
    if aclose is not None:  # an async generator
        await aclose()
