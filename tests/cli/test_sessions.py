"""From requests to sessions: each request in exactly one action, in order, and a summary at each end."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connector_sdk.cli.access_log import Request
from connector_sdk.cli.sessions import canonical_path, page_title, sessionise
from connector_sdk.payloads import ActionsPayload, SlimAction, SummaryPayload

START = 1_431_857_103.0


def request(
    at: float, path: str = "/", client: str = "192.0.2.1", agent: str | None = "Firefox", status: int = 200
) -> Request:
    return Request(client=client, time=START + at, method="GET", path=path, status=status, user_agent=agent)


def actions_by_session(payloads: Sequence[ActionsPayload | SummaryPayload]) -> dict[str, list[SlimAction]]:
    found: dict[str, list[SlimAction]] = defaultdict(list)
    for payload in payloads:
        if isinstance(payload, ActionsPayload):
            assert payload.session_id
            found[payload.session_id] += payload.actions
    return dict(found)


def summaries(payloads: Sequence[ActionsPayload | SummaryPayload]) -> list[SummaryPayload]:
    return [payload for payload in payloads if isinstance(payload, SummaryPayload)]


def test_an_action_tells_its_request() -> None:
    visit = Request(
        client="192.0.2.1", user="ada", time=START, method="POST", path="/shop/order/1842/?tab=2", status=302, line=7
    )
    batch, summary = sessionise([visit], product_id="shop")
    assert isinstance(batch, ActionsPayload)
    assert batch.actions == [
        SlimAction(
            title="Order 1842",
            description="POST /shop/order/1842/ -> 302",
            canonical_url="/shop/order/:id",
            index=0,
            type="pageview",
            timestamp_start=START,
            timestamp_end=START,
            raw_url="/shop/order/1842/?tab=2",
            session_id=batch.session_id,
            user_id="ada",
        )
    ]
    assert (batch.product_id, batch.user_id, batch.forwarded_at) == ("shop", "ada", START + 10)
    assert summary == SummaryPayload(
        product_id="shop",
        session_id=batch.session_id,
        summary="A visit from 192.0.2.1: one request, for /shop/order/:id.",
        replaces=1,
        forwarded_at=START + 1800,
    )


def test_half_an_hour_of_silence_ends_a_session_and_an_agent_is_a_visitor() -> None:
    payloads = list(
        sessionise([request(0), request(1, agent="Safari"), request(1800), request(3601), request(3601, agent=None)])
    )
    sessions = actions_by_session(payloads)
    assert sorted(len(actions) for actions in sessions.values()) == [1, 1, 1, 2]
    assert len(summaries(payloads)) == 4


def test_session_ids_are_stable_and_short() -> None:
    def ids() -> list[str]:
        return sorted(actions_by_session(list(sessionise([request(0), request(5000), request(0, client="::1")]))))

    assert ids() == ids()
    assert len(set(ids())) == 3
    assert all(len(name) == 16 for name in ids())


def test_batches_leave_at_five_or_after_ten_seconds_and_interleave() -> None:
    log = [request(second, client=client) for second in range(12) for client in ("192.0.2.1", "192.0.2.2")]
    payloads = list(sessionise(log))
    sizes = [(payload.session_id, payload.count) for payload in payloads if isinstance(payload, ActionsPayload)]
    first, second = sizes[0][0], sizes[1][0]
    assert sizes == [(first, 5), (second, 5), (first, 5), (second, 5), (first, 2), (second, 2)]
    assert [payload.forwarded_at - START for payload in payloads][:5] == [4, 4, 9, 9, 20]


def test_a_summary_says_what_happened() -> None:
    log = [request(0, "/in"), request(30, "/busy"), request(60, "/busy?again=1"), request(272, "/out", status=404)]
    (summary,) = summaries(list(sessionise(log)))
    assert summary.replaces == 4
    assert summary.summary == (
        "A visit from 192.0.2.1: 4 requests for 3 different pages in 4 min 32 s. It entered at /in and left at /out. "
        "Busiest was /busy (2 times). 1 request failed, by status: 404 (1)."
    )


def test_late_lines_are_put_in_order() -> None:
    log = [request(at) for at in (30, 59, 0, 45, 10, 100)]
    (actions,) = actions_by_session(list(sessionise(log))).values()
    assert [action.timestamp_start - START for action in actions] == [0, 10, 30, 45, 59, 100]


def test_a_clock_set_back_starts_over_and_loses_nothing() -> None:
    """Two logs joined in the wrong order, or one line from the year 2099: nothing is lost, other sessions stay whole."""
    later = [request(86_400 + at) for at in range(3)]
    earlier = [request(at) for at in range(3)]
    sessions = actions_by_session(list(sessionise([*later, *earlier])))
    assert [len(actions) for actions in sessions.values()] == [3, 3]
    outlier = [request(0), request(2.6e9), request(1), request(2)]
    assert sum(map(len, actions_by_session(list(sessionise(outlier))).values())) == 4


def test_memory_is_bounded_by_what_is_open() -> None:
    """Payloads come while the log is still read, not at its end."""
    taken = 0

    def endless() -> object:
        nonlocal taken
        while True:
            taken += 1
            yield request(taken * 60.0, client=f"192.0.2.{taken % 200}")

    stream = sessionise(endless())  # type: ignore[arg-type]  # a generator of requests
    for _ in range(1000):
        next(stream)
    assert taken < 1000


LOGS = st.lists(
    st.builds(
        request,
        at=st.floats(0, 9000).map(round),
        path=st.sampled_from(["/", "/a", "/b/12", "/c?x=1"]),
        client=st.sampled_from(["192.0.2.1", "192.0.2.2", "2001:db8::1"]),
        agent=st.sampled_from([None, "Firefox", "bot"]),
        status=st.sampled_from([200, 404, 500]),
    ),
    max_size=60,
)


def check_account(log: list[Request], payloads: list[ActionsPayload | SummaryPayload]) -> None:
    sessions = actions_by_session(payloads)
    assert sorted(action.raw_url for actions in sessions.values() for action in actions) == sorted(r.path for r in log)
    for actions in sessions.values():
        assert [action.index for action in actions] == list(range(len(actions)))
    closed = [(payload.session_id, payload.replaces) for payload in summaries(payloads)]
    assert sorted(closed, key=str) == sorted(((s, len(a)) for s, a in sessions.items()), key=str)
    for position, payload in enumerate(payloads):  # nothing of a session comes after its summary
        if isinstance(payload, SummaryPayload):
            assert all(other.session_id != payload.session_id for other in payloads[position + 1 :])


@given(LOGS)
def test_every_request_is_in_exactly_one_action_in_order(log: list[Request]) -> None:
    log.sort(key=lambda r: r.time)
    payloads = list(sessionise(log))
    check_account(log, payloads)
    times = [payload.forwarded_at for payload in payloads]
    assert times == sorted(times)
    visitors: dict[tuple[str, str | None], list[float]] = defaultdict(list)
    for each in log:
        visitors[each.client, each.user_agent].append(each.time)
    sessions = [[a.timestamp_start for a in actions] for actions in actions_by_session(payloads).values()]
    expected: list[list[float]] = []
    for stamps in visitors.values():
        for stamp in stamps:
            if expected and stamp is not stamps[0] and stamp - expected[-1][-1] <= 1800:
                expected[-1].append(stamp)
            else:
                expected.append([stamp])
    assert sorted(sessions) == sorted(expected)


@given(st.lists(st.tuples(st.integers(0, 9000), st.integers(0, 59)), max_size=80))
def test_lines_late_by_less_than_a_minute_come_in_order(stamps: list[tuple[int, int]]) -> None:
    """A line is written at the end of its request, so a log is in order of time plus lateness."""
    log = [request(at) for at, lateness in sorted(stamps, key=sum)]
    payloads = list(sessionise(log))
    for actions in actions_by_session(payloads).values():
        assert [a.timestamp_start for a in actions] == sorted(a.timestamp_start for a in actions)
    assert sum(map(len, actions_by_session(payloads).values())) == len(log)


@given(LOGS)
def test_any_disorder_loses_nothing(log: list[Request]) -> None:
    payloads = list(sessionise(log))
    counted = sum(payload.count for payload in payloads if isinstance(payload, ActionsPayload))
    assert counted == len(log) == sum(summary.replaces for summary in summaries(payloads))


@pytest.mark.parametrize(
    ("path", "page", "title"),
    [
        ("/", "/", "Home"),
        ("/?utm=1", "/", "Home"),
        ("", "/", "Home"),
        ("//blog//tags/", "/blog/tags", "Tags"),
        ("/blog/two-ways_of%20it#top", "/blog/two-ways_of%20it", "Two ways of it"),
        ("/orders/1842", "/orders/:id", "Orders 1842"),
        ("/1842", "/:id", "1842"),
        ("/img/2009/12/banner.png?v=3", "/img/:id/:id/banner.png", "Banner.png"),
        ("/files/1842.html", "/files/:id.html", "Files 1842.html"),
        ("/u/6ba7b810-9dad-11d1-80b4-00c04fd430c8/edit", "/u/:id/edit", "Edit"),
        ("/commit/9c9636947d10607a1b2c", "/commit/:id", "Commit 9c9636947d10607a1b2c"),
        ("/feedface/v2", "/feedface/v2", "V2"),
        ("http://example.com//a/7?b", "http://example.com/a/:id", "A 7"),
        ("mail.example.com:443", "mail.example.com:443", "Mail.example.com:443"),
        ("*", "*", "*"),
    ],
)
def test_pages_and_titles(path: str, page: str, title: str) -> None:
    assert canonical_path(path) == page
    assert page_title(path) == title


@given(st.text())
def test_any_path_has_a_page_and_a_title(path: str) -> None:
    page = canonical_path(path)
    assert page
    assert canonical_path(page) == page
    assert page_title(path)
