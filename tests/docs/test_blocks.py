"""Every program on a page runs, every command on a page exists, every link leads somewhere."""

from __future__ import annotations

import contextlib
import inspect
import os
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import anyio
import pytest
import typer.main

from connector_sdk import ActionsPayload, SlimAction, SummaryPayload
from connector_sdk.cli.app import app
from connector_sdk.testing import ConnectorServer, RedisServer
from connector_sdk.testing.http11 import Event
from connector_sdk.testing.plugin import ConnectorServerFactory
from tests.docs.pages import DOCS, ROOT, blocks, links, name_of, pages

#: Where `connector-sdk serve` listens, and so where the programs on the pages connect to.
SERVED = "http://127.0.0.1:8765/stream/demo"
#: Where a Redis listens that is installed the usual way; a page that names it gets an empty server of its own.
REDIS = "redis://localhost:6379/0"
#: The same for PostgreSQL: an empty database of its own.
POSTGRES = "postgresql://localhost/events"

EVENTS: list[Event] = [
    ActionsPayload(
        "shop",
        f"session-{number % 3}",
        actions=[
            SlimAction("Checkout", f"error at checkout, step {number}", "https://shop.example/checkout", 0, "error")
        ],
        forwarded_at=1.7e9 + number,
    )
    for number in range(12)
]
EVENTS += [
    SummaryPayload("shop", "session-0", "Gave up at the checkout.", 4, 1.7e9 + 12),
    b'{"type":"survey","score":3}',
]


def python_pages() -> list[Path]:
    return [page for page in pages() if any(block.language == "python" for block in blocks(page))]


@pytest.mark.parametrize("page", python_pages(), ids=name_of)
def test_the_programs_of_a_page_run(
    page: Path,
    *,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    connector_server: ConnectorServerFactory,
    request: pytest.FixtureRequest,
) -> None:
    """All in one namespace, from top to bottom; a function that is a test is called as pytest would."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONNECTOR_INITIAL_BACKOFF", "0.01")
    module = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)  # msgspec and pickle look classes up there
    with contextlib.ExitStack() as servers:
        server = servers.enter_context(ConnectorServer(EVENTS, end="stop"))
        monkeypatch.setenv("CONNECTOR_URL", server.url)
        programs = "".join(block.text for block in blocks(page) if block.language == "python" and block.runs)
        redis_url = servers.enter_context(RedisServer()).url if REDIS in programs else REDIS
        postgres_url = str(request.getfixturevalue("postgres_url")) if POSTGRES in programs else POSTGRES
        for block in blocks(page):
            if block.language != "python" or not block.runs:
                continue
            text = block.text.replace(SERVED, server.url).replace(REDIS, redis_url).replace(POSTGRES, postgres_url)
            source = "\n" * (block.line - 1) + text
            known = set(vars(module))
            exec(compile(source, str(page), "exec"), vars(module))
            for name in sorted(set(vars(module)) - known):
                if name.startswith("test_"):
                    _call(vars(module)[name], connector_server)
    out = capsys.readouterr().out
    for block in blocks(page):
        if block.language == "text" and block.runs and block.text.startswith("prints: "):
            assert block.text.removeprefix("prints: ").strip() in out


def _call(test: object, connector_server: ConnectorServerFactory) -> None:
    assert callable(test)
    fixtures = {"connector_server": connector_server} if inspect.signature(test).parameters else {}
    if inspect.iscoroutinefunction(test):
        for backend in ("asyncio", "trio"):
            anyio.run(lambda: test(**fixtures), backend=backend)
    else:
        test(**fixtures)


def console_lines() -> list[tuple[str, str]]:
    return [
        (name_of(page), line.removeprefix("$ "))
        for page in pages()
        for block in blocks(page)
        if block.language == "console"
        for line in block.text.splitlines()
        if line.startswith("$ ")
    ]


@pytest.mark.parametrize(("page", "line"), console_lines())
def test_the_commands_of_a_page_exist(page: str, line: str) -> None:
    words = shlex.split(line, comments=True)
    if words[0] == "connector-sdk":
        _check_command(words[1:])
    elif words[0] == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert words[1] in targets
    elif words[0] == "python":
        assert words[1] == "-m" or (ROOT / words[1]).is_file() or page != "README.md"
    else:
        assert words[0] in {"pip", "git", "cd", "sqlite3"}, f"{page}: nobody checks {line!r}"


def _check_command(words: list[str]) -> None:
    """Let the command's own parser read the line, and run nothing."""
    group = typer.main.get_command(app)
    command = getattr(group, "commands")[words[0]]  # noqa: B009 - typer's own class for it has no public name
    with contextlib.suppress(SystemExit):
        command.make_context(words[0], list(words[1:]))


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for target in links(page):
        path, _, anchor = target.partition("#")
        assert not re.match(r"[a-z]+:", path), f"{target}: pages link to pages only"
        place = (page.parent / path).resolve() if path else page
        if DOCS / "reference" in place.parents:
            continue  # written by `make docs`
        assert place.exists(), target
        if anchor:
            assert anchor in _anchors(place), target


def _anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_pages_name_no_place_of_one_machine(page: Path) -> None:
    text = page.read_text()
    for word in ("/home/", "/root/", "/Users/"):
        assert word not in text
    assert os.sep + "tmp" not in text
