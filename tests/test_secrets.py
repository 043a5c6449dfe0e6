"""
No secret comes out anywhere: marked ones are planted in every option, real things happen, and all output is searched.

Output is: log records (message, arguments, extras at every level; tracebacks from INFO on), reprs, errors, observer facts,
stats as JSON, the checkpoint file, and what the programs print. Payload bodies may be logged at DEBUG, and not above.

X13: autoplay-sdk logs its URL, password included, at INFO.
"""

from __future__ import annotations

import base64
import logging
import os
import re
import secrets
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import httpx
import msgspec
import pytest

from connector_sdk import (
    BufferFullError,
    CheckpointError,
    ConfigurationError,
    ConnectorClient,
    EventBuffer,
    FatalStreamError,
    FileCheckpoint,
    MemoryCheckpoint,
    PayloadError,
    Retry,
    SummaryPayload,
    decode_payload,
)
from connector_sdk.client.options import ClientOptions
from connector_sdk.payloads import Payload
from connector_sdk.testing import (
    ConnectorServer,
    Cut,
    Garbage,
    Raw,
    Redirect,
    Refuse,
    Silence,
    Status,
    Step,
)
from tests.client.harness import PATIENCE, Client, Faces
from tests.lines import next_line
from tests.servers.fixtures import Server, one_kind

ROOT = Path(__file__).parents[1]
MARK = "SECRET-"


#: Also as it looks at the start of a Basic authorization.
FOUND = re.compile(f"{MARK}|{base64.b64encode(MARK[:6].encode()).decode()}")


def plant(name: str) -> str:
    """Make a secret that the search finds, and that names itself in the message of a failing test."""
    return f"{MARK}{name}-{secrets.token_hex(4)}"


#: What happens in a payload; allowed at DEBUG.
BODY = f"BODY-{secrets.token_hex(4)}"
STANDARD = frozenset(vars(logging.makeLogRecord({})))


class Watch(logging.Handler):
    """Keeps every log record of the process."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def texts(self, level: int, *, ours: bool = True) -> Iterator[str]:
        """What records of *level* and above say, of this library or of all others."""
        for record in list(self.records):
            if record.levelno < level or record.name.startswith("connector_sdk") is not ours:
                continue
            extras = {name: value for name, value in vars(record).items() if name not in STANDARD}
            where = f"{record.levelname} {record.name}: "
            yield where + record.getMessage()
            yield f"{where}{record.args!r} {extras!r}"
            if record.exc_info and record.levelno >= logging.INFO:
                yield where + "".join(traceback.format_exception(*record.exc_info))


@pytest.fixture
def watch() -> Iterator[Watch]:
    handler = Watch()
    root = logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        yield handler
    finally:
        root.setLevel(before)
        root.removeHandler(handler)


class Listener:
    """An Observer that keeps all facts, whatever they are called; errors are the callbacks' own and kept by type."""

    def __init__(self) -> None:
        self.facts: list[str] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        def keep(**facts: object) -> None:
            shown = {key: type(value) if isinstance(value, BaseException) else value for key, value in facts.items()}
            self.facts.append(f"{name} {shown!r}")

        return keep


class Case:
    """One client with secrets in every option that can hold one, and everything that it lets out."""

    def __init__(
        self, faces: Faces, watch: Watch, place: Path, *, script: tuple[Step, ...] = (), **server: object
    ) -> None:
        self.faces = faces
        self.watch = watch
        self.listener = Listener()
        self.place = place
        self.token = plant("token")
        self.told: list[str] = []
        self.server = ConnectorServer(
            [SummaryPayload("p", "s", f"{BODY} {number}", forwarded_at=1.7e9) for number in range(5)],
            script=script,
            **{"end": "stop", **server},  # type: ignore[arg-type]  # its options by name
        )
        self.error: BaseException | None = None

    def url(self, *, userinfo: bool = True) -> str:
        """The stream with secrets in user, password, query and fragment."""
        address = self.server.url.removeprefix("http://")
        user = f"{plant('user')}:{plant('password')}@" if userinfo else ""
        return f"http://{user}{address}?key={plant('query')}#{plant('fragment')}"

    def client(self, url: str = "", token: object = None, **options: object) -> Client:
        headers = {"X-Api-Key": plant("header"), "Cookie": plant("cookie")}
        self.http_client = httpx.AsyncClient(headers=headers)
        return self.faces.client(
            url or self.url(),
            self.token if token is None else token,
            **{
                "checkpoint": FileCheckpoint(self.place),
                "observer": self.listener,
                "http_client": self.http_client,
                "max_retries": 3,
                "read_timeout": 0.2,
                **options,
            },
        )

    def run(self, client: Client) -> Client:
        """Run to the end; hooks note what they are told."""
        client.on_error(lambda error, payload: self.told.append(f"{type(error).__name__}"))
        client.on_gap(lambda gap: self.told.append(repr(gap)))
        running = self.faces.run(client).start()
        running.join()
        self.error = running.error
        return client

    def output(self, client: Client) -> Iterator[str]:
        """Everything but the log."""
        yield repr(client)
        yield str(client)
        yield repr(client._options)
        yield repr(client._engine)
        yield client.closed_reason
        yield repr(client.stats())
        yield msgspec.json.encode(client.stats()).decode()
        yield client._options.stream
        if self.error is not None:
            yield str(self.error)
            yield repr(self.error)
            yield "".join(traceback.format_exception(self.error))
        yield from self.listener.facts
        yield from self.told
        if self.place.exists():
            yield self.place.read_text()
        yield repr(self.server)

    def search(self, client: Client) -> None:
        """Fail when a secret is in any output, or a payload's body in a log above DEBUG."""
        for text in [*self.output(client), *self.watch.texts(logging.DEBUG)]:
            assert not FOUND.search(text)
        for text in self.watch.texts(logging.INFO):
            assert BODY not in text


