"""`connector-sdk demo`: server, client, buffer, index; cuts on the way, an account at the end."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Final

import msgspec

from connector_sdk.cli.account import Account, GivenUp, Played
from connector_sdk.cli.console import BadInputError, FailedError, OutputConsole, signals
from connector_sdk.cli.index import Added, Hit, SearchIndex
from connector_sdk.cli.killing import Killing
from connector_sdk.cli.place import Place, RedisPlace, open_place
from connector_sdk.cli.source import Played as PlayedPayload
from connector_sdk.cli.source import Source
from connector_sdk.cli.story import (
    Moment,
    Progress,
    tell_account,
    tell_beginning,
    tell_findings,
    tell_log,
    tell_next,
)
from connector_sdk.client.sync import ConnectorClient
from connector_sdk.errors import BufferUnavailableError, LeaseExpiredError
from connector_sdk.ledger import DropReason
from connector_sdk.payloads import ActionsPayload, Payload
from connector_sdk.testing.script import Cut, Duplicate, Step
from connector_sdk.testing.server import ConnectorServer

__all__ = ["SESSIONS", "DemoOptions", "demo"]

#: How many visits are generated without a log: some 1,500 events.
SESSIONS: Final = 250
MOST_EVENTS: Final = 50_000  # that are held in memory and played when nobody says how many
_TICK: Final = 0.1  # seconds
_DRAIN_EVERY: Final = 1.0  # seconds; elsewhere than on a terminal, also between two lines
_DRAW_EVERY: Final = 0.2  # seconds, on a terminal
_LEASE: Final = 1000  # events taken at once
_PATIENCE: Final = 0.2  # seconds that Redis lives longer while nothing is there to be on lease when it dies
_SETTLE: Final = 10.0  # seconds for what is on its way or on lease when the stream has ended
_GRACE: Final = 20.0  # seconds beyond the planned time after which the demo gives up and shows what there is
_CUT_WITHIN: Final = 200  # bytes of an event that are sent at most before it is cut
_SENT_TWICE: Final = 3  # events that are repeated at a time


class DemoOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options of `demo`, as the command line has them; `rate` (events a second) goes before `seconds`."""

    seconds: float = 12.0
    rate: float | None = None
    events: int | None = None
    cuts: int = 12
    seed: int = 7
    index: Path | None = None
    query: str | None = None
    is_json: bool = False
    buffer: str = "sqlite"  #: or "memory", "redis", or a URL
    kill_redis: bool = False


def demo(source: Source, options: DemoOptions) -> None:
    """
    Play *source* through server, client, buffer and index, and show the account.

    The story goes to stdout, or with `is_json` to stderr and the account as one JSON object to stdout. Raises FailedError
    """
    tape = source.payloads()
    payloads = list(islice(tape, options.events or MOST_EVENTS))
    is_whole = next(tape, None) is None
    index = _new_index(options.index)
    console = OutputConsole(highlight=False, stderr=options.is_json)
    with signals(), index:
        with open_place(options.buffer, kill_redis=options.kill_redis) as place:
            played = _measure(source, payloads, is_whole=is_whole)
            run = _Run(source, options, payloads, played=played, index=index, place=place, console=console)
            account = run.run()
        pages = index.busiest_pages(5)
        # Words that any log has in its summaries, or the generated traffic in its errors.
        query = options.query or ("requests failed 404" if source.log is not None else "checkout error")
        hits = _one_a_session(index.search(query, 100))[:3]
        tell_findings(console, pages, query, hits)
        tell_account(console, account)
        console.print()
        tell_next(
            console,
            has_log=source.log is not None,
            index_path=str(options.index) if options.index else None,
            has_redis=account.store_name == "Redis",
        )
    if options.is_json:
        found = {"query": query, "hits": msgspec.to_builtins(hits), "busiest_pages": msgspec.to_builtins(pages)}
        sys.stdout.buffer.write(msgspec.json.encode(account.to_dict() | found) + b"\n")
        sys.stdout.buffer.flush()
    if not account.balances:
        raise FailedError("the account does not balance" + (f" ({run.broken_off})" if run.broken_off else ""))


