"""What users of the service do, and what each of it is compared with."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import prepare
from stage import REPLAYED_KEYS

ALL_CLIENTS = (1, 8, 16, 64, 256)
FEW_CLIENTS = (1, 8, 64)
# Postgres' stock settings allow a hundred connections. pgbench has one per client.
PGBENCH_CLIENTS_MAX = 64
# Each charge has another reference. {prefix} is the sample's.
REFERENCE_CHARGE = (
    '{{"amount":"12.50","currency":"USD","payment_method":"pm_card_visa","reference":"{prefix}-{{n}}"}}'
)
REFUND = '{{"charge_id":"ch_{charge}"}}'
PAYOUT = '{"amount":"1.00","currency":"USD","destination":"ba_main"}'
PATCH = '{"metadata":{"n":"{n}"}}'


@dataclass(frozen=True)
class Operation:
    """Something that is measured.

    `make_requests` is given the stage, the sample's prefix, and how many requests it may use up. It returns the file with the
    requests and the settings of `start_wrk`. `scripts` are those of pgbench that do the same work. `against` is the operation
    whose figures it's compared with. `during` returns a context in which it's measured.
    """

    name: str
    title: str
    make_requests: Callable
    clients: tuple = FEW_CLIENTS
    scripts: tuple = ()
    against: str = ""
    during: Callable = lambda stage: contextlib.nullcontext()


def charge(stage, prefix, count):
    return stage.requests(), {}


def charge_with_reference(stage, prefix, count):
    return stage.requests("POST", "/v1/charges", REFERENCE_CHARGE.format(prefix=prefix)), {}


def charge_of_one_merchant(stage, prefix, count):
    return stage.requests(merchants="hot", count=1), {}


def charge_with_endpoints(each):
    return lambda stage, prefix, count: (stage.requests(merchants=f"endpoints-{each}"), {})


def endpoints_enabled(each):
    """Enables the endpoints, whose receiver takes what it's sent. What isn't delivered by the end is forgotten."""

    @contextlib.contextmanager
    def during(stage):
        endpoints = stage.endpoints(f"endpoints-{each}", each)
        with endpoints.enabled():
            yield
        endpoints.forget()

    return during


def capture(stage, prefix, count):
    def line(_, key, id):
        return f"{key}\tPOST\t/v1/charges/ch_{id}/capture\t{{}}"

    return stage.charge_requests("capture", count, line), {"once": 1}


def refund(stage, prefix, count):
    def line(_, key, id):
        return f"{key}\tPOST\t/v1/refunds\t{REFUND.format(charge=id)}"

    stage.fund()
    return stage.charge_requests("refund", count, line), {"once": 1}


def payout(stage, prefix, count):
    stage.fund()
    return stage.requests("POST", "/v1/payouts", PAYOUT), {}


def patch(stage, prefix, count):
    charges = stage.standing_charges()
    lines = (
        f"{charges.merchant(number)[1]}\tPATCH\t/v1/charges/ch_{charges.id(number)}\t{PATCH}"
        for number in range(1, prepare.STANDING_CHARGES + 1)
    )
    return prepare.write_lines(stage.service, "patch", lines), {}


def inbound_event(stage, prefix, count):
    return stage.charge_requests("inbound_event", count, stage.approval), {"once": 1}


def replay(stage, prefix, count):
    stage.make_replayable()
    return stage.requests(), {"replay": REPLAYED_KEYS, "prefix": "replay"}


def list_page(stage, prefix, count):
    stage.standing_charges()
    return stage.requests("GET", "/v1/charges?limit=20"), {}


def balance(stage, prefix, count):
    return stage.requests("GET", "/v1/balance"), {}


OPERATIONS = {operation.name: operation for operation in (
    Operation("charge", "First-time charge", charge, ALL_CLIENTS, ("natural", "limit")),
    Operation("charge-reference", "Charge with a reference", charge_with_reference, ALL_CLIENTS, ("natural_reference",),
              against="charge"),
    Operation("charge-1-endpoint", "Charge, 1 webhook endpoint", charge_with_endpoints(1), against="charge",
              during=endpoints_enabled(1)),
    Operation("charge-20-endpoints", "Charge, 20 webhook endpoints", charge_with_endpoints(20), against="charge",
              during=endpoints_enabled(20)),
    Operation("charge-one-merchant", "Charge, all of one merchant", charge_of_one_merchant, (64,), against="charge"),
    Operation("capture", "Capture", capture, scripts=("capture",)),
    Operation("refund", "Refund", refund, scripts=("refund",)),
    Operation("payout", "Payout", payout, scripts=("payout",)),
    Operation("patch", "Update of a charge", patch, scripts=("patch",)),
    Operation("inbound-event", "Event of the processor", inbound_event, scripts=("inbound_event",)),
    Operation("replay", "Replay of a charge", replay, ALL_CLIENTS, ("select",)),
    Operation("list", "List of 20 charges", list_page),
    Operation("balance", "Balance", balance),
)}


def selected(names):
    """The operations with these names, in order, and those that they're compared with; all without names."""
    if not names:
        return list(OPERATIONS.values())
    names = set(names) | {OPERATIONS[name].against for name in names}
    return [operation for operation in OPERATIONS.values() if operation.name in names]