@pytest.fixture
def case(faces: Faces, watch: Watch, tmp_path: Path) -> Callable[..., Case]:
    return lambda *script, **server: Case(faces, watch, tmp_path / "place", script=script, **server)


@pytest.fixture(params=["sync", "asyncio"])
def faces(request: pytest.FixtureRequest) -> Faces:
    return Faces(request.param)


def test_success_with_cuts(case: Callable[..., Case]) -> None:
    one = case(
        Cut(after_events=2, into_next=9), Cut(after_events=1, how="reset"), Status(503), Refuse(), Garbage(b"no\n")
    )
    with one.server:
        client = one.client(one.url(userinfo=False), max_retries=None).on_summary(lambda payload: None)
        one.run(client)
        assert one.server.requests[0].authorization == f"Bearer {one.token}", "it was really sent"
        assert one.server.requests[0].headers["x-api-key"].startswith(MARK)
        assert MARK in one.server.requests[0].path
    assert client.stats().ledger.delivered == 5
    assert one.place.exists()
    one.search(client)
    assert any("not connected" in text for text in one.watch.texts(logging.WARNING)), "something was really logged"


def test_a_token_is_sent_although_the_url_names_a_user(case: Callable[..., Case]) -> None:
    one = case()
    with one.server:
        client = one.run(one.client().on_summary(lambda payload: None))
        assert {request.authorization for request in one.server.requests} == {f"Bearer {one.token}"}
    one.search(client)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_fatal_answers(case: Callable[..., Case], status: int) -> None:
    one = case(Status(status, body=b"go away"))
    with one.server:
        client = one.run(one.client())
    assert isinstance(one.error, FatalStreamError)
    one.search(client)


@pytest.mark.parametrize("status", [401, 404, 200])
def test_an_answer_that_repeats_the_secrets(case: Callable[..., Case], status: int) -> None:
    """Servers and proxies show a request that they do not like, headers included."""
    token, query = plant("token"), plant("query")
    body = f"denied: GET /?key={query} Authorization: Bearer {token}".encode()
    one = case(Status(status, {"Content-Type": "text/plain", "X-Echo": token}, body))
    with one.server as server:
        client = one.run(one.client(f"{server.url}?key={query}", token))
    assert isinstance(one.error, FatalStreamError)
    one.search(client)


def test_a_wrong_content_type(case: Callable[..., Case]) -> None:
    one = case(Status(200, {"Content-Type": "text/html"}, b"<html>sign in"))
    with one.server:
        client = one.run(one.client())
    assert "text/html" in str(one.error)
    one.search(client)


def test_redirects(case: Callable[..., Case]) -> None:
    other = ConnectorServer([], script=[Status(404)] * 2)
    with other:
        one = case(Redirect(f"http://127.0.0.1:{other.port}/stream/demo?k={plant('to')}"))
        with one.server:
            client = one.run(one.client())
        assert [request.authorization for request in other.requests] == [None]
        assert "x-api-key" in other.requests[0].headers, "a header of one's own client is one's own concern"
    one.search(client)
    assert isinstance(one.error, FatalStreamError)


