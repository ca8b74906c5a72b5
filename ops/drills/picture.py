"""Draws the panels of a dashboard as one SVG, from series of Prometheus."""

import re
from html import escape

WIDTH, UNIT_H, MARGIN = 1440, 24, 6
# Told apart in print and by most eyes, and legible on white.
COLORS = ["#1f6fb4", "#d9730d", "#2c8a3d", "#b3261e", "#7a4fbf", "#8a6d1b", "#c2418c", "#4a5560", "#0e8f95", "#5c7a1f"]
GOOD, BAD = "#2c8a3d", "#b3261e"
INK, QUIET, LINES = "#1d232a", "#5a6672", "#dde2e7"


def number(value, unit):
    """A value as a reader expects it."""
    if unit == "percentunit":
        return f"{value * 100:.3g} %"
    if unit == "bytes":
        for name in ("B", "KiB", "MiB", "GiB"):
            if abs(value) < 1024 or name == "GiB":
                return f"{value:.3g} {name}"
            value /= 1024
    if unit == "s":
        return f"{value * 1000:.3g} ms" if abs(value) < 1 else f"{value:.3g} s"
    suffix = {"reqps": "/s", "ops": "/s"}.get(unit, "")
    return f"{value:.3g}{suffix}"


def name_of(legend, labels):
    if legend:
        return re.sub(r"\{\{(\w+)\}\}", lambda match: labels.get(match[1], ""), legend)
    return ", ".join(f"{name}={value}" for name, value in labels.items())


def points_of(values):
    return [(float(at), float(value)) for at, value in values if value not in ("NaN", "+Inf", "-Inf")]


def text(x, y, content, size=11, color=INK, anchor="start", weight="normal"):
    return (f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{color}" text-anchor="{anchor}" font-weight="{weight}">'
            f"{escape(content)}</text>")


def stat(panel, series, x, y, w, h):
    value = points_of(series[0][2])[-1][1]
    defaults = panel["fieldConfig"]["defaults"]
    steps = [step["value"] for step in defaults["thresholds"]["steps"] if step["value"] is not None]
    color = BAD if any(value >= step for step in steps) else GOOD
    return [text(x + w / 2, y + h / 2 + 22, number(value, defaults["unit"]), 30, color, "middle", "bold")]


def lines(panel, series, x, y, w, h, start, end):
    defaults = panel["fieldConfig"]["defaults"]
    unit = defaults.get("unit", "short")
    named = [(name_of(legend, labels), points_of(values)) for legend, labels, values in series]
    named = [(name, points) for name, points in named if points]
    # Zeros say little, and may be many; the legend says how many there are.
    shown = sorted(named, key=lambda one: -max(abs(value) for _, value in one[1]))[:10]
    stacked = defaults["custom"]["stacking"]["mode"] == "normal"
    drawn, floor = [], {}
    for name, points in shown:
        if stacked:
            points = [(at, value + floor.get(at, 0)) for at, value in points]
            floor |= dict(points)
        drawn.append((name, points))
    values = [value for _, points in drawn for _, value in points]
    low, high = min([0, *values]), max([0, *values])
    if high - low < 1e-12:
        high = low + 1
    left, right, top = x + 62, x + w - 10, y + 30
    rows = (len(drawn) + 2) // 3
    bottom = y + h - 26 - 13 * rows
    at_x = lambda at: left + (at - start) / (end - start) * (right - left)
    at_y = lambda value: bottom - (value - low) / (high - low) * (bottom - top)
    out = []
    for part in (0, 0.5, 1):
        value = low + (high - low) * part
        out.append(f'<line x1="{left}" x2="{right}" y1="{at_y(value):.1f}" y2="{at_y(value):.1f}" stroke="{LINES}"/>')
        out.append(text(left - 6, at_y(value) + 4, number(value, unit), 10, QUIET, "end"))
    out.append(text(left, bottom + 12, "0 s", 9, QUIET))
    out.append(text(right, bottom + 12, f"{end - start:.0f} s", 9, QUIET, "end"))
    for place, (name, points) in enumerate(drawn):
        color = COLORS[place % len(COLORS)]
        path = " ".join(f"{at_x(at):.1f},{at_y(value):.1f}" for at, value in points)
        if stacked:
            below = drawn[place - 1][1] if place else [(at, 0) for at, _ in points]
            edge = " ".join(f"{at_x(at):.1f},{at_y(value):.1f}" for at, value in reversed(below))
            out.append(f'<polygon points="{path} {edge}" fill="{color}" fill-opacity="0.25"/>')
        out.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.6"/>')
        at, line = x + 12 + (place % 3) * (w - 20) / 3, y + h - 10 - 13 * (rows - 1 - place // 3)
        out.append(f'<rect x="{at:.1f}" y="{line - 7:.1f}" width="10" height="3" fill="{color}"/>')
        longest = int((w - 20) / 3 / 5.6) - 3
        out.append(text(at + 14, line - 2, name if len(name) <= longest else name[: longest - 1] + "…", 10, QUIET))
    if len(named) > len(shown):
        out.append(text(x + w - 12, y + 18, f"and {len(named) - len(shown)} more", 9, QUIET, "end"))
    return out


def draw(title, panels, start, end):
    """One picture of all panels, in their places of the dashboard."""
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel, _ in panels) * UNIT_H + 40
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="Helvetica, Arial, sans-serif">',
        f"<title>{escape(title)}</title>",
        # A background of its own: the page that shows the picture may be dark.
        f'<rect width="{WIDTH}" height="{height}" fill="#f4f6f8"/>',
        text(14, 26, f"{title}: the panels' data from {end - start:.0f} seconds of load", 17, INK, weight="bold"),
    ]
    for panel, series in panels:
        place = panel["gridPos"]
        x, y = place["x"] * WIDTH / 24 + MARGIN, place["y"] * UNIT_H + 40
        w, h = place["w"] * WIDTH / 24 - 2 * MARGIN, place["h"] * UNIT_H - MARGIN
        if panel["type"] == "row":
            out.append(text(x + 6, y + 15, panel["title"], 13, INK, weight="bold"))
            continue
        out.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}" rx="4" fill="#ffffff" stroke="{LINES}"/>')
        out.append(text(x + 12, y + 18, panel["title"], 12, INK, weight="bold"))
        if panel["type"] == "stat":
            out += stat(panel, series, x, y, w, h)
        else:
            out += lines(panel, series, x, y, w, h, start, end)
    return "\n".join([*out, "</svg>", ""])
