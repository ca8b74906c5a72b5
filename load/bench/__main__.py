"""Measures Oncepay against what is possible on the same Postgres and against others, and writes load/RESULTS.md with its
pictures.

Builds the release binary, starts it with a fresh Postgres of its own with stock settings, and takes every figure in
the same run, interleaved, so that what disturbs one disturbs the others. Needs cargo, Postgres' binaries with pgbench,
wrk, and for the peers Python's venv and redis-server.

  python3 load/bench [--rounds 3] [--seconds 5] [--large [5]] [--no-peers] [--out load]
  python3 load/bench --only charge,capture                                   measures these, and prints the results
  python3 load/bench --only charge --binary before=FILE --binary now=FILE    compares binaries
"""

import argparse

import compare
import measure
import report
from operations import OPERATIONS
from service import LOAD, find, raise_file_limit, release_build


def names(text):
    """Names of operations, in a list."""
    unknown = set(listed := text.split(",")) - set(OPERATIONS)
    if unknown:
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: there are only {', '.join(OPERATIONS)}")
    return listed


def main():
    parser = argparse.ArgumentParser(
        prog="load/bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=5, help="of each measurement")
    parser.add_argument("--only", type=names, metavar="NAME,…", help="only these operations, with their peers: "
                        + ", ".join(OPERATIONS))
    parser.add_argument("--large", type=int, nargs="?", const=5, metavar="MILLIONS",
                        help="also with endpoints that are behind, and with millions of keys: for 5, 15 GB and 20 minutes more")
    parser.add_argument("--no-peers", action="store_true", help="without the Django peers")
    parser.add_argument("--out", help="folder for the report; without --only, load")
    parser.add_argument("--binary", action="append", default=[], metavar="[NAME=]FILE",
                        help="a release build that is there already; several, with names, are compared")
    options = parser.parse_args()
    for program in ("pgbench", "psql", "wrk"):
        find(program)
    raise_file_limit()
    if len(options.binary) > 1:
        compare.compare(options, [binary.split("=", 1) for binary in options.binary])
        return
    if not options.only:
        options.out = options.out or LOAD
    # Of what is built now, whatever is changed in the meantime.
    options.commit = report.commit()
    binary = options.binary[0].split("=", 1)[-1] if options.binary else release_build()
    report.write(*measure.everything(options, binary), options)


main()