@pytest.mark.parametrize("location", ["ftp://me:{0}@h/x?k={0}", "//me:{0}@127.0.0.1:1/x?k={0}", "?k={0}"])
def test_redirects_that_lead_nowhere(case: Callable[..., Case], location: str) -> None:
    one = case(Redirect(location.format(plant("location"))) * 20)
    with one.server:
        client = one.run(one.client(max_retries=0))
    assert one.error is not None
    one.search(client)


def test_nobody_listens(case: Callable[..., Case]) -> None:
    one = case()
    with one.server:
        url = one.url()
    client = one.run(one.client(url, max_retries=1))
    assert "attempts in a row failed" in str(one.error)
    one.search(client)


def test_silence(case: Callable[..., Case]) -> None:
    one = case(Silence(after_events=1))
    with one.server:
        client = one.run(one.client(read_timeout=0.05).on_summary(lambda payload: None))
    one.search(client)


def test_gaps(case: Callable[..., Case]) -> None:
    one = case(Cut(after_events=2), ids=False)
    with one.server:
        client = one.run(one.client().on_summary(lambda payload: None))
    assert client.stats().gaps
    one.search(client)


@pytest.mark.parametrize("policy", ["log", "park", "stop", Retry(retries=1, backoff=0.001)])
@pytest.mark.parametrize("is_async", [False, True])
def test_callbacks_that_fail_with_a_secret(case: Callable[..., Case], policy: str | Retry, is_async: bool) -> None:
    """What a callback puts into its error is shown at DEBUG only, as a traceback."""
    secret = plant("callback")

    def fail(payload: SummaryPayload) -> None:
        raise RuntimeError(f"{secret} {payload.summary}")

    async def fail_async(payload: SummaryPayload) -> None:
        fail(payload)

    one = case()
    with one.server:
        client = one.client().on_drop(lambda payload, total: fail(payload))  # type: ignore[arg-type]  # only summaries here
        client.on_summary(fail_async if is_async else fail, on_failure=policy)  # type: ignore[arg-type]  # as parametrized
        one.run(client)
    assert client.stats().handler_errors
    if one.error is not None:  # its cause is the callback's own error, which is not ours to change
        one.error = one.error.with_traceback(None)
        one.error.__cause__ = None
    one.search(client)


def test_a_token_function(case: Callable[..., Case]) -> None:
    one = case(Status(401))
    with one.server:
        client = one.client(one.url(userinfo=False), token=lambda: one.token).on_summary(lambda payload: None)
        one.run(client)
        assert one.server.requests[1].authorization == f"Bearer {one.token}"
    one.search(client)


@pytest.mark.parametrize("answer", ["{0}\n", "{0}é", ["{0}"]])
def test_a_token_function_that_returns_nonsense(case: Callable[..., Case], answer: object) -> None:
    secret = plant("answer")
    given = answer.format(secret) if isinstance(answer, str) else [secret]
    one = case()
    with one.server:
        client = one.run(one.client(token=lambda: given))
    assert isinstance(one.error, ConfigurationError)
    one.search(client)


def test_a_token_function_that_fails_with_a_secret(case: Callable[..., Case]) -> None:
    def fail() -> str:
        raise RuntimeError(plant("token function"))

    one = case()
    with one.server:
        client = one.run(one.client(token=fail, max_retries=1))
    assert "the token function raised RuntimeError" in str(one.error)
    assert one.error is not None
    one.error.__cause__ = None  # ends with the function's own error, which is not ours to change
    one.search(client)


class _Secretive(MemoryCheckpoint):
    """A store of the user's, with a password in its address and so in its errors."""

    def __init__(self, *, loads: bool) -> None:
        super().__init__()
        self._loads = loads
        self._secret = plant("store")

    async def load(self, stream: str) -> str | None:
        if self._loads:
            return None
        raise RuntimeError(f"no answer from redis://:{self._secret}@h")

    async def save(self, stream: str, event_id: str) -> None:
        raise RuntimeError(f"no answer from redis://:{self._secret}@h")

    def __repr__(self) -> str:
        return "Secretive()"


@pytest.mark.parametrize("loads", [True, False])
def test_a_checkpoint_store_that_fails_with_a_secret(case: Callable[..., Case], loads: bool) -> None:
    one = case()
    with one.server:
        client = one.run(one.client(checkpoint=_Secretive(loads=loads)).on_summary(lambda payload: None))
    if not loads:
        assert isinstance(one.error, CheckpointError)
        one.error.__cause__ = None  # the store's own error
    one.search(client)


