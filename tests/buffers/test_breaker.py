"""The breaker before a store, without a store and without waiting."""

from __future__ import annotations

import pytest

from connector_sdk.buffers.breaker import Breaker


def test_it_opens_at_the_first_failure_and_says_so_once() -> None:
    breaker = Breaker()
    assert breaker.state == "closed"
    assert breaker.failed(10.0, breaker.era, "refused")
    assert not breaker.failed(11.0, breaker.era, "refused again")
    assert (breaker.is_open, breaker.state, breaker.reason) == (True, "open", "refused")


def test_an_answer_closes_it_and_tells_the_length_of_the_outage() -> None:
    breaker = Breaker()
    assert breaker.answered(5.0) is None
    breaker.failed(10.0, breaker.era, "refused")
    assert breaker.answered(12.5) == pytest.approx(2.5)
    assert breaker.state == "closed"
    assert breaker.answered(13.0) is None


def test_a_failure_from_before_the_recovery_does_not_open_it_again() -> None:
    breaker = Breaker()
    sent_in = breaker.era
    breaker.failed(10.0, sent_in, "no answer")
    breaker.answered(11.0)
    assert not breaker.failed(11.5, sent_in, "no answer, sent long ago")
    assert breaker.failed(12.0, breaker.era, "no answer, sent just now")


def test_pauses_double_up_to_the_longest_and_begin_anew_with_each_outage() -> None:
    breaker = Breaker(first_pause=0.05, longest_pause=0.5, chance=lambda: 1.0)
    breaker.failed(0.0, breaker.era, "")
    assert [breaker.next_pause() for _ in range(6)] == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.5, 0.5])
    breaker.answered(3.0)
    breaker.failed(4.0, breaker.era, "")
    assert breaker.next_pause() == pytest.approx(0.05)


def test_half_of_a_pause_is_left_to_chance() -> None:
    breaker = Breaker(first_pause=0.4, longest_pause=0.4, chance=iter([0.0, 0.5, 1.0]).__next__)
    breaker.failed(0.0, breaker.era, "")
    assert [breaker.next_pause() for _ in range(3)] == pytest.approx([0.2, 0.3, 0.4])
