"""Where to begin to read, and which keys stand beside a stream."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from connector_sdk.errors import ConfigurationError
from connector_sdk.redis_client.slots import key_slot
from connector_sdk.streams.keys import stream_keys
from connector_sdk.streams.positions import name_of, position, streams_of, time_of


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        ("latest", b"$"),
        ("beginning", b"0-0"),
        ("1700000000000", b"1700000000000"),
        ("1700000000000-5", b"1700000000000-5"),
        (0, b"0-0"),
        (1.5, b"1499-18446744073709551615"),
        (datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC), b"1699999999999-18446744073709551615"),
    ],
)
def test_a_start_becomes_the_id_after_which_to_read(start: object, expected: bytes) -> None:
    assert position("start", start) == expected


@pytest.mark.parametrize("start", ["newest", "", "5-", None, True, -1, float("nan"), 1e13, datetime(2023, 1, 1), b"0"])
def test_a_start_that_means_nothing_is_refused_by_name(start: object) -> None:
    with pytest.raises(ConfigurationError, match=r"start=.*latest") as caught:
        position("start", start)
    assert caught.value.option == "start"


def test_streams_may_have_a_start_of_their_own() -> None:
    assert streams_of("a", b"$") == {b"a": b"$"}
    assert streams_of(["a", b"b"], b"$") == {b"a": b"$", b"b": b"$"}
    assert streams_of({"a": "beginning", "b": "5-1"}, b"$") == {b"a": b"0-0", b"b": b"5-1"}
    for wrong in (5, [""], [5], {"a": "x"}):
        with pytest.raises(ConfigurationError, match="streams"):
            streams_of(wrong, b"$")


def test_names_of_any_bytes_survive_being_text() -> None:
    for name in (b"plain", "größe".encode(), b"\xff\x00"):
        assert name_of(name.decode("utf-8", "surrogateescape")) == name


def test_an_id_tells_the_time() -> None:
    assert time_of(b"1700000000123-4") == 1_700_000_000.123


@pytest.mark.parametrize(
    "stream", [b"plain", b"{tag}:x", b"x{tag}", b"brace}", b"{}empty", b"a{", b"}{", b"{a}{b}", b"{"]
)
def test_the_keys_beside_a_stream_are_in_its_slot_and_its_own(stream: bytes) -> None:
    keys = stream_keys(stream, b"group")
    assert {key_slot(key) for key in keys} == {key_slot(stream)}
    others = {*stream_keys(stream, b"other"), *stream_keys(stream + b"2", b"group")}
    assert len(set(keys)) == 4
    assert len({*keys, *others} - {stream, stream + b"2"}) == 9
