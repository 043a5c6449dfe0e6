"""The generator of realistic traffic: seeded, interleaved, and whole to its last session."""

from __future__ import annotations

from collections import defaultdict
from itertools import islice, pairwise

import pytest

from connector_sdk.cli.journeys import JOURNEYS
from connector_sdk.cli.traffic import EVENTS_PER_SESSION, generate
from connector_sdk.errors import ConfigurationError
from connector_sdk.payloads import ActionsPayload, SummaryPayload, decode_payload, encode_payload


def test_a_seed_gives_the_same_bytes_and_another_seed_others() -> None:
    def played(seed: int) -> list[bytes]:
        return [encode_payload(payload) for payload in generate(seed, sessions=50)]

    assert played(7) == played(7)
    assert played(7) != played(8)


def test_what_happens_does_not_hang_on_when_it_starts() -> None:
    def told(start: float) -> list[str]:
        return [payload.to_text() for payload in generate(7, sessions=200, start=start)]

    assert told(0.0) == told(1_767_603_600.123456) == told(1e9 / 3)


def test_every_session_is_whole_and_in_order() -> None:
    payloads = list(generate(3, sessions=200, product_id="acme"))
    times = [payload.forwarded_at for payload in payloads]
    assert times == sorted(times)
    actions: dict[str | None, int] = defaultdict(int)
    closed: set[str | None] = set()
    for payload in payloads:
        assert payload.session_id not in closed
        assert payload.product_id == "acme"
        if isinstance(payload, SummaryPayload):
            assert payload.replaces == actions[payload.session_id]
            closed.add(payload.session_id)
            continue
        assert 1 <= payload.count <= 5
        for action in payload.actions:
            assert action.index == actions[payload.session_id]
            assert action.title
            assert action.description
            assert action.canonical_url.startswith("https://shop.example.com/")
            assert action.timestamp_end >= action.timestamp_start > 0
            actions[payload.session_id] += 1
    assert len(closed) == len(actions) == 200
    assert all(decode_payload(encode_payload(payload)) == payload for payload in payloads)


def test_traffic_is_varied_and_interleaved() -> None:
    payloads = list(generate(sessions=300))
    batches = [payload for payload in payloads if isinstance(payload, ActionsPayload)]
    assert {action.type for batch in batches for action in batch.actions} == {
        "pageview",
        "click",
        "input",
        "search",
        "error",
    }
    told = " ".join(payload.to_text() for payload in payloads if isinstance(payload, SummaryPayload))
    assert all(journey.outcome in told for journey in JOURNEYS)
    assert {batch.email.rpartition("@")[2] for batch in batches if batch.email} == {"example.com"}
    followed = sum(one.session_id == other.session_id for one, other in pairwise(payloads))
    assert followed < len(payloads) / 10
    assert 0.8 * EVENTS_PER_SESSION < len(payloads) / 300 < 1.2 * EVENTS_PER_SESSION


def test_without_a_number_it_goes_on() -> None:
    payloads = list(islice(generate(start=1000.0, events_per_second=20), 4000))
    assert payloads[0].forwarded_at >= 1000.0
    assert 150 < payloads[-1].forwarded_at - 1000.0 < 300  # 200 s of traffic, and the minute until the shop is full


@pytest.mark.parametrize("wrong", [{"sessions": 0}, {"start": float("nan")}, {"events_per_second": 0.0}])
def test_wrong_numbers_are_refused_at_once(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        generate(**wrong)  # type: ignore[arg-type]  # wrong on purpose
