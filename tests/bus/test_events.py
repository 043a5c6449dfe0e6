"""Events: values that cannot be changed, their JSON, and what becomes of odd payloads and odd bytes."""

from __future__ import annotations

import copy
import dataclasses
import datetime
import json
import math
import os
import pickle
import random
import re
import time
import types
import uuid
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from connector_sdk.bus.events import Event, EventType, decode, encode
from connector_sdk.bus.frozen import FrozenDict, FrozenList
from connector_sdk.bus.identifiers import new_event_id
from connector_sdk.bus.registry import EventRegistry
from connector_sdk.errors import ConfigurationError, PayloadError
from connector_sdk.payloads import ActionsPayload, Payload, SlimAction, SummaryPayload, UnknownPayload

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


def full(payload: object = None) -> Event:
    return Event(
        "order.placed", "orders:eu", payload, timestamp=12.5, event_id="e-1", source="shop", correlation_id="c-1",
        metadata={"trace": {"id": 7}}, version=3,
    )  # fmt: skip


def test_an_event_says_what_it_was_made_of() -> None:
    event = full({"id": 17})
    assert (event.type, event.topic, event.payload) == ("order.placed", "orders:eu", {"id": 17})
    assert (event.timestamp, event.event_id, event.source, event.correlation_id) == (12.5, "e-1", "shop", "c-1")
    assert (event.metadata, event.version) == ({"trace": {"id": 7}}, 3)


def test_time_and_id_come_by_themselves() -> None:
    before = time.time()
    one, other = Event("x", "t", {}), Event("x", "t", {})
    assert before <= one.timestamp <= other.timestamp <= time.time()
    assert one.event_id != other.event_id
    assert uuid.UUID(one.event_id).version == 4
    assert uuid.UUID(one.event_id).variant == uuid.RFC_4122
    assert str(uuid.UUID(one.event_id)) == one.event_id
    assert (one.source, one.correlation_id, one.metadata, one.version) == (None, None, {}, None)


def test_the_types_of_the_brief_are_text() -> None:
    assert [kind.value for kind in EventType] == [
        "created", "updated", "deleted", "activated", "deactivated", "error", "custom",
    ]  # fmt: skip
    event = Event(EventType.CREATED, "t", None)
    assert event.type == "created"
    assert event.type == EventType.CREATED
    assert type(event.type) is str
    assert decode(encode(event), "t") == event


# Nothing of it can be changed.


@pytest.mark.parametrize(
    "name",
    ["type", "topic", "payload", "timestamp", "event_id", "source", "correlation_id", "metadata", "version", "new"],
)
def test_no_attribute_can_be_set_or_deleted(name: str) -> None:
    event = full()
    with pytest.raises(AttributeError, match=name):
        setattr(event, name, "changed")
    with pytest.raises(AttributeError):
        delattr(event, name)
    assert event == full()


CHANGES: list[Callable[[Any], object]] = [
    lambda p: p.__setitem__("a", 1),
    lambda p: p.__delitem__("list"),
    lambda p: p.update(a=1),
    lambda p: p.pop("list"),
    lambda p: p.popitem(),
    lambda p: p.clear(),
    lambda p: p.setdefault("a", 1),
    lambda p: p.__ior__({"a": 1}),
    lambda p: p["list"].append(1),
    lambda p: p["list"].extend([1]),
    lambda p: p["list"].insert(0, 1),
    lambda p: p["list"].remove(1),
    lambda p: p["list"].pop(),
    lambda p: p["list"].clear(),
    lambda p: p["list"].sort(),
    lambda p: p["list"].reverse(),
    lambda p: p["list"].__setitem__(0, 9),
    lambda p: p["list"].__setitem__(slice(None), []),
    lambda p: p["list"].__delitem__(0),
    lambda p: p["list"].__iadd__([1]),
    lambda p: p["list"].__imul__(2),
    lambda p: p["list"][2].update(deep=2),
    lambda p: p["list"][2]["deeper"].append(2),
]


@pytest.mark.parametrize("number", range(len(CHANGES)))
def test_payload_and_metadata_refuse_every_change(number: int) -> None:
    content = {"list": [1, 2, {"deep": 1, "deeper": [1]}]}
    event = Event("x", "t", content, metadata=content)
    for value in (event.payload, event.metadata):
        assert isinstance(value, FrozenDict)
        with pytest.raises(TypeError, match="cannot be changed"):
            CHANGES[number](value)
    assert event.payload == event.metadata == {"list": [1, 2, {"deep": 1, "deeper": [1]}]}


