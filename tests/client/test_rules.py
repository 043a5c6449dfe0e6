"""The pure rules: states, heads, back-off, options, checkpoints, the duplicate window."""

from __future__ import annotations

import os
from email.utils import formatdate
from pathlib import Path

import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from connector_sdk import AsyncConnectorClient, ConnectorClient, FileCheckpoint, MemoryCheckpoint, Retry
from connector_sdk.client.intake import DuplicateWindow
from connector_sdk.client.options import ENVIRONMENT, ClientOptions
from connector_sdk.client.session import (
    TRANSITIONS,
    ConnectionState,
    Session,
    check_head,
    redirect_target,
    retry_after_seconds,
    same_origin,
)
from connector_sdk.errors import CheckpointError, ConfigurationError, FatalStreamError, TransientStreamError
from connector_sdk.retries import MAX_SERVER_DELAY, ReconnectSchedule

URL = "http://127.0.0.1:9/stream/p"
SSE = {"content-type": "text/event-stream; charset=latin-1"}


class TestHead:
    def test_200_with_the_right_type_opens_whatever_the_charset(self) -> None:
        assert check_head(URL, 200, SSE, b"", wall_clock=0)

    def test_204_ends_quietly(self) -> None:
        assert not check_head(URL, 204, {}, b"", wall_clock=0)

    @pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 410, 418, 451, 206, 304])
    def test_fatal(self, status: int) -> None:
        with pytest.raises(FatalStreamError, match=f"{status}.*no such product") as caught:
            check_head(URL, status, SSE, b"no such product", wall_clock=0)
        assert (caught.value.status, caught.value.body_start) == (status, b"no such product")

    @pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 599])
    def test_retried_as_the_server_asks(self, status: int) -> None:
        with pytest.raises(TransientStreamError) as caught:
            check_head(URL, status, {"retry-after": "7"}, b"", wall_clock=0)
        assert (caught.value.status, caught.value.retry_after) == (status, 7.0)

    @pytest.mark.parametrize("kind", ["text/html", "", "text/event-streams", "application/json"])
    def test_another_content_type_is_fatal_and_shown(self, kind: str) -> None:
        with pytest.raises(FatalStreamError, match="<h1>Login"):
            check_head(URL, 200, {"content-type": kind}, b"<h1>Login" + b"x" * 500, wall_clock=0)

    def test_no_secret_of_the_url_is_in_the_message(self) -> None:
        with pytest.raises(FatalStreamError) as caught:
            check_head("http://me:hunter2@h/stream?key=hunter2", 404, {}, b"", wall_clock=0)
        assert "hunter2" not in str(caught.value)

    def test_retry_after(self) -> None:
        assert retry_after_seconds("120", 0) == 120
        assert retry_after_seconds(formatdate(1_000_060, usegmt=True), 1_000_000) == 60
        assert retry_after_seconds(formatdate(1_000_000, usegmt=True), 1_000_060) == 0
        for unreadable in (None, "", "-5", "soon", "1.5", "٣"):
            assert retry_after_seconds(unreadable, 0) is None

    def test_redirects(self) -> None:
        assert redirect_target(URL, 200, {}) is None
        assert redirect_target(URL, 307, {"location": "/other"}) == "http://127.0.0.1:9/other"
        bad = ["", "ftp://x/", "javascript:x", "http://[bad/", "http://h:99999/x", "http://xn--a/"]
        for nowhere in [{}, *({"location": location} for location in bad)]:
            with pytest.raises(FatalStreamError, match="no http or https address"):
                redirect_target(URL, 302, nowhere)

    def test_origins(self) -> None:
        assert same_origin("http://h/a", "http://h:80/b?c")
        for other in ("https://h/a", "http://h:81/a", "http://g/a"):
            assert not same_origin("http://h/a", other)


