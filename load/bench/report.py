"""RESULTS.md, and its pictures beside it."""

import os
import platform
import statistics
import subprocess
import time

import chart
import goals
from operations import ALL_CLIENTS
from service import ROOT


def commit():
    """Of the working tree, and whether it has changes."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude=*"], cwd=ROOT, capture_output=True, text=True
    )
    return described.stdout.strip() or "unknown"


def table(head, rows):
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *("| " + " | ".join(row) + " |" for row in rows), ""]


def cases(samples):
    """The names of what was measured in the same terms, in order."""
    return [name.removesuffix(": per s") for name in samples if name.endswith(": per s") and f"{name[:-5]}p99, ms" in samples]


def case_rows(samples):
    """Rows of a case and its figures: the rate with the lowest and the highest of the rounds, and medians."""
    for case in cases(samples):
        rate = samples[f"{case}: per s"]
        units = ("p50, ms", "p99, ms", "CPU, us each", "Postgres' CPU, us each")
        values = (samples.get(f"{case}: {unit}") for unit in units)
        medians = ["" if value is None else f"{statistics.median(value):,.{digits}f}"
                   for value, digits in zip(values, (2, 1, 0, 0))]
        yield case, f"{statistics.median(rate):,.0f}", f"{min(rate):,.0f} – {max(rate):,.0f}", *medians


def other_rows(samples):
    """Rows of a sample that isn't a case's."""
    known = {f"{case}: {unit}" for case in cases(samples)
             for unit in ("per s", "p50, ms", "p99, ms", "CPU, us each", "Postgres' CPU, us each")}
    for name, values in samples.items():
        if name not in known:
            yield name, f"{statistics.median(values):,.1f}", f"{min(values):,.1f} – {max(values):,.1f}"


def command(options):
    """How the run was started, as far as it matters to the figures."""
    given = [f"--rounds {options.rounds}", f"--seconds {options.seconds}"]
    given += [f"--only {','.join(options.only)}"] if options.only else []
    given += [f"--large {options.large}"] if options.large else []
    given += ["--no-peers"] if options.no_peers else []
    return "python3 load/bench " + " ".join(given)


def text(samples, versions, options):
    made = ", ".join(f"{name} {version}" for name, version in versions.items())
    source = f"a binary that was given, beside commit {options.commit}" if options.binary else f"commit {options.commit}"
    clients = [f"{clients} client{'s' if clients > 1 else ''}" for clients in ALL_CLIENTS]
    return "\n".join([
        "# Results",
        "",
        f"Made by `{command(options)}` on {time.strftime('%Y-%m-%d')}, of {source}, on {platform.machine()} with "
        f"{os.cpu_count()} cores that client, service and Postgres share; Postgres has stock settings; {made}. The figures are "
        "medians of the rounds. Compare the ratios, whose figures are taken in the same run: the figures themselves differ from "
        "machine to machine.",
        "",
        "![Throughput and latency of each operation by number of clients](results.svg)",
        "",
        "In parentheses is the goal. A ratio is the median of the rounds' ratios; at the best, each has the number of clients at "
        "which it's fastest.",
        "",
        *table(["ratio", *clients, "each at its best", "met"], goals.ratio_rows(samples)),
        *table(["figure", "measured", "goal", "met"], goals.figure_rows(samples)),
        "The [README](README.md#the-benchmark) describes the measurements. The [capacity page](../docs/capacity.md) draws the "
        "conclusions for your own capacity.",
        "",
        *table(["measured", "per s", "lowest – highest", "p50, ms", "p99, ms", "CPU of the service, µs each",
                "CPU of Postgres, µs each"], case_rows(samples)),
        *table(["other sample", "median", "lowest – highest"], other_rows(samples)),
    ])


def write(samples, versions, options):
    """Prints the report, and writes it into the folder if there is one."""
    report = text(samples, versions, options)
    print(report)
    if options.out:
        os.makedirs(options.out, exist_ok=True)
        pictures = {"results.svg": chart.draw(samples)}
        if "charge" in (options.only or ["charge"]):
            pictures["charges.svg"] = chart.draw_charges(samples)
        for name, content in ({"RESULTS.md": report} | pictures).items():
            with open(os.path.join(options.out, name), "w") as file:
                file.write(content)