def test_what_it_was_made_of_may_change() -> None:
    payload: dict[str, list[int]] = {"list": [1]}
    metadata = {"a": [1]}
    event = Event("x", "t", payload, metadata=metadata)
    payload["list"].append(2)
    payload["more"] = []
    metadata["a"].clear()
    assert event.payload == {"list": [1]}
    assert event.metadata == {"a": [1]}


def test_initialising_it_again_changes_nothing() -> None:
    event = full()
    Event.__init__(event, "other", "t", None)  # type: ignore[call-arg]  # wrong on purpose
    assert event == full()


def test_frozen_json_is_like_any_other() -> None:
    event = Event("x", "t", {"a": [1, {"b": None}], "c": "d"})
    plain = {"a": [1, {"b": None}], "c": "d"}
    assert event.payload == plain
    assert plain == event.payload
    assert isinstance(event.payload, dict)
    assert isinstance(event.payload["a"], FrozenList)
    assert json.loads(json.dumps(event.payload)) == msgspec.json.decode(msgspec.json.encode(event.payload)) == plain
    assert pickle.loads(pickle.dumps(event.payload)) == plain
    assert event.payload is event.payload
    assert Event("x", "t", event.payload).payload == plain


def test_a_deep_copy_of_the_payload_is_the_readers_own() -> None:
    event = Event("x", "t", {"a": [1, {"b": [2]}]})
    mine = copy.deepcopy(event.payload)
    assert type(mine) is dict
    mine["a"][1]["b"].append(3)
    mine["a"].append(4)
    assert mine == {"a": [1, {"b": [2, 3]}, 4]}
    assert event.payload == {"a": [1, {"b": [2]}]}
    assert type(copy.deepcopy(Event("x", "t", [1]).payload)) is list


# What a payload may be.


@given(JSON)
def test_any_json_comes_back_from_the_wire(value: object) -> None:
    event = Event("x", "t", value)
    assert event.payload == value
    assert decode(encode(event), "t") == event
    assert decode(encode(event), "t").payload == value


def test_what_is_nearly_json_becomes_json_at_once_and_not_only_on_some_log() -> None:
    @dataclasses.dataclass
    class Point:
        x: int

    moment = datetime.datetime(2024, 1, 2, tzinfo=datetime.UTC)
    event = Event(
        "x", "t",
        {"tuple": (1, 2), "point": Point(3), "when": moment, 5: "five", "kind": EventType.ERROR,
         "map": types.MappingProxyType({"a": 1}), "range": range(2), "nan": math.nan, "inf": [-math.inf]},
    )  # fmt: skip
    assert event.payload == {
        "tuple": [1, 2], "point": {"x": 3}, "when": "2024-01-02T00:00:00Z", "5": "five", "kind": "error", "map": {"a": 1},
        "range": [0, 1], "nan": None, "inf": [None],
    }  # fmt: skip
    assert decode(encode(event), "t").payload == event.payload


def endless() -> list[object]:
    loop: list[object] = []
    loop.append(loop)
    return loop


@pytest.mark.parametrize(
    ("payload", "place"),
    [
        (object(), "payload"),
        ({"a": [1, {"b c": object()}]}, "payload['a'][1]['b c']"),
        ({"a": (1, lambda: 1)}, "payload['a'][1]"),
        ({"a": {(1, 2): 3}}, "payload['a']"),
        ({"a": "\ud800"}, "payload['a']"),
        (types.MappingProxyType({"a": object()}), "payload['a']"),
    ],
    ids=["object", "deep", "function", "key", "surrogate", "mapping"],
)
def test_what_json_cannot_say_is_refused_at_construction_with_its_place(payload: object, place: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Event("x", "t", payload)
    assert caught.value.option == place


def test_what_contains_itself_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="payload"):
        Event("x", "t", endless())


