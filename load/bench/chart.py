"""results.svg: throughput and latency of each operation by number of clients, beside what it's compared with."""

import math
import statistics

from operations import OPERATIONS

# Of a plot, and of what is around it.
WIDTH, HEIGHT, LEFT, TOP, GAP = 176, 92, 52, 46, 62
ROW, COLUMN, HEAD = HEIGHT + TOP + 36, WIDTH + GAP, 64
PLOTS_PER_ROW = 4
STYLE = """
  svg { --ground: #ffffff; --text: #1f2328; --quiet: #59636e; --grid: #e3e7eb;
        --oncepay: #0b66c3; --base: #6aa9e0; --natural: #c2570c; --limit: #8250df; --peer: #2b7a4b; }
  @media (prefers-color-scheme: dark) {
    svg { --ground: #0d1117; --text: #e6edf3; --quiet: #9198a1; --grid: #2b3138;
          --oncepay: #58a6ff; --base: #2f6bb0; --natural: #f0883e; --limit: #bc8cff; --peer: #56d364; }
  }
  text { fill: var(--text); font: 12px system-ui, sans-serif; }
  .quiet { fill: var(--quiet); font-size: 10px; }
  .title { font-weight: 600; }
  .grid { stroke: var(--grid); }
  polyline { fill: none; stroke-width: 2; }
  .base { stroke-dasharray: 4 3; }
"""
# What can be in a plot: style, and what the legend calls it. The last is drawn on top.
KINDS = {
    "peer": "Django by hand",
    "limit": "pgbench: all in one statement",
    "natural": "pgbench: its natural transaction",
    "base": "Oncepay: a charge without that",
    "oncepay": "Oncepay",
}


def series(samples, operation, unit):
    """Points of clients and values by kind, of those that were measured."""
    names = {"oncepay": operation.name, "base": operation.against, "peer": f"handrolled {operation.name}"}
    for script in operation.scripts:
        names["limit" if script in ("limit", "select") else "natural"] = f"pgbench {script}"
    found = {}
    for kind in KINDS:
        points = [
            (clients, statistics.median(values)) for clients in operation.clients
            if kind in names and (values := samples.get(f"{names[kind]}, {clients} clients: {unit}"))
        ]
        if points:
            found[kind] = points
    return found


def step(top):
    """A round distance between at most five grid lines up to `top`."""
    power = 10 ** math.floor(math.log10(top))
    return next(power * factor for factor in (0.2, 0.5, 1, 2, 5) if top / (power * factor) < 5)


def linear(values):
    """Where a value is, from 0 to 1, and the values of the grid lines."""
    top = max(values) * 1.08
    distance = step(top)
    return lambda value: value / top, [distance * number for number in range(int(top / distance) + 1)]


def logarithmic(values):
    """As `linear`, but equal ratios are equally far apart."""
    lowest, highest = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    span = max(highest - lowest, 1)
    return lambda value: (math.log10(value) - lowest) / span, [10**power for power in range(lowest, lowest + span + 1)]


def plot(x, y, title, found, scale):
    """A plot whose upper left corner is there."""
    place, grid = scale([value for points in found.values() for _, value in points])
    clients = sorted({clients for points in found.values() for clients, _ in points})

    def across(number):
        # One number of clients is in the middle.
        return x + WIDTH * (clients.index(number) + 0.5) / len(clients)

    def up(value):
        return y + HEIGHT * (1 - place(value))

    parts = [f'<text x="{x}" y="{y - 12}" class="quiet">{title}</text>']
    for value in grid:
        parts.append(f'<path class="grid" d="M{x} {up(value):.1f}h{WIDTH}"/>')
        parts.append(f'<text x="{x - 6}" y="{up(value) + 3:.1f}" text-anchor="end" class="quiet">{value:,g}</text>')
    for number in clients:
        parts.append(f'<text x="{across(number):.1f}" y="{y + HEIGHT + 14}" text-anchor="middle" class="quiet">{number}</text>')
    for kind, points in found.items():
        places = [(across(number), up(value)) for number, value in points]
        line = " ".join(f"{across_x:.1f},{up_y:.1f}" for across_x, up_y in places)
        parts.append(f'<polyline class="{kind}" points="{line}" stroke="var(--{kind})"/>')
        parts += [f'<circle cx="{across_x:.1f}" cy="{up_y:.1f}" r="3" fill="var(--{kind})"/>' for across_x, up_y in places]
    return parts


