"""Keys of work that is to be done once, in memory."""

from __future__ import annotations

import time
from typing import Final, NamedTuple

from connector_sdk.bus.log import Reserved

__all__ = ["MemoryReservations"]

_FEW: Final = 1000  # keys that are not worth a search for those that ran out


class _Reservation(NamedTuple):
    holder: str
    is_done: bool
    until: float


class MemoryReservations:
    """Who has which key, and what is done; see `EventLog.reserve`. Each method is one step of one event loop."""

    def __init__(self) -> None:
        self._known: dict[str, _Reservation] = {}
        self._many = _FEW

    def reserve(self, key: str, holder: str, hold: float) -> Reserved:
        """See `EventLog.reserve`."""
        now = time.monotonic()
        current = self._current(key, now)
        if current is not None and current.is_done:
            return "done"
        if current is not None and current.holder != holder:
            return "taken"
        self._put(key, _Reservation(holder, False, now + hold), now)
        return "yours"

    def keep(self, key: str, holder: str, ttl: float) -> bool:
        """See `EventLog.keep`."""
        now = time.monotonic()
        current = self._current(key, now)
        if current is not None and current.holder != holder:
            return False
        self._put(key, _Reservation(holder, True, now + ttl), now)
        return True

    def free(self, key: str, holder: str) -> None:
        """See `EventLog.free`."""
        current = self._known.get(key)
        if current is not None and current.holder == holder and not current.is_done:
            del self._known[key]

    def __len__(self) -> int:
        return len(self._known)

    def _current(self, key: str, now: float) -> _Reservation | None:
        found = self._known.get(key)
        return None if found is None or found.until <= now else found

    def _put(self, key: str, reservation: _Reservation, now: float) -> None:
        self._known[key] = reservation
        if len(self._known) > self._many:
            self._known = {key: one for key, one in self._known.items() if one.until > now}
            self._many = max(_FEW, 2 * len(self._known))  # so that each search pays for itself
