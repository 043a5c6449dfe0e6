"""What the demo says: what is shown, how it goes, the account, what to try next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import msgspec
from rich.console import Console
from rich.live import Live
from rich.text import Text

from connector_sdk.cli.account import Account, Played
from connector_sdk.cli.console import command_name, printable, styled
from connector_sdk.cli.index import Hit, PageCount
from connector_sdk.ledger import DropReason

__all__ = [
    "Moment",
    "Progress",
    "tell_account",
    "tell_beginning",
    "tell_commands",
    "tell_findings",
    "tell_log",
    "tell_next",
]

_BAR: int = 30  # characters


class Moment(msgspec.Struct, frozen=True, kw_only=True):
    """One reading of the demo while it runs."""

    seconds: float
    total: int  #: events that the server has to play
    sent: int
    received: int
    repeated: int
    waiting: int
    indexed: int
    cuts: int
    cuts_planned: int
    state: str  #: of the client
    dropped: int | None = None  #: given up because Redis was away or slow; None for a buffer in memory
    redis_is_away: bool = False


def tell_beginning(
    console: Console,
    *,
    label: str,
    url: str,
    played: Played,
    rate: float,
    cuts: int,
    place: str = "memory",
    killing: tuple[float, float] | None = None,
) -> None:
    """
    Say what is going to happen and what each number means.

    *place* is where the buffer is; *killing* says when Redis is killed and for how long, in seconds.
    """
    if killing is None:
        _title(console, f"connector-sdk demo: a live stream that breaks {cuts} times and loses nothing")
    else:
        _title(console, f"connector-sdk demo: a live stream that breaks {cuts} times, and a Redis that is killed")
    _plain(
        console, "A connector is a server that streams what the users of a web product do. This demo runs one on this"
    )
    _plain(console, "machine, breaks its connections, and follows every event until it can be searched:")
    _plain(console, "")
    _steps(
        console,
        ("server", f"plays {label}:"),
        ("", f"{played.events:,} events of {_count(played.sessions, 'session')}, {rate:,.0f} a second, at {url}"),
        ("", f"It cuts the connection {cuts} times in the middle of an event, and sends some events twice."),
        ("client", "reads the stream; after each cut it connects again, asks for what follows the last whole event,"),
        ("", "and leaves out what it has had already."),
        ("buffer", "holds what was received; once a second it is taken out on a lease."),
        *_about_redis(place, killing),
        ("index", "makes it searchable (SQLite full text). Only then the lease is acknowledged: nothing is lost"),
        ("", "in between, whatever fails."),
    )
    _plain(console, "")


def _about_redis(place: str, killing: tuple[float, float] | None) -> list[tuple[str, str]]:
    if place == "memory":
        return []
    lines = [("", f"It is in {place}")]
    if killing is not None:
        at, length = killing
        lines += [
            (
                "",
                f"Redis is killed (SIGKILL) after {at:.1f} s and started again {length:.1f} s later. What comes meanwhile is",
            ),
            (
                "",
                "dropped at once and told, for this buffer is not to delay its writers; what Redis has confirmed is kept.",
            ),
        ]
    return lines


def tell_log(console: Console, played: Played, bad_lines: Sequence[str], *, in_part: bool) -> None:
    """Say what the log holds, and show the lines that do not parse."""
    if played.lines is None:
        return
    blank = f", {played.blank:,} empty" if played.blank else ""
    parsed = played.lines - (played.unparsed or 0) - (played.blank or 0)
    _plain(
        console,
        f"The log: {_count(played.lines, 'line')} = {_count(parsed, 'request')} + {played.unparsed:,} that do not parse{blank}."
        + (" Only its beginning is played (--events)." if in_part else ""),
    )
    for line in bad_lines:
        console.print(styled(("  " + line, "dim")), soft_wrap=True)
    left = (played.unparsed or 0) - len(bad_lines)
    if bad_lines and left > 0:
        _plain(console, f"  and {left:,} more")
    _plain(console, "")


class Progress:
    """The run as it goes: one live picture on a terminal, one line a second elsewhere. A context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    @property
    def is_live(self) -> bool:
        """Whether there is a terminal to draw on."""
        return self._live is not None

    def say(self, line: str) -> None:
        """Write a line of its own."""
        self._console.print(styled((line, "bold")), soft_wrap=True)

    def show(self, moment: Moment) -> None:
        """Show where things are; called once a second, and on a terminal oftener."""
        if self._live is not None:
            self._live.update(_picture(moment), refresh=True)
        else:
            self._console.print(_row(moment), soft_wrap=True)


