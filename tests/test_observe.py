"""Observer, logs and the ledger: nothing they do can hurt, and nothing secret passes."""

from __future__ import annotations

import logging

import msgspec
import pytest

from connector_sdk import DropReason, Ledger, Observer
from connector_sdk.observe import Notifier, RateLimitedLogger, redact_url
from connector_sdk.options import check_choice, check_integer, check_seconds


def test_a_missing_method_is_skipped_and_an_error_counted(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Observer):
        def events_received(self, *, count: int) -> None:
            raise RuntimeError("no")

    notifier = Notifier(Broken(), logging.getLogger("test"))
    notifier.tell("events_received", count=1)
    notifier.tell("events_received", count=1)
    notifier.tell("not_invented_yet", fact=1)
    notifier.tell("events_dropped", source="client", reason="overflow", count=1)
    assert notifier.errors == 2
    assert caplog.text.count("events_received raised RuntimeError") == 1, "repeated warnings are held back"
    assert Notifier(None, logging.getLogger("test")).active is False


def test_repeated_warnings_are_held_back_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    now = 1000.0
    quiet = RateLimitedLogger(logging.getLogger("test"), interval=30.0, clock=lambda: now)
    assert [quiet.warning("a", "lost one") for _ in range(5)] == [True, False, False, False, False]
    assert quiet.warning("b", "another")
    now += 30.0
    assert quiet.warning("a", "lost again")
    assert "lost again (4 more like this in the last 30 s were not logged)" in caplog.text


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://me:secret@h:8/stream/p?key=secret#secret", "http://h:8/stream/p?…"),
        ("https://h/stream/p", "https://h/stream/p"),
        ("http://a@b@h/x", "http://h/x"),
    ],
)
def test_urls_are_shown_without_what_may_be_secret(url: str, shown: str) -> None:
    assert redact_url(url) == shown


def test_the_ledger_adds_up_and_is_json() -> None:
    ledger = Ledger(received=10, delivered=4, buffered=3, in_flight=1, dropped={DropReason.OVERFLOW: 2})
    assert (ledger.balanced, ledger.accounted, ledger.dropped_total) == (True, 10, 2)
    assert not Ledger(received=1).balanced
    assert msgspec.json.decode(msgspec.json.encode(ledger))["dropped"] == {"overflow": 2}


def test_checks_name_option_value_and_what_is_allowed() -> None:
    assert check_integer("n", 3, minimum=1, maximum=3) == 3
    assert check_seconds("s", 2, above=0) == 2.0
    assert check_choice("c", "a", ("a", "b")) == "a"
    with pytest.raises(ValueError, match=r"n=4 cannot be used: it must be a whole number from 1 to 3"):
        check_integer("n", 4, minimum=1, maximum=3)
    with pytest.raises(ValueError, match=r"s=-1 .* 0 or more"):
        check_seconds("s", -1)
    with pytest.raises(ValueError, match=r"c='z' .* 'a', 'b'"):
        check_choice("c", "z", ("a", "b"))
