"""The dead letters of a durable buffer, over all shards of its store."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Final, NamedTuple, Self, TypeAlias

import msgspec

from connector_sdk.buffers.arguments import check_flag, check_names
from connector_sdk.buffers.codec import decode_body
from connector_sdk.buffers.dead_letters import DeadLetter, Evidence, Replayed, Where
from connector_sdk.buffers.engine import Engine
from connector_sdk.buffers.gate import Gate
from connector_sdk.buffers.store import Buried
from connector_sdk.errors import BufferUnavailableError, ConfigurationError, PayloadError
from connector_sdk.options import check_integer

__all__ = ["DurableDeadLetters"]

#: Letters in one step.
_PAGE: Final = 100
_FARTHEST: Final = 1 << 63
_ID: Final = re.compile(r"([0-9]{1,9})-([0-9]{1,19})")
_decode_evidence = msgspec.json.Decoder(Evidence).decode
#: The class below has a method of the name of the type.
_Letters: TypeAlias = list[DeadLetter]


class _Name(NamedTuple):
    shard: int
    arrival: int


class DurableDeadLetters:
    """
    The dead letters of a `DurableBuffer`: see `DeadLetters`. They are in the store, and the same for all processes.

    Those that cannot be read (what is no payload any more, say) are left out wherever letters are shown, with a warning;
    `count` counts them, and `purge` without *where* discards them.

    Every method raises BufferUnavailableError when the store does not answer; `in_doubt` of a replay or a purge says that
    the last step, of 100 letters at most, may have been done. BufferClosedError after `aclose()`. ConfigurationError when
    an argument cannot work, such as an id that no letter of this buffer can have.
    """

    def __init__(self, engine: Callable[[], Engine]) -> None:
        self._get_engine = engine

    async def count(self) -> int:
        """Return how many there are."""
        return sum(census.dead_letters for census in await self._get_engine().census())

    async def list(self, limit: int = 100) -> _Letters:
        """Return up to *limit* (1 or more), those that died first."""
        check_integer("limit", limit, minimum=1)
        return await _Reading(self._get_engine, page=min(limit, _PAGE)).take(limit)

    def __aiter__(self) -> AsyncIterator[DeadLetter]:
        """Iterate over all, those that died first, page by page; which died meanwhile may or may not come."""
        return _Reading(self._get_engine)

    async def get(self, id: str) -> DeadLetter | None:  # noqa: A002 - the name of the field
        """Return one, None when there is none of that name."""
        engine = self._get_engine()
        return await _get(engine, _name_of("id", id, len(engine.gates)))

    async def replay(
        self,
        ids: Iterable[str] | None = None,
        *,
        where: Where | None = None,
        limit: int | None = None,
        dry_run: bool = False,
    ) -> Replayed:
        """
        Let dead letters wait in the buffer again, as if they had just come: see `DeadLetters.replay`.

        Those that died after it began are left, so it ends though events die again at once. If it fails half-way, what was
        replayed waits in the buffer, and the rest is dead letters still.
        """
        if limit is not None:
            check_integer("limit", limit, minimum=1)
        check_flag("dry_run", dry_run)
        engine = self._get_engine()
        chosen = await self._choose(engine, ids, where)
        matched = replayed = 0
        while limit is None or matched < limit:
            letters = await chosen.take(_PAGE if limit is None else min(_PAGE, limit - matched))
            if not letters:
                break
            matched += len(letters)
            if not dry_run:
                replayed += await _redrive(engine, letters)
        return Replayed(matched=matched, replayed=replayed)

    async def purge(self, ids: Iterable[str] | None = None, *, where: Where | None = None) -> int:
        """Discard dead letters for good, all or the chosen; return how many. They were counted when they died."""
        engine = self._get_engine()
        if where is None:
            names = None if ids is None else _names_of(ids, len(engine.gates))
            return await _purge(engine, names)
        chosen = await self._choose(engine, ids, where)
        purged = 0
        while letters := await chosen.take(_PAGE):
            purged += await _purge(engine, [_name_in(letter) for letter in letters])
        return purged

    def __repr__(self) -> str:
        return "<DurableDeadLetters>"

    async def _choose(self, engine: Engine, ids: Iterable[str] | None, where: Where | None) -> _Reading | _Named:
        if ids is not None:
            return _Named(engine, _names_of(ids, len(engine.gates)), where)
        # Letters that die again come last: beyond as many as there are now there is nothing to be chosen.
        budgets = [census.dead_letters for census in await engine.census()]
        return _Reading(self._get_engine, where=where, budgets=budgets)


class _Source:
    """The letters of one shard that were read ahead, and where to go on."""

    def __init__(self, budget: int | None) -> None:
        self.budget = budget
        self.letters: deque[Buried] = deque()
        self.cursor = ""
        self.is_exhausted = budget == 0


class _Reading(AsyncIterator[DeadLetter]):
    """
    Letters of all shards for which *where* is true, those that died first; at most *budgets* are looked at.

    Not an async generator: trio warns about those when a loop over them is left early.
    """

    def __init__(
        self,
        engine: Callable[[], Engine],
        *,
        page: int = _PAGE,
        where: Where | None = None,
        budgets: Sequence[int] | None = None,
    ) -> None:
        self._get_engine = engine
        self._page = page
        self._where = where
        self._budgets = budgets
        self._sources: dict[Gate, _Source] | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> DeadLetter:
        for letter in await self.take(1):
            return letter
        raise StopAsyncIteration

    async def take(self, count: int) -> list[DeadLetter]:
        """Return the next, at most *count*; fewer only when there are no more."""
        engine = self._get_engine()
        if self._sources is None:
            budgets = [None] * len(engine.gates) if self._budgets is None else self._budgets
            self._sources = {gate: _Source(budget) for gate, budget in zip(engine.gates, budgets, strict=True)}
        found: list[DeadLetter] = []
        while len(found) < count:
            hungry = [gate for gate, source in self._sources.items() if not source.letters and not source.is_exhausted]
            if hungry:
                _raise_first(await engine.on_each(self._read, hungry))
                continue
            full = [(gate, source) for gate, source in self._sources.items() if source.letters]
            if not full:
                break
            gate, source = min(full, key=lambda each: (each[1].letters[0].buried_at, each[0].shard))
            letter = _letter_of(engine, gate.shard, source.letters.popleft())
            if letter is not None and (self._where is None or self._where(letter)):
                found.append(letter)
        return found

    async def _read(self, gate: Gate) -> BufferUnavailableError | None:
        assert self._sources is not None
        source, engine = self._sources[gate], self._get_engine()
        limit = self._page if source.budget is None else min(self._page, source.budget)
        try:
            letters, cursor = await gate.call(
                "dead_letters",
                lambda: engine.store.dead_letters(gate.shard, limit, cursor=source.cursor, timeout=engine.long_timeout),
                lambda page: len(page[0]),
                opens=False,
            )
        except BufferUnavailableError as error:
            return error
        source.letters.extend(letters)
        source.cursor = cursor
        if source.budget is not None:
            source.budget -= len(letters)
        source.is_exhausted = not cursor or source.budget == 0
        return None


class _Named:
    """Letters of these names for which *where* is true."""

    def __init__(self, engine: Engine, names: Iterable[_Name], where: Where | None) -> None:
        self._engine = engine
        self._names = deque(names)
        self._where = where

    async def take(self, count: int) -> list[DeadLetter]:
        """Return the next, at most *count*; fewer only when there are no more."""
        found: list[DeadLetter] = []
        while self._names and len(found) < count:
            letter = await _get(self._engine, self._names.popleft())
            if letter is not None and (self._where is None or self._where(letter)):
                found.append(letter)
        return found


async def _get(engine: Engine, name: _Name) -> DeadLetter | None:
    buried = await engine.gates[name.shard].call(
        "dead_letter", lambda: engine.store.dead_letter(name.shard, name.arrival, timeout=engine.timeout)
    )
    return None if buried is None else _letter_of(engine, name.shard, buried)


async def _redrive(engine: Engine, letters: Iterable[DeadLetter]) -> int:
    groups = _by_shard([_name_in(letter) for letter in letters])

    async def redrive(gate: Gate) -> int | BufferUnavailableError:
        arrivals = groups[gate.shard]
        try:
            redriven = await gate.call(
                "redrive",
                lambda: engine.store.redrive(gate.shard, arrivals, timeout=engine.long_timeout),
                len,
            )
        except BufferUnavailableError as error:
            return error
        return len(redriven)

    return sum(_raise_first(await engine.on_each(redrive, [engine.gates[shard] for shard in groups])))


async def _purge(engine: Engine, names: Sequence[_Name] | None) -> int:
    """Discard letters: all, or those of *names*."""
    groups = None if names is None else _by_shard(names)

    async def purge(gate: Gate) -> int | BufferUnavailableError:
        arrivals = None if groups is None else groups[gate.shard]
        try:
            return await gate.call(
                "purge", lambda: engine.store.purge(gate.shard, arrivals, timeout=engine.long_timeout), int
            )
        except BufferUnavailableError as error:
            return error

    gates = engine.gates if groups is None else [engine.gates[shard] for shard in groups]
    return sum(_raise_first(await engine.on_each(purge, gates)))


def _raise_first(answers: Iterable[int | BufferUnavailableError | None]) -> list[int]:
    numbers: list[int] = []
    for answer in answers:
        if isinstance(answer, BufferUnavailableError):
            raise answer
        numbers.append(answer or 0)
    return numbers


def _letter_of(engine: Engine, shard: int, buried: Buried) -> DeadLetter | None:
    """Return a letter as it is shown; None, and a warning, when it cannot be read."""
    event = buried.event
    try:
        payload = decode_body(event.body, kind=event.kind, event_id=event.event_id)
        deaths = [_decode_evidence(evidence) for evidence in buried.evidence]
    except (PayloadError, msgspec.MsgspecError) as error:
        engine.account.warnings.warning(
            "unreadable", "the dead letter %d-%d cannot be read: %s", shard, event.arrival, type(error).__name__
        )
        return None
    return DeadLetter(id=f"{shard}-{event.arrival}", payload=payload, deaths=deaths, died_at=buried.buried_at)


def _name_in(letter: DeadLetter) -> _Name:
    shard, _, arrival = letter.id.partition("-")
    return _Name(int(shard), int(arrival))


def _names_of(ids: Iterable[str], shards: int) -> list[_Name]:
    return sorted(_name_of("ids", each, shards) for each in check_names("ids", ids))


def _name_of(option: str, text: object, shards: int) -> _Name:
    match = _ID.fullmatch(text) if isinstance(text, str) else None
    if match is None or int(match[1]) >= shards or int(match[2]) >= _FARTHEST:
        raise ConfigurationError(
            option, text, f"the id of a dead letter of this buffer: 0 to {shards - 1}, -, a number"
        )
    return _Name(int(match[1]), int(match[2]))


def _by_shard(names: Iterable[_Name]) -> dict[int, list[int]]:
    groups: dict[int, list[int]] = {}
    for shard, arrival in names:
        groups.setdefault(shard, []).append(arrival)
    return groups