def test_the_error_does_not_show_the_payload() -> None:
    with pytest.raises(ConfigurationError) as caught:
        Event("x", "t", {"password": "hunter2", "bad": object()})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("type", ""), ("type", 7), ("type", "x" * 256), ("topic", "a*"), ("topic", ""), ("topic", None),
        ("timestamp", math.nan), ("timestamp", math.inf), ("timestamp", "now"), ("timestamp", True),
        ("event_id", ""), ("event_id", 7), ("source", 7), ("correlation_id", 7), ("metadata", [1]), ("metadata", "ab"),
        ("version", 0), ("version", "1"), ("version", True),
    ],
    ids=lambda value: repr(value)[:10],
)  # fmt: skip
def test_options_that_cannot_work_are_refused(option: str, value: object) -> None:
    options: dict[str, object] = {"type": "x", "topic": "t", "payload": 1, option: value}
    with pytest.raises(ConfigurationError) as caught:
        Event(**options)  # type: ignore[arg-type]  # wrong on purpose
    assert caught.value.option == option


def test_metadata_says_where_it_cannot_be_said() -> None:
    with pytest.raises(ConfigurationError, match=r"metadata\['a'\]"):
        Event("x", "t", 1, metadata={"a": object()})


# Values.


def test_events_are_values() -> None:
    assert full({"a": 1}) == full({"a": 1})
    assert full({"a": 1}) != full({"a": 2})
    assert hash(full()) == hash(full())
    assert full() != full().bound("elsewhere")
    assert full() != "order.placed"
    assert len({full(), full(), Event("x", "t", 1)}) == 2
    assert copy.copy(event := full()) is event
    assert copy.deepcopy(event) is event
    assert pickle.loads(pickle.dumps(full({"a": [1]}))) == full({"a": [1]})


def test_its_repr_helps_and_is_short() -> None:
    event = Event("order.placed", "orders:eu", {"text": "x" * 10_000}, event_id="e-1", version=2)
    assert repr(event).startswith("Event('order.placed', 'orders:eu', {\"text\":\"xxx")
    assert "event_id='e-1', version=2)" in repr(event)
    assert len(repr(event)) < 250


def test_a_consequence_has_the_correlation_id_of_its_cause() -> None:
    first = Event("a", "t", 1)
    second = Event("b", "t", 2).with_correlation(first)
    third = Event("c", "t", 3).with_correlation(second)
    assert first.correlation_id is None
    assert second.correlation_id == third.correlation_id == first.event_id
    assert Event("d", "t", 4).with_correlation("request-7").correlation_id == "request-7"
    original = full({"a": 1})
    changed = original.with_correlation("other")
    assert original.correlation_id == "c-1"
    assert changed.event_id == original.event_id
    assert changed.payload == original.payload
    with pytest.raises(ConfigurationError, match="correlation_id"):
        first.with_correlation("")


def test_it_is_the_same_event_on_another_topic() -> None:
    event = full({"a": 1})
    assert event.bound("orders:eu") is event
    moved = event.bound("orders:us")
    assert moved.topic == "orders:us"
    assert encode(moved) == encode(event)
    registry = EventRegistry()
    assert event.bound("orders:eu", registry).bound("orders:eu") == event
    with pytest.raises(ConfigurationError, match="topic"):
        event.bound("orders:*")


def test_to_dict_and_from_dict() -> None:
    event = full({"a": [1]})
    plain = event.to_dict()
    assert plain == {
        "type": "order.placed", "topic": "orders:eu", "payload": {"a": [1]}, "timestamp": 12.5, "event_id": "e-1",
        "source": "shop", "correlation_id": "c-1", "metadata": {"trace": {"id": 7}}, "version": 3,
    }  # fmt: skip
    assert Event.from_dict(plain) == event
    payload = plain["payload"]
    assert type(payload) is dict
    payload["a"] = "changed"
    assert event.payload == {"a": [1]}
    assert Event.from_dict(json.loads(json.dumps(event.to_dict()))) == event
    bare = Event("x", "t")
    assert Event.from_dict(bare.to_dict()) == bare
    assert uuid.UUID(Event.from_dict({"type": "x", "topic": "t"}).event_id)


