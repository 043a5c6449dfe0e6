"""The account that a durable buffer keeps in this process, and the telling of what it gave up."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence

from connector_sdk.buffers.drops import DropHook
from connector_sdk.ledger import DropReason, Ledger
from connector_sdk.observe import Notifier, RateLimitedLogger
from connector_sdk.payloads import Payload

__all__ = ["Account"]

_log = logging.getLogger(__name__)

#: Seconds between two warnings of one kind: an outage of ten minutes must not fill the log.
_INTERVAL = 120.0


class Account:
    """
    Counts, and tells: each drop once to the hook, in order, and to the Observer with a count.

    It belongs to one event loop at a time, whose tasks change it between two awaits, so it has no lock, and every reading
    balances. (`drops.DropTeller` is for threads: it has a lock, queues, and tells the Observer event by event.)
    """

    def __init__(self, hook: DropHook | None, observer: object | None) -> None:
        self._hook = hook
        self.notifier = Notifier(observer, _log)
        self.warnings = RateLimitedLogger(_log, _INTERVAL)
        self.hook_errors = 0
        self.received = 0
        self.buffered = 0
        self.in_flight = 0
        self.delivered = 0
        self.dropped: dict[DropReason, int] = {}
        self.evicted: dict[DropReason, int] = {}
        self.in_doubt = 0
        self.drained = 0
        self.failed_reads = 0
        self.outages = 0
        self.findings: list[str] = []
        self._unlogged: dict[DropReason, int] = {}

    def ledger(self) -> Ledger:
        """Return one reading."""
        return Ledger(
            received=self.received,
            delivered=self.delivered,
            buffered=self.buffered,
            in_flight=self.in_flight,
            dropped=dict(self.dropped),
        )

    # -- what becomes of events

    def sent(self, count: int) -> None:
        """Events left the queue for the store."""
        self.buffered -= count
        self.in_flight += count

    def stored(self, count: int, duplicates: int) -> None:
        """The store answered: it has *count* events, *duplicates* of them since before."""
        self.in_flight -= count
        self.delivered += count - duplicates
        if duplicates:
            self._count(DropReason.DUPLICATE, duplicates)
            self._tell_observer(DropReason.DUPLICATE, duplicates)

    def drop_new(self, reason: DropReason, payloads: Sequence[Payload]) -> None:
        """Give up events that were just received."""
        self.received += len(payloads)
        self._drop(reason, payloads)

    def drop_buffered(self, reason: DropReason, payloads: Sequence[Payload]) -> None:
        """Give up events that were not sent."""
        self.buffered -= len(payloads)
        self._drop(reason, payloads)

    def drop_sent(self, reason: DropReason, payloads: Sequence[Payload], *, in_doubt: bool) -> None:
        """Give up events that were sent and not confirmed."""
        self.in_flight -= len(payloads)
        if in_doubt:
            self.in_doubt += len(payloads)
        self._drop(reason, payloads)

    def evicted_by_store(self, dropped: Mapping[DropReason, int]) -> None:
        """Note events of any process that the store gave up for this one's request."""
        for reason, count in dropped.items():
            self.evicted[reason] = self.evicted.get(reason, 0) + count
            self._tell_observer(reason, count)

    def read_failed(self, what: str, reason: str) -> None:
        """Note a reading that could not be done, or not for every shard."""
        self.failed_reads += 1
        self.warnings.warning("read", "%s did without the store: %s", what, reason)

    def undecodable(self, count: int) -> None:
        """Note stored events that are no payloads."""
        self.warnings.warning("undecodable", "%d stored events are no payloads and were put aside", count)
        self._tell_observer(DropReason.UNDECODABLE, count)

    def buried(self, count: int) -> None:
        """Note stored events that were moved to the dead letters."""
        self.warnings.warning("dead_letter", "%d events were given up and are among the dead letters", count)
        self._tell_observer(DropReason.DEAD_LETTER, count)

    def found(self, findings: Sequence[str]) -> None:
        """Note what an inspection of the store found, each finding with a warning."""
        self.findings = list(findings)
        for finding in findings:
            self.warnings.warning(finding, "%s", finding)

    # -- inner

    def _count(self, reason: DropReason, count: int) -> None:
        self.dropped[reason] = self.dropped.get(reason, 0) + count

    def _drop(self, reason: DropReason, payloads: Sequence[Payload]) -> None:
        if not payloads:
            return
        self._count(reason, len(payloads))
        if self._hook is None:
            self._warn(reason, len(payloads))
        else:
            for payload in payloads:
                try:
                    self._returned_by_hook(self._hook(payload))
                except Exception as error:  # noqa: BLE001 - the hook is not ours, and must harm nothing
                    self.hook_errors += 1
                    self.warnings.warning("hook", "on_drop raised %s", type(error).__name__)
        self._tell_observer(reason, len(payloads))

    def _returned_by_hook(self, result: object) -> None:
        if result is None or not inspect.isawaitable(result):
            return
        if inspect.iscoroutine(result):
            result.close()  # or Python warns about it, each time
        self.hook_errors += 1
        self.warnings.warning(
            "hook result", "on_drop returned an awaitable, which nobody awaits: it must be a plain function"
        )

    def _warn(self, reason: DropReason, count: int) -> None:
        self._unlogged[reason] = self._unlogged.get(reason, 0) + count
        told = ", ".join(f"{number} {name.value}" for name, number in self._unlogged.items())
        if self.warnings.warning("drops", "events were dropped: %s; an on_drop hook gets them", told):
            self._unlogged.clear()

    def _tell_observer(self, reason: DropReason, count: int) -> None:
        if self.notifier.active:
            self.notifier.tell("events_dropped", source="buffer", reason=reason.value, count=count)