class TestSession:
    def test_every_state_can_be_left_and_reached(self) -> None:
        assert set(TRANSITIONS) == set(ConnectionState)
        assert set().union(*TRANSITIONS.values()) == set(ConnectionState)
        assert all(ConnectionState.CLOSED in TRANSITIONS[state] for state in ConnectionState if state != "closed")

    def test_a_move_that_is_not_in_the_table_is_refused(self) -> None:
        with pytest.raises(AssertionError, match="no way from idle to open"):
            Session().move(ConnectionState.OPEN)

    def test_the_cursor_and_the_token_go_into_the_headers(self) -> None:
        headers = dict(Session(cursor="42 \N{LATIN SMALL LETTER E WITH ACUTE}").request_headers("secret"))
        assert headers[b"Last-Event-ID"] == b"42 \xc3\xa9"
        assert headers[b"Authorization"] == b"Bearer secret"
        without = dict(Session().request_headers(""))
        assert b"Last-Event-ID" not in without
        assert b"Authorization" not in without

    @pytest.mark.parametrize("cursor", [" x", "x ", "a\x01b", "\t"])
    def test_an_id_that_no_header_can_carry_is_a_gap_and_no_error(self, cursor: str) -> None:
        session = Session(cursor=cursor)
        assert b"Last-Event-ID" not in dict(session.request_headers(""))
        session.move(ConnectionState.CONNECTING)
        gap = session.connected({}, now=0.0, wall_clock=0.0)
        assert gap is not None
        assert gap.last_event_id == cursor

    def connect(self, session: Session, headers: dict[str, str] | None = None, now: float = 0.0) -> object:
        session.request_headers("")
        session.move(ConnectionState.CONNECTING)
        return session.connected(headers or {}, now=now, wall_clock=1000.0)

    def test_the_first_connection_is_no_gap_and_a_resumed_one_is_none(self) -> None:
        session = Session()
        assert self.connect(session) is None
        session.cursor = "5"
        session.move(ConnectionState.BACKOFF)
        assert self.connect(session) is None
        session.move(ConnectionState.BACKOFF)
        assert self.connect(session, {"last-event-id": "5"}) is None

    def test_a_reconnect_without_ids_is_a_gap(self) -> None:
        session = Session()
        self.connect(session)
        session.last_event_at = 990.0
        session.move(ConnectionState.BACKOFF)
        gap = self.connect(session)
        assert msgspec.to_builtins(gap) == {
            "last_event_id": "",
            "since": 990.0,
            "until": 1000.0,
            "reason": "the server sends no event ids, so nothing can be resumed",
        }

    def test_a_server_that_resumes_from_elsewhere_is_a_gap(self) -> None:
        gap = self.connect(Session(cursor="5"), {"last-event-id": "earliest"})
        assert gap is not None

    def test_health_is_earned_by_time_and_once(self) -> None:
        session = Session(healthy_after=60)
        self.connect(session, now=100.0)
        assert not session.proved_good(159.9)
        assert not session.proved_good(1000.0), "the connection had ended"
        session.move(ConnectionState.BACKOFF)
        self.connect(session, now=200.0)
        assert session.proved_good(260.0)


class TestSchedule:
    def schedule(self, max_retries: int | None = None) -> ReconnectSchedule:
        return ReconnectSchedule(initial=1, maximum=30, max_retries=max_retries, uniform=lambda low, high: high)

    def test_flaps_wait_longer_and_longer_up_to_the_cap(self) -> None:
        """X2: autoplay-sdk retries a clean close at the initial delay for ever."""
        schedule = self.schedule()
        assert [schedule.failed() for _ in range(7)] == [1, 2, 4, 8, 16, 30, 30]

    def test_jitter_is_full(self) -> None:
        seen: list[float] = []

        def lowest(low: float, high: float) -> float:
            seen.extend((low, high))
            return low

        assert ReconnectSchedule(initial=1, maximum=30, max_retries=None, uniform=lowest).failed() == 0.0
        assert seen == [0.0, 1.0]

    def test_only_an_earned_reset_starts_over(self) -> None:
        schedule = self.schedule()
        schedule.failed()
        schedule.failed()
        assert schedule.failures == 2
        schedule.earned_reset()
        assert (schedule.failures, schedule.failed()) == (0, 1)

    def test_max_retries_ends_it(self) -> None:
        schedule = self.schedule(max_retries=2)
        assert [schedule.failed() for _ in range(3)] == [1, 2, None]
        assert schedule.failures == 3
        assert self.schedule(max_retries=0).failed() is None

    def test_the_server_is_obeyed(self) -> None:
        schedule = self.schedule()
        assert schedule.failed(retry_after=50) == 50
        schedule.obey_server(7)
        schedule.earned_reset()
        assert schedule.failed() == 7
        assert schedule.failed() == 14
        assert schedule.failed(retry_after=1e9) == MAX_SERVER_DELAY

    def test_a_long_run_of_failures_does_not_overflow(self) -> None:
        schedule = self.schedule()
        assert {schedule.failed() for _ in range(3000)} >= {30}