def test_events_that_are_dropped(case: Callable[..., Case]) -> None:
    """Too large, no JSON, not asked for, no place: their bodies are in no log."""
    raw = (
        b'id: 1\ndata: {"type":"summary","summary":"' + BODY.encode() + b"x" * 4000 + b'"}\n\n'
        b"id: 2\ndata: " + BODY.encode() + b"\n\n"
        b'id: 3\ndata: ["' + BODY.encode() + b'"]\n\n'
        b'id: 4\ndata: {"type":"actions","count":3,"actions":[],"email":"' + BODY.encode() + b'"}\n\n'
        b'id: 5\ndata: {"type":"summary","summary":"' + BODY.encode() + b'"}\n\n'
    )
    one = case(Raw(raw))
    with one.server:
        client = one.run(one.client(max_event_bytes=2048).on_event("other", lambda payload: None))
    dropped = client.stats().ledger.dropped
    assert {str(reason) for reason in dropped} >= {"oversized", "undecodable", "unhandled"}
    one.search(client)
    for text in one.output(client):
        assert BODY not in text


def test_a_run_in_the_background_that_ends_with_an_error(watch: Watch, tmp_path: Path) -> None:
    one = Case(Faces("sync"), watch, tmp_path / "place", script=(Status(403),))
    with one.server:
        client = one.client()
        assert isinstance(client, ConnectorClient)
        thread = client.run_in_background()
        thread.join(PATIENCE)
    assert any(record.levelno == logging.ERROR for record in watch.records)
    assert not FOUND.search(repr(thread))
    one.search(client)


WRONG_URLS = [
    "ftp://{0}:{0}@host/stream/p?k={0}#{0}",
    "http://{0}:{0}@/stream/p?k={0}",
    "http://me:{0}@host:port/stream/p",
    "http://me:{0}@host:0/stream/p?k={0}",
    "me:{0}@host/stream/p",
    "https:me:{0}@host/stream/p",
    "//me:{0}@host/stream/p?k={0}",
    "http://[me:{0}@host/stream/p",
]


@pytest.mark.parametrize("url", WRONG_URLS)
@pytest.mark.parametrize("way", ["argument", "environment"])
def test_a_wrong_url(url: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = url.format(plant("url"))
    if way == "environment":
        monkeypatch.setenv("CONNECTOR_URL", wrong)
    with pytest.raises(ConfigurationError) as caught:
        ConnectorClient(wrong if way == "argument" else "")
    _search_error(caught.value)


WRONG_TOKENS: Mapping[str, Callable[[str], object]] = {
    "two lines": lambda secret: f"{secret}\r\nX: y",
    "no ASCII": lambda secret: f"{secret}é",
    "bytes": lambda secret: secret.encode(),
    "a list": lambda secret: [secret],
    "a mapping": lambda secret: {"token": secret},
}


@pytest.mark.parametrize("kind", WRONG_TOKENS)
def test_a_wrong_token(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    token = WRONG_TOKENS[kind](plant("token"))
    with pytest.raises(ConfigurationError) as caught:
        ConnectorClient("http://h/stream/p", token)  # type: ignore[arg-type]  # wrong on purpose
    _search_error(caught.value)
    if isinstance(token, str):
        monkeypatch.setenv("CONNECTOR_TOKEN", token)
        with pytest.raises(ConfigurationError) as from_environment:
            ConnectorClient("http://h/stream/p")
        assert from_environment.value.option == "CONNECTOR_TOKEN"
        _search_error(from_environment.value)


def test_other_wrong_options_do_not_show_the_secrets() -> None:
    with pytest.raises(ConfigurationError) as caught:
        ConnectorClient(f"http://me:{plant('url')}@h/stream/p", plant("token"), max_queue_size=0)
    _search_error(caught.value)
    with pytest.raises(ConfigurationError) as caught:
        ConnectorClient(
            "http://h/stream/p",
            http_client=httpx.Client(headers={"Authorization": plant("header")}),  # type: ignore[arg-type]  # wrong on purpose
        )
    _search_error(caught.value)


def _search_error(error: BaseException) -> None:
    for text in (str(error), repr(error), repr(vars(error)), "".join(traceback.format_exception(error))):
        assert not FOUND.search(text)


def test_options_show_nothing(faces: Faces) -> None:
    client = faces.client(f"http://me:{plant('url')}@h/stream/p?k={plant('query')}", plant("token"))
    options: ClientOptions = client._options
    for text in (repr(client), repr(options), str(options), f"{options}", options.stream, repr(client.stats())):
        assert not FOUND.search(text)


def test_buffers_log_no_payload(watch: Watch) -> None:
    """Nor does an error or a repr show one."""
    payload = SummaryPayload("p", BODY, BODY, event_id=BODY)

    def fail(dropped: Payload) -> None:
        raise RuntimeError(f"cannot store {dropped.to_text()}")

    for options in (
        {"on_drop": fail},
        {"overflow": "drop_newest"},
        {"overflow": "raise"},
        {"max_bytes": 10},
        {"max_age": 1e-9},
        {"observer": Listener()},
    ):
        buffer = EventBuffer(1, **options)
        errors: list[Exception] = []
        for _ in range(3):
            try:
                buffer.add(payload)
            except BufferFullError as error:
                errors.append(error)
        with buffer.lease() as lease:
            texts = [repr(lease), repr(buffer), repr(buffer.as_backend()), repr(buffer.stats()), *map(repr, errors)]
        assert not [text for text in texts if BODY in text]
    for wrong in (BODY, BODY.encode(), {"summary": BODY}):
        with pytest.raises(PayloadError) as caught:
            EventBuffer().add(wrong)  # type: ignore[arg-type]  # wrong on purpose
        assert BODY not in str(caught.value)
    with pytest.raises(PayloadError) as caught:
        decode_payload(f'{{"summary": {BODY}'.encode())
    assert BODY not in f"{caught.value} {caught.value!r}"
    assert not [text for text in watch.texts(logging.INFO) if BODY in text]


@pytest.mark.parametrize("with_token", [True, False])
def test_the_libraries_below_log_no_secret_above_debug(case: Callable[..., Case], with_token: bool) -> None:
    """httpx logs each request at INFO, with its address."""
    one = case()
    with one.server:
        one.run(one.client(token=one.token if with_token else "").on_summary(lambda payload: None))
    leaks = [text for text in one.watch.texts(logging.INFO, ours=False) if FOUND.search(text)]
    assert not leaks


def _run(command: list[str], environment: Mapping[str, str], *, until: str = "") -> str:
    """Run a program to its end, or interrupt it once it has printed *until*; return all it printed."""
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "CONNECTOR_INITIAL_BACKOFF": "0.01", "PYTHONUNBUFFERED": "1", **environment},
    ) as process:
        try:
            if not until:
                return process.communicate(timeout=PATIENCE)[0]
            assert process.stdout is not None
            seen = ""
            while until not in seen:
                line = next_line(process)
                assert line, seen
                seen += line
            process.send_signal(signal.SIGINT)
            return seen + process.communicate(timeout=PATIENCE)[0]
        finally:
            process.kill()