def _row(moment: Moment) -> Text:
    return styled(
        (
            f"{moment.seconds:5.1f} s  sent {moment.sent:>7,}  received {moment.received:>7,}  "
            f"repeated {moment.repeated:>4,}  waiting {moment.waiting:>5,}  indexed {moment.indexed:>7,}  "
            f"cuts {moment.cuts:>2}/{moment.cuts_planned}" + _of_redis(moment),
            "",
        )
    )


def _of_redis(moment: Moment) -> str:
    if moment.dropped is None:
        return ""
    return f"  dropped {moment.dropped:>4,}" + ("  Redis is away" if moment.redis_is_away else "")


def _picture(moment: Moment) -> Text:
    lines = Text()
    for name, value, style in (
        ("sent", moment.sent, "blue"),
        ("received", moment.received, "cyan"),
        ("indexed", moment.indexed, "green"),
    ):
        done = round(_BAR * min(1.0, value / max(1, moment.total)))
        lines.append(f"  {name:<9}")
        lines.append("━" * done, style)
        lines.append("━" * (_BAR - done), "bright_black")
        lines.append(f" {value:>9,}\n")
    lines.append(f"  cuts {moment.cuts} of {moment.cuts_planned}   repeated {moment.repeated:,}   ")
    lines.append(f"waiting in the buffer {moment.waiting:,}   {moment.seconds:.0f} s{_of_redis(moment)}   ")
    lines.append(f"{moment.state}", "bold red" if moment.state in ("backoff", "connecting", "stale") else "green")
    return lines


def tell_account(console: Console, account: Account) -> None:
    """Show the sums from the wire to the index, and the verdict."""
    _title(console, "The account: every event, from the wire to the index")
    again = account.sent - account.distinct
    counts = account.index
    rows: list[tuple[str, int, str]] = [
        (
            "sent by the server",
            account.sent,
            f"over {_count(account.connections, 'connection')}, {account.cuts} of them cut in mid-event",
        ),
        ("received by the client", account.client.received, f"{again:,} of the events came a second time"),
        ("- duplicates removed", account.duplicates, "known by their event id"),
    ]
    rows += [_dropped(reason, count, account) for reason, count in account.dropped.items()] or [
        ("- dropped", 0, "for whatever reason (full, too large, no JSON, a callback failed ...)")
    ]
    if account.given_up.stored:
        rows.append(
            ("+ in Redis all the same", account.given_up.stored, "dropped, for Redis had not answered, but stored")
        )
    rows.append(("= taken out of the buffer", account.taken_out, "on leases, acknowledged after indexing"))
    if account.added.repeated:
        rows.append(("  came a second time", account.added.repeated, "their lease was never acknowledged; known by id"))
    rows.append(
        (
            "= in the index",
            counts.events,
            f"{counts.actions:,} actions and {_count(counts.summaries, 'summary')}, counted in the database",
        )
    )
    for name, count, meaning in rows:
        console.print(styled((f"  {name:<28}", ""), (f"{count:>9,}", "bold"), (f"   {meaning}", "dim")), soft_wrap=True)
    requests = account.played.requests
    if requests is not None:
        given_up = f", {account.given_up.actions:,} were dropped" if account.given_up.actions else ""
        _plain(
            console,
            f"  {requests:,} requests of the log parse, and {counts.actions:,} actions are in the index{given_up}.",
        )
    if account.outage is not None:
        killed, away, lease = account.outage.killed_at, account.outage.away, account.outage.open_lease
        _plain(
            console,
            f"  Redis was killed after {killed:.1f} s, with {_count(lease, 'event')} on lease, and away for {away:.1f} s.",
        )
    for finding in account.findings:
        console.print(styled((f"  Redis: {finding}", "yellow")), soft_wrap=True)
    _plain(console, "")
    failed = [check for check in account.checks() if not check.holds]
    for check in failed:
        console.print(styled((f"  {check.says}: {check.left:,} is not {check.right:,}", "red")), soft_wrap=True)
    if failed:
        console.print(styled(("THE ACCOUNT DOES NOT BALANCE", "bold red"), (" (exit code 1)", "")), soft_wrap=True)
    else:
        console.print(styled(("BALANCED", "bold green"), (f": {_verdict(account)}", "")), soft_wrap=True)


