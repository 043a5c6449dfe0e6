"""The event-stream format: the standard's rules, our bounds, and that chunking never matters."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from connector_sdk.client.sse import CursorMoved, Item, OversizedEvent, RetryAdvised, ServerSentEvent, SSEParser


def parse(*chunks: bytes, max_event_bytes: int = 1 << 20, max_event_lines: int = 1000) -> list[Item]:
    parser = SSEParser(max_event_bytes, max_event_lines)
    return [item for chunk in chunks for item in parser.feed(chunk)]


def event(data: bytes, type: str = "message", id: str | None = None) -> ServerSentEvent:  # noqa: A002
    return ServerSentEvent(type, data, id)


VECTORS: list[tuple[str, bytes, list[Item]]] = [
    ("one event", b"data: x\n\n", [event(b"x")]),
    ("no space after the colon", b"data:x\n\n", [event(b"x")]),
    ("only one space is taken", b"data:  x\n\n", [event(b" x")]),
    ("lines are joined", b"data: a\ndata: b\n\n", [event(b"a\nb")]),
    ("an empty data line counts", b"data\ndata\n\n", [event(b"\n")]),
    ("data without value is an event", b"data:\n\n", [event(b"")]),
    ("data without colon is an event", b"data\n\n", [event(b"")]),
    ("no event without data", b"event: x\n\n", []),
    ("a type does not leak into the next block", b"event: x\n\ndata: a\n\n", [event(b"a")]),
    ("comments are nothing", b": hello\n\ndata: a\n: more\n\n", [event(b"a")]),
    ("comments after an id are no events (X14)", b"id: 1\ndata: a\n\n: ping\n\n: ping\n\n", [event(b"a", id="1")]),
    ("CR ends a line", b"data: a\rdata: b\r\r", [event(b"a\nb")]),
    ("CRLF ends a line", b"data: a\r\ndata: b\r\n\r\n", [event(b"a\nb")]),
    ("mixed ends", b"data: a\r\ndata: b\rdata: c\n\r\n", [event(b"a\nb\nc")]),
    ("an id", b"id: 7\ndata: a\n\n", [event(b"a", id="7")]),
    ("the last id of a block counts", b"id: 7\nid: 8\ndata: a\n\n", [event(b"a", id="8")]),
    ("an id without data moves the cursor", b"id: 7\n\n", [CursorMoved("7")]),
    ("an empty id clears it", b"id\n\nid:\ndata: a\n\n", [CursorMoved(""), event(b"a", id="")]),
    ("an id with NUL is ignored", b"id: 7\0\ndata: a\n\n", [event(b"a")]),
    ("retry of digits", b"retry: 3000\n\n", [RetryAdvised(3000)]),
    ("a negative retry is ignored (X14)", b"retry: -1\n\n", []),
    ("a retry with a sign, a point or nothing is ignored", b"retry: +1\nretry: 1.5\nretry:\nretry: \xd9\xa3\n\n", []),
    ("a retry beyond all measure", b"retry: " + b"9" * 5000 + b"\n\n", [RetryAdvised(999_999_999_999)]),
    ("unknown fields are ignored", b"foo: bar\ndata: a\nDATA: b\n\n", [event(b"a")]),
    ("an incomplete event at the end is discarded", b"data: a\n\ndata: b\n", [event(b"a")]),
    ("a byte-order mark at the start is dropped (X14)", b"\xef\xbb\xbfdata: a\n\n", [event(b"a")]),
    ("a second one is not", b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\n", []),
    ("one later is not", b"data: a\n\n\xef\xbb\xbfdata: b\n\n", [event(b"a")]),
    ("a colon in the value", b"data: a:b\n\n", [event(b"a:b")]),
    ("event and id and data", b"event: summary\nid: 9\ndata: {}\n\n", [event(b"{}", "summary", "9")]),
    ("a form feed is no line end", b"data: a\x0cb\x85c\xe2\x80\xa8d\n\n", [event(b"a\x0cb\x85c\xe2\x80\xa8d")]),
]


@pytest.mark.parametrize(("stream", "expected"), [v[1:] for v in VECTORS], ids=[v[0] for v in VECTORS])
def test_the_standard(stream: bytes, expected: list[Item]) -> None:
    assert parse(stream) == expected


@pytest.mark.parametrize(("stream", "expected"), [v[1:] for v in VECTORS], ids=[v[0] for v in VECTORS])
def test_the_standard_byte_by_byte(stream: bytes, expected: list[Item]) -> None:
    assert parse(*[stream[i : i + 1] for i in range(len(stream))]) == expected


@pytest.mark.parametrize(("stream", "expected"), [v[1:] for v in VECTORS], ids=[v[0] for v in VECTORS])
def test_the_standard_cut_in_two_anywhere(stream: bytes, expected: list[Item]) -> None:
    for cut in range(min(len(stream), 300) + 1):
        assert parse(stream[:cut], stream[cut:]) == expected, cut


def test_bytes_that_are_no_utf8_are_replaced() -> None:
    (item,) = parse(b"event: a\xff\nid: \xfe\ndata: x\xc3\n\n")
    assert isinstance(item, ServerSentEvent)
    unknown = "\N{REPLACEMENT CHARACTER}"
    assert (item.type, item.id, item.text) == (f"a{unknown}", unknown, f"x{unknown}")


def test_an_oversized_event_is_reported_and_the_stream_goes_on() -> None:
    stream = b"id: 1\ndata: " + b"x" * 5000 + b"\n\nid: 2\ndata: ok\n\n"
    assert parse(stream, max_event_bytes=1024) == [
        OversizedEvent(size=6 + 5007, lines=2, type="message", id="1"),
        event(b"ok", id="2"),
    ]


def test_an_id_after_the_oversized_data_still_counts() -> None:
    """Else the server would send the same event again at every reconnect."""
    stream = b"data: " + b"x" * 5000 + b"\nevent: big\nid: 5\n\n"
    (item,) = parse(stream, max_event_bytes=1024)
    assert isinstance(item, OversizedEvent)
    assert (item.id, item.type) == ("5", "big")


def test_many_small_lines_are_an_oversized_event_too() -> None:
    (item,) = parse(b"data: x\n" * 11 + b"\n", max_event_lines=10)
    assert isinstance(item, OversizedEvent)
    assert item.lines == 11


def test_comments_without_end_are_no_event_and_take_no_memory() -> None:
    parser = SSEParser(1024)
    for _ in range(1000):
        assert parser.feed(b": " + b"c" * 500) == []
    assert parser.feed(b"\ndata: a\n\n") == [event(b"a")]


def test_peak_memory_stays_under_twice_the_limit() -> None:
    import tracemalloc

    limit = 1 << 20
    parser = SSEParser(limit)
    chunk = b"x" * 8192
    tracemalloc.start()
    try:
        parser.feed(b"data: ")
        for _ in range(20 * limit // len(chunk)):
            parser.feed(chunk)
        items = parser.feed(b"\n\ndata: ok\n\n")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [type(item) for item in items] == [OversizedEvent, ServerSentEvent]
    assert peak < 2 * limit


PIECES = st.lists(
    st.one_of(
        st.sampled_from(
            [b"data: ", b"data:", b"data", b"id: ", b"id: 12", b"id:", b"event: e", b"retry: 10", b"\n", b"\n\n",
             b"\r", b"\r\n", b": c", b":", b"\0", b"\xef\xbb\xbf", b"\xff", b" ", b"data: hello\n\n", b"id: 5\ndata: {}\n\n",
             b"x" * 40]
        ),
        st.binary(max_size=12),
    ),
    max_size=40,
)  # fmt: skip


@settings(max_examples=600, deadline=None)
@given(pieces=PIECES, cuts=st.lists(st.integers(0, 400), max_size=30), limit=st.sampled_from([16, 40, 1 << 20]))
@example(pieces=[b"id: 1\ndata: x\n\n"], cuts=[], limit=16)
def test_chunking_never_matters(pieces: list[bytes], cuts: list[int], limit: int) -> None:
    stream = b"".join(pieces)
    places = sorted({min(cut, len(stream)) for cut in cuts} | {0, len(stream)})
    chunks = [stream[a:b] for a, b in itertools.pairwise(places)]
    bytewise = [stream[i : i + 1] for i in range(len(stream))]
    expected = parse(*bytewise, max_event_bytes=limit, max_event_lines=6)
    assert parse(*chunks, max_event_bytes=limit, max_event_lines=6) == expected
    assert parse(stream, max_event_bytes=limit, max_event_lines=6) == expected


@settings(max_examples=300, deadline=None)
@given(
    events=st.lists(
        st.tuples(
            st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"]), max_size=30),
            st.none()
            | st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"]), min_size=1, max_size=8),
        ),
        max_size=8,
    ),
    ends=st.sampled_from(["\n", "\r", "\r\n"]),
)
def test_what_a_server_writes_is_what_comes_out(events: list[tuple[str, str | None]], ends: str) -> None:
    written = "".join(
        "".join(f"{name}: {value}{ends}" for name, value in (("id", event_id), ("data", data)) if value is not None)
        + ends
        for data, event_id in events
    )
    items = parse(written.encode())
    assert [(item.text, item.id) for item in items if isinstance(item, ServerSentEvent)] == events
