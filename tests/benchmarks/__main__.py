"""`make bench`: the clients and the buffers against their floors and their peers. Speed is reported, not asserted."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Final

from tests.benchmarks import bench_bridge, bench_bus, bench_chain, bench_client, bench_leases, bench_redis, bench_sqlite
from tests.benchmarks.peers import PEERS, PeersNotAvailableError, peers_python
from tests.benchmarks.report import Row, render
from tests.benchmarks.runs import CandidateCrashedError

_WITHOUT_PEERS: Final = {
    "sqlite": bench_sqlite.run,
    "leases": bench_leases.run,
    "bridge": bench_bridge.run,
    "chain": bench_chain.run,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, return the exit code: 1 when events were lost or a candidate crashed."""
    options = parse(arguments)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else math.nan
    peers: Path | None = None
    if not options.no_peers and options.only in (None, "client", "redis", "bus"):
        tell("the peers' environment .venv-bench (made once)")
        try:
            peers = peers_python()
        except PeersNotAvailableError as error:
            print(f"The peers are not available: {error}", file=sys.stderr)
    rows: list[Row] = []
    failure = ""
    try:
        if options.only in (None, "client"):
            rows += bench_client.run(quick=options.quick, rounds=options.rounds, peers=peers, progress=tell)
        if options.only in (None, "buffer"):
            from tests.benchmarks import bench_buffer

            tell("buffer")
            rows += bench_buffer.run(quick=options.quick)
        if options.only in (None, "redis"):
            rows += bench_redis.run(quick=options.quick, rounds=options.rounds, peers=peers, progress=tell)
        if options.only in (None, "bus"):
            rows += bench_bus.run(quick=options.quick, rounds=options.rounds, peers=peers, progress=tell)
        for name, bench in _WITHOUT_PEERS.items():
            if options.only in (None, name):
                rows += bench(quick=options.quick, rounds=options.rounds, progress=tell)
    except CandidateCrashedError as error:
        failure = str(error)
    tell("")
    facts = machine(load=load, with_peers=peers is not None)
    if options.json:
        document = {"machine": facts, "quick": options.quick, "rows": [plain(row) for row in rows], "failure": failure}
        print(json.dumps(document, indent=2))
    else:
        print(" · ".join(f"{name} {fact}" for name, fact in facts.items()), end="\n\n")
        print(render(rows))
    lost = sum(row.lost for row in rows)
    if failure:
        print(f"A candidate failed: {failure}", file=sys.stderr)
    if lost:
        print(f"{lost} events were lost", file=sys.stderr)
    return 1 if failure or lost else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few rounds of few events: does it all work?")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    parser.add_argument(
        "--only", choices=("client", "buffer", "redis", "bus", *_WITHOUT_PEERS), help="measure only this"
    )
    parser.add_argument("--no-peers", action="store_true", help="leave the other packages out, and install nothing")
    parser.add_argument("--rounds", type=positive, help="how often each candidate runs (default 5, quick 2)")
    return parser.parse_args(arguments)


def positive(text: str) -> int:
    """Read a count of 1 or more."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("1 or more is needed")
    return number


def machine(*, load: float, with_peers: bool) -> dict[str, str]:
    """Where this was measured and with what."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts = {"Python": platform.python_version(), "on": f"{platform.system()}, {cores} x {processor()}"}
    if math.isfinite(load):
        facts["load before"] = f"{load:.1f}"
    facts |= {name: version(name) for name in ("connector_sdk", "httpx", "h11", "anyio", "msgspec", "redis", "hiredis")}
    facts["peers"] = ", ".join(PEERS) if with_peers else "not available"
    return facts


def processor() -> str:
    """The processor's name, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def plain(row: Row) -> dict[str, object]:
    """A row as JSON has it: what was not measured is null."""
    values = dataclasses.asdict(row)
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in values.items()
    }


def tell(text: str) -> None:
    """Show on a terminal what is going on."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
