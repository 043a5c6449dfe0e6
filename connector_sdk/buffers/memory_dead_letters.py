"""The dead letters of the in-memory buffer: where they are kept, and the sync and the async face."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator
from itertools import islice
from typing import Protocol, Self, TypeAlias

from connector_sdk.buffers.arguments import check_names
from connector_sdk.buffers.dead_letters import DeadLetter, Evidence, Replayed, Where
from connector_sdk.options import check_integer
from connector_sdk.payloads import Payload

__all__ = ["MemoryDeadLetters", "MemoryDeadLettersView", "Shelf"]

#: The classes below have a method of the name of the type.
_Letters: TypeAlias = list[DeadLetter]


class Shelf:
    """
    Dead letters in the order of their deaths, at most *bound*; the oldest go. Used under the buffer's lock.

    It remembers those that were replayed, at most *bound* too, by the identity of the payload: their deaths go on.
    """

    __slots__ = ("_bound", "_letters", "_named", "_replayed")

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._named = 0
        self._letters: dict[str, DeadLetter] = {}
        self._replayed: dict[int, tuple[Payload, DeadLetter]] = {}

    def __len__(self) -> int:
        return len(self._letters)

    @property
    def remembers(self) -> bool:
        """Whether letters were replayed that may die again."""
        return bool(self._replayed)

    def put(self, payload: Payload, evidence: Evidence, died_at: float) -> None:
        """Keep an event that is given up."""
        _, earlier = self._replayed.pop(id(payload), (payload, None))
        if earlier is None:
            self._named += 1
            letter = DeadLetter(id=f"0-{self._named}", payload=payload, deaths=[evidence], died_at=died_at)
        else:
            letter = DeadLetter(id=earlier.id, payload=payload, deaths=[*earlier.deaths, evidence], died_at=died_at)
        self._letters[letter.id] = letter
        if len(self._letters) > self._bound:
            del self._letters[next(iter(self._letters))]

    def first(self, limit: int | None) -> list[DeadLetter]:
        """Return those that died first, all or *limit*."""
        return list(islice(self._letters.values(), limit))

    def get(self, name: str) -> DeadLetter | None:
        """Return one."""
        return self._letters.get(name)

    def remove_replayed(self, letter: DeadLetter, payload: Payload) -> None:
        """Take a letter out whose event waits again as *payload*, and remember its deaths."""
        del self._letters[letter.id]
        self._replayed[id(payload)] = (payload, letter)
        if len(self._replayed) > self._bound:
            del self._replayed[next(iter(self._replayed))]

    def forget_replayed(self) -> None:
        """Forget the letters that were replayed: none of those events is in the buffer or on lease any more."""
        self._replayed.clear()

    def discard(self, name: str) -> bool:
        """Take one out for good; False when there is none of that name."""
        return self._letters.pop(name, None) is not None


class Keeper(Protocol):
    """What the faces ask of the buffer; each call is one critical section."""

    def letters(self, limit: int | None = None) -> list[DeadLetter]:
        """Return those that died first, all or *limit*."""

    def letter(self, name: str) -> DeadLetter | None:
        """Return one."""

    def letter_count(self) -> int:
        """Return how many there are."""

    def redrive(self, name: str) -> bool | None:
        """Let one wait again; False when there is no room, None when there is none of that name."""

    def discard_letters(self, names: Iterable[str]) -> int:
        """Discard those of *names*; return how many."""


class MemoryDeadLetters:
    """
    The dead letters of an `EventBuffer`, for sync code: see `BlockingDeadLetters`.

    Objects of this class hold nothing of their own; any number of threads may use them. `where` is called outside the
    lock, and may call any method of the buffer.
    """

    __slots__ = ("_keeper",)

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper

    def count(self) -> int:
        """Return how many there are."""
        return self._keeper.letter_count()

    def list(self, limit: int = 100) -> _Letters:
        """Return up to *limit* (1 or more), those that died first."""
        return self._keeper.letters(check_integer("limit", limit, minimum=1))

    def __iter__(self) -> Iterator[DeadLetter]:
        """Iterate over those that there are now, those that died first."""
        return iter(self._keeper.letters())

    def get(self, id: str) -> DeadLetter | None:  # noqa: A002 - the name of the field
        """Return one, None when there is none of that name."""
        return self._keeper.letter(id)

    def replay(
        self,
        ids: Iterable[str] | None = None,
        *,
        where: Where | None = None,
        limit: int | None = None,
        dry_run: bool = False,
    ) -> Replayed:
        """
        Let dead letters wait in the buffer again, as if they had just come: see `DeadLetters.replay`.

        It ends with the first for which the buffer has no room; that one and the rest stay dead letters.

        Raises:
            BufferClosedError: the buffer is closed; those that were not replayed yet stay dead letters.
            ConfigurationError: an argument cannot work.
        """
        if limit is not None:
            check_integer("limit", limit, minimum=1)
        chosen = list(islice(self._chosen(ids, where), limit))
        replayed = 0
        for letter in () if dry_run else chosen:
            moved = self._keeper.redrive(letter.id)
            if moved is False:
                break
            replayed += moved is not None
        return Replayed(matched=len(chosen), replayed=replayed)

    def purge(self, ids: Iterable[str] | None = None, *, where: Where | None = None) -> int:
        """Discard dead letters for good, all or the chosen; return how many. They were counted when they died."""
        return self._keeper.discard_letters(letter.id for letter in list(self._chosen(ids, where)))

    def __repr__(self) -> str:
        return f"<MemoryDeadLetters: {self.count()}>"

    def _chosen(self, ids: Iterable[str] | None, where: Where | None) -> Iterator[DeadLetter]:
        names = None if ids is None else check_names("ids", ids)
        letters = self._keeper.letters()
        return (
            letter for letter in letters if (names is None or letter.id in names) and (where is None or where(letter))
        )


class MemoryDeadLettersView:
    """The same dead letters for async code: see `DeadLetters`. None of the coroutines waits."""

    __slots__ = ("_letters",)

    def __init__(self, letters: MemoryDeadLetters) -> None:
        self._letters = letters

    async def count(self) -> int:
        """Return how many there are."""
        return self._letters.count()

    async def list(self, limit: int = 100) -> _Letters:
        """Return up to *limit* (1 or more), those that died first."""
        return self._letters.list(limit)

    def __aiter__(self) -> AsyncIterator[DeadLetter]:
        """Iterate over those that there are now, those that died first."""
        return _Each(iter(self._letters))

    async def get(self, id: str) -> DeadLetter | None:  # noqa: A002 - the name of the field
        """Return one, None when there is none of that name."""
        return self._letters.get(id)

    async def replay(
        self,
        ids: Iterable[str] | None = None,
        *,
        where: Where | None = None,
        limit: int | None = None,
        dry_run: bool = False,
    ) -> Replayed:
        """Let dead letters wait in the buffer again: see `MemoryDeadLetters.replay`."""
        return self._letters.replay(ids, where=where, limit=limit, dry_run=dry_run)

    async def purge(self, ids: Iterable[str] | None = None, *, where: Where | None = None) -> int:
        """Discard dead letters for good, all or the chosen; return how many."""
        return self._letters.purge(ids, where=where)

    def __repr__(self) -> str:
        return f"<MemoryDeadLettersView: {self._letters.count()}>"


class _Each(AsyncIterator[DeadLetter]):
    # Not an async generator: trio warns about those when a loop over them is left early.

    def __init__(self, letters: Iterator[DeadLetter]) -> None:
        self._letters = letters

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> DeadLetter:
        for letter in self._letters:
            return letter
        raise StopAsyncIteration
