"""The command line as such: help, version, bad input, the missing extra."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from connector_sdk import __version__
from tests.cli.commands import assert_bad_input, run


@pytest.fixture
def free_port() -> Iterator[int]:
    """A port that is bound and not listening: nobody answers there, and nobody else takes it."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


def test_version_and_help() -> None:
    assert run("--version").out == f"connector-sdk {__version__}\n"
    alone = run()
    assert alone.process.returncode == 0
    for command in ("demo", "serve", "tail"):
        assert command in alone.out
        told = run(command, "--help")
        assert told.process.returncode == 0
        assert f"Usage: connector-sdk {command}" in told.out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nonsense"], "No such command 'nonsense'; see connector-sdk --help"),
        (["--nonsense"], "No such option"),
        (["serve", "--nonsense"], "; see connector-sdk serve --help"),
        (["tail"], "URL"),
        (["tail", "http://127.0.0.1:1/", "--limit", "0"], "--limit"),
        (["tail", "http://127.0.0.1:1/", "--limit", "few"], "--limit"),
        (["tail", "not-a-url"], "http or https address"),
        (["tail", "ftp://127.0.0.1/stream"], "http or https address"),
        (["tail", "http://127.0.0.1:1/", "--token", "sécret\n"], "token=<hidden>"),
        (["serve", "--rate", "0"], "--rate"),
        (["serve", "--rate", "nan"], "--rate"),
        (["serve", "--port", "70000"], "--port"),
        (["serve", "--host", "192.0.2.1"], "127.0.0.1"),
        (["serve", "--from", "README", "--sessions", "3"], "choose one"),
        (["demo", "--seconds", "0"], "--seconds"),
        (["demo", "--rate", "inf"], "rate=inf"),
        (["demo", "surplus"], "surplus"),
        (["demo", "--rate", "5", "--seconds", "2"], "choose one"),
        (["demo", "--bus", "redis", "--cuts", "12", "--kill-redis"], "leave out --cuts, --kill-redis, or --bus"),
        (["demo", "--index", "missing/folder/index.db"], "missing/folder/index.db"),
    ],
)
def test_bad_options_are_one_line_and_code_2(arguments: list[str], says: str, tmp_path: Path) -> None:
    assert_bad_input(run(*arguments, cwd=tmp_path), says)


def test_the_demo_names_a_command_that_can_be_typed(tmp_path: Path) -> None:
    """`make demo` runs the command out of an environment that is not active: the shell does not know its name."""
    told = run("demo", "--seconds", "1", "--events", "20", PATH=str(tmp_path))
    assert f"  {sys.executable} -m connector_sdk.cli demo --bus redis " in told.out
    (tmp_path / "connector-sdk").write_text("#!/bin/sh\n")
    (tmp_path / "connector-sdk").chmod(0o755)
    told = run("demo", "--seconds", "1", "--events", "20", PATH=str(tmp_path))
    assert "  connector-sdk demo --bus redis " in told.out


@pytest.mark.parametrize("command", ["demo", "serve"])
def test_a_file_that_is_no_log_is_one_line_and_code_2(command: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("dear diary\n\nnothing happened\n")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" * 50)
    (tmp_path / "empty.log").touch()
    options = [command, *(["--port", "0"] if command == "serve" else [])]
    assert_bad_input(run(*options, "--from", "missing.log", cwd=tmp_path), "missing.log", "No such file")
    assert_bad_input(run(*options, "--from", str(tmp_path)), "directory")
    assert_bad_input(
        run(*options, "--from", "notes.txt", cwd=tmp_path),
        "notes.txt is no access log in combined format: 0 of 2 lines parse; first line: 'dear diary'",
        "expected e.g.: 203.0.113.7 - - [",
    )
    assert_bad_input(run(*options, "--from", "picture.png", cwd=tmp_path), "picture.png", "binary")
    assert_bad_input(run(*options, "--from", "empty.log", cwd=tmp_path), "it is empty")


def test_a_port_that_nobody_listens_on(free_port: int) -> None:
    url = f"http://127.0.0.1:{free_port}/stream/demo"
    assert_bad_input(run("tail", url), f"no connector at {url}", "connector-sdk serve")
    assert_bad_input(run("tail", url, "--max-retries", "0"), f"no connector at {url}")


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert_bad_input(run("serve", "--port", str(port)), f"port {port}", "--port 0")


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_the_extra_one_line_says_what_to_install(missing: str) -> None:
    program = f"import sys; sys.modules[{missing!r}] = None; from connector_sdk.cli import main; main()"
    process = run("--version", command=[sys.executable, "-c", program])
    assert process.process.returncode == 2
    assert process.err == "connector-sdk needs typer and rich: pip install 'connector_sdk[cli]'\n"


def test_the_library_never_imports_what_the_command_needs() -> None:
    program = (
        "import sys, connector_sdk, connector_sdk.cli, connector_sdk.cli.access_log, connector_sdk.cli.traffic;"
        "import connector_sdk.cli.sessions, connector_sdk.cli.index, connector_sdk.client.sync;"
        "print(sorted({'typer', 'rich'} & set(sys.modules)))"
    )
    assert run(command=[sys.executable, "-c", program]).out == "[]\n"


def test_help_into_a_closed_pipe_is_quiet() -> None:
    program = "import os, sys; os.close(1); from connector_sdk.cli import main; sys.argv[1:] = ['--help']; main()"
    assert "Traceback" not in run(command=[sys.executable, "-c", program]).err


def test_a_signal_in_a_finalizer_is_not_lost() -> None:
    """Python prints what is raised in a `__del__`, and goes on as if nothing had come."""
    program = """
import os, signal, sys, time
from connector_sdk.cli.console import signals

class Dying:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)

try:
    with signals():
        Dying()
        time.sleep(30)
except KeyboardInterrupt:
    sys.exit(130)
"""
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (process.returncode, process.stderr) == (130, "")
