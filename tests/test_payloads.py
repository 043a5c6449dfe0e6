"""Payloads: the wire's names and defaults, leniency, and round trips that lose nothing."""

from __future__ import annotations

import copy
import json
import logging
import math
import pickle

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connector_sdk import payloads
from connector_sdk.errors import PayloadError
from connector_sdk.observe import RateLimitedLogger
from connector_sdk.payloads import (
    ActionsPayload,
    Payload,
    SlimAction,
    SummaryPayload,
    UnknownPayload,
    decode_payload,
    encode_payload,
    require_payload,
)


def round_trip(payload: Payload) -> Payload:
    return decode_payload(encode_payload(payload), event_id=payload.event_id)


def test_positional_construction_follows_the_wire() -> None:
    action = SlimAction("t", "d", "https://c", 3, "click", 1.0, 2.0, "https://r", "s", "u", "e@x", "c")
    assert (action.title, action.index, action.type, action.timestamp_end, action.conversation_id) == (
        "t",
        3,
        "click",
        2.0,
        "c",
    )
    batch = ActionsPayload("p", "s", "u", "e@x", [action], 1, 5.0, "c")
    assert (batch.product_id, batch.actions, batch.count, batch.forwarded_at, batch.conversation_id) == (
        "p",
        [action],
        1,
        5.0,
        "c",
    )
    summary = SummaryPayload("p", "s", "prose", 4, 5.0)
    assert (summary.summary, summary.replaces, summary.forwarded_at) == ("prose", 4, 5.0)


def test_payloads_are_frozen() -> None:
    with pytest.raises(AttributeError):
        SummaryPayload("p").summary = "other"  # type: ignore[misc]  # that it is refused is the test


def test_conversation_id_survives_a_round_trip() -> None:
    """X10: autoplay-sdk loses it on the way through Redis."""
    batch = ActionsPayload("p", "s", actions=[SlimAction("t", conversation_id="c1")], conversation_id="c2")
    assert round_trip(batch) == batch


def test_unknown_fields_survive_byte_for_byte() -> None:
    data = b'{"type":"actions","product_id":"p","x":{"b":1.00,"a":[1,2e3]},"actions":[{"title":"t","y":-0.0}]}'
    payload = decode_payload(data)
    assert isinstance(payload, ActionsPayload)
    assert b'"x":{"b":1.00,"a":[1,2e3]}' in encode_payload(payload)
    assert b'"y":-0.0' in encode_payload(payload)
    assert payload.unknown_fields == {"x": {"b": 1.0, "a": [1, 2000.0]}}
    assert payload.actions[0].unknown_fields == {"y": 0.0}
    assert payload.to_dict()["x"] == {"b": 1.0, "a": [1, 2000.0]}
    assert round_trip(payload) == payload
    assert hash(payload.actions[0]) == hash(copy.copy(payload.actions[0]))


def test_missing_and_null_become_empty() -> None:
    payload = decode_payload(
        b'{"type":"actions","product_id":null,"count":null,"actions":[{"title":null,"index":null}]}'
    )
    assert payload == ActionsPayload(actions=[SlimAction()])
    assert decode_payload(b'{"type":"summary"}') == SummaryPayload()
    assert decode_payload(b'{"type":"actions","actions":null}') == ActionsPayload()


def test_a_field_of_another_type_is_converted_and_kept() -> None:
    payload = decode_payload(
        b'{"type":"summary","summary":7,"replaces":"3","forwarded_at":"2015-05-17","session_id":9}'
    )
    assert isinstance(payload, SummaryPayload)
    assert (payload.summary, payload.replaces, payload.forwarded_at, payload.session_id) == ("7", 3, 0.0, "9")
    assert json.loads(encode_payload(payload))["forwarded_at"] == "2015-05-17"
    assert round_trip(payload) == payload


@pytest.mark.parametrize("actions", ["7", '"x"', "{}", "[1,2]", '[{"title":"a"},null]'])
def test_actions_that_are_no_list_of_objects_are_kept_aside(actions: str) -> None:
    payload = decode_payload(f'{{"type":"actions","session_id":"s","actions":{actions}}}'.encode())
    assert isinstance(payload, ActionsPayload)
    assert (payload.actions, payload.count, payload.session_id) == ([], 0, "s")
    assert json.loads(encode_payload(payload))["actions"] == json.loads(actions)


@pytest.mark.parametrize(
    "number", ["NaN", "Infinity", "-Infinity", "1e999", "-1", "99999999999999999999999999", "1e308"]
)
def test_strange_times_harm_nothing_else(number: str) -> None:
    actions = f'[{{"timestamp_start":{number}}}]'
    data = f'{{"type":"actions","session_id":"s","forwarded_at":{number},"z":{number},"actions":{actions}}}'
    payload = decode_payload(data.encode())
    assert isinstance(payload, ActionsPayload)
    assert payload.session_id == "s"
    assert math.isfinite(payload.forwarded_at)
    assert msgspec.json.decode(encode_payload(payload))