EXAMPLES = [[f"examples/{path.name}"] for path in sorted((ROOT / "examples").glob("*.py"))]
PROGRAMS = [*EXAMPLES, ["-m", "connector_sdk.cli", "tail"], ["-m", "connector_sdk.cli", "tail", "--json"]]
SCRIPTS: Mapping[str, tuple[Step, ...]] = {
    "success": (Cut(after_events=2, into_next=9), Status(503)),
    "401": (Status(401, body=b"no"),) * 5,
    "404": (Status(404, body=b"no"),) * 5,
    "html": (Status(200, {"Content-Type": "text/html"}, b"<html>"),) * 5,
    "refused": (Refuse(),) * 20,
}


@one_kind
@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: " ".join(program[-2:]))
def test_programs_print_no_secret(
    program: list[str], name: str, tmp_path: Path, redis_server: Server, redis_prefix: str
) -> None:
    events = [SummaryPayload("p", "s", f"event {number}", forwarded_at=1.7e9) for number in range(5)]
    token = plant("token")
    with ConnectorServer(events, script=SCRIPTS[name], end="stop", token=token) as server:
        address = server.url.removeprefix("http://")
        environment = {
            "CONNECTOR_URL": f"http://{plant('user')}:{plant('password')}@{address}?key={plant('query')}",
            "CONNECTOR_TOKEN": token,
            "CONNECTOR_MAX_RETRIES": "2",
            "REDIS_URL": redis_server.url,
        }
        first, *rest = program
        path = str(ROOT / first) if first.endswith(".py") else first
        arguments = ["", str(tmp_path / "file"), "0.05"] if first.endswith("drain_and_index.py") else []
        if first.endswith("event_bus.py"):  # which must have its Redis before it receives anything
            arguments = ["", redis_prefix]
        out = _run([sys.executable, path, *rest, *arguments], environment)
        assert server.requests
    assert out
    assert not FOUND.search(out)


def test_serve_prints_no_token(tmp_path: Path) -> None:
    environment = {"CONNECTOR_TOKEN": plant("token")}
    out = _run([sys.executable, "-m", "connector_sdk.cli", "serve", "--port", "0"], environment, until="to watch it")
    assert not FOUND.search(out)