class _Run:
    """One run of the demo."""

    def __init__(
        self,
        source: Source,
        options: DemoOptions,
        payloads: Sequence[PlayedPayload],
        *,
        played: Played,
        index: SearchIndex,
        place: Place,
        console: OutputConsole,
    ) -> None:
        self._source = source
        self._played = played
        self._index = index
        self._place = place
        self._console = console
        self._rate = options.rate or max(1.0, len(payloads) / options.seconds)
        self._script = _script(len(payloads), options.cuts, options.seed)
        planned = len(payloads) / self._rate
        # The pauses of a client that talks to another machine would be longer: see its defaults.
        self._most_pause = max(0.01, min(0.5, planned / (1 + 2 * len(self._script))))
        self._deadline = planned + _GRACE + self._most_pause * len(self._script)
        self._killing = None
        if options.kill_redis and isinstance(place, RedisPlace):
            self._killing = Killing(place, planned, options.seed)
        self._server = ConnectorServer(payloads, rate=self._rate, script=self._script, end="stop")
        self._stored = self._repeated = 0
        #: Why the account may be incomplete, "" when the server said that all was sent.
        self.broken_off = ""

    def run(self) -> Account:
        """Play everything; return the account."""
        with self._server as server:
            client = ConnectorClient(
                server.url,
                overflow="block",
                initial_backoff=min(0.05, self._most_pause),
                max_backoff=self._most_pause,
            ).into(self._place)
            self._tell_beginning()
            try:
                self._follow(client)
            finally:
                client.stop(drain=False, timeout=1.0)
            stats, reading = client.stats(), self._place.read()
            ids = self._index.known(event.id for event in server.log)
            return Account(
                played=self._played,
                connections=stats.connections,
                sent=server.sent,
                distinct=len(server.log),
                client=stats.ledger,
                buffer=reading.ledger,
                added=Added(events=self._stored, repeated=self._repeated),
                index=self._index.counts(),
                known=len(ids),
                place=self._place.name,
                store_name=self._place.store_name,
                store=reading.store,
                given_up=_given_up(self._place.given_up, ids),
                outage=self._killing.outage if self._killing is not None else None,
                findings=reading.findings,
            )

    def _tell_beginning(self) -> None:
        tell_beginning(
            self._console,
            label=self._source.label,
            url=self._server.url,
            played=self._played,
            rate=self._rate,
            cuts=len(self._script),
            place=self._place.name,
            killing=None if self._killing is None else (self._killing.at, self._killing.length),
        )
        log = self._source.log
        if log is not None:
            shown = [f"line {bad.line} {bad.reason}: {bad.start}" for bad in log.bad_lines[:3]]
            tell_log(self._console, self._played, shown, in_part=self._played.requests is None)

    def _follow(self, client: ConnectorClient) -> None:
        """Drain and draw until the server has said that it is over and the buffer is empty, or time is up."""
        thread = client.run_in_background()
        begin = drained = shown = time.monotonic()
        with Progress(self._console) as progress:
            draw_every = _DRAW_EVERY if progress.is_live else _DRAIN_EVERY
            while (now := time.monotonic()) - begin < self._deadline and thread.is_alive():
                self._play_killing(progress, now - begin)
                if now - shown >= draw_every:
                    shown = now
                    progress.show(self._moment(client, now - begin))
                if now - drained >= _DRAIN_EVERY:
                    drained = now
                    self._drain(progress, now - begin)
                thread.join(_TICK)
            if thread.is_alive():
                self.broken_off = f"broken off after {time.monotonic() - begin:.0f} s, before everything had come"
            self._settle(progress, begin)
            progress.show(self._moment(client, time.monotonic() - begin))
        self._console.print()

    def _settle(self, progress: Progress, begin: float) -> None:
        """Drain what is left, events included that are on a lease which has yet to run out."""
        end = time.monotonic() + _SETTLE
        while True:
            seconds = time.monotonic() - begin
            self._play_killing(progress, seconds)
            self._drain(progress, seconds)
            is_done = self._killing is None or self._killing.is_over
            if is_done and self._place.read().is_settled:
                return
            if time.monotonic() > end:
                self.broken_off = (
                    self.broken_off or f"events are still in the buffer {_SETTLE:g} s after the last one came"
                )
                return
            time.sleep(_TICK)

    def _drain(self, progress: Progress, seconds: float) -> None:
        """
        Move what waits into the index. An error gives it back to the buffer, so it is lost in no case.

        When Redis is away nothing is to be had; when it goes away while a lease is open, the events come again.
        """
        with suppress(BufferUnavailableError, LeaseExpiredError):
            found = True
            while found:
                with self._place.lease(_LEASE) as lease:
                    added = self._index.add(lease.events)
                    self._stored += added.events
                    self._repeated += added.repeated
                    found = len(lease) > 0
                    if self._killing is not None and found and self._killing.is_due(seconds):
                        self._killing.kill(seconds, len(lease))
                        progress.say(
                            f"{seconds:5.1f} s  Redis is killed; {len(lease):,} events are on lease, indexed already"
                        )

    def _play_killing(self, progress: Progress, seconds: float) -> None:
        """See to it that Redis dies in time, though nothing may be on lease, and lives again."""
        killing = self._killing
        if killing is None:
            return
        if killing.is_due(seconds):
            self._drain(progress, seconds)
        if killing.is_due(seconds - _PATIENCE):
            killing.kill(seconds, 0)
            progress.say(f"{seconds:5.1f} s  Redis is killed")
        if killing.restart(seconds):
            progress.say(f"{seconds:5.1f} s  Redis runs again")

    def _moment(self, client: ConnectorClient, seconds: float) -> Moment:
        stats, reading = client.stats(), self._place.read()
        return Moment(
            seconds=seconds,
            total=self._played.events,
            sent=self._server.sent,
            received=stats.ledger.received,
            repeated=stats.ledger.dropped.get(DropReason.DUPLICATE, 0),
            waiting=reading.waiting,
            indexed=self._stored,
            cuts=max(0, stats.connections - 1),
            cuts_planned=len(self._script),
            state=str(stats.state),
            dropped=None if reading.store is None else len(self._place.given_up),
            redis_is_away=reading.is_away,
        )


