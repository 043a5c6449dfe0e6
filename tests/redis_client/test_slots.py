"""Who has which slot, and how that is learned."""

from __future__ import annotations

import pytest

from connector_sdk.redis_client.address import Server
from connector_sdk.redis_client.errors import refusal
from connector_sdk.redis_client.slots import SlotMap, key_slot, redirection

HERE, THERE = Server("here", 1), Server("there", 2)


@pytest.mark.parametrize(
    ("key", "slot"),
    [
        (b"123456789", 0x31C3),  # the check value of the specification
        (b"foo", 12182),
        (b"{foo}bar", 12182),
        (b"a{foo}{b}", 12182),
        (b"{}foo", 9500),
        (b"foo{}", 5542),
        (b"{foo", 13308),
        (b"foo{{bar}}", 4015),  # the tag is "{bar"
        (b"", 0),
    ],
)
def test_the_slot_of_a_key(key: bytes, slot: int) -> None:
    assert key_slot(key) == slot


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("MOVED 3999 10.0.0.1:6381", (3999, Server("10.0.0.1", 6381))),
        ("ASK 0 host.name:7000", (0, Server("host.name", 7000))),
        ("MOVED 1 ::1:7000", (1, Server("::1", 7000))),
        ("MOVED 1 :7000", (1, Server("here", 7000))),
        ("MOVED 1 ?:7000", (1, Server("here", 7000))),
        ("MOVED 16384 a:1", None),
        ("MOVED x a:1", None),
        ("MOVED 1 a:0", None),
        ("MOVED 1 a", None),
        ("MOVED", None),
        ("ERR 1 a:1", None),
    ],
)
def test_redirections(text: str, expected: tuple[int, Server] | None) -> None:
    assert redirection(refusal(text), HERE) == expected


def test_a_map_learns_and_forgets() -> None:
    slots = SlotMap()
    assert slots.owner(b"foo") is None
    slots.learn(12182, THERE)
    assert slots.owner(b"foo") == THERE
    nodes = slots.learn_all([[0, 12181, [b"", 1, b"id"], [b"replica", 3, b"id"]], [12182, 16383, [b"there", 2]]], HERE)
    assert nodes == [HERE, Server("replica", 3), THERE]
    assert slots.complete
    assert slots.owner(b"") == HERE
    slots.forget(Server("unknown", 1))
    assert slots.complete
    slots.forget(HERE)
    assert slots.owner(b"") is None
    assert slots.owner(b"foo") == THERE
    assert not slots.complete


@pytest.mark.parametrize(
    "reply", [None, b"OK", [], [1], [[0, 1]], [[0, 1, b"x"]], [[0, 1, [b"a", b"b"]]], [[5, 99999, []]]]
)
def test_an_answer_of_another_shape_teaches_nothing(reply: object) -> None:
    slots = SlotMap()
    assert slots.learn_all(reply, HERE) == []  # type: ignore[arg-type]  # on purpose
    assert not slots.complete
