"""The registry: classes under names and versions, upcasters, and what nobody registered."""

from __future__ import annotations

import dataclasses
import datetime
import re
from typing import Any

import msgspec
import pydantic
import pytest

from connector_sdk.bus.events import Event, decode, encode
from connector_sdk.bus.registry import EventRegistry
from connector_sdk.errors import ConfigurationError, PayloadError, UnknownEventError
from connector_sdk.payloads import ActionsPayload, SummaryPayload


@dataclasses.dataclass
class Line:
    name: str
    amount: int = 1


@dataclasses.dataclass
class OrderData:
    id: int
    placed: datetime.datetime
    lines: list[Line] = dataclasses.field(default_factory=list)


class OrderStruct(msgspec.Struct):
    id: int
    placed: datetime.datetime
    lines: list[Line] = []


class OrderModel(pydantic.BaseModel):
    id: int
    placed: datetime.datetime
    lines: list[Line] = []


class Aliased(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    order_id: int = pydantic.Field(alias="orderId")

    @pydantic.computed_field  # type: ignore[prop-decorator]  # as pydantic's own documentation does
    @property
    def double(self) -> int:
        return self.order_id * 2


@dataclasses.dataclass
class Node:
    name: str
    next: Node | None = None


MOMENT = datetime.datetime(2024, 5, 6, 7, 8, tzinfo=datetime.UTC)
OBJECTS: list[object] = [
    OrderData(1, MOMENT, [Line("a", 2)]),
    OrderStruct(1, MOMENT, [Line("a", 2)]),
    OrderModel(id=1, placed=MOMENT, lines=[Line("a", 2)]),
    Aliased(orderId=4),
    Node("a", Node("b")),
]


@pytest.mark.parametrize("value", OBJECTS, ids=lambda value: type(value).__name__)
def test_objects_come_back_as_objects(value: object) -> None:
    registry = EventRegistry()
    registry.register(type(value))
    event = Event.of(value, "orders", registry)
    assert (event.type, event.version) == (type(value).__name__, 1)
    assert event.payload == value
    received = decode(encode(event), "orders", registry)
    assert type(received.payload) is type(value)
    assert received.payload == value
    assert received.payload is not received.payload, "each reader has its own"
    assert isinstance(decode(encode(event), "orders").payload, dict), "without the registry it is JSON"


def test_a_changed_object_does_not_change_the_event() -> None:
    registry = EventRegistry()
    registry.register(Line)
    line = Line("a")
    event = Event.of(line, "t", registry)
    line.amount = 99
    seen = event.payload
    assert isinstance(seen, Line)
    seen.name = "changed"
    assert event.payload == Line("a", 1)


def test_registering_as_a_decorator() -> None:
    registry = EventRegistry()

    @registry.register
    @dataclasses.dataclass
    class Plain:
        a: int

    @registry.register(name="order.placed", version=2, topic="orders:{country}", upcasters={1: lambda old: old})
    @dataclasses.dataclass
    class Named:
        country: str

    assert registry.known == ("Plain", "actions", "order.placed", "summary")
    assert registry.name_of(Named) == "order.placed"
    assert Plain(1).a == 1
    found = registry.lookup("order.placed")
    assert found is not None
    assert (found.cls, found.version, found.oldest) == (Named, 2, 1)
    assert registry.find(Named) is found
    event = Event.of(Named("de"), registry=registry)
    assert (event.topic, event.version) == ("orders:de", 2)
    assert Event.of(Named("de"), "elsewhere", registry).topic == "elsewhere"


def test_what_is_not_registered() -> None:
    registry = EventRegistry()
    assert registry.lookup("nothing") is None
    assert registry.find(Line) is None
    with pytest.raises(ConfigurationError, match="actions, summary"):
        registry.name_of(Line)
    registry.register(Line)
    with pytest.raises(ConfigurationError, match="topic"):
        Event.of(Line("a"), registry=registry)


def test_connector_payloads_are_known_to_every_registry() -> None:
    registry = EventRegistry(strict=True)
    assert registry.known == ("actions", "summary")
    assert registry.name_of(ActionsPayload) == "actions"
    assert registry.name_of(SummaryPayload) == "summary"
    with pytest.raises(ConfigurationError):
        registry.register(Line, name="actions")
    with pytest.raises(ConfigurationError):
        registry.register(ActionsPayload, name="mine")


# Versions.


def up_to_two(old: dict[str, Any]) -> dict[str, object]:
    first, _, last = old.pop("name").partition(" ")
    return {**old, "first": first, "last": last}


def up_to_three(old: dict[str, Any]) -> dict[str, object]:
    old["names"] = [old.pop("first"), old.pop("last")]
    return old


@dataclasses.dataclass
class Customer:
    id: int
    names: list[str]


def customers(**options: Any) -> EventRegistry:
    registry = EventRegistry(**options)
    registry.register(Customer, name="customer", version=3, upcasters={1: up_to_two, 2: up_to_three})
    return registry


@pytest.mark.parametrize(
    ("version", "payload"),
    [
        (None, {"id": 1, "name": "Ada Byron"}),
        (1, {"id": 1, "name": "Ada Byron"}),
        (2, {"id": 1, "first": "Ada", "last": "Byron"}),
        (3, {"id": 1, "names": ["Ada", "Byron"]}),
    ],
)
def test_older_payloads_are_brought_up_to_date_in_order(version: int | None, payload: dict[str, object]) -> None:
    registry = customers()
    body = encode(Event("customer", "t", payload, version=version))
    event = decode(body, "t", registry)
    registry.check(event)
    assert event.payload == Customer(1, ["Ada", "Byron"])
    assert event.payload == Customer(1, ["Ada", "Byron"]), "an upcaster that changes its dict spoils nothing"
    assert event.version == version
    assert encode(event) == body, "what is stored stays as it was"


@pytest.mark.parametrize("version", [4, 99, 0, -1])
def test_a_version_that_cannot_be_read_is_found_before_a_handler_is_called(version: int) -> None:
    registry = customers()
    body = b'{"type":"customer","event_id":"e","timestamp":1.0,"payload":{"x":1},"version":%d}' % version
    event = decode(body, "t", registry)
    with pytest.raises(UnknownEventError):
        assert event.payload
    with pytest.raises(UnknownEventError) as caught:
        registry.check(event)
    assert (caught.value.event_type, caught.value.version) == ("customer", version)
    assert "versions 1 to 3" in str(caught.value)
    assert encode(event) == body, "parked, it is still what it was"


def test_versions_before_the_first_upcaster_are_unknown() -> None:
    registry = EventRegistry()
    registry.register(Customer, name="customer", version=3, upcasters={2: up_to_three})
    with pytest.raises(UnknownEventError):
        registry.check(Event("customer", "t", {}, version=1))
    registry.check(Event("customer", "t", {}, version=2))


def test_names_that_nobody_registered_are_json_unless_strict() -> None:
    event = Event("other", "t", {"a": 1})
    customers().check(event)
    assert event.bound("t", customers()).payload == {"a": 1}
    strict = customers(strict=True)
    with pytest.raises(UnknownEventError, match="actions, customer, summary"):
        strict.check(event)
    with pytest.raises(UnknownEventError):
        assert event.bound("t", strict).payload
    strict.check(Event("customer", "t", {}, version=3))


def test_an_event_made_by_hand_is_typed_once_it_is_on_the_bus() -> None:
    event = Event("customer", "t", {"id": 1, "names": []}, version=3)
    assert event.payload == {"id": 1, "names": []}
    assert event.bound("t", customers()).payload == Customer(1, [])


@pytest.mark.parametrize("cls", [OrderData, OrderStruct, OrderModel])
@pytest.mark.parametrize("payload", [{"id": "x"}, [], 7, None], ids=str)
def test_a_payload_that_does_not_fit_is_an_error_that_says_why(cls: type, payload: object) -> None:
    registry = EventRegistry()
    registry.register(cls, name="order")
    event = Event("order", "t", payload).bound("t", registry)
    registry.check(event)
    with pytest.raises(PayloadError, match="order does not fit"):
        assert event.payload


def test_errors_of_upcasting() -> None:
    def broken(old: dict[str, object]) -> dict[str, object]:
        raise LookupError("no such field")

    registry = EventRegistry()
    registry.register(Customer, name="customer", version=2, upcasters={1: broken})
    with pytest.raises(LookupError, match="no such field"):
        assert Event("customer", "t", {}).bound("t", registry).payload
    with pytest.raises(PayloadError, match="no JSON object"):
        assert Event("customer", "t", [1]).bound("t", registry).payload


# Conflicts.


def test_registering_the_very_same_again_does_nothing() -> None:
    registry = customers()
    found = registry.lookup("customer")
    registry.register(Customer, name="customer", version=3, upcasters={1: up_to_two, 2: up_to_three})
    assert registry.lookup("customer") is found


@pytest.mark.parametrize(
    "options",
    [
        {"cls": Line, "name": "customer", "version": 3, "upcasters": {1: up_to_two, 2: up_to_three}},
        {"cls": Customer, "name": "client", "version": 3, "upcasters": {1: up_to_two, 2: up_to_three}},
        {"cls": Customer, "name": "customer", "version": 2, "upcasters": {1: up_to_two}},
        {"cls": Customer, "name": "customer", "version": 3},
        {"cls": Customer, "name": "customer", "version": 3, "upcasters": {1: up_to_two, 2: up_to_three}, "topic": "t"},
    ],
    ids=["name", "class", "version", "upcasters", "topic"],
)
def test_conflicts_are_refused_and_change_nothing(options: dict[str, Any]) -> None:
    registry = customers()
    known, found = registry.known, registry.lookup("customer")
    with pytest.raises(ConfigurationError, match="already"):
        registry.register(**options)
    assert registry.known == known
    assert registry.lookup("customer") is found
    assert registry.find(Line) is None


class NoFields:
    pass


@dataclasses.dataclass
class Unsayable:
    value: NoFields


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"cls": NoFields}, "cls"),
        ({"cls": dict}, "cls"),
        ({"cls": Line("an object")}, "cls"),
        ({"cls": Line, "name": ""}, "name"),
        ({"cls": Line, "name": 7}, "name"),
        ({"cls": Line, "version": 0}, "version"),
        ({"cls": Line, "version": True}, "version"),
        ({"cls": Line, "version": 3, "upcasters": {1: up_to_two}}, "upcasters"),
        ({"cls": Line, "version": 4, "upcasters": {1: up_to_two, 3: up_to_two}}, "upcasters"),
        ({"cls": Line, "version": 1, "upcasters": {1: up_to_two}}, "upcasters"),
        ({"cls": Line, "version": 1, "upcasters": {0: up_to_two}}, "upcasters"),
        ({"cls": Line, "version": 2, "upcasters": {1: "no function"}}, "upcasters"),
        ({"cls": Line, "topic": "a*"}, "topic"),
    ],
    ids=lambda given: re.sub(" at 0x[0-9a-f]+", "", str(given)),
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        EventRegistry().register(**options)
    assert caught.value.option == named
