"""The dead letters of a RedisStore: the scripts `bury`, `dead_letters`, `dead_letter`, `redrive` and `purge`."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from connector_sdk.buffers.redis_members import session_of, stored_event
from connector_sdk.buffers.redis_scripts import Answer, Scripts, bytes_of, integer_of
from connector_sdk.buffers.store import Buried, StoredEvent
from connector_sdk.redis_client import Reply, Script

__all__ = ["RedisDeadLetters"]

_ARRIVAL: Final = 7  # bytes
_LENGTH: Final = 4  # bytes


class RedisDeadLetters(abc.ABC):
    """The part of an `EventStore` that is about dead letters. Each shard keeps *most*, each for *age* milliseconds."""

    def __init__(self, scripts: Scripts, most: int, age: int) -> None:
        self._letter_scripts = scripts
        #: What most of the scripts are told first.
        self._bounds: list[bytes | str | int] = [most, age]

    async def bury(
        self, shard: int, lease: str, letters: Sequence[tuple[StoredEvent, bytes]], *, timeout: float
    ) -> bool:
        """Move events of a lease to the dead letters: `lua/bury.lua`."""
        arguments: list[bytes | str | int] = [lease, *self._bounds]
        for event, evidence in letters:
            arguments += (event.ticket, evidence)
        answer = await self._run(self._letter_scripts.bury, shard, arguments, timeout, repeatable=True)
        return integer_of(answer.rest[0]) == 1

    async def dead_letters(
        self, shard: int, limit: int, *, cursor: str = "", timeout: float
    ) -> tuple[list[Buried], str]:
        """Show a page of dead letters: `lua/dead_letters.lua`."""
        arguments = [*self._bounds, cursor or "-inf", limit]
        answer = await self._run(self._letter_scripts.dead_letters, shard, arguments, timeout, repeatable=True)
        return list(_letters_of(answer.rest[1:])), bytes_of(answer.rest[0]).decode()

    async def dead_letter(self, shard: int, arrival: int, *, timeout: float) -> Buried | None:
        """Show one dead letter: `lua/dead_letter.lua`."""
        for name in _names_of([arrival]):
            arguments = [*self._bounds, name]
            answer = await self._run(self._letter_scripts.dead_letter, shard, arguments, timeout, repeatable=True)
            for letter in _letters_of(answer.rest):
                return letter
        return None

    async def redrive(self, shard: int, arrivals: Sequence[int], *, timeout: float) -> list[int]:
        """Let dead letters wait again: `lua/redrive.lua`."""
        arguments = [*self._bounds, *_names_of(arrivals)]
        answer = await self._run(self._letter_scripts.redrive, shard, arguments, timeout)
        return [int.from_bytes(bytes_of(name), "big") for name in answer.rest]

    async def purge(self, shard: int, arrivals: Sequence[int] | None, *, timeout: float) -> int:
        """Discard dead letters: `lua/purge.lua`."""
        arguments: list[bytes | str | int] = ["all"] if arrivals is None else ["some", *_names_of(arrivals)]
        discarded, has_more = 0, True
        while has_more:
            answer = await self._run(self._letter_scripts.purge, shard, arguments, timeout)
            discarded += integer_of(answer.rest[0])
            has_more = integer_of(answer.rest[1]) == 1
        return discarded

    @abc.abstractmethod
    async def _run(
        self,
        script: Script,
        shard: int,
        arguments: Sequence[bytes | str | int],
        timeout: float,
        *,
        repeatable: bool = False,
    ) -> Answer:
        """Run a script."""


def _names_of(arrivals: Iterable[int]) -> Iterator[bytes]:
    """Return arrivals as the keys have them; what can be none is left out."""
    for arrival in arrivals:
        if 0 <= arrival < 1 << 8 * _ARRIVAL:
            yield arrival.to_bytes(_ARRIVAL, "big")


def _letters_of(replies: Sequence[Reply]) -> Iterator[Buried]:
    for score, letter in zip(replies[::2], replies[1::2], strict=True):
        label, member, *evidence = _unpacked(bytes_of(letter))
        yield Buried(session_of(label), stored_event(member), evidence, float(bytes_of(score)) / 1e6)


def _unpacked(letter: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(letter):
        end = at + _LENGTH + int.from_bytes(letter[at : at + _LENGTH], "big")
        yield letter[at + _LENGTH : end]
        at = end
