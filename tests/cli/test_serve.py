"""`connector-sdk serve`: a development connector, read by a real client."""

from __future__ import annotations

import contextlib
import gzip
import random
import signal
from pathlib import Path

import pytest

from connector_sdk.client.sync import ConnectorClient
from connector_sdk.errors import FatalStreamError, RetriesExhaustedError
from connector_sdk.payloads import ActionsPayload, Payload, SummaryPayload
from tests.cli.commands import Process, run

LINE = '192.0.2.{client} - - [17/May/2015:10:05:{second:02} +0000] "GET /page/{second} HTTP/1.1" 200 5 "-" "Firefox"\n'


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "access.log"
    path.write_text("".join(LINE.format(client=second % 3, second=second) for second in range(60)) + "broken\n")
    return path


def address(process: Process) -> str:
    return process.wait_for(r"at (http://127\.0\.0\.1:\d+/stream/demo),")[1]


def read(url: str, count: int, **options: object) -> list[Payload]:
    options = {"max_retries": 50, **options}
    client = ConnectorClient(url, initial_backoff=0.02, max_backoff=0.1, **options)  # type: ignore[arg-type]
    found: list[Payload] = []
    for payload in client:
        found.append(payload)
        if len(found) == count:
            break
    return found


def test_a_log_is_played_to_its_end_through_cuts(log: Path) -> None:
    with Process("serve", "--from", str(log), "--port", "0", "--rate", "500", "--cut-every", "4") as process:
        url = address(process)
        assert process.wait_for(rf"connector-sdk tail {url}\n")
        payloads = read(url, -1)  # until the server says that it is over
        process.wait_for("that was all: 18 events")
        process.wait_for("resumes after event 4\n")
        assert process.interrupt().end() == 0
    assert sum(payload.count for payload in payloads if isinstance(payload, ActionsPayload)) == 60
    assert [payload.replaces for payload in payloads if isinstance(payload, SummaryPayload)] == [20, 20, 20]
    assert [payload.event_id for payload in payloads] == [str(number + 1) for number in range(18)]


def test_a_loop_goes_on(log: Path) -> None:
    with Process("serve", "--from", str(log), "--port", "0", "--rate", "1000", "--loop") as process:
        payloads = read(address(process), 40)
        assert process.interrupt().end() == 0
    assert payloads[0].to_text() == payloads[18].to_text() == payloads[36].to_text()
    assert payloads[18].event_id == "19"


def test_traffic_without_a_log_never_ends_and_is_seeded() -> None:
    def play(seed: str) -> list[str]:
        with Process("serve", "--port", "0", "--rate", "1000", "--seed", seed) as process:
            payloads = read(address(process), 50)
            assert process.interrupt().end() == 0
        return [payload.to_text() for payload in payloads]

    assert play("3") == play("3") != play("4")


def test_a_token_is_asked_for_and_not_shown() -> None:
    with Process("serve", "--port", "0", "--token", "marked-s3cret", "--sessions", "2", "--rate", "500") as process:
        url = address(process)
        with pytest.raises(FatalStreamError):
            read(url, 1)
        assert read(url, 1, token="marked-s3cret")
        assert process.interrupt().end() == 0
    assert "marked-s3cret" not in process.out + process.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_cleanly_with_clients_connected(number: signal.Signals) -> None:
    with Process("serve", "--port", "0") as process:
        url = address(process)
        client = ConnectorClient(url, max_retries=0)
        client.on_event("*", lambda payload: None)
        thread = client.run_in_background()
        client.wait_until_open(10)
        process.wait_for("request 1: GET /stream/demo")
        assert process.interrupt(number).end() == 0
        thread.join(10)
    assert "ended: " in process.out


def test_a_log_that_breaks_off_is_told(tmp_path: Path) -> None:
    dice = random.Random(1)  # lines that do not compress away, so that half of the file is a good start
    text = "".join(
        LINE.format(client=dice.randrange(250), second=n % 60)
        .replace(":10:", f":{n // 3600:02}:", 1)
        .replace(":05:", f":{n // 60 % 60:02}:", 1)
        .replace("/page/", f"/{dice.random()}/")
        for n in range(20_000)
    )
    path = tmp_path / "access.log.gz"
    whole = gzip.compress(text.encode())
    path.write_bytes(whole[: len(whole) // 2])
    with Process("serve", "--from", str(path), "--port", "0", "--rate", "100000") as process:
        with contextlib.suppress(RetriesExhaustedError):
            read(address(process), -1, max_retries=3)
        assert process.end() == 1
    assert "the gzip data is damaged after line" in process.err


def test_nobody_reading_the_output_is_no_reason_to_stop_badly() -> None:
    with Process("serve", "--port", "0") as process:
        url = address(process)
        process.close_output()
        with contextlib.suppress(RetriesExhaustedError):
            read(url, 1, max_retries=3)  # the line about this request finds no reader
        assert process.end() == 0
    assert run("--version").out
