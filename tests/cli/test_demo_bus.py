"""`connector-sdk demo --bus`: groups share the work, a member dies, a poison event is redriven, and the account balances."""

from __future__ import annotations

import json
import signal
import time

import msgspec
import pytest

from connector_sdk.cli.bus_account import BusAccount, DeadLetterSeen, GroupAccount, Worker
from tests.cli.commands import Process, assert_bad_input, run


@pytest.mark.timeout(150)
@pytest.mark.parametrize("where", ["memory", "redis", "postgres"])
def test_the_account_balances(where: str) -> None:
    process = run("demo", "--bus", where, "--seconds", "3", "--events", "300", "--json")
    assert process.process.returncode == 0, process.err
    account = json.loads(process.out)
    assert account["balances"]
    assert account["published"] == account["watched"] == 300
    search, analytics = account["groups"]
    assert search["handled"] == analytics["handled"] == 300
    assert [worker["was_killed"] for worker in search["workers"]] == [True, False]
    (letter,) = account["letters"]
    assert letter["group"] == "search"
    assert letter["attempts"] == 3
    assert letter["error"].startswith("ValueError: ")
    assert not [line for line in process.err.splitlines() if line != line.rstrip()]
    for says in (
        "search A",
        "What to try next",
        "is a dead letter of search after 3 attempts",
        "redriven",
        "BALANCED: ",
    ):
        assert says in process.err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("where", ["memory", "redis", "postgres"])
def test_a_signal_ends_it_soon_and_cleanly(where: str, number: signal.Signals, code: int) -> None:
    """A member that can no longer finish would be waited for, 30 seconds long."""
    with Process("demo", "--bus", where, "--seconds", "30") as process:
        process.wait_for(r"\d\.\d s  published")
        begin = time.monotonic()
        assert process.interrupt(number).end() == code
        assert time.monotonic() - begin < 20.0
    assert process.err == ""


@pytest.mark.parametrize(
    "where", ["redis://127.0.0.1:1/0", "redis://:s3cret@127.0.0.1:port/0", "postgresql://me:s3cret@127.0.0.1:1/no"]
)
def test_a_place_that_cannot_be_had_is_told_before_the_story(where: str) -> None:
    process = run("demo", "--bus", where)
    assert_bad_input(process, "connector-sdk: --bus: ")
    assert "s3cret" not in process.err


def test_a_place_that_it_does_not_know_is_told_without_its_secrets() -> None:
    process = run("demo", "--bus", "kafka://me:s3cret@broker")
    assert_bad_input(process, "--bus must be memory, redis, postgres")
    assert "s3cret" not in process.err


ACCOUNT = BusAccount(
    place="memory",
    sent=10,
    published=10,
    kept=10,
    watched=10,
    watched_again=0,
    groups=[
        GroupAccount(
            name="search",
            workers=[Worker(name="search A", handled=4, was_killed=True), Worker(name="search B", handled=7)],
            handled=10,
            again=1,
            pending=0,
            lag=0,
        )
    ],
    letters=[
        DeadLetterSeen(id="1", group="search", event_id="3", error="ValueError: no", attempts=3, was_redriven=True)
    ],
    letters_left=0,
    lost=0,
)


def test_an_account_without_a_fault_balances() -> None:
    assert ACCOUNT.balances
    assert ACCOUNT.to_dict()["balances"] is True


@pytest.mark.parametrize(
    "change",
    [
        {"published": 9},
        {"kept": 9},
        {"watched": 9},
        {"watched_again": 1},
        {"letters": []},
        {"letters_left": 1},
        {"lost": 1},
        {"groups": [msgspec.structs.replace(ACCOUNT.groups[0], handled=9)]},
        {"groups": [msgspec.structs.replace(ACCOUNT.groups[0], pending=1)]},
        {"groups": [msgspec.structs.replace(ACCOUNT.groups[0], lag=1)]},
        {"letters": [msgspec.structs.replace(ACCOUNT.letters[0], was_redriven=False)]},
    ],
    ids=str,
)
def test_an_account_with_any_fault_does_not(change: dict[str, object]) -> None:
    assert not msgspec.structs.replace(ACCOUNT, **change).balances
