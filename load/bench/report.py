"""RESULTS.md and results.svg."""

import os
import platform
import statistics
import time

from measure import CLIENTS, STORM


def ratios(figures):
    """Rows of (what, by number of clients, at the best number of clients for each, goal)."""

    def best(name):
        return max(figures[f"{name}, {clients} clients: per s"] for clients in CLIENTS)

    def row(what, ours, theirs, goal):
        if f"{theirs}, {CLIENTS[0]} clients: per s" not in figures:
            return []
        at = [figures[f"{ours}, {n} clients: per s"] / figures[f"{theirs}, {n} clients: per s"] for n in CLIENTS]
        return [(what, *(f"{ratio:.2f}" for ratio in at), f"{best(ours) / best(theirs):.2f}", goal)]

    return [
        *row("first-time charge ÷ pgbench, natural transaction", "charge", "pgbench natural", "≥ 1.2"),
        *row("first-time charge ÷ pgbench, all in one statement", "charge", "pgbench limit", "≥ 0.60"),
        *row("replay ÷ pgbench, one SELECT", "replay", "pgbench select", "≥ 0.40"),
        *row("first-time charge ÷ Django by hand", "charge", "handrolled charge", "≥ 8"),
        *row("replay ÷ Django by hand", "replay", "handrolled replay", "≥ 30"),
        *row("first-time charge ÷ django-idempotency-key", "charge", "library charge", ""),
        *row("replay ÷ django-idempotency-key", "replay", "library replay", ""),
    ]


def others(figures):
    """Rows of (what, measured, goal)."""
    half = "charge at half of the peak"
    p50, p99 = figures[f"{half}: p50, ms"], figures[f"{half}: p99, ms"]
    top, bottom = f"{CLIENTS[-1]} clients: per s", f"charge, small database, {CLIENTS[-1]} clients: per s"
    rows = [
        ("one hot merchant ÷ many merchants", figures[f"charge of one merchant, {top}"] / figures[f"charge, {top}"], "≥ 0.9"),
        (f"p99 at half of the peak rate ({figures[f'{half}: per s']:,.0f}/s), ms", p99, "≤ 15"),
        ("that ÷ the median there", p99 / p50, "≤ 4"),
        (
            f"others' p99 during a storm of {STORM:,} duplicates on one key ÷ without",
            figures["storm: others' p99 with it, ms"] / figures["storm: others' p99 without it, ms"],
            "≤ 2",
        ),
        (
            f"the same with {figures['unpaced storm: duplicates per s']:,.0f} duplicates per second",
            figures["unpaced storm: others' p99 with it, ms"] / figures["storm: others' p99 without it, ms"],
            "",
        ),
        ("memory of the service at the peak, MiB", figures["memory at the peak, MiB"], "≤ 40"),
        *(
            (f"{count} instances ÷ 1, on the same two cores", figures[f"charge, {count} instances, 48 clients: per s"]
             / figures["charge, 1 instances, 48 clients: per s"], "")
            for count in (2, 3)
        ),
    ]
    if bottom in figures:
        large = figures[f"charge, large database, {CLIENTS[-1]} clients: per s"]
        rows.append(("charges with 5 million keys and 15 million postings ÷ with none", large / figures[bottom], "≥ 0.85"))
    return [(what, f"{value:.2f}", goal) for what, value, goal in rows] + [
        ("executions in excess of keys", f"{figures['executions in excess']:.0f}", "0")
    ]


def table(head, rows):
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *("| " + " | ".join(row) + " |" for row in rows), ""]


def bars(figures):
    """Throughput as an SVG, a bar per figure; charges and replays each on a scale of their own."""
    groups = [("First-time charges per second", ["pgbench natural", "pgbench limit", "charge", "handrolled charge", "library charge"]),
              ("Replays per second", ["pgbench select", "replay", "handrolled replay", "library replay"])]
    titles = {"pgbench natural": "pgbench, natural", "pgbench limit": "pgbench, one statement", "pgbench select": "pgbench, SELECT",
              "charge": "Oncepay", "replay": "Oncepay", "handrolled charge": "Django by hand", "handrolled replay": "Django by hand",
              "library charge": "django-idempotency-key", "library replay": "django-idempotency-key"}
    parts, y = [], 10
    for heading, names in groups:
        rows = [(name, clients, figures.get(f"{name}, {clients} clients: per s")) for name in names for clients in CLIENTS]
        rows = [row for row in rows if row[2] is not None]
        top = max(value for _, _, value in rows)
        parts.append(f'<text x="10" y="{y + 14}" font-weight="bold">{heading}</text>')
        y += 26
        for name, clients, value in rows:
            color = "#3b6ea5" if titles[name] == "Oncepay" else "#b9c4d0"
            width = max(440 * value / top, 1)
            parts.append(f'<text x="10" y="{y + 14}">{titles[name]}, {clients} clients</text>')
            parts.append(f'<rect x="250" y="{y}" width="{width:.0f}" height="18" fill="{color}"/>')
            parts.append(f'<text x="{255 + width:.0f}" y="{y + 14}">{value:,.0f}</text>')
            y += 24
        y += 14
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="780" height="{y}" font-family="sans-serif" font-size="13">'
    return "\n".join([head, f'<rect width="780" height="{y}" fill="white"/>', *parts, "</svg>", ""])


def write(samples, versions, options):
    figures = {name: statistics.median(values) for name, values in samples.items()}
    spread = {name: f"{min(values):,.1f} – {max(values):,.1f}" for name, values in samples.items()}
    made = ", ".join(f"{name} {version}" for name, version in versions.items())
    lines = [
        "# Results",
        "",
        f"Made by `python3 load/bench --rounds {options.rounds} --seconds {options.seconds}{' --large' if options.large else ''}` on "
        f"{platform.machine()} with {os.cpu_count()} cores that client, service and Postgres share; Postgres has stock settings; "
        f"{made}; {time.strftime('%Y-%m-%d')}. The figures are medians of the rounds. Compare the ratios, "
        "whose figures are taken in the same run: the figures themselves differ from machine to machine.",
        "",
        "![Throughput](results.svg)",
        "",
        *table(["ratio", *(f"{clients} clients" for clients in CLIENTS), "each at its best", "goal"], ratios(figures)),
        *table(["figure", "measured", "goal"], others(figures)),
        "The [README](README.md#the-benchmark) describes the measurements. The [capacity page](../docs/capacity.md) draws the "
        "conclusions for your own capacity.",
        "",
        *table(["sample", "median", "lowest – highest"], [(name, f"{value:,.1f}", spread[name]) for name, value in figures.items()]),
    ]
    with open(os.path.join(options.out, "RESULTS.md"), "w") as file:
        file.write("\n".join(lines))
    with open(os.path.join(options.out, "results.svg"), "w") as file:
        file.write(bars(figures))
    print("\n".join(lines))
