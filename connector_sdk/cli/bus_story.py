"""What a demo of the bus says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from rich.console import Console

from connector_sdk.cli.bus_account import BusAccount
from connector_sdk.cli.console import styled
from connector_sdk.cli.story import tell_commands

__all__ = [
    "AttemptSeen",
    "how_it_ends",
    "tell_bus_account",
    "tell_bus_beginning",
    "tell_bus_moment",
    "tell_bus_next",
    "tell_dead_letter",
    "tell_line",
]


class AttemptSeen(Protocol):
    """One failed attempt, as far as it is shown."""

    @property
    def error_type(self) -> str:
        """The class of the error."""

    @property
    def message(self) -> str:
        """What it said."""


def tell_bus_beginning(
    console: Console, *, label: str, events: int, url: str, place: str, is_shared: bool, hold: float
) -> None:
    """Say what is going to happen."""
    _title(console, "connector-sdk demo --bus: one stream for everybody who needs it, and nobody loses anything")
    members = "each member is a process of its own" if is_shared else "all members are in this process"
    end = how_it_ends(is_shared=is_shared)
    for name, what in (
        ("server", f"plays {label}: {events:,} events at {url}"),
        ("client", "reads the stream and publishes each event to the topic connector:demo"),
        ("bus", f"keeps them in {place}"),
        ("search", "a group of two members, A and B: each event goes to one of them"),
        ("analytics", f"another group of two, which gets every event as well; {members}"),
        ("watcher", "subscribes to connector:* without a group: it sees every event"),
        ("", f"On the way search A {end}; what it had not finished goes to B within {hold:g} s. One event is"),
        (
            "",
            "poison for search: it fails, is tried again, becomes a dead letter, and is redriven once that is mended.",
        ),
    ):
        console.print(styled((f"  {name:<10}", "bold"), (what, "")), soft_wrap=True)
    console.print()


def how_it_ends(*, is_shared: bool) -> str:
    """What happens to the member that does not live to the end; nothing can kill one that is in this process."""
    return "is killed (SIGKILL)" if is_shared else "is broken off"


def tell_line(console: Console, line: str) -> None:
    """Something happened."""
    console.print(styled((line, "bold")), soft_wrap=True)


def tell_bus_moment(console: Console, seconds: float, counts: tuple[int, int, int], waiting: Mapping[str, int]) -> None:
    """Where things are: how many are published, watched and dead letters, and how many wait for each group."""
    published, watched, letters = counts
    groups = "".join(f"  waiting for {name} {count:>4,}" for name, count in sorted(waiting.items()))
    console.print(
        styled(
            (f"{seconds:5.1f} s  published {published:>6,}  watched {watched:>6,}{groups}  dead letters {letters}", "")
        ),
        soft_wrap=True,
    )


def tell_dead_letter(
    console: Console, seconds: float, event_id: str, group: str, attempts: Sequence[AttemptSeen]
) -> None:
    """Show a dead letter with its evidence."""
    last = attempts[-1]
    tell_line(
        console,
        f"{seconds:5.1f} s  event {event_id} is a dead letter of {group} after {len(attempts)} attempts: "
        f"{last.error_type}: {last.message}",
    )


def tell_bus_account(console: Console, account: BusAccount, *, is_shared: bool) -> None:
    """Show the sums, and the verdict."""
    end = "killed" if is_shared else "broken off"
    console.print()
    _title(console, "The account: every event, with everybody")
    rows = [
        ("sent by the server", account.sent, ""),
        ("published", account.published, f"{account.kept:,} entries in the log"),
        ("seen by the watcher", account.watched, f"{account.watched_again:,} twice"),
    ]
    for group in account.groups:
        shares = ", ".join(
            f"{worker.name} {worker.handled:,}" + (f" until it was {end}" if worker.was_killed else "")
            for worker in group.workers
        )
        again = (
            f"; {group.again:,} a second time, for they were not acknowledged when it was {end}" if group.again else ""
        )
        rows.append((f"handled by {group.name}", group.handled, shares + again))
    redriven = sum(letter.was_redriven for letter in account.letters)
    rows += [
        ("dead letters", len(account.letters), f"{redriven} redriven and handled, {account.letters_left} left"),
        ("lost", account.lost, ""),
    ]
    for name, count, meaning in rows:
        remark = f"   {meaning}" if meaning else ""
        console.print(styled((f"  {name:<28}", ""), (f"{count:>9,}", "bold"), (remark, "dim")), soft_wrap=True)
    console.print()
    failed = [check for check in account.checks() if not check.holds]
    for check in failed:
        console.print(styled((f"  {check.says}: {check.left:,} is not {check.right:,}", "red")), soft_wrap=True)
    if failed:
        console.print(styled(("THE ACCOUNT DOES NOT BALANCE", "bold red"), (" (exit code 1)", "")), soft_wrap=True)
    else:
        through = f"through a member {end} and a poison event"
        verdict = f": {account.published:,} events published = watched = handled by each group, {through}"
        console.print(styled(("BALANCED", "bold green"), (verdict, "")), soft_wrap=True)


def tell_bus_next(console: Console, *, is_shared: bool) -> None:
    """Say what to try next."""
    _title(console, "What to try next")
    rows = [("demo", "a stream that breaks, a buffer and an index")]
    if not is_shared:
        rows.insert(0, ("demo --bus redis", "the same over Redis, with members that can be killed"))
    tell_commands(console, rows)


def _title(console: Console, text: str) -> None:
    console.print(styled((text, "bold")), soft_wrap=True)
    console.print(styled(("-" * len(text), "dim")), soft_wrap=True)