def _dropped(reason: str, count: int, account: Account) -> tuple[str, int, str]:
    if reason == f"buffer: {DropReason.UNAVAILABLE}" and account.store is not None:
        return "- dropped, Redis was away", count, "(unavailable) each told to on_drop"
    if reason == f"buffer: {DropReason.BACKPRESSURE}" and account.store is not None:
        return "- dropped, Redis was slow", count, "(backpressure) each told to on_drop"
    return f"- dropped, {reason}", count, "lost"


def _verdict(account: Account) -> str:
    lost, through = account.given_up.events, f"through {account.cuts} cuts"
    if account.outage is not None:
        through += " and a kill of Redis"
    if not lost:
        return f"{account.distinct:,} events sent = received = indexed, each exactly once, {through}"
    return (
        f"{account.distinct:,} events sent = received = {account.index.events:,} indexed, each exactly once, "
        f"+ {lost:,} dropped and told, {through}"
    )


def tell_findings(console: Console, pages: Sequence[PageCount], query: str, hits: Sequence[Hit]) -> None:
    """Show that the index can be used: the busiest pages and one search."""
    _title(console, "What the index knows")
    _plain(console, "The busiest pages:")
    for page in pages:
        console.print(styled((f"  {page.actions:>7,}  ", "bold"), (page.page, "")), soft_wrap=True)
    _plain(console, f'A search for "{query}":' if hits else f'A search for "{query}" finds nothing.')
    for hit in hits:
        name = (hit.session_id or "unknown")[:12]
        console.print(styled((f"  {hit.kind:<8} {name:<13}", "dim"), (hit.snippet, "")), soft_wrap=True)
    _plain(console, "")


def tell_next(console: Console, *, has_log: bool, index_path: str | None, has_redis: bool) -> None:
    """Say what to try next."""
    _title(console, "What to try next")
    if index_path is not None:
        _plain(console, f"  the index is in {index_path}: open it with sqlite3, table `documents`")
    rows = [] if has_log else [("demo --from access.log", "the same with the log of your own web server")]
    if not has_redis:
        rows.append(("demo --buffer redis --kill-redis", "the same with a buffer in Redis, which is killed"))
    rows += [
        ("demo --bus redis", "a bus instead: two groups share the work, a member is killed"),
        ("serve", "a connector to develop against, and in another terminal:"),
        ("tail http://127.0.0.1:8765/stream/demo", "what it sends, one line for each action and summary"),
    ]
    tell_commands(console, rows)


def tell_commands(console: Console, rows: Sequence[tuple[str, str]]) -> None:
    """Show commands that can be typed here as they stand, and what each does."""
    width = max(len(arguments) for arguments, _ in rows)
    for arguments, what in rows:
        _plain(console, f"  {command_name()} {arguments:<{width}}   {what}")


def _title(console: Console, text: str) -> None:
    console.print(styled((text, "bold")), soft_wrap=True)
    console.print(styled(("-" * len(text), "dim")), soft_wrap=True)


def _plain(console: Console, text: str) -> None:
    console.print(Text(printable(text)), soft_wrap=True)


def _steps(console: Console, *steps: tuple[str, str]) -> None:
    number = 0
    for name, what in steps:
        number += bool(name)
        head = f"  {number}. {name:<7}" if name else " " * 12
        console.print(styled((head, "bold"), (what, "")), soft_wrap=True)


def _count(number: int, noun: str) -> str:
    many = noun[:-1] + "ies" if noun.endswith("y") else noun + "s"
    return f"{number:,} {noun if number == 1 else many}"
