"""
The proof machine: kills, pauses, cuts and fills what lies between a connector and an index, and counts what is missing.

    python -m tests.chaos                       every kind of buffer, a seed of the clock's, 60 s each
    python -m tests.chaos sqlite --seed 7       the same faults again
"""

from __future__ import annotations

import argparse
import json
import secrets
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos.plan import BUFFERS, make_plan
from tests.chaos.run import run
from tests.chaos.verdict import faults_of


def main() -> int:
    arguments = _arguments()
    failures = 0
    for kind in arguments.buffers or BUFFERS:
        seed = secrets.randbelow(1_000_000) if arguments.seed is None else arguments.seed
        plan = make_plan(kind, seed, arguments.seconds, arguments.rate)
        folder = Path(tempfile.mkdtemp(prefix="connector-chaos-"))
        again = f"make chaos ARGS='{kind} --seed {seed} --seconds {arguments.seconds:g} --rate {arguments.rate:g}'"
        print(
            f"{kind}, seed {seed}: {plan.events} events, {len(plan.strikes)} faults in {plan.seconds:g} s", flush=True
        )
        started = time.monotonic()
        try:
            outcome = run(plan, folder, print if arguments.verbose else _silent)
            found = list(faults_of(outcome))
        except AssertionError as error:
            outcome, found = None, [str(error)]
        result = {
            "buffer": kind,
            "seed": seed,
            "faults": len(plan.strikes),
            "events": plan.events,
            "seconds": round(time.monotonic() - started, 1),
            "broken": found,
        }
        if outcome is not None:
            result |= {"missing": len(outcome.missing), "repeated": outcome.repeated}
        if arguments.json:
            print(json.dumps(result), flush=True)
        elif found:
            print("  BROKEN: " + "\n          ".join(found))
            print(f"  the same again:  {again}\n  what is left:    {folder}", flush=True)
        elif outcome is not None:
            lost = f"{len(outcome.missing)} lost with Redis" if outcome.missing else "none missing"
            print(f"  kept: {lost}, {outcome.repeated} came twice, order kept, accounts balance", flush=True)
        if found:
            failures += 1
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return 1 if failures else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make chaos", description="Kill, pause, cut and fill everything between a connector and an index."
    )
    parser.add_argument(
        "buffers", nargs="*", choices=[*BUFFERS, []], help="which buffers; default: " + ", ".join(BUFFERS)
    )
    parser.add_argument("--seed", type=int, help="the same seed, buffer and length give the same faults")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long faults happen (default 60)")
    parser.add_argument("--rate", type=float, default=300.0, help="events a second (default 300)")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each run")
    parser.add_argument("--verbose", "-v", action="store_true", help="say what happens when")
    return parser.parse_args()


def _silent(_: str) -> None:
    pass


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
