"""How the actions of many sessions leave: in small batches that interleave, as on a live connector. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

import msgspec

from connector_sdk.payloads import ActionsPayload, SlimAction, SummaryPayload

__all__ = ["Outbox", "Visit"]


class Visit(msgspec.Struct, kw_only=True, eq=False):
    """An open session: who it is, the actions that wait to leave, how many there have been."""

    product_id: str
    session_id: str
    user_id: str | None = None
    email: str | None = None
    pending: list[SlimAction] = []
    pending_since: float = 0.0
    actions: int = 0

    def batch(self, forwarded_at: float) -> ActionsPayload:
        """Take what waits as one payload."""
        actions, self.pending = self.pending, []
        return ActionsPayload(
            product_id=self.product_id,
            session_id=self.session_id,
            user_id=self.user_id,
            email=self.email,
            actions=actions,
            count=len(actions),
            forwarded_at=forwarded_at,
        )


class Outbox:
    """
    Batches of open sessions: one leaves when *batch_size* actions wait, or the oldest has waited *max_wait* seconds.

    Each action gets the next index of its session. Times are whatever clock the caller keeps; *epoch*, the Unix time of
    its zero, is added to `forwarded_at`.
    """

    def __init__(self, *, batch_size: int = 5, max_wait: float = 10.0, epoch: float = 0.0) -> None:
        self._epoch = epoch
        self._batch_size = batch_size
        self._max_wait = max_wait
        self._waiting: OrderedDict[str, Visit] = OrderedDict()  # by session id, the longest waiting first

    def put(self, visit: Visit, action: SlimAction, now: float) -> Iterator[ActionsPayload]:
        """Add an action; yield the batch that it fills. Call `due(now)` before."""
        if not visit.pending:
            visit.pending_since = now
            self._waiting[visit.session_id] = visit
        visit.pending.append(msgspec.structs.replace(action, index=visit.actions))
        visit.actions += 1
        if len(visit.pending) >= self._batch_size:
            del self._waiting[visit.session_id]
            yield visit.batch(self._unix(now))

    def due(self, now: float) -> Iterator[ActionsPayload]:
        """Yield the batches whose time has come by *now*, each stamped with that time."""
        while self._waiting:
            visit = next(iter(self._waiting.values()))
            leaves = visit.pending_since + self._max_wait
            if leaves > now:
                return
            del self._waiting[visit.session_id]
            yield visit.batch(self._unix(leaves))

    def close(self, visit: Visit, prose: str, now: float) -> Iterator[ActionsPayload | SummaryPayload]:
        """End a session: what still waits leaves, then the summary that replaces all of its actions."""
        if self._waiting.pop(visit.session_id, None) is not None:
            yield visit.batch(self._unix(now))
        yield SummaryPayload(
            product_id=visit.product_id,
            session_id=visit.session_id,
            summary=prose,
            replaces=visit.actions,
            forwarded_at=self._unix(now),
        )

    def _unix(self, now: float) -> float:
        return self._epoch + now if self._epoch else now
