"""
The rules of attempts, pure: when a failed event is tried again, when it is given up, and the evidence that goes with it.

Time and chance are arguments. What is known of an event's failures travels with it as bytes (`LogMember.postpone`'s notes,
`LogMember.bury`'s evidence), so that any member of any process goes on where another stopped.
"""

from __future__ import annotations

import math
import random as _random
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

import msgspec

from connector_sdk.decisions import Reject, RetryLater
from connector_sdk.errors import ConfigurationError, UnknownEventError
from connector_sdk.evidence import describe_error
from connector_sdk.options import check_integer, check_seconds

__all__ = ["Dead", "DeliveryAttempt", "DeliveryEvidence", "Origin", "Retry", "RetrySchedule", "Verdict", "unreadable"]

#: Characters of an error's message, and of names, that are kept.
_LONGEST_MESSAGE: Final = 1000
_LONGEST_NAME: Final = 255
#: Attempts that are kept: the first one and the last ones.
_MOST_ATTEMPTS: Final = 20
_LONGEST_DELAY: Final = 7 * 86400.0


class DeliveryAttempt(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One failed attempt at an event."""

    at: float  #: when it failed, in Unix seconds
    consumer: str  #: who tried: the name of the group's member or of the subscription
    error_type: str  #: the qualified name of the exception's class; "" when its consumer died without a word
    message: str  #: its text, cut at 1,000 characters
    traceback_digest: str = (
        ""  #: equal for equal places: 12 hexadecimal digits of the SHA-256 of the frames, "" without
    )


class Origin(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where an event was at first: kept through every attempt, death and redrive."""

    topic: str = ""
    position: str = ""
    event_id: str = ""


class DeliveryEvidence(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why an event was tried again, or given up. Encoded it has some kilobytes, and never more than 150 kB."""

    attempts: Sequence[DeliveryAttempt] = ()  #: oldest first; of more than 20 the first one and the last 19
    left_out: int = 0  #: attempts that were forgotten for brevity
    excused: int = 0  #: attempts since the last death that do not count, because the handler said so
    reason: str = (
        ""  #: why it was given up last: "rejected", "exhausted", "unknown" or "unreadable"; "" when it was not
    )
    deaths: int = 0  #: how often it was given up; more than 1 after a redrive
    origin: Origin = Origin()

    @property
    def last(self) -> DeliveryAttempt | None:
        """The attempt that was the last, None without one."""
        return self.attempts[-1] if self.attempts else None

    @property
    def total_attempts(self) -> int:
        """How many attempts failed in all, those that were left out included."""
        return len(self.attempts) + self.left_out

    def encode(self) -> bytes:
        """Return it as bytes, for a log to keep."""
        return _encode(self)

    @classmethod
    def decode(cls, notes: bytes) -> DeliveryEvidence:
        """Return what *notes* say; evidence of nothing for empty bytes, and for bytes that are no evidence."""
        if not notes:
            return cls()
        try:
            return _decode(notes)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return cls()

    def with_attempt(self, attempt: DeliveryAttempt, origin: Origin, *, counts: bool = True) -> DeliveryEvidence:
        """Return the evidence with one more attempt; *origin* is taken if there is none yet."""
        attempts = [*self.attempts, attempt]
        over = max(0, len(attempts) - _MOST_ATTEMPTS)
        return msgspec.structs.replace(
            self,
            attempts=[*attempts[:1], *attempts[1 + over :]],
            left_out=self.left_out + over,
            excused=self.excused + (not counts),
            origin=origin if self.origin == _NOWHERE else self.origin,
        )


_NOWHERE = Origin()
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(DeliveryEvidence).decode


class Retry(msgspec.Struct, frozen=True):
    """The event is to come again, *after* seconds from now, with *notes*."""

    after: float
    notes: bytes


class Dead(msgspec.Struct, frozen=True):
    """The event is to be given up, with *evidence*. *reason* is that of the evidence."""

    evidence: bytes
    reason: str


Verdict: TypeAlias = Retry | Dead


class RetrySchedule:
    """
    How often a failing event is tried, and the pauses between.

    Args:
        max_attempts: failed attempts that count after which it is given up, 1 or more; None never gives up.
        delays: seconds before the second, third, ... attempt, each 0 or more; the last one repeats. At least one.
        jitter: each pause is longer by a random part of itself, up to this one (0 to 1), so that events which failed
            together do not come back together. No pause is shorter than *delays* say.

    Raises:
        ConfigurationError: a value is out of its range.
    """

    def __init__(
        self,
        max_attempts: int | None = 3,
        delays: Sequence[float] = (0.2, 2.0, 15.0),
        jitter: float = 0.2,
    ) -> None:
        self.max_attempts = None if max_attempts is None else check_integer("max_attempts", max_attempts, minimum=1)
        if isinstance(delays, str | bytes) or not isinstance(delays, Sequence) or not delays:
            raise ConfigurationError("retry_delays", delays, "one or more numbers of seconds, like (0.2, 2.0, 15.0)")
        self.delays = tuple(check_seconds(f"retry_delays[{i}]", delay) for i, delay in enumerate(delays))
        if max(self.delays) > _LONGEST_DELAY:
            raise ConfigurationError("retry_delays", delays, f"seconds of at most {_LONGEST_DELAY:g} (a week) each")
        self.jitter = check_seconds("jitter", jitter)
        if self.jitter > 1:
            raise ConfigurationError("jitter", jitter, "a number from 0 to 1")

    def delay(self, failures: int, random: Callable[[], float] = _random.random) -> float:
        """Return the pause in seconds after the *failures*-th failed attempt (1 or more); *random* gives 0 to 1."""
        base = self.delays[min(max(failures, 1), len(self.delays)) - 1]
        return base * (1.0 + self.jitter * random())

    def verdict(
        self,
        attempt: int,
        error: BaseException,
        notes: bytes,
        *,
        now: float,
        consumer: str,
        origin: Origin = _NOWHERE,
        random: Callable[[], float] = _random.random,
    ) -> Verdict:
        """
        Say what becomes of an event whose handler raised *error*.

        *attempt* (1 or more) and *notes* are those of its delivery, *now* is Unix seconds. `Reject` and a type or version
        that nobody registered give it up at once. `RetryLater` and `RetryAfter` bring it again without counting the attempt.
        """
        wants_later = isinstance(error, RetryLater)
        evidence = DeliveryEvidence.decode(notes).with_attempt(
            _attempt_of(error, now, consumer), origin, counts=not wants_later
        )
        if isinstance(error, Reject):
            return _dead(evidence, "rejected")
        if isinstance(error, UnknownEventError):
            return _dead(evidence, "unknown")
        failures = attempt - evidence.excused
        if wants_later:
            asked = error.after if isinstance(error, RetryLater) else None
            after = self.delay(failures, random) if asked is None else _bounded(asked)
            return Retry(after, evidence.encode())
        if self.max_attempts is not None and failures >= self.max_attempts:
            return _dead(evidence, "exhausted")
        return Retry(self.delay(failures, random), evidence.encode())

    def before(
        self, attempt: int, notes: bytes, *, now: float, consumer: str, origin: Origin = _NOWHERE
    ) -> Dead | None:
        """
        Say whether an event is to be given up before it is handled again: every attempt took its consumer's life.

        None: handle it. A death counts as a failed attempt, though no handler lived to tell.
        """
        if attempt == 1 or self.max_attempts is None:
            return None
        evidence = DeliveryEvidence.decode(notes)
        if attempt - evidence.excused <= self.max_attempts:
            return None
        silent = DeliveryAttempt(
            at=now,
            consumer=_cut(consumer),
            error_type="",
            message="its consumers died, or were cut off, while they handled it",
        )
        return _dead(evidence.with_attempt(silent, origin), "exhausted")


def unreadable(error: BaseException, notes: bytes, *, now: float, consumer: str, origin: Origin = _NOWHERE) -> Dead:
    """Give up an entry whose bytes are no event, which *error* says."""
    evidence = DeliveryEvidence.decode(notes).with_attempt(_attempt_of(error, now, consumer), origin)
    return _dead(evidence, "unreadable")


def _dead(evidence: DeliveryEvidence, reason: str) -> Dead:
    # A redriven event begins at attempt 1: what was excused before its death must not count for it.
    final = msgspec.structs.replace(evidence, reason=reason, deaths=evidence.deaths + 1, excused=0)
    return Dead(final.encode(), reason)


def _attempt_of(error: BaseException, now: float, consumer: str) -> DeliveryAttempt:
    error_type, message, digest = describe_error(error, _LONGEST_MESSAGE)
    return DeliveryAttempt(
        at=now,
        consumer=_cut(consumer),
        error_type=_cut(error_type),
        message=_encodable(message),
        traceback_digest=digest,
    )


def _cut(name: str) -> str:
    return _encodable(name[:_LONGEST_NAME])


def _encodable(text: str) -> str:
    return text.encode(errors="replace").decode()  # a lone surrogate cannot be encoded, and must not hide the failure


def _bounded(seconds: float) -> float:
    # `RetryLater(after=...)` checks nothing: NaN and negative numbers are no pause.
    return min(max(seconds, 0.0), _LONGEST_DELAY) if not math.isnan(seconds) else 0.0
