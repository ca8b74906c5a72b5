"""Measures Oncepay against what is possible on the same Postgres and against others, and writes load/RESULTS.md and
load/results.svg.

Builds the release binary, starts it with a fresh Postgres of its own with stock settings, and takes every figure in
the same run, interleaved, so that what disturbs one disturbs the others. Needs cargo, Postgres' binaries with pgbench,
wrk, and for the peers Python's venv and redis-server.

  python3 load/bench [--rounds 3] [--seconds 5] [--large] [--no-peers] [--out load]
"""

import argparse
import os
import subprocess

import measure
import report
from service import LOAD, ROOT, find


def main():
    parser = argparse.ArgumentParser(
        prog="load/bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=5, help="of each measurement")
    parser.add_argument("--large", action="store_true", help="also with 5 million keys: some 15 GB and 20 minutes more")
    parser.add_argument("--no-peers", action="store_true", help="without the Django peers")
    parser.add_argument("--out", default=LOAD)
    parser.add_argument("--binary", help="a release build that is there already")
    options = parser.parse_args()
    for program in ("pgbench", "psql", "wrk"):
        find(program)
    binary = options.binary
    if not binary:
        subprocess.run(["cargo", "build", "--release", "--locked"], cwd=ROOT, check=True)
        binary = os.path.join(ROOT, "target", "release", "oncepay")
    report.write(*measure.everything(options, binary), options)


main()