@pytest.mark.parametrize(
    "data", [{}, {"type": "x"}, {"topic": "t"}, {"type": 7, "topic": "t"}, {"type": "x", "topic": "t*"}, [1], "x",
             {"type": "x", "topic": "t", "payload": object()}],
    ids=lambda given: re.sub(" at 0x[0-9a-f]+", "", str(given)),
)  # fmt: skip
def test_what_is_no_event_as_a_mapping(data: dict[str, object]) -> None:
    with pytest.raises(PayloadError):
        Event.from_dict(data)


# The wire.


def test_the_wire_is_one_json_object_without_the_topic() -> None:
    wire = json.loads(encode(full({"a": 1})))
    assert wire == {
        "type": "order.placed", "event_id": "e-1", "timestamp": 12.5, "payload": {"a": 1}, "source": "shop",
        "correlation_id": "c-1", "metadata": {"trace": {"id": 7}}, "version": 3,
    }  # fmt: skip
    assert set(json.loads(encode(Event("x", "t")))) == {"type", "event_id", "timestamp", "payload"}
    assert decode(encode(full({"a": 1})), "orders:eu") == full({"a": 1})
    assert decode(encode(full()), "elsewhere").topic == "elsewhere"


NEWER = b'{"priority": {"level": 5,"why":[1.50]}, "type":"x","event_id":"e","timestamp":1.0,"payload":{"a":1},"deadline":null}'


def test_fields_of_a_newer_version_are_lossless() -> None:
    event = decode(NEWER, "t")
    assert event.payload == {"a": 1}
    again = encode(event)
    assert json.loads(again) == json.loads(NEWER)
    assert b'{"level": 5,"why":[1.50]}' in again, "the very bytes"
    assert event.to_dict()["priority"] == {"level": 5, "why": [1.5]}
    for kept in (event.with_correlation("c"), event.bound("elsewhere"), Event.from_dict(event.to_dict())):
        found = json.loads(encode(kept))
        assert found["priority"] == {"level": 5, "why": [1.5]}
        assert "deadline" in found
    assert pickle.loads(pickle.dumps(event)) == event


@pytest.mark.parametrize(
    "data",
    [b"", b"x", b"[]", b"7", b"null", b"{}", b'{"type":"x"}', b'{"type":"x","event_id":"e","timestamp":1}', b"\xff\xfe",
     b'{"type":7,"event_id":"e","timestamp":1,"payload":1}', b'{"type":"x","event_id":"e","timestamp":"1","payload":1}',
     b'{"type":"x","event_id":"e","timestamp":1,"payload":}', b'{"type":"x","event_id":"e","timestamp":NaN,"payload":1}',
     b'{"type":"x","event_id":"e","timestamp":1,"payload":1}{}'],
)  # fmt: skip
def test_bytes_that_are_no_event(data: bytes) -> None:
    with pytest.raises(PayloadError):
        decode(data, "t")


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (b'{"a":NaN,"b":[Infinity]}', {"a": None, "b": [None]}),
        (b'{"a":1e9999}', {"a": None}),
        (b'{"a":"\xff"}', {"a": "\ufffd"}),
        (b"123456789012345678901234567890", 123456789012345678901234567890),
        (b'"plain"', "plain"),
    ],
)
def test_odd_bytes_of_others_are_read_as_payloads_are(payload: bytes, expected: object) -> None:
    event = decode(b'{"type":"x","event_id":"e","timestamp":1,"payload":' + payload + b"}", "t")
    assert event.payload == expected


def test_bottomless_json_is_an_error_and_no_crash() -> None:
    nested = b"[" * 100_000 + b"]" * 100_000
    with pytest.raises(PayloadError):
        assert decode(b'{"type":"x","event_id":"e","timestamp":1,"payload":' + nested + b"}", "t").payload


def test_deep_json_that_can_be_published_can_be_read() -> None:
    nested: list[object] = []
    for _ in range(300):
        nested = [{"a": nested}, 1]
    assert decode(encode(Event("x", "t", nested)), "t").payload == nested


def test_the_payload_is_not_decoded_until_it_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[bytes] = []

    def look(raw: bytes) -> dict[str, int]:
        looked.append(bytes(raw))
        return {"a": 1}

    monkeypatch.setattr("connector_sdk.bus.events.decode_frozen", look)
    event = decode(encode(full({"a": 1})), "t")
    assert event.type == "order.placed"
    assert encode(event) == encode(full({"a": 1}))
    assert looked == []
    assert event.payload == event.payload == {"a": 1}
    assert looked == [b'{"a":1}'], "and only once"


