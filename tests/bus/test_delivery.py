"""The rules of attempts: pauses, verdicts, and the evidence that travels with a failing event."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from connector_sdk.bus.delivery import (
    Dead,
    DeliveryAttempt,
    DeliveryEvidence,
    Origin,
    Retry,
    RetrySchedule,
    Verdict,
    unreadable,
)
from connector_sdk.decisions import Reject, RetryAfter, RetryLater
from connector_sdk.errors import ConfigurationError, PayloadError, UnknownEventError

ORIGIN = Origin(topic="orders", position="17-0", event_id="e-1")


def fail(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


def judge(
    schedule: RetrySchedule, attempt: int, error: BaseException, notes: bytes = b"", at: float = 100.0
) -> Verdict:
    return schedule.verdict(attempt, error, notes, now=at, consumer="worker-1", origin=ORIGIN, random=lambda: 0.0)


def retried(verdict: Verdict) -> Retry:
    assert isinstance(verdict, Retry), verdict
    return verdict


def buried(verdict: Verdict | None) -> DeliveryEvidence:
    assert isinstance(verdict, Dead), verdict
    evidence = DeliveryEvidence.decode(verdict.evidence)
    assert evidence.reason == verdict.reason
    return evidence


def test_a_failing_event_is_tried_again_after_each_pause_and_then_given_up() -> None:
    schedule = RetrySchedule(4, (0.2, 2.0))
    notes = b""
    pauses = []
    for attempt in (1, 2, 3):
        verdict = retried(judge(schedule, attempt, fail(ValueError(f"no {attempt}")), notes, at=100.0 + attempt))
        pauses.append(verdict.after)
        notes = verdict.notes
    assert pauses == [0.2, 2.0, 2.0]
    evidence = buried(judge(schedule, 4, fail(KeyError("no 4")), notes, at=104.0))
    assert evidence.reason == "exhausted"
    assert evidence.deaths == 1
    assert [attempt.at for attempt in evidence.attempts] == [101.0, 102.0, 103.0, 104.0]
    assert [attempt.error_type for attempt in evidence.attempts] == ["ValueError"] * 3 + ["KeyError"]
    assert evidence.attempts[0].message == "no 1"
    assert evidence.attempts[0].consumer == "worker-1"
    assert evidence.attempts[0].traceback_digest == evidence.attempts[1].traceback_digest != ""
    assert evidence.origin == ORIGIN
    assert evidence.last == evidence.attempts[-1]
    assert evidence.total_attempts == 4


def test_the_defaults_give_up_at_the_third_attempt() -> None:
    schedule = RetrySchedule()
    assert retried(judge(schedule, 1, ValueError())).after == 0.2
    assert retried(judge(schedule, 2, ValueError())).after == 2.0
    buried(judge(schedule, 3, ValueError()))


def test_without_a_bound_it_is_never_given_up() -> None:
    schedule = RetrySchedule(None)
    assert retried(judge(schedule, 100_000, ValueError())).after == 15.0
    assert schedule.before(100_000, b"", now=1.0, consumer="c") is None


@given(st.integers(1, 10), st.floats(0, 1), st.floats(0, 1, exclude_max=True))
def test_no_pause_is_shorter_than_told_nor_longer_than_jitter_allows(
    failures: int, jitter: float, chance: float
) -> None:
    schedule = RetrySchedule(3, (0.5, 4.0, 30.0), jitter)
    base = (0.5, 4.0, 30.0)[min(failures, 3) - 1]
    assert base <= schedule.delay(failures, lambda: chance) <= base * (1 + jitter) + 1e-9


def test_chance_is_asked_when_nobody_brings_any() -> None:
    schedule = RetrySchedule(3, (1.0,), 1.0)
    assert len({schedule.delay(1) for _ in range(20)}) > 1


def test_a_handler_that_rejects_gives_it_up_at_once() -> None:
    evidence = buried(judge(RetrySchedule(), 1, fail(Reject("no such customer"))))
    assert evidence.reason == "rejected"
    assert evidence.attempts[0].message == "no such customer"
    assert Reject("x").reason == "x"


def test_what_nobody_registered_is_parked_at_once() -> None:
    evidence = buried(judge(RetrySchedule(), 1, UnknownEventError("order", 9, ("order",))))
    assert evidence.reason == "unknown"
    assert "order version 9" in evidence.attempts[0].message


def test_an_attempt_that_the_handler_excuses_does_not_count() -> None:
    schedule = RetrySchedule(2, (1.0, 5.0))
    notes = b""
    for attempt in range(1, 8):
        verdict = retried(judge(schedule, attempt, RetryAfter(60.0), notes))
        assert verdict.after == 60.0
        notes = verdict.notes
    first = retried(judge(schedule, 8, ValueError(), notes))
    assert first.after == 1.0
    assert schedule.before(9, first.notes, now=1.0, consumer="c") is None
    assert buried(judge(schedule, 9, ValueError(), first.notes)).reason == "exhausted"


@pytest.mark.parametrize(
    ("error", "pause"),
    [
        (RetryLater(), 1.0),
        (RetryLater(after=3.0), 3.0),
        (RetryLater(after=-3.0), 0.0),
        (RetryLater(after=math.nan), 0.0),
        (RetryLater(after=math.inf), 604800.0),
        (RetryAfter(0), 0.0),
    ],
    ids=["schedule", "three", "negative", "nan", "infinite", "zero"],
)
def test_a_handler_says_when(error: RetryLater, pause: float) -> None:
    assert retried(judge(RetrySchedule(3, (1.0,)), 1, error)).after == pause


@pytest.mark.parametrize("seconds", [-1, math.nan, math.inf, "soon"])
def test_retry_after_takes_seconds_only(seconds: float) -> None:
    with pytest.raises(ConfigurationError, match="seconds="):
        RetryAfter(seconds)


def test_an_event_that_kills_its_consumers_is_given_up_before_it_kills_another() -> None:
    schedule = RetrySchedule(3)
    assert [schedule.before(n, b"", now=5.0, consumer="c", origin=ORIGIN) for n in (1, 2, 3)] == [None] * 3
    evidence = buried(schedule.before(4, b"", now=5.0, consumer="c", origin=ORIGIN))
    assert evidence.reason == "exhausted"
    assert evidence.attempts[0].error_type == ""
    assert evidence.origin == ORIGIN


def test_bytes_that_are_no_event_are_given_up_with_the_reason() -> None:
    dead = unreadable(PayloadError("the JSON is no event"), b"", now=5.0, consumer="c", origin=ORIGIN)
    assert buried(dead).reason == "unreadable"


def test_a_redriven_event_starts_over_and_keeps_its_history() -> None:
    schedule = RetrySchedule(1)
    notes = retried(judge(schedule, 1, RetryAfter(1.0))).notes
    died = judge(schedule, 2, ValueError("first life"), notes)
    assert isinstance(died, Dead)
    again = schedule.verdict(
        1,
        ValueError("second life"),
        died.evidence,
        now=1.0,
        consumer="c",
        origin=Origin(topic="elsewhere"),
        random=lambda: 0,
    )
    evidence = buried(again)
    assert evidence.deaths == 2
    assert [attempt.message for attempt in evidence.attempts][1:] == ["first life", "second life"]
    assert evidence.origin == ORIGIN, "where it was at first is kept"


def test_evidence_is_bounded() -> None:
    schedule = RetrySchedule(None, (0.0,))
    notes = b""
    for attempt in range(1, 60):
        verdict = schedule.verdict(
            attempt, ValueError(f"{attempt}:" + "ä\x00" * 5000), notes, now=1.0, consumer="c" * 900, origin=ORIGIN
        )
        notes = retried(verdict).notes
    evidence = DeliveryEvidence.decode(notes)
    assert len(evidence.attempts) == 20
    assert evidence.left_out == 39
    assert evidence.total_attempts == 59
    assert [a.message.split(":")[0] for a in evidence.attempts] == ["1", *(str(n) for n in range(41, 60))]
    assert {len(attempt.message) for attempt in evidence.attempts} == {1000}
    assert {len(attempt.consumer) for attempt in evidence.attempts} == {255}
    assert len(notes) < 150_000


class UntellableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    "error", [UntellableError(), ValueError("\ud800 lone"), ValueError("\x00\n"), KeyboardInterrupt()]
)
def test_no_error_is_too_odd_to_be_told(error: BaseException) -> None:
    verdict = retried(judge(RetrySchedule(), 1, error))
    assert DeliveryEvidence.decode(verdict.notes).attempts[0].error_type.endswith(type(error).__name__)


@pytest.mark.parametrize("notes", [b"", b"nonsense", b"[]", b'{"attempts":7}', b"\xff\xfe", b"null"])
def test_notes_that_are_no_evidence_hide_nothing(notes: bytes) -> None:
    assert DeliveryEvidence.decode(notes) == DeliveryEvidence()
    assert DeliveryEvidence.decode(notes).last is None
    assert len(DeliveryEvidence.decode(retried(judge(RetrySchedule(), 1, ValueError(), notes)).notes).attempts) == 1


def test_evidence_of_a_later_version_is_read() -> None:
    encoded = msgspec.json.decode(buried(judge(RetrySchedule(1), 1, ValueError("x"))).encode(), type=dict[str, object])
    assert DeliveryEvidence.decode(msgspec.json.encode({**encoded, "new": [1]})).reason == "exhausted"


def test_evidence_comes_back_as_it_was() -> None:
    attempt = DeliveryAttempt(at=1.5, consumer="c", error_type="E", message="m", traceback_digest="d")
    evidence = DeliveryEvidence(attempts=[attempt], left_out=2, excused=1, reason="rejected", deaths=3, origin=ORIGIN)
    assert DeliveryEvidence.decode(evidence.encode()) == evidence


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"max_attempts": 0}, "max_attempts"),
        ({"max_attempts": True}, "max_attempts"),
        ({"max_attempts": 1.5}, "max_attempts"),
        ({"delays": ()}, "retry_delays"),
        ({"delays": 3.0}, "retry_delays"),
        ({"delays": "123"}, "retry_delays"),
        ({"delays": (1.0, -1.0)}, "retry_delays[1]"),
        ({"delays": (math.nan,)}, "retry_delays[0]"),
        ({"delays": (700_000.0,)}, "retry_delays"),
        ({"jitter": -0.1}, "jitter"),
        ({"jitter": 1.1}, "jitter"),
    ],
    ids=str,
)
def test_options_that_cannot_work_are_refused(options: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        RetrySchedule(**options)  # type: ignore[arg-type]  # wrong on purpose
    assert caught.value.option == named