def _given_up(told: Sequence[Payload], indexed: Collection[str]) -> GivenUp:
    """Count what the buffer gave up. It may be in Redis, and so in the index, if Redis went away before it answered."""
    lost = [payload for payload in told if payload.event_id not in indexed]
    batches = [payload for payload in lost if isinstance(payload, ActionsPayload)]
    return GivenUp(
        told=len(told),
        events=len(lost),
        actions=sum(batch.count for batch in batches),
        summaries=len(lost) - len(batches),
        stored=len(told) - len(lost),
    )


def _script(events: int, cuts: int, seed: int) -> list[Step]:
    """
    Cuts in mid-event, spread over the run; every third connection gets some events twice before.

    The last connection is not cut. A connection has at least one whole event, so there are fewer cuts than events.
    """
    dice = random.Random(f"connector_sdk cuts {seed}")
    cuts = min(cuts, max(0, events - 1))
    share = events // (cuts + 1)
    steps: list[Step] = []
    for number in range(cuts):
        cut = Cut(after_events=max(1, round(share * dice.uniform(0.8, 1.0))), into_next=dice.randint(1, _CUT_WITHIN))
        middle = cut.after_events // 2
        if number % 3 == 0 and middle > _SENT_TWICE:
            steps.append(Duplicate(after_events=middle, count=_SENT_TWICE) & cut)
        else:
            steps.append(cut)
    return steps


def _measure(source: Source, payloads: Sequence[PlayedPayload], *, is_whole: bool) -> Played:
    batches = [payload for payload in payloads if isinstance(payload, ActionsPayload)]
    played = Played(
        events=len(payloads),
        actions=sum(batch.count for batch in batches),
        summaries=len(payloads) - len(batches),
        sessions=len({payload.session_id for payload in payloads}),
    )
    log = source.log
    if log is None:
        return played
    return msgspec.structs.replace(
        played,
        # Sessions that are still open when `--events` stops the log have requests that were not played.
        requests=log.parsed if is_whole else None,
        lines=log.lines,
        unparsed=log.failed,
        blank=log.blank,
    )


def _one_a_session(hits: Sequence[Hit]) -> list[Hit]:
    best: dict[str | None, Hit] = {}
    for hit in hits:
        best.setdefault(hit.session_id, hit)
    return list(best.values())


def _new_index(path: Path | None) -> SearchIndex:
    index = SearchIndex(path)
    if index.counts().events:
        index.close()
        raise BadInputError(
            f"{path} has the events of an earlier run, whose ids mean other events: name a new file, or delete it first"
        )
    return index