# Payloads of the connector.

ACTIONS = ActionsPayload(
    product_id="shop", session_id="s", actions=[SlimAction(title="a"), SlimAction(index=1)], forwarded_at=1.5
)


@pytest.mark.parametrize("event_id", ["sse-7", None])
@pytest.mark.parametrize(
    "payload", [ACTIONS, SummaryPayload(product_id="shop", summary="so", replaces=2)], ids=["actions", "summary"]
)
def test_payloads_of_the_connector_are_published_as_they_are(
    payload: ActionsPayload | SummaryPayload, event_id: str | None
) -> None:
    sent = msgspec.structs.replace(payload, event_id=event_id)
    event = Event.of(sent, "connector:{product_id}", EventRegistry())
    assert event.topic == "connector:shop"
    assert (event.type, event.source, event.version) == (payload.type, "shop", None)
    assert event.payload == sent
    assert (event.event_id == event_id) is (event_id is not None)
    received = decode(encode(event), event.topic, EventRegistry())
    assert received.payload == sent
    assert received == event
    assert Event.from_dict(event.to_dict(), EventRegistry()).payload == sent


def test_fields_of_a_payload_that_this_version_does_not_know_are_kept() -> None:
    payload = ActionsPayload.from_dict({"product_id": "p", "mood": "good", "actions": [{"title": "t", "weight": 2}]})
    received = decode(encode(Event.of(payload, "t")), "t", EventRegistry()).payload
    assert isinstance(received, ActionsPayload)
    assert received.unknown_fields == {"mood": "good"}
    assert received.actions[0].unknown_fields == {"weight": 2}


def test_a_payload_of_an_unknown_type_is_json() -> None:
    payload = UnknownPayload(type="heatmap", raw=b'{"type": "heatmap", "cells": [1]}', product_id="shop", event_id="9")
    event = Event.of(payload, "t")
    assert (event.type, event.event_id, event.source) == ("heatmap", "9", "shop")
    assert event.raw_payload == payload.raw
    assert decode(encode(event), "t").payload == {"type": "heatmap", "cells": [1]}
    assert Event.of(UnknownPayload(type="", raw=b"{}"), "t").type == "unknown"


def test_raw_bytes_that_are_no_json_do_not_spoil_the_event() -> None:
    assert json.loads(encode(Event.of(UnknownPayload(type="x", raw=b'{"a":NaN}'), "t")))["payload"] == {"a": None}
    with pytest.raises(PayloadError):
        Event.of(UnknownPayload(type="x", raw=b'{"a":1},"type":"forged"'), "t")


def test_each_reader_of_a_payload_has_an_object_of_its_own() -> None:
    event = Event.of(ACTIONS, "t")
    mine, others = event.payload, event.payload
    assert isinstance(mine, ActionsPayload)
    mine.actions.clear()
    assert others == event.payload == ACTIONS


@pytest.mark.parametrize(
    "payload", [object(), {"a": 1}, "text", SlimAction()], ids=["object", "dict", "text", "action"]
)
def test_an_object_of_no_registered_class_is_refused(payload: object) -> None:
    with pytest.raises(ConfigurationError, match="registered"):
        Event.of(payload, "t")


def test_options_of_an_event_of_a_payload() -> None:
    cause = Event("x", "t")
    event = Event.of(ACTIONS, "t", source="me", correlation_id=cause.event_id, metadata={"a": 1})
    assert (event.source, event.correlation_id, event.metadata) == ("me", cause.event_id, {"a": 1})
    with pytest.raises(ConfigurationError, match="topic"):
        Event.of(ACTIONS)
    with pytest.raises(ConfigurationError, match="correlation_id"):
        Event.of(ACTIONS, "t", correlation_id="")
    bad: Payload = ActionsPayload(product_id=object())  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(ConfigurationError, match="payload"):
        Event.of(bad, "t")


# Identifiers.


def test_seeding_the_global_generator_repeats_no_id() -> None:
    random.seed(1)
    one = new_event_id()
    random.seed(1)
    assert new_event_id() != one


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_the_child_of_a_fork_makes_ids_of_its_own() -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, new_event_id().encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        assert pipe.read() != new_event_id()
    os.waitpid(child, 0)