class TestDuplicateWindow:
    def test_the_last_ids_are_remembered(self) -> None:
        window = DuplicateWindow(size=10, seconds=600)
        assert not any(window.seen_before(str(i), 0.0) for i in range(100))
        assert all(window.seen_before(str(i), 0.0) for i in range(90, 100))

    def test_old_ids_are_forgotten(self) -> None:
        window = DuplicateWindow(size=1000, seconds=600)
        window.seen_before("a", 0.0)
        assert window.seen_before("a", 599.0)
        window.seen_before("b", 601.0)
        window.seen_before("c", 1900.0)
        assert not window.seen_before("a", 1900.0)

    @given(st.lists(st.integers(0, 30), max_size=200))
    def test_within_the_window_nothing_comes_twice(self, ids: list[int]) -> None:
        window = DuplicateWindow(size=31, seconds=600)
        seen: set[int] = set()
        for number in ids:
            assert window.seen_before(str(number), 0.0) == (number in seen)
            seen.add(number)


BAD_OPTIONS: list[tuple[str, object, str]] = [
    ("url", "", "CONNECTOR_URL"),
    ("url", "connector.example/stream", "http or https"),
    ("url", "ftp://connector.example/", "http or https"),
    ("url", "http://", "http or https"),
    ("url", "http://h:99999/", "http or https"),
    ("url", "http://[::1", "http or https"),
    ("max_queue_size", 0, "1 or more"),
    ("max_queue_size", 1.5, "a whole number"),
    ("max_queue_size", True, "a whole number"),
    ("overflow", "spill", "'block'"),
    ("session_concurrency", 0, "1 or more"),
    ("connect_timeout", 0, "above 0"),
    ("connect_timeout", "5", "finite number of seconds"),
    ("read_timeout", float("inf"), "finite"),
    ("read_timeout", float("nan"), "finite"),
    ("initial_backoff", -1, "above 0"),
    ("max_backoff", 0.5, "1 (initial_backoff) or more"),
    ("max_retries", -1, "0 or more"),
    ("healthy_after", -1, "0 or more"),
    ("max_event_bytes", 10, "1024 or more"),
    ("max_threads", 0, "1 or more"),
    ("checkpoint", "file.json", "FileCheckpoint"),
    ("http_client", object(), "httpx.AsyncClient"),
    ("on_connect", 5, "function"),
]


