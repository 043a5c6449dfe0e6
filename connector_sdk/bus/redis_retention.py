"""When a RedisLog looks after its topics: what it publishes to and what its members follow."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final

from connector_sdk.bus.redis_storage import Retention, Storage
from connector_sdk.errors import BusClosedError, BusUnavailableError

__all__ = ["Place", "Places"]

#: Topics that one process remembers; beyond it those are forgotten that were not used for long.
_MOST: Final = 10_000
#: Steps of one call: each lets up to 2000 entries go.
_MOST_STEPS: Final = 50
_AFTER_FAILURE: Final = 1.0  # seconds


class Place:
    """What this process knows of one topic."""

    __slots__ = ("every", "key", "name", "published", "retention", "tend_at")

    def __init__(self, name: str, key: bytes, retention: Retention) -> None:
        self.name = name
        self.key = key
        self.retention = retention
        self.every = max(1, retention.max_events // 10)
        #: Entries published since it was looked after; so that the first one has it looked after.
        self.published = self.every
        self.tend_at = 0.0  #: monotonic time


class Places:
    """The topics that this process has to do with."""

    def __init__(self, storage: Storage, default: Retention, special: Mapping[str, Retention]) -> None:
        self._storage = storage
        self._default = default
        self._special = special
        self._places: dict[str, Place] = {}

    def __getitem__(self, name: str) -> Place:
        """Return what is known of a topic."""
        place = self._places.get(name)
        if place is None:
            if len(self._places) >= _MOST:
                self._forget_some()
            place = Place(name, self._storage.keys.topic(name), self._special.get(name, self._default))
            self._places[name] = place
        return place

    async def published(self, place: Place, count: int) -> None:
        """Look after a topic if it is time, *count* entries were published."""
        place.published += count
        if place.published >= place.every or time.monotonic() >= place.tend_at:
            await self.tend(place)

    def is_due(self, place: Place) -> bool:
        """Whether it is time to look after a topic that nobody may publish to."""
        return time.monotonic() >= place.tend_at

    async def tend(self, place: Place) -> None:
        """Look after a topic now, and after some that nobody has looked after for long. When it fails the next call does it."""
        stale = await self._tend(place)
        for name in stale:
            if name != place.name:
                await self._tend(self[name])

    async def _tend(self, place: Place) -> list[str]:
        rules = place.retention
        # Those that publish meanwhile leave it to this call.
        published, place.published = place.published, 0
        place.tend_at = time.monotonic() + rules.ttl / 10
        arguments = (
            place.name,
            rules.max_events,
            round(rules.ttl * 1000),
            rules.max_backlog,
            round(rules.backlog_seconds * 1000),
        )
        stale: list[str] = []
        try:
            for _ in range(_MOST_STEPS):
                reply = await self._storage.run(self._storage.scripts.tend, (place.key,), arguments)
                assert isinstance(reply, list)
                more, *names = reply
                stale = [name.decode() for name in names if isinstance(name, bytes)]
                if more == 0:
                    break
            return stale
        except (BusUnavailableError, BusClosedError):
            place.published += published
            place.tend_at = time.monotonic() + _AFTER_FAILURE
            return []

    def _forget_some(self) -> None:
        now = time.monotonic()
        for name in [name for name, place in self._places.items() if place.tend_at < now - place.retention.ttl]:
            del self._places[name]
