"""`connector-sdk demo`: the account balances, and says so when it does not."""

from __future__ import annotations

import json
import signal
import sqlite3
import sys
from pathlib import Path

import msgspec
import pytest

from connector_sdk.cli.account import Account, Played
from connector_sdk.cli.index import Added, IndexCounts
from connector_sdk.ledger import DropReason, Ledger
from tests.cli.commands import Process, assert_bad_input, run

LINE = '192.0.2.{client} - - [17/May/2015:{hour:02}:{minute:02}:03 +0000] "GET /page/{n} HTTP/1.1" {status} 5 "-" "Firefox"\n'


def write_log(path: Path, lines: int) -> None:
    text = [
        LINE.format(client=n % 7, hour=n // 60 % 24, minute=n % 60, n=n % 11, status=404 if n % 9 == 0 else 200)
        for n in range(lines)
    ]
    text.insert(5, "this is no request\n")
    text.insert(9, "\n")
    path.write_text("".join(text))


def test_the_demo_balances_through_its_cuts_and_tells_its_story() -> None:
    process = run("demo", "--seconds", "1.5")
    assert process.process.returncode == 0
    assert process.err == ""
    assert "\x1b" not in process.out
    for says in (
        "breaks 12 times and loses nothing",
        "A connector is a server that streams",
        "cuts 12/12",
        "The busiest pages:",
        'A search for "checkout error":',
        "over 13 connections, 12 of them cut in mid-event",
        "BALANCED: ",
        "What to try next",
    ):
        assert says in process.out


def test_the_environment_does_not_come_between() -> None:
    """A company's proxy, options for the user's own connector, a terminal that knows no more than ASCII."""
    process = run(
        "demo",
        "--seconds=1",
        "--events=40",
        http_proxy="http://127.0.0.1:9",
        HTTP_PROXY="http://127.0.0.1:9",
        no_proxy="example.com",
        CONNECTOR_MAX_RETRIES="1",
        CONNECTOR_TOKEN="marked-s3cret",
        PYTHONIOENCODING="ascii",
    )
    assert process.process.returncode == 0, process.err
    assert "BALANCED" in process.out
    assert "marked-s3cret" not in process.out


def test_a_log_is_in_the_index_to_its_last_request(tmp_path: Path) -> None:
    write_log(tmp_path / "access.log", 900)
    process = run(
        "demo",
        "--from",
        "access.log",
        "--seconds",
        "1.5",
        "--json",
        "--index",
        "index.db",
        "--query",
        "page",
        cwd=tmp_path,
    )
    assert process.process.returncode == 0
    account = json.loads(process.out)
    assert account["balances"] is True
    assert account["cuts"] == 12
    assert account["duplicates_removed"] == 12
    assert account["dropped"] == {}
    assert account["played"]["requests"] == account["index"]["actions"] == 900
    assert (account["played"]["lines"], account["played"]["unparsed"], account["played"]["blank"]) == (902, 1, 1)
    assert account["distinct"] == account["index"]["events"] == account["played"]["events"]
    assert account["hits"]
    assert "902 lines = 900 requests + 1 that do not parse, 1 empty" in process.err
    assert 'line 6 does not begin with "address ident user [time]": this is no request' in process.err
    database = sqlite3.connect(tmp_path / "index.db")
    body = "SELECT count(*), count(DISTINCT session_id || '/' || body) FROM documents WHERE kind = 'action'"
    assert database.execute(body).fetchone() == (900, 900)
    database.close()
    again = run("demo", "--index", "index.db", cwd=tmp_path)
    assert_bad_input(again, "index.db has the events of an earlier run")


def test_the_beginning_of_a_log_can_be_played(tmp_path: Path) -> None:
    write_log(tmp_path / "access.log", 900)
    process = run("demo", "--from", "access.log", "--seconds", "1", "--events", "50", "--cuts", "3", cwd=tmp_path)
    assert process.process.returncode == 0
    assert "50 events of" in process.out
    assert "Only its beginning is played" in process.out
    assert "through 3 cuts" in process.out


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_cleanly(number: signal.Signals, code: int) -> None:
    with Process("demo", "--seconds", "15") as process:
        process.wait_for(r"\d\.\d s  sent")  # the first line may be late on a busy machine
        assert process.interrupt(number).end() == code
    assert process.err == ""


SABOTAGE = """
import sys
from connector_sdk.cli import main
from connector_sdk.cli.index import SearchIndex

add = SearchIndex.add
SearchIndex.add = lambda self, payloads: add(self, list(payloads)[1:])  # the index loses an event of each batch
sys.argv[1:] = ["demo", "--seconds", "1", "--events", "100"]
main()
"""


def test_an_account_that_does_not_balance_is_code_1() -> None:
    process = run(command=[sys.executable, "-c", SABOTAGE])
    assert process.process.returncode == 1
    assert "THE ACCOUNT DOES NOT BALANCE" in process.out
    assert "from the file to index: 100 is not" in process.out
    assert "BALANCED:" not in process.out
    assert process.err == "connector-sdk: the account does not balance\n"


GOOD = Account(
    played=Played(events=100, actions=300, summaries=20, sessions=20, requests=300),
    connections=13,
    sent=103,
    distinct=100,
    client=Ledger(received=103, delivered=100, dropped={DropReason.DUPLICATE: 3}),
    buffer=Ledger(received=100, delivered=100),
    added=Added(events=100, repeated=0),
    index=IndexCounts(events=100, actions=300, summaries=20, others=0, repeated=0),
    known=100,
)


def test_a_good_account_balances() -> None:
    assert GOOD.balances
    assert (GOOD.cuts, GOOD.duplicates, GOOD.dropped) == (12, 3, {})


@pytest.mark.parametrize(
    "wrong",
    [
        {"distinct": 99},
        {"known": 99},
        {"client": Ledger(received=102, delivered=99, dropped={DropReason.DUPLICATE: 3})},
        {"client": Ledger(received=103, delivered=99, in_flight=1, dropped={DropReason.DUPLICATE: 3})},
        {"client": Ledger(received=103, delivered=100, dropped={DropReason.DUPLICATE: 2})},
        {"client": Ledger(received=103, delivered=99, dropped={DropReason.DUPLICATE: 3, DropReason.OVERFLOW: 1})},
        {"buffer": Ledger(received=100, delivered=99, dropped={DropReason.EXPIRED: 1})},
        {"buffer": Ledger(received=100, delivered=99, buffered=1)},
        {"added": Added(events=99, repeated=0)},
        {"index": IndexCounts(events=99, actions=300, summaries=20, others=0, repeated=0)},
        {"index": IndexCounts(events=100, actions=299, summaries=20, others=0, repeated=0)},
        {"index": IndexCounts(events=100, actions=300, summaries=21, others=0, repeated=0)},
        {"played": Played(events=100, actions=300, summaries=20, sessions=20, requests=301)},
    ],
)
def test_any_number_that_is_off_shows(wrong: dict[str, object]) -> None:
    account = msgspec.structs.replace(GOOD, **wrong)
    assert not account.balances
    assert account.to_dict()["balances"] is False


def test_drops_are_listed_by_reason() -> None:
    account = msgspec.structs.replace(
        GOOD,
        client=Ledger(received=103, delivered=98, dropped={DropReason.DUPLICATE: 3, DropReason.OVERSIZED: 2}),
        buffer=Ledger(received=98, delivered=97, dropped={DropReason.OVERFLOW: 1}),
    )
    assert account.dropped == {"client: oversized": 2, "buffer: overflow": 1}
