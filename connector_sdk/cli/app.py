"""The commands and their options; what they do is in the modules named after them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Protocol, runtime_checkable

import typer
import typer.main

from connector_sdk._version import __version__
from connector_sdk.cli.console import (
    BadInputError,
    FailedError,
    Terminated,
    prepare_environment,
    prepare_output,
    quiet_pipe,
    say,
)
from connector_sdk.errors import ConnectorError

if TYPE_CHECKING:
    from connector_sdk.cli.source import Source

__all__ = ["app", "run"]

app = typer.Typer(
    name="connector-sdk",
    help="Receive, buffer and hand on the event stream of a connector. Start with: connector-sdk demo",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_INTERRUPTED: Final = 130
_TERMINATED: Final = 143

LogOption = Annotated[
    Path | None,
    typer.Option(
        "--from",
        metavar="LOG",
        help="A web server's access log in combined format, plain or gzip; without it, traffic is generated.",
    ),
]
SeedOption = Annotated[int, typer.Option(metavar="N", help="The same seed generates the same traffic.")]

#: Options of a demo with a buffer and an index that mean nothing to one of the bus.
_NOT_WITH_BUS: Final = ("cuts", "index", "query", "buffer", "kill_redis")


def run(arguments: Sequence[str]) -> int:
    """
    Run the command line and return its exit code, see `connector_sdk.cli.main`.

    Every error that is not ours is a mistake in the program and leaves a traceback.
    """
    prepare_output()
    command = typer.main.get_command(app)
    try:
        result: object = command.main(list(arguments) or ["--help"], prog_name="connector-sdk", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        return _INTERRUPTED
    except BrokenPipeError:  # `--help | head -1`
        quiet_pipe()
        return 0
    except FailedError as error:
        return _fail(1, str(error))
    except (BadInputError, ConnectorError, OSError) as error:
        return _fail(2, str(error))
    except Exception as error:
        if not isinstance(error, _UsageProblem):  # click's own, which typer has under another name in each version
            raise
        about = f"connector-sdk {arguments[0]}" if arguments[0] in _commands() else "connector-sdk"
        return _fail(error.exit_code, f"{error.format_message().rstrip('.')}; see {about} --help")
    return result if isinstance(result, int) else 0


@runtime_checkable
class _UsageProblem(Protocol):
    exit_code: int

    def format_message(self) -> str:
        """Say what is wrong with the command line."""
        ...


@contextmanager
def _ending() -> Iterator[None]:
    """Let an interrupted command end with its own code; click would make 1 of each of these."""
    try:
        yield
    except BrokenPipeError as error:  # `| head` has seen enough
        quiet_pipe()
        raise typer.Exit from error
    except KeyboardInterrupt as error:
        raise typer.Exit(_TERMINATED if isinstance(error, Terminated) else _INTERRUPTED) from error


def _commands() -> set[str]:
    return {command.callback.__name__ for command in app.registered_commands if command.callback is not None}


def _given(context: typer.Context, *names: str) -> list[str]:
    """Those of the options *names* that stand on the command line, as they are typed."""
    sources = {name: context.get_parameter_source(name) for name in names}
    return [
        "--" + name.replace("_", "-")
        for name, source in sources.items()
        if source is not None and source.name == "COMMANDLINE"
    ]


def _fail(code: int, message: str) -> int:
    say(f"connector-sdk: {message}")
    return code


def _show_version(value: bool) -> None:
    if value:
        print(f"connector-sdk {__version__}")
        raise typer.Exit


@app.callback()
def _connector_sdk(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


@app.command(short_help="Watch it work: a stream that is cut, a buffer, an index, an account.")
def demo(
    context: typer.Context,
    *,
    log: LogOption = None,
    seconds: Annotated[float, typer.Option(min=1.0, metavar="S", help="How long it takes, about.")] = 12.0,
    rate: Annotated[
        float | None, typer.Option(min=0.1, metavar="N", help="Events a second, instead of --seconds.")
    ] = None,
    events: Annotated[
        int | None,
        typer.Option(min=2, metavar="N", help="Play at most so many events. Default: all of a log up to 50,000."),
    ] = None,
    cuts: Annotated[int, typer.Option(min=0, metavar="N", help="How often the connection is cut in mid-event.")] = 12,
    seed: SeedOption = 7,
    index: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep the index in this new file; without it, it is in memory.")
    ] = None,
    query: Annotated[str | None, typer.Option(metavar="WORDS", help="What to search for at the end.")] = None,
    buffer: Annotated[
        str,
        typer.Option(
            metavar="WHERE",
            help="Where events wait for the index: sqlite (a file of the demo, or sqlite:///FILE for a new one), memory, redis "
            "(a server is started for it), or the URL of a Redis.",
        ),
    ] = "sqlite",
    kill_redis: Annotated[
        bool, typer.Option("--kill-redis", help="With --buffer redis: kill that server on the way, and start it again.")
    ] = False,
    bus: Annotated[
        str | None,
        typer.Option(
            metavar="WHERE",
            help="Show the event bus instead of a buffer and an index: memory, redis or postgres (a server is started for "
            "it), or the URL of one.",
        ),
    ] = None,
    is_json: Annotated[
        bool, typer.Option("--json", help="The account as one JSON object on stdout; the story goes to stderr.")
    ] = False,
) -> None:
    """
    Watch it work: a stream that is cut again and again, a client, a buffer, an index, and an account that balances.

    Everything runs on this machine and leaves nothing behind. Exit code 1 when the account does not balance.
    """
    from connector_sdk.cli import demo as command  # noqa: PLC0415 - `--help` need not wait for httpx
    from connector_sdk.cli.source import Source  # noqa: PLC0415

    if len(_given(context, "seconds", "rate")) > 1:
        raise BadInputError("--rate says how long it takes, and so does --seconds: choose one")
    without = _given(context, *_NOT_WITH_BUS)
    if bus is not None and without:
        raise BadInputError(f"a demo of the bus has no buffer and no index: leave out {', '.join(without)}, or --bus")
    source = (
        Source.of_traffic(seed, command.SESSIONS if events is None else events) if log is None else Source.of_log(log)
    )
    if bus is not None:
        _demo_of_bus(source, bus, seconds=seconds, rate=rate, events=events, is_json=is_json)
        return
    options = command.DemoOptions(
        seconds=seconds,
        rate=rate,
        events=events,
        cuts=cuts,
        seed=seed,
        index=index,
        query=query,
        is_json=is_json,
        buffer=buffer,
        kill_redis=kill_redis,
    )
    prepare_environment(is_demo=True)
    with _ending():
        command.demo(source, options)


def _demo_of_bus(
    source: Source, bus: str, *, seconds: float, rate: float | None, events: int | None, is_json: bool
) -> None:
    from connector_sdk.cli import bus_demo as command  # noqa: PLC0415 - only for who asks for it
    from connector_sdk.cli.demo import MOST_EVENTS  # noqa: PLC0415

    options = command.BusDemoOptions(
        bus=bus, seconds=seconds, rate=rate, most_events=events or MOST_EVENTS, is_json=is_json
    )
    prepare_environment(is_demo=True)
    with _ending():
        command.bus_demo(source, options)


@app.command(short_help="Run a connector to develop against.")
def serve(
    *,
    log: LogOption = None,
    rate: Annotated[
        float, typer.Option(min=0.01, metavar="N", help="Events a second, from the first client on.")
    ] = 20.0,
    loop: Annotated[bool, typer.Option("--loop", help="Begin again at the end of the log, or of --sessions.")] = False,
    host: Annotated[str, typer.Option(metavar="HOST", help="Only 127.0.0.1: it is for development.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, metavar="PORT", help="0 is any that is free.")] = 8765,
    seed: SeedOption = 7,
    sessions: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Generate so many visits. Default: visits without end.")
    ] = None,
    token: Annotated[
        str,
        typer.Option(
            envvar="CONNECTOR_TOKEN", metavar="TOKEN", help="Ask every client for it (Authorization: Bearer)."
        ),
    ] = "",
    cut_every: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Cut each connection in mid-event after N events.")
    ] = None,
) -> None:
    """
    Run a connector to develop against: a log or generated traffic as a live stream, with ids to resume from.

    Ctrl-C ends it (exit code 0).
    """
    from connector_sdk.cli import serve as command  # noqa: PLC0415 - `--help` need not wait for asyncio
    from connector_sdk.cli.source import Source  # noqa: PLC0415

    if log is None:
        source = Source.of_traffic(seed, sessions, start=time.time(), events_per_second=rate)
    elif sessions is not None:
        raise BadInputError("--sessions is for generated traffic, and --from plays a log: choose one")
    else:
        source = Source.of_log(log)
    with _ending():
        command.serve(source, rate=rate, loop=loop, host=host, port=port, token=token, cut_every=cut_every)


@app.command(short_help="Watch a connector, one line for each action and summary.")
def tail(
    url: Annotated[
        str,
        typer.Argument(metavar="URL", envvar="CONNECTOR_URL", help="The stream: http(s)://host/stream/{product_id}."),
    ],
    *,
    token: Annotated[
        str, typer.Option(envvar="CONNECTOR_TOKEN", metavar="TOKEN", help="Sent as Authorization: Bearer.")
    ] = "",
    is_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a line, event_id included, for programs.")
    ] = False,
    types: Annotated[
        list[str] | None,
        typer.Option(
            "--type", metavar="TYPE", help="Show only events of this type (actions, summary, ...); repeatable."
        ),
    ] = None,
    session: Annotated[str, typer.Option(metavar="ID", help="Show only this session: its id, or how it begins.")] = "",
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="End after N events shown.")] = None,
    since_id: Annotated[
        str, typer.Option(metavar="ID", help="Begin after the event with this id, if the server still has it.")
    ] = "",
    max_retries: Annotated[
        int | None,
        typer.Option(
            min=0, metavar="N", help="Failed attempts in a row before giving up. Default: never, once it was connected."
        ),
    ] = None,
) -> None:
    """
    Watch a connector: one line for each action and summary, coloured by session.

    Events go to stdout, everything else to stderr. Lost connections are resumed where they broke off. Ctrl-C ends it
    (exit code 0); exit code 2 when there is no connector at URL, 1 when a connection was lost for good.
    """
    from connector_sdk.cli import tail as command  # noqa: PLC0415 - `--help` need not wait for httpx

    wanted = command.Filter(types=frozenset(types or ()), session=session, limit=limit)
    prepare_environment(is_demo=False)
    with _ending():
        command.tail(url, token=token, is_json=is_json, wanted=wanted, since_id=since_id, max_retries=max_retries)
