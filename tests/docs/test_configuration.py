"""The tables of options say what the code does."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable

import pytest

from connector_sdk import (
    AsyncConnectorClient,
    BlockingBuffer,
    ConfigurationError,
    ConnectorClient,
    EventBuffer,
    EventBus,
    GroupConsumer,
    MemoryCheckpoint,
    MemoryLog,
    OutageBridge,
    PostgresEventBuffer,
    PostgresLog,
    RedisEventBuffer,
    RedisLog,
    SQLiteEventBuffer,
)
from connector_sdk.client.options import ENVIRONMENT
from connector_sdk.client.session import TRANSITIONS
from tests.docs.pages import DOCS, blocks, tables

PAGE = DOCS / "configuration.md"
URL = "http://127.0.0.1:1/stream/p"
REDIS_URL = "redis://127.0.0.1:1/0"


def rows(number: int) -> list[dict[str, str]]:
    head, *body = list(tables(PAGE))[number]
    return [dict(zip(head, row, strict=True)) for row in body]


def code(cell: str) -> str:
    return cell.strip("`")


CLIENT = {code(row["option"]): row for row in rows(0)}
BUFFER = {code(row["option"]): row for row in rows(1)}
REDIS_BUFFER = {code(row["option"]): row for row in rows(2)}
SQLITE_BUFFER = {code(row["option"]): row for row in rows(3)}
#: Those of which only names, order and defaults are looked at, in the order of the page.
OTHERS: list[Callable[..., object]] = [
    PostgresEventBuffer,
    OutageBridge,
    BlockingBuffer,
    EventBus,
    EventBus.subscribe,
    MemoryLog,
    RedisLog,
    PostgresLog,
]
#: The tables of `create_event_bus` and `open_buffer` are before this one.
LAST: dict[Callable[..., object], int] = {GroupConsumer: 4 + len(OTHERS) + 2}
TABLES: dict[Callable[..., object], dict[str, dict[str, str]]] = {
    ConnectorClient: CLIENT,
    EventBuffer: BUFFER,
    RedisEventBuffer: REDIS_BUFFER,
    SQLiteEventBuffer: SQLITE_BUFFER,
    **{
        face: {code(row["option"]): row for row in rows(number)}
        for face, number in {**{face: 4 + i for i, face in enumerate(OTHERS)}, **LAST}.items()
    },
}


def public_parameters(face: Callable[..., object]) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(face).parameters
    return {name: value for name, value in parameters.items() if not name.startswith("_") and name != "self"}


@pytest.mark.parametrize("face", [ConnectorClient, AsyncConnectorClient])
def test_every_option_of_a_client_is_there_in_order(face: type) -> None:
    assert list(CLIENT) == list(public_parameters(face))


@pytest.mark.parametrize("face", list(TABLES)[1:])
def test_every_option_of_a_buffer_a_bus_or_a_log_is_there_in_order(face: Callable[..., object]) -> None:
    assert list(TABLES[face]) == list(public_parameters(face))


def test_the_variables_are_those_of_the_code() -> None:
    assert {name: code(row["variable"]) for name, row in CLIENT.items() if row["variable"]} == dict(ENVIRONMENT)


@pytest.mark.parametrize("face", TABLES)
def test_the_defaults_are_those_of_the_code(face: Callable[..., object]) -> None:
    for name, row in TABLES[face].items():
        default = public_parameters(face)[name].default
        if row["default"] == "none":
            assert default in ("", inspect.Parameter.empty)
        elif isinstance(default, int | float) and not isinstance(default, bool):
            assert float(code(row["default"])) == default, name
        else:
            assert code(row["default"]).replace('"', "'") == repr(default), name


NUMBERS = [
    (table, option)
    for table, known in (("client", CLIENT), ("buffer", BUFFER), ("redis", REDIS_BUFFER))
    for option, row in known.items()
    if re.fullmatch(r"above \d+|\d+ or more", row["allowed"])
]


@pytest.mark.parametrize(("table", "option"), NUMBERS)
def test_the_ranges_are_those_of_the_code(table: str, option: str) -> None:
    row = {"client": CLIENT, "buffer": BUFFER, "redis": REDIS_BUFFER}[table][option]
    allowed = row["allowed"]
    bound = int(re.findall(r"\d+", allowed)[0])
    wrong = bound if allowed.startswith("above") else bound - 1

    def make(value: float) -> object:
        if table == "buffer":
            more = {"overflow": "block"} if option == "block_timeout" else {}
            return EventBuffer(**{option: value}, **more)  # type: ignore[arg-type]  # the options are known by name here
        if table == "redis":
            return RedisEventBuffer(REDIS_URL, **{option: value})  # type: ignore[arg-type]  # as above
        return ConnectorClient(URL, **{option: value})  # type: ignore[arg-type]  # as above

    # Where there is an upper bound too, the error says both.
    says = re.escape(allowed).replace("\\ or\\ more", "( or more| to)")
    with pytest.raises(ConfigurationError, match=says) as caught:
        make(wrong)
    assert caught.value.option == option
    if not allowed.startswith("above"):
        make(bound)


CHOICES: list[tuple[Callable[..., object], str, str]] = [
    (ConnectorClient, URL, "overflow"),
    (EventBuffer, "", "overflow"),
    *[(RedisEventBuffer, REDIS_URL, option) for option in ("overflow", "window_on", "codec")],
]


@pytest.mark.parametrize(("face", "url", "option"), CHOICES)
def test_the_choices_are_those_of_the_code(face: Callable[..., object], url: str, option: str) -> None:
    row = TABLES[face][option]
    with pytest.raises(ConfigurationError) as caught:
        face(*([url] if url else []), **{option: "?"})
    assert sorted(re.findall(r"'(\w+)'", caught.value.allowed)) == sorted(re.findall(r"'(\w+)'", row["allowed"]))


def test_what_none_means_for_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ConnectorClient(URL)._options.overflow == "drop_newest"
    assert ConnectorClient(URL, checkpoint=MemoryCheckpoint())._options.overflow == "block"
    monkeypatch.setenv("CONNECTOR_OVERFLOW", "drop_oldest")
    assert ConnectorClient(URL, checkpoint=MemoryCheckpoint())._options.overflow == "drop_oldest"


def test_the_states_are_drawn_from_the_table() -> None:
    page = DOCS / "explanation" / "design.md"
    text = page.read_text()
    line = text[: text.index("<!-- transitions -->")].count("\n") + 1
    drawn = next(block for block in blocks(page) if block.line > line).text
    order = list(TRANSITIONS)
    expected = [
        f"{state.value:<10} ─▶ {', '.join(to.value for to in order if to in TRANSITIONS[state])}" for state in order
    ]
    assert drawn.splitlines() == expected
