"""Whom to suspect, when to give up. Pure."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connector_sdk.buffers.dead_letters import Attempt
from connector_sdk.jobs.attempts import Suspect, Suspects, Verdict, halves
from connector_sdk.payloads import SummaryPayload
from tests.jobs.samples import event


def suspects(max_attempts: int | None = 3, patience: float = 100.0) -> Suspects:
    return Suspects(max_attempts=max_attempts, patience=patience, retry_initial=1.0, retry_max=8.0)


def failed(suspect: Suspect, *times: float) -> None:
    for time in times:
        suspect.failed(Attempt(at=time, error_type="ValueError", message=""), time)


def test_an_event_is_given_up_after_its_attempts_when_the_handler_works() -> None:
    known = suspects()
    suspect = known.accuse(event(1), 0.0, [])
    failed(suspect, 0.0, 1.0)
    known.succeeded(2.0)
    assert known.verdict(suspect, 2.0) is Verdict.RETRY
    failed(suspect, 3.0)
    assert known.verdict(suspect, 3.0) is Verdict.GIVE_UP


def test_what_was_done_before_it_failed_proves_nothing() -> None:
    known = suspects()
    known.succeeded(9.0)
    suspect = known.accuse(event(1), 10.0, [])
    failed(suspect, 10.0, 11.0, 12.0)
    assert known.verdict(suspect, 12.0) is Verdict.WAIT
    assert known.verdict(suspect, 109.0) is Verdict.WAIT
    assert known.verdict(suspect, 110.0) is Verdict.GIVE_UP, "patience has an end"


@pytest.mark.parametrize(("others", "verdict"), [(3, Verdict.GIVE_UP), (4, Verdict.WAIT)])
def test_with_many_suspects_an_old_success_proves_nothing(others: int, verdict: Verdict) -> None:
    known = suspects()
    suspect = known.accuse(event(0), 0.0, [])
    for number in range(others):
        known.accuse(event(number + 1), 0.0, [])
    failed(suspect, 1.0)
    known.succeeded(1.5)
    failed(suspect, 2.0, 3.0)
    assert known.verdict(suspect, 3.0) is verdict
    known.succeeded(3.5)
    failed(suspect, 4.0)
    assert known.verdict(suspect, 4.0) is Verdict.GIVE_UP, "the handler returned between its last two failures"


def test_many_suspects_are_given_up_when_patience_ends() -> None:
    known = suspects()
    every = [known.accuse(event(number), 0.0, []) for number in range(10)]
    for suspect in every:
        failed(suspect, 1.0, 2.0, 3.0)
    known.succeeded(0.5)
    assert {known.verdict(suspect, 99.0) for suspect in every} == {Verdict.WAIT}
    assert {known.verdict(suspect, 100.0) for suspect in every} == {Verdict.GIVE_UP}


def test_nothing_is_given_up_in_an_outage() -> None:
    known = suspects()
    suspect = known.accuse(event(1), 0.0, [])
    failed(suspect, 0.0, 1.0, 2.0)
    known.succeeded(2.0)
    known.outage()
    assert known.verdict(suspect, 1e6) is Verdict.WAIT
    known.succeeded(1e6)
    assert known.verdict(suspect, 1e6) is Verdict.GIVE_UP


def test_without_a_limit_an_event_goes_back_now_and_then() -> None:
    known = suspects(max_attempts=None)
    suspect = known.accuse(event(1), 0.0, [])
    verdicts = []
    for time in range(10):
        failed(suspect, float(time))
        known.succeeded(float(time))
        verdicts.append(known.verdict(suspect, 1e6))
    assert verdicts == ([Verdict.RETRY] * 4 + [Verdict.WAIT]) * 2


def test_a_suspect_is_known_again_when_it_comes_as_another_object() -> None:
    known = suspects()
    suspect = known.accuse(event(1), 0.0, [])
    assert known.find(event(1)) is suspect
    assert known.find(event(2)) is None
    assert known.find(SummaryPayload("shop", "s-1", "", 0, 0.0, "other id")) is None
    known.close(suspect)
    assert known.find(event(1)) is None


def test_it_remembers_a_thousand() -> None:
    known = suspects()
    for number in range(1500):
        known.accuse(event(number), 0.0, [])
    assert len(known) == 1000
    assert known.find(event(499)) is None
    assert known.find(event(500)) is not None


def test_of_very_many_attempts_the_first_and_the_last_are_kept() -> None:
    suspect = suspects().accuse(event(1), 0.0, [])
    failed(suspect, *map(float, range(200)))
    times = [attempt.at for attempt in suspect.attempts]
    assert len(times) == 50
    assert times[:25] == [float(n) for n in range(25)]
    assert times[-1] == 199.0
    assert suspect.failures == 200


@given(st.integers(1, 100))
def test_pauses_grow_within_their_bounds(count: int) -> None:
    suspect = suspects().accuse(event(1), 0.0, [])
    for number in range(count):
        failed(suspect, 0.0)
        assert 0.0 <= suspect.next_try <= min(8.0, 2.0**number)


@pytest.mark.parametrize("size", [2, 3, 500])
def test_halves_lose_nothing_and_keep_the_order(size: int) -> None:
    events = [event(number) for number in range(size)]
    one, other = halves(list(events))
    assert one
    assert other
    assert [*one, *other] == events