@pytest.mark.parametrize("client", [AsyncConnectorClient, ConnectorClient])
class TestOptions:
    @pytest.mark.parametrize(("option", "value", "allowed"), BAD_OPTIONS)
    def test_a_wrong_option_is_named_with_what_is_allowed(
        self, client: type[ConnectorClient], option: str, value: object, allowed: str
    ) -> None:
        arguments: dict[str, object] = {"url": URL, option: value}
        with pytest.raises(ConfigurationError) as caught:
            client(**arguments)  # type: ignore[arg-type]  # wrong types are the test
        assert option in str(caught.value)
        assert allowed in str(caught.value)
        assert isinstance(caught.value, ValueError)

    def test_argument_beats_environment_beats_default(
        self, client: type[ConnectorClient], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CONNECTOR_URL", URL)
        monkeypatch.setenv("CONNECTOR_MAX_QUEUE_SIZE", "7")
        monkeypatch.setenv("CONNECTOR_READ_TIMEOUT", "8.5")
        monkeypatch.setenv("CONNECTOR_MAX_RETRIES", "3")
        monkeypatch.setenv("CONNECTOR_OVERFLOW", "block")
        options = client()._options
        assert (options.url, options.max_queue_size, options.read_timeout, options.max_retries) == (URL, 7, 8.5, 3)
        assert options.overflow == "block"
        options = client(max_queue_size=500, read_timeout=90.0)._options
        assert (options.max_queue_size, options.read_timeout) == (500, 90.0), "given, although equal to the default"
        assert options.connect_timeout == 10.0

    @pytest.mark.parametrize("option", sorted(set(ENVIRONMENT) - {"token"}))
    def test_a_wrong_variable_is_named(
        self, client: type[ConnectorClient], option: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(ENVIRONMENT[option], "nonsense")
        with pytest.raises(ConfigurationError, match=ENVIRONMENT[option]):
            client("" if option == "url" else URL)

    @pytest.mark.parametrize("token", ["a\nb", "tök", "t ", " t", 5, b"x"])
    def test_a_token_that_cannot_stand_in_a_header_is_refused_unseen(
        self, client: type[ConnectorClient], token: object
    ) -> None:
        with pytest.raises(ConfigurationError) as caught:
            client(URL, token)  # type: ignore[arg-type]  # wrong types are the test
        assert "token=<hidden>" in str(caught.value)

    def test_a_sync_http_client_is_refused_with_advice(self, client: type[ConnectorClient]) -> None:
        with httpx.Client() as wrong, pytest.raises(ConfigurationError, match="AsyncClient"):
            client(URL, http_client=wrong)  # type: ignore[arg-type]  # wrong types are the test

    def test_overflow_blocks_with_a_checkpoint_and_drops_without(self, client: type[ConnectorClient]) -> None:
        assert client(URL)._options.overflow == "drop_newest"
        assert client(URL, checkpoint=MemoryCheckpoint())._options.overflow == "block"
        assert client(URL, checkpoint=MemoryCheckpoint(), overflow="drop_oldest")._options.overflow == "drop_oldest"

    def test_the_repr_helps_and_hides(self, client: type[ConnectorClient]) -> None:
        shown = repr(client("http://me:hunter2@h/stream/p?key=hunter2", "hunter2"))
        assert "http://h/stream/p idle, 0 waiting, 0 dropped" in shown
        assert "hunter2" not in shown + repr(client("http://me:hunter2@h/?a=hunter2", "hunter2")._options)

    def test_every_number_has_a_variable(self, client: type[ConnectorClient]) -> None:
        not_from_environment = {"checkpoint", "leader", "http_client"}
        assert set(ENVIRONMENT) == set(ClientOptions.__struct_fields__) - not_from_environment

    def test_registrations_chain_and_refuse_nonsense(self, client: type[ConnectorClient]) -> None:
        one = client(URL)
        assert (
            one.on_actions(print).on_summary(print).on_event("*", print).on_drop(print).on_gap(print).on_error(print)
            is one
        )
        assert one.remove(print) is one
        with pytest.raises(ConfigurationError, match="was registered"):
            one.remove(print)
        with pytest.raises(ConfigurationError, match="add"):
            one.into(object())  # type: ignore[arg-type]  # wrong types are the test
        with pytest.raises(ConfigurationError, match="on_failure"):
            one.on_actions(print, on_failure="explode")  # type: ignore[arg-type]  # wrong values are the test
        with pytest.raises(ConfigurationError, match="event_type"):
            one.on_event("", print)
        with pytest.raises(ConfigurationError, match="fn"):
            one.on_actions(5)  # type: ignore[arg-type]  # wrong types are the test
        with pytest.raises(ConfigurationError, match="retries"):
            one.on_actions(print, on_failure=Retry(retries=0))


@pytest.mark.anyio
class TestCheckpoints:
    async def test_a_file_keeps_the_id(self, tmp_path: Path) -> None:
        store = FileCheckpoint(tmp_path / "id")
        assert await store.load("http://h/s") is None
        await store.save("http://h/s", "5")
        await store.save("http://h/s", "6")
        assert await FileCheckpoint(tmp_path / "id").load("http://h/s") == "6"
        assert os.listdir(tmp_path) == ["id"], "no temporary file is left"

    async def test_a_file_of_another_stream_is_refused(self, tmp_path: Path) -> None:
        await FileCheckpoint(tmp_path / "id").save("http://h/s", "5")
        with pytest.raises(CheckpointError, match=r"belongs to http://h/s, not to http://h/t"):
            await FileCheckpoint(tmp_path / "id").load("http://h/t")

    @pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"\xff\xfe", b'{"stream":1}'])
    async def test_a_damaged_file_is_refused_not_ignored(self, tmp_path: Path, damage: bytes) -> None:
        (tmp_path / "id").write_bytes(damage)
        with pytest.raises(CheckpointError, match="damaged"):
            await FileCheckpoint(tmp_path / "id").load("http://h/s")
        assert (tmp_path / "id").read_bytes() == damage

    async def test_a_folder_that_is_not_there_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="cannot be written"):
            await FileCheckpoint(tmp_path / "nowhere" / "id").save("http://h/s", "5")

    async def test_memory(self) -> None:
        store = MemoryCheckpoint()
        assert await store.load("s") is None
        await store.save("s", "5")
        assert (await store.load("s"), await store.load("t")) == ("5", None)
