"""`connector-sdk tail` against a real server."""

from __future__ import annotations

import json
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from connector_sdk.cli import tail as tail_module
from connector_sdk.cli.console import BadInputError
from connector_sdk.cli.tail import Filter, as_json, as_lines
from connector_sdk.cli.traffic import generate
from connector_sdk.payloads import ActionsPayload, Payload, SlimAction, SummaryPayload, UnknownPayload
from connector_sdk.testing import Comment, ConnectorServer, Cut, Garbage, Silence, Status
from tests.cli.commands import Process, assert_bad_input, run

TRAFFIC = list(generate(5, sessions=30))


@contextmanager
def playing(**options: object) -> Iterator[ConnectorServer]:
    with ConnectorServer(TRAFFIC, end="stop", **options) as server:  # type: ignore[arg-type]  # as ConnectorServer's
        yield server


def rows(process: Process) -> list[dict[str, object]]:
    return [json.loads(line) for line in process.out.splitlines()]


def test_json_lines_are_every_event_with_its_id() -> None:
    with playing(token="letmein", script=[Cut(after_events=7, into_next=30)] * 2) as server:
        process = run("tail", server.url, "--json", "--token", "letmein")
    assert process.process.returncode == 0
    found = rows(process)
    assert [row.pop("event_id") for row in found] == [str(number + 1) for number in range(len(TRAFFIC))]
    assert found == [payload.to_dict() for payload in TRAFFIC]
    assert process.err.count("connected again") == 2
    assert f"{len(TRAFFIC)} events received, {len(TRAFFIC)} shown" in process.err
    assert "letmein" not in process.out + process.err


def test_filters_limit_and_start() -> None:
    session = next(payload.session_id for payload in TRAFFIC if isinstance(payload, SummaryPayload))
    assert session is not None
    with playing() as server:
        summaries = run("tail", server.url, "--json", "--type", "summary", "--limit", "3")
        one = run("tail", server.url, "--json", "--session", session[:10])
        both = run("tail", server.url, "--json", "--type", "summary", "--type", "actions", "--session", session)
        late = run("tail", server.url, "--json", "--since-id", "100", "--limit", "2")
    assert [row["type"] for row in rows(summaries)] == ["summary"] * 3
    assert summaries.process.returncode == 0
    assert "3 shown\n" in summaries.err  # what came and was not shown is no loss
    assert {row["session_id"] for row in rows(one)} == {session}
    assert rows(one) == rows(both)
    assert [row["event_id"] for row in rows(late)] == ["101", "102"]


def test_for_people_one_line_for_each_action_and_summary() -> None:
    with playing() as server:
        process = run("tail", server.url)
    lines = process.out.splitlines()
    assert len(lines) == sum(payload.count if isinstance(payload, ActionsPayload) else 1 for payload in TRAFFIC)
    assert "\x1b" not in process.out  # no colour into a pipe
    assert any("summary" in line and "without buying" in line for line in lines)
    assert any("error" in line and "Checkout error" in line for line in lines)


def test_ids_that_cannot_be_resumed_are_told() -> None:
    with ConnectorServer(TRAFFIC, end="stop", history=5) as server:
        run("tail", server.url, "--limit", "100")
        process = run("tail", server.url, "--json", "--since-id", "2")
    assert "could not resume after event 2" in process.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_signal_ends_it_cleanly(number: signal.Signals, options: list[str]) -> None:
    with ConnectorServer(TRAFFIC) as server, Process("tail", server.url, *options) as process:
        process.wait_for("summary")
        assert process.interrupt(number).end() == 0
        server.wait_for_connections(0)
    assert "events received" in process.err


def test_a_signal_ends_it_while_it_waits_to_connect_again() -> None:
    with ConnectorServer(TRAFFIC) as server, Process("tail", server.url) as process:
        process.wait_for("connected to", "err")
        server.stop_accepting()
        server.cut()
        process.wait_for("connection lost", "err")
        assert process.interrupt().end() == 0


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_head_has_seen_enough(options: list[str]) -> None:
    with ConnectorServer(TRAFFIC, loop=True, rate=2000) as server, Process("tail", server.url, *options) as process:
        process.wait_for("\n")
        process.close_output()
        assert process.end() == 0


def test_lost_for_good_is_code_1() -> None:
    with ConnectorServer(TRAFFIC) as server, Process("tail", server.url, "--max-retries", "1") as process:
        process.wait_for("summary")
        server.stop_accepting()
        server.cut()
        assert process.end() == 1
    assert process.err.splitlines()[-1].startswith("connector-sdk: http://127.0.0.1")
    assert "failed" in process.err


@pytest.mark.parametrize(
    ("step", "says"),
    [
        (Status(200, {"Content-Type": "text/html"}, b"<html>\x1b[2JLog in</html>"), "text/html"),
        (Status(404), "404"),
        (Garbage(b"SSH-2.0-OpenSSH_9.2\r\n") * 9, "no connector at"),
    ],
)
def test_a_server_that_speaks_something_else(step: Status, says: str) -> None:
    with ConnectorServer(script=step) as server:
        process = run("tail", server.url)
    assert_bad_input(process, says)
    assert "\x1b" not in process.err


def test_a_wrong_token_is_bad_input_and_not_shown() -> None:
    with ConnectorServer(TRAFFIC, token="right") as server:
        process = run("tail", server.url, "--token", "wr0ng-marked")
    assert_bad_input(process, "401")
    assert "wr0ng-marked" not in process.err


def test_a_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail_module, "_FIRST_ANSWER", 0.2)
    with ConnectorServer(script=Silence(head=False)) as server, pytest.raises(BadInputError, match="does not answer"):
        tail_module.tail(server.url, wanted=Filter())


def test_a_port_that_resets_every_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def refuse() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                connection.close()

        thread = threading.Thread(target=refuse, daemon=True)
        thread.start()
        process = run("tail", f"http://127.0.0.1:{listener.getsockname()[1]}/")
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)
    assert_bad_input(process, "no connector at")


HOSTILE = "\x1b]0;owned\x07\x1b[31m\n[bold]x[/bold] \u202e\x9b"


def test_text_from_the_stream_cannot_drive_the_terminal() -> None:
    payloads: list[Payload] = [
        ActionsPayload(
            session_id=HOSTILE, actions=[SlimAction(description=HOSTILE, canonical_url=HOSTILE, type=HOSTILE)]
        ),
        SummaryPayload(session_id=None, summary=HOSTILE, forwarded_at=float("inf")),
        UnknownPayload(type="mood", raw=HOSTILE.encode(), forwarded_at=-1e300),
    ]
    for payload in payloads:
        (line,) = as_lines(payload)
        assert line.plain.isprintable()
        assert "[bold]x[/bold]" in line.plain  # markup is text


def test_the_id_of_the_event_wins_over_a_field_of_that_name() -> None:
    payload = SummaryPayload.from_dict({"summary": "s", "event_id": "theirs", "extra": 1})
    row = json.loads(as_json(payload))
    assert row["event_id"] is None
    assert row["extra"] == 1


def test_the_environment_names_url_and_token_and_no_proxy_is_asked_for_this_machine() -> None:
    with playing(token="letmein") as server:
        process = run(
            "tail",
            "--json",
            "--limit=3",
            CONNECTOR_URL=server.url,
            CONNECTOR_TOKEN="letmein",
            http_proxy="http://127.0.0.1:9",
        )
    assert len(rows(process)) == 3


def test_comments_are_life_and_no_events() -> None:
    with ConnectorServer(TRAFFIC[:1], end="stop", script=Comment(text="still here")) as server:
        assert len(rows(run("tail", server.url, "--json"))) == 1
