"""What the figures should be, and what they are."""

import statistics
from dataclasses import dataclass, field

from measure import STORM
from operations import ALL_CLIENTS

BEST, ALL = "best", "all"


@dataclass(frozen=True)
class Ratio:
    """How many times as fast something is as something else. `goals` has the least ratio by number of clients, with `BEST` for
    both at their best number, and `ALL` for every number."""

    what: str
    ours: str
    theirs: str
    goals: dict = field(default_factory=dict)


def own_transaction(name, what):
    return Ratio(f"{what} ÷ its natural transaction", name, f"pgbench {name.replace('-', '_')}", {64: 1.2})


RATIOS = (
    Ratio("first-time charge ÷ its natural transaction", "charge", "pgbench natural", {1: 0.8, 8: 1.2, 64: 2.4, BEST: 1.8}),
    Ratio("first-time charge ÷ the same rows in one statement", "charge", "pgbench limit", {8: 0.6}),
    Ratio("charge with a reference ÷ without", "charge-reference", "charge", {ALL: 0.9}),
    Ratio("charge with a reference ÷ its natural transaction", "charge-reference", "pgbench natural_reference"),
    Ratio("charge with 1 webhook endpoint ÷ without", "charge-1-endpoint", "charge", {ALL: 0.85}),
    Ratio("the same, a million messages behind", "charge-1-endpoint behind", "charge beside", {ALL: 0.85}),
    Ratio("charge with 20 webhook endpoints ÷ without", "charge-20-endpoints", "charge", {ALL: 0.5}),
    Ratio("the same, a million messages behind", "charge-20-endpoints behind", "charge beside", {ALL: 0.5}),
    Ratio("all charges of one merchant ÷ of many", "charge-one-merchant", "charge", {64: 0.9}),
    own_transaction("capture", "capture"),
    own_transaction("refund", "refund"),
    own_transaction("payout", "payout"),
    own_transaction("patch", "update of a charge"),
    own_transaction("inbound-event", "event of the processor"),
    Ratio("replay ÷ one SELECT", "replay", "pgbench select", {8: 0.45, 64: 0.9}),
    Ratio("first-time charge ÷ Django by hand", "charge", "handrolled charge", {BEST: 10}),
    Ratio("replay ÷ Django by hand", "replay", "handrolled replay", {BEST: 30}),
    Ratio("first-time charge ÷ django-idempotency-key", "charge", "library charge"),
    Ratio("replay ÷ django-idempotency-key", "replay", "library replay"),
)


def rates(samples, name):
    """What was measured, by number of clients."""
    by_clients = {clients: samples.get(f"{name}, {clients} clients: per s") for clients in ALL_CLIENTS}
    return {clients: values for clients, values in by_clients.items() if values}


def ratio_values(samples, ratio):
    """By number of clients the median of the rounds' ratios, and that of the best medians. Empty if it isn't measured.

    Ours may be best with more clients than theirs can have, but not the other way round: that wasn't measured of ours.
    """
    ours, theirs = rates(samples, ratio.ours), rates(samples, ratio.theirs)
    values = {
        clients: statistics.median(one / other for one, other in zip(ours[clients], theirs[clients]))
        for clients in ALL_CLIENTS if clients in ours and clients in theirs
    }
    if len(values) > 1:
        best_of_theirs = max(statistics.median(theirs[clients]) for clients in theirs if clients in ours)
        values[BEST] = max(map(statistics.median, ours.values())) / best_of_theirs
    return values


def ratio_rows(samples):
    """Rows of what, the ratios by number of clients and at the best one with their goals, and whether all are met."""
    for ratio in RATIOS:
        values = ratio_values(samples, ratio)
        if not values:
            continue
        goals = {at: ratio.goals.get(at, ratio.goals.get(ALL) if at != BEST else None) for at in values}
        cells = [
            "" if at not in values else f"{values[at]:.2f} (≥ {goals[at]})" if goals[at] else f"{values[at]:.2f}"
            for at in (*ALL_CLIENTS, BEST)
        ]
        verdicts = [values[at] >= goal for at, goal in goals.items() if goal]
        yield ratio.what, *cells, verdict(all(verdicts)) if verdicts else ""


def verdict(is_met):
    return "yes" if is_met else "**no**"


def figure_rows(samples):
    """Rows of what, its value, its goal, and whether that is met."""
    medians = {name: statistics.median(values) for name, values in samples.items()}
    for what, measured, sign, goal in figures(medians):
        if measured is None:
            continue
        shown = f"{measured:,.0f}" if measured == int(measured) else f"{measured:,.2f}"
        if goal is None:
            yield what, shown, "", ""
        else:
            is_met = measured >= goal if sign == "≥" else measured <= goal
            yield what, shown, f"{sign} {goal}", verdict(is_met)


def by_number(name):
    return next((int(word) for word in name.split() if word.isdigit()), 0)


def figures(medians):
    """What isn't a ratio by number of clients: what, its value or none if it isn't measured, and the goal."""

    def divided(ours, theirs):
        return medians[ours] / medians[theirs] if ours in medians and theirs in medians else None

    half = "charge at half of the peak"
    p50, p99 = f"{half}: p50, ms", f"{half}: p99, ms"
    yield f"p99 at half of the peak rate ({medians.get(f'{half}: per s', 0):,.0f}/s), ms", medians.get(p99), "≤", 10
    yield "that ÷ the median there", divided(p99, p50), "≤", 3
    yield "that ÷ the natural transaction's at half of its own peak", divided(p99, "pgbench natural at half of its peak: p99, ms"), "", None
    calm = "storm: others' p99 without it, ms"
    yield (f"others' p99 during a storm of {STORM:,} duplicates on one key ÷ without",
           divided("storm: others' p99 with it, ms", calm), "≤", 1.2)
    yield (f"the same with {medians.get('large storm: duplicates per s', 0):,.0f} duplicates per second",
           divided("large storm: others' p99 with it, ms", calm), "≤", 1.5)
    yield "memory of the service at the peak of charges, MiB", medians.get("memory of charges by up to 64 clients, MiB"), "≤", 36
    yield "the same with four times as many clients", medians.get("memory of charges by up to 256 clients, MiB"), "", None
    yield "the same after everything else, 2,100 webhook endpoints included", medians.get("memory at the peak, MiB"), "", None
    beside, away = (f"charge with its database {where}, 64 clients: per s" for where in ("beside", "away"))
    yield "charges with the database a millisecond away ÷ beside it", divided(away, beside), "≥", 0.8
    for count in (2, 3):
        one, several = (f"charge, {number} instances, 48 clients: per s" for number in (1, count))
        yield f"{count} instances ÷ 1, on the same cores", divided(several, one), "", None
    small = "charge with few keys, 64 clients: per s"
    for millions, goal in ((5, 0.95), (20, 0.85)):
        many = f"charge with {millions} million keys, 64 clients: per s"
        what = f"charges with {millions} million keys and {3 * millions} million postings ÷ with few"
        yield what, divided(many, small), "≥", goal
    many = max((name for name in medians if name.endswith(" million keys, 64 clients: per s")), key=by_number, default=None)
    little = divided("charge with a tenth of its data in memory, 64 clients: per s", many)
    yield "charges with memory for a tenth of so much data ÷ for all", little, "≥", 0.5
    yield "executions in excess of keys", medians.get("executions in excess"), "≤", 0