def test_a_count_that_disagrees_is_corrected_with_a_warning(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Another test may have used up this half minute's warning.
    monkeypatch.setattr(payloads, "_log", RateLimitedLogger(logging.getLogger("connector_sdk.payloads")))
    payload = ActionsPayload("p", actions=[SlimAction("a"), SlimAction("b")], count=7)
    assert payload.count == 2
    assert "count=7" in caplog.text
    assert ActionsPayload("p", actions=[SlimAction("a")]).count == 1


def test_an_unknown_type_keeps_its_json() -> None:
    data = b'{ "type": "usertour_trigger", "session_id": "s", "forwarded_at": 3, "step": 1.50 }'
    payload = decode_payload(data, event_id="9")
    assert payload == UnknownPayload(type="usertour_trigger", raw=data, session_id="s", forwarded_at=3.0, event_id="9")
    assert encode_payload(payload) == data
    assert payload.to_dict()["step"] == 1.5
    assert payload.to_text() == data.decode()
    assert round_trip(payload) == payload


def test_the_event_name_is_the_type_when_the_json_has_none() -> None:
    assert decode_payload(b'{"a":1}', event_name="tour").type == "tour"
    assert isinstance(decode_payload(b'{"summary":"x"}', event_name="summary"), SummaryPayload)


@pytest.mark.parametrize("data", [b"", b"null", b"[]", b'"x"', b"{", b"\xff", b"[" * 100_000, b'{"a":}', b"{}x"])
def test_what_is_no_object_is_an_error(data: bytes) -> None:
    with pytest.raises(PayloadError):
        decode_payload(data)


def test_bytes_that_are_no_utf8_are_replaced() -> None:
    payload = decode_payload(b'{"type":"summary","summary":"\xff"}')
    assert payload.to_text() == "\N{REPLACEMENT CHARACTER}"


def test_the_wire_cannot_set_what_is_not_part_of_it() -> None:
    payload = decode_payload(b'{"type":"summary","!event_id":"forged","!unknown_fields":1,"event_id":"e"}')
    assert payload.event_id is None
    assert round_trip(payload) == payload


def test_from_dict_and_to_dict_are_inverse() -> None:
    batch = ActionsPayload("p", "s", actions=[SlimAction("t", index=1)], forwarded_at=2.0)
    assert ActionsPayload.from_dict(batch.to_dict()) == batch
    assert SummaryPayload.from_dict({"summary": "x", "more": [1]}).to_dict()["more"] == [1]
    assert SlimAction.from_dict({"title": "t"}) == SlimAction("t")
    assert UnknownPayload.from_dict({"type": "t", "session_id": "s"}).session_id == "s"
    with pytest.raises(PayloadError):
        ActionsPayload.from_dict([])  # type: ignore[arg-type]  # that it is refused is the test
    with pytest.raises(PayloadError, match="JSON cannot say"):
        SummaryPayload.from_dict({"summary": object()})


def test_merge() -> None:
    one = ActionsPayload("p", None, actions=[SlimAction("a", index=5)], forwarded_at=9.0, event_id="1")
    two = ActionsPayload("p", "s", "u", actions=[SlimAction("b", index=5)], forwarded_at=3.0, event_id="2")
    merged = ActionsPayload.merge([one, two])
    assert [(action.title, action.index) for action in merged.actions] == [("a", 0), ("b", 1)]
    assert (merged.session_id, merged.user_id, merged.count, merged.forwarded_at, merged.event_id) == (
        "s",
        "u",
        2,
        9.0,
        "2",
    )
    with pytest.raises(ValueError, match="at least one"):
        ActionsPayload.merge([])


def test_merge_keeps_unknown_fields_of_the_first() -> None:
    one, two = (ActionsPayload.from_dict({"product_id": "p", "x": n, f"only{n}": n}) for n in (1, 2))
    assert ActionsPayload.merge([one, two]).unknown_fields == {"x": 1, "only1": 1, "only2": 2}


def test_text_ready_to_embed() -> None:
    batch = ActionsPayload("p", None, actions=[SlimAction("t", "clicked", "https://x/:id", 0, "click")])
    assert batch.to_text() == "Session unknown — 1 actions\n[0] click: clicked — https://x/:id"
    assert SummaryPayload(summary="prose").to_text() == "prose"


def test_payloads_pickle() -> None:
    payload = decode_payload(b'{"type":"summary","x":1}', event_id="4")
    assert pickle.loads(pickle.dumps(payload)) == payload


def test_what_is_no_payload_is_refused_with_advice() -> None:
    with pytest.raises(PayloadError, match=r"not dict; decode_payload\(\)"):
        require_payload({})


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from([*SlimAction.__struct_fields__, *ActionsPayload.__struct_fields__, "summary", "replaces", "x"])
OBJECTS = st.dictionaries(NAMES | st.text(max_size=5), JSON, max_size=8)


@settings(max_examples=300, deadline=None)
@given(kind=st.sampled_from(["actions", "summary", "tour"]), fields=OBJECTS, actions=st.lists(OBJECTS, max_size=3))
def test_any_object_survives_any_number_of_round_trips(
    kind: str, fields: dict[str, object], actions: list[dict[str, object]]
) -> None:
    data = json.dumps({**fields, "type": kind, "actions": actions}).encode()
    payload = decode_payload(data, event_id="1")
    once = round_trip(payload)
    assert once == payload
    assert encode_payload(once) == encode_payload(payload)
    told = json.loads(encode_payload(payload))
    for name, value in fields.items():
        if name not in ("type", "actions", "count") and value is not None:
            assert told[name] == value


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_give_a_payload_or_a_payload_error(data: bytes) -> None:
    try:
        payload = decode_payload(data)
    except PayloadError:
        return
    assert round_trip(payload) == payload