def legend(x, y, kinds):
    parts = []
    for kind, meaning in reversed(KINDS.items()):
        if kind not in kinds:
            continue
        parts.append(f'<circle cx="{x}" cy="{y - 4}" r="4" fill="var(--{kind})"/><text x="{x + 9}" y="{y}">{meaning}</text>')
        x += 32 + 6.1 * len(meaning)
    return parts


def page(width, height, parts):
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
    ground = f'<rect width="{width}" height="{height}" fill="var(--ground)"/>'
    return "\n".join([head, f"<style>{STYLE}</style>", ground, *parts, "</svg>", ""])


ABOUT = "By number of clients. Throughput from zero, latency in powers of ten."


def draw(samples):
    """The whole chart: for each operation a plot of its throughput and one of its latency, and how charges slow down as the
    database grows."""
    parts, place, kinds = [], 0, set()
    for operation in OPERATIONS.values():
        # One number of clients makes no line.
        if len(operation.clients) == 1 or not series(samples, operation, "per s"):
            continue
        x, y = LEFT + place % PLOTS_PER_ROW * COLUMN, HEAD + place // PLOTS_PER_ROW * ROW + TOP
        parts.append(f'<text x="{x}" y="{y - 28}" class="title">{operation.title}</text>')
        parts += plot(x, y, "per second", series(samples, operation, "per s"), linear)
        parts += plot(x + COLUMN, y, "99th percentile, ms", series(samples, operation, "p99, ms"), logarithmic)
        place += 2
        kinds |= set(series(samples, operation, "per s"))
    if grown := growth(samples):
        x, y = LEFT + place % PLOTS_PER_ROW * COLUMN, HEAD + place // PLOTS_PER_ROW * ROW + TOP
        parts.append(f'<text x="{x}" y="{y - 28}" class="title">Charges by millions of keys, 64 clients</text>')
        parts += plot(x, y, "per second", {"oncepay": grown}, linear)
        place += 1
    width, height = LEFT + PLOTS_PER_ROW * COLUMN, HEAD + -(-place // PLOTS_PER_ROW) * ROW + 10
    about = f'<text x="12" y="46" class="quiet">{ABOUT}</text>'
    return page(width, height, [*legend(16, 24, kinds), about, *parts])


def growth(samples):
    """Charges per second by millions of keys, of which there are three times as many postings. Empty if that wasn't measured."""
    names = {number: f"charge with {f'{number} million' if number else 'few'} keys, 64 clients: per s" for number in (0, 5, 20)}
    points = [(number, statistics.median(samples[name])) for number, name in names.items() if name in samples]
    return points if len(points) > 1 else []


def draw_charges(samples):
    """The one picture that matters: charges beside what they're compared with."""
    operation = OPERATIONS["charge"]
    throughput, latency = (series(samples, operation, unit) for unit in ("per s", "p99, ms"))
    first, second = LEFT + 8, LEFT + COLUMN + 40
    parts = [
        *plot(first, HEAD + 36, "charges per second", throughput, linear),
        *plot(second, HEAD + 36, "99th percentile, ms", latency, logarithmic),
    ]
    # Two lines, since the plots are narrow.
    kinds = list(reversed([kind for kind in KINDS if kind in throughput]))
    lines = [*legend(20, 22, kinds[:2]), *legend(20, 42, kinds[2:])]
    about = f'<text x="16" y="62" class="quiet">{ABOUT}</text>'
    return page(second + COLUMN - 28, HEAD + HEIGHT + 64, [*lines, about, *parts])
