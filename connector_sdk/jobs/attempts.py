"""
What becomes of events whose handler failed, pure: whom to suspect, when to try again, when to give up.

A batch that fails is halved at once, again and again, and so the event that made it fail is found in a few calls without
any pause. It is then a *suspect*: tried again alone, after pauses, while all others go on. It is given up when it failed
alone `max_attempts` times and the handler is known to work; see `Suspects.verdict`.
"""

from __future__ import annotations

import enum
import hashlib
import math
from collections.abc import Sequence

from connector_sdk.buffers.dead_letters import Attempt
from connector_sdk.decisions import RetryLater
from connector_sdk.payloads import Payload, encode_payload
from connector_sdk.retries import ReconnectSchedule

__all__ = ["RetryLater", "Suspect", "Suspects", "Verdict", "halves"]

_MOST_SUSPECTS = 1000
_UNLIMITED_IN_A_ROW = (
    5  # attempts until an event that may never be given up goes back, so that it holds no lease for ever
)
_FEW_SUSPECTS = 4  # up to so many, it is more likely the events than a handler that is going away
_MOST_ATTEMPTS = 50  # kept as evidence: the first and the last


class Verdict(enum.Enum):
    """What to do with a suspect that has just failed."""

    RETRY = "retry"  #: after a pause
    GIVE_UP = "give up"  #: to the dead letters
    WAIT = "wait"  #: back into the buffer, until it is known whether the handler works at all


class Suspect:
    """
    An event that failed alone.

    Args:
        since: when it first failed, alone or with others.
        history: how it failed before it stood alone.
    """

    def __init__(self, key: bytes, since: float, history: Sequence[Attempt], schedule: ReconnectSchedule) -> None:
        self.key = key
        self.since = since
        #: Evidence, oldest first.
        self.attempts = list(history)
        #: How often it failed alone.
        self.failures = 0
        #: When to try again.
        self.next_try = since
        #: When it last failed alone, and the time before that; *since* before that happened.
        self.failed_at = self.failed_before = since
        self._schedule = schedule

    def failed(self, attempt: Attempt, now: float, *, counts: bool = True) -> None:
        """Note that it failed alone; an attempt that does not count is evidence only. Of very many some are left out."""
        self.failures += counts
        self.failed_before, self.failed_at = self.failed_at, now
        self.next_try = now + (self._schedule.failed() or 0.0)
        self.attempts.append(attempt)
        if len(self.attempts) > _MOST_ATTEMPTS:
            del self.attempts[_MOST_ATTEMPTS // 2]


class Suspects:
    """
    The events that failed alone, over all batches and runs of a job, and whether its handler works.

    It remembers a thousand; more than that, and the first are forgotten, so that their attempts are counted anew.
    """

    def __init__(self, *, max_attempts: int | None, patience: float, retry_initial: float, retry_max: float) -> None:
        self._max_attempts = max_attempts
        self._patience = patience
        self._retry_initial = retry_initial
        self._retry_max = retry_max
        self._suspects: dict[bytes, Suspect] = {}
        self._succeeded = -math.inf
        #: Whether the handler failed for everything that it was given lately: then nobody is to blame.
        self.is_outage = False
        self._pauses = self.new_schedule()

    def __len__(self) -> int:
        return len(self._suspects)

    def succeeded(self, now: float) -> None:
        """The handler returned: it works."""
        self._succeeded = now
        if self.is_outage:
            self.is_outage = False
            self._pauses = self.new_schedule()

    def succeeded_since(self, when: float) -> bool:
        """Whether the handler has returned after *when*."""
        return self._succeeded > when

    def outage(self, *, after: float | None = None) -> float:
        """The handler failed for everything; return the seconds to wait before it is called again."""
        self.is_outage = True
        return max(self._pauses.failed() or 0.0, after or 0.0)

    def find(self, payload: Payload) -> Suspect | None:
        """Return the suspect that *payload* is, None if it is none."""
        return self._suspects.get(_key_of(payload)) if self._suspects else None

    def accuse(self, payload: Payload, since: float, history: Sequence[Attempt]) -> Suspect:
        """Return the suspect that *payload* is from now on."""
        key = _key_of(payload)
        suspect = self._suspects.get(key)
        if suspect is None:
            if len(self._suspects) >= _MOST_SUSPECTS:
                del self._suspects[next(iter(self._suspects))]
            suspect = self._suspects[key] = Suspect(key, since, history, self.new_schedule())
        return suspect

    def close(self, suspect: Suspect) -> None:
        """It was delivered or given up."""
        self._suspects.pop(suspect.key, None)

    def verdict(self, suspect: Suspect, now: float) -> Verdict:
        """
        Say what to do with a suspect that has failed.

        It is given up when it failed alone `max_attempts` times and the handler has returned for another event since this
        one first failed; with more than four suspects since its failure before last, for when so many fail and nothing is
        done meanwhile, the handler has gone away. If there was no other event, so that nobody can say whose fault it is, it
        must also have failed for *patience* seconds. During an outage of the handler nothing is given up.
        """
        if self._max_attempts is None:
            return Verdict.WAIT if suspect.failures % _UNLIMITED_IN_A_ROW == 0 else Verdict.RETRY
        if suspect.failures < self._max_attempts:
            return Verdict.RETRY
        if self.is_outage:
            return Verdict.WAIT
        recent = len(self._suspects) <= _FEW_SUSPECTS or self.succeeded_since(suspect.failed_before)
        if (self.succeeded_since(suspect.since) and recent) or now - suspect.since >= self._patience:
            return Verdict.GIVE_UP
        return Verdict.WAIT

    def new_schedule(self) -> ReconnectSchedule:
        """Return pauses that grow from nothing."""
        return ReconnectSchedule(initial=self._retry_initial, maximum=self._retry_max, max_retries=None)


def halves(events: list[Payload]) -> tuple[list[Payload], list[Payload]]:
    """Cut two or more events in the middle."""
    middle = len(events) // 2
    return events[:middle], events[middle:]


def _key_of(payload: Payload) -> bytes:
    # Its bytes and not its id alone: without ids, or with equal ids of two streams, two events must not be taken for one.
    try:
        body = encode_payload(payload)
    except (TypeError, ValueError):  # made in Python, of what is no JSON; a buffer in memory takes it all the same
        body = repr(payload).encode(errors="backslashreplace")
    digest = hashlib.sha256(body)
    digest.update((payload.event_id or "").encode(errors="surrogatepass"))
    return digest.digest()
