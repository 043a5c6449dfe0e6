"""The `connector-sdk` command. Nothing of it is imported by the library, and typer and rich only when it runs."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """
    Run the command and leave the process with its exit code.

    0: done. 1: the work failed, or the account does not balance. 2: bad input (an option, a URL, a file, a port that
    nobody listens on) or the extra `cli` is missing. 130 and 143: interrupted (Ctrl-C, SIGTERM) before it was done.
    """
    try:
        try:
            from connector_sdk.cli.app import run  # noqa: PLC0415 - the extra may be missing, and that has its own line
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in ("typer", "rich"):
                raise
            print("connector-sdk needs typer and rich: pip install 'connector_sdk[cli]'", file=sys.stderr)
            code = 2
        else:
            code = run(sys.argv[1:])
    except KeyboardInterrupt:  # while starting, or a second one while ending
        code = 130
    sys.exit(code)
