"""The search index of the demo: counted exactly, found by words, no query an error."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from connector_sdk.cli.index import Added, IndexCounts, PageCount, SearchIndex
from connector_sdk.cli.traffic import generate
from connector_sdk.errors import ConfigurationError
from connector_sdk.payloads import ActionsPayload, Payload, SlimAction, SummaryPayload, UnknownPayload


def batch(event_id: str | None, *descriptions: str, page: str = "/p") -> ActionsPayload:
    actions = [SlimAction(title="T", description=text, canonical_url=page, type="click") for text in descriptions]
    return ActionsPayload(session_id="s1", actions=actions, event_id=event_id)


def test_an_event_that_comes_twice_is_counted_and_not_doubled() -> None:
    with SearchIndex() as index:
        summary = SummaryPayload(session_id="s1", summary="gave up at checkout", event_id="2")
        assert index.add([batch("1", "one", "two"), summary]) == Added(events=2, repeated=0)
        assert index.add([batch("1", "one", "two"), batch("3", "three")]) == Added(events=1, repeated=1)
        assert index.counts() == IndexCounts(events=3, actions=3, summaries=1, others=0, repeated=1)


def test_events_without_an_id_are_kept_each_time() -> None:
    with SearchIndex() as index:
        assert index.add([batch(None, "a"), batch(None, "a")]) == Added(events=2, repeated=0)


def test_an_unknown_type_is_kept_and_found() -> None:
    with SearchIndex() as index:
        index.add([UnknownPayload(type="mood", raw=b'{"type":"mood","value":"cheerful"}', event_id="9")])
        assert index.counts().others == 1
        assert index.search("cheerful")[0].title == "mood"


def test_a_time_that_is_no_number_harms_nothing() -> None:
    with SearchIndex() as index:
        action = SlimAction(timestamp_start=float("nan"), description="broken clock")
        index.add([ActionsPayload(actions=[action]), SummaryPayload(forwarded_at=float("inf"))])
        assert index.search("broken")[0].at == 0.0


def test_one_bad_payload_leaves_nothing_behind() -> None:
    with SearchIndex() as index:
        with pytest.raises(AttributeError):
            index.add([batch("1", "fine"), "no payload"])  # type: ignore[list-item]  # wrong on purpose
        assert index.counts() == IndexCounts(events=0, actions=0, summaries=0, others=0, repeated=0)
        assert index.add([batch("1", "fine")]).events == 1


def test_search_ranks_and_shows_where() -> None:
    with SearchIndex() as index:
        index.add([batch("1", "checkout error: card declined", "opened the cart"), batch("2", "went to checkout")])
        hits = index.search("checkout error")
        assert [hit.snippet for hit in hits] == ["[0] click: [checkout] [error]: card declined — /p"]
        assert (hits[0].kind, hits[0].session_id, hits[0].page) == ("action", "s1", "/p")
        assert len(index.search("checkout zebra")) == 2  # none has both: any will do
        assert len(index.search("checkout zebra", limit=1)) == 1
        assert index.search("zebra") == []


@pytest.mark.parametrize(
    "query", ['"', "* OR", "NEAR(", "a:b", "-x", "(", "", "   ", "\0", "AND", "col : x", "^a", "a+b"]
)
def test_no_query_is_a_syntax_error(query: str) -> None:
    with SearchIndex() as index:
        index.add([batch("1", "some words")])
        index.search(query)


@given(st.text(max_size=40))
def test_any_text_may_be_a_query(query: str) -> None:
    with SearchIndex() as index:
        index.add([batch("1", "some words")])
        index.search(query)


def test_busiest_pages() -> None:
    with SearchIndex() as index:
        index.add([batch("1", "a", page="/x"), batch("2", "a", "b", page="/y"), batch("3", "c", page="/z")])
        assert index.busiest_pages(2) == [PageCount(page="/y", actions=2), PageCount(page="/x", actions=1)]


def test_a_file_is_there_again_after_reopening(tmp_path: Path) -> None:
    path = tmp_path / "index.db"
    payloads = [msgspec.structs.replace(p, event_id=str(n)) for n, p in enumerate(generate(sessions=20))]
    with SearchIndex(path) as index:
        index.add(payloads)
        counts = index.counts()
        index.close()  # twice is fine
    with SearchIndex(path) as index:
        assert index.counts() == counts
        assert index.add(payloads) == Added(events=0, repeated=len(payloads))
        assert index.search("example")


def test_another_file_is_refused_and_left_alone(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("my notes\n" * 200)
    foreign = tmp_path / "other.db"
    database = sqlite3.connect(foreign)
    database.execute("CREATE TABLE mine (x)")
    database.close()
    for path in (text, foreign, tmp_path / "missing" / "x.db"):
        before = path.read_bytes() if path.exists() else b""
        with pytest.raises(ConfigurationError, match="index"):
            SearchIndex(path)
        assert (path.read_bytes() if path.exists() else b"") == before


def test_threads_may_share_it() -> None:
    with SearchIndex() as index:

        def work(name: int) -> None:
            for n in range(40):
                payload: Payload = batch(f"{name if n % 2 else 'all'}-{n}", "word")
                index.add([payload])
                index.search("word", 1)

        threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert index.counts() == IndexCounts(events=100, actions=100, summaries=0, others=0, repeated=60)
