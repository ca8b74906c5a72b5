"""What Schemathesis is told of the service beyond openapi/openapi.json: see openapi.sh and openapi/schemathesis.toml."""

import base64
import hashlib
import hmac
import json
import os
import re
import time
import urllib.request
import uuid
import zlib

import schemathesis
from schemathesis.core.parameters import ParameterLocation
from schemathesis.generation.meta import TestPhase

# What a schema can't say: rules between members, and rules about what the service knows. A valid request may be refused for
# these reasons and no others: path, pointer, detail.
RULES = [
    # The decimals of a currency, which is another member, or that of the charge.
    (".*", "(/postings/[0-9]+)?/amount", "must have at most [0-9] decimals in [A-Z]{3}"),
    (".*", "/currency", "must be a currency in use, which this one has not been since .*"),
    (".*", "/reference|/destination", "must be in Unicode normalization form C"),
    (".*", "/ending_before", "can't be combined with starting_after"),
    ("/v1/events", "/after", "can't be combined with (starting_after|ending_before)|must be the `next` of an earlier page, .*"
                           "|there is no such event, or it isn't kept any more"),
    ("/v1/operator/idempotency-keys", "/starting_after", "there is no such key any more"),
    ("/v1/operator/journal-entries", "/postings", "must have equal debits and credits in [A-Z]{3}"),
    ("/v1/operator/merchants/{id}/pricing", "/effective_at", "must not be in the past|has a price already"),
    ("/v1/operator/idempotency-policies/{operation}", "/operation", "must be the operation of the path"),
    ("/v1/operator/idempotency-policies/{operation}", "/on_suspected_duplicate|/suspicion_window_seconds", "is not a known field"),
    # The processor's protocol, which is another one with another processor: `data` depends on `type`.
    ("/v1/webhooks/acquirer", "/data(/.*)?", ".*"),
]
# Refusals of valid requests that depend on what there is, beside those with 404 and 409.
STATES = {
    "card_declined", "insufficient_funds", "insufficient_balance", "capture_exceeds_authorization", "refund_exceeds_captured",
    "refund_refused", "payout_refused", "metadata_too_large",
}
# Values of which only the service knows which ones are valid.
METHODS = ["pm_card_visa", "pm_card_declined", "pm_card_insufficient_funds", "pm_card_async"]
COLLECTIONS = {
    "charges": "ch_", "refunds": "re_", "payouts": "po_", "events": "evt_", "accounts": "la_", "journal-entries": "je_",
    "merchants": "mer_", "webhook-endpoints": "we_", "acquirer-events": "ae_",
}
# The newest id of each kind.
known = {}


def api_keys():
    request = urllib.request.Request(os.environ["ONCEPAY_URL"] + "/v1/api-keys")
    request.add_header("Authorization", "Bearer " + os.environ["ONCEPAY_API_KEY"])
    with urllib.request.urlopen(request) as answer:
        return {key["id"] for key in json.load(answer)["data"]}


# Without them, nothing else could be called.
OWN_KEYS = api_keys()


def sign(request):
    """Signs a message of the processor as it's sent."""
    body = request.body or b""
    body = body.encode() if isinstance(body, str) else body
    text = b"%s.%s." % tuple(str(request.headers.get(name, "")).encode() for name in ("webhook-id", "webhook-timestamp")) + body
    secret = base64.b64decode(os.environ["ONCEPAY_WEBHOOK_SECRET"].removeprefix("whsec_"))
    request.headers["webhook-signature"] = "v1," + base64.b64encode(hmac.digest(secret, text, hashlib.sha256)).decode()
    return request


def is_positive(case, location):
    return case.meta is None or not case.meta.is_negative_at(location)


@schemathesis.hook
def before_call(ctx, case, kwargs):
    path, body, parameters = case.operation.path, case.body, case.path_parameters or {}
    if is_positive(case, ParameterLocation.HEADER):
        if "Idempotency-Key" in case.headers:
            case.headers["Idempotency-Key"] = str(uuid.uuid4())
        if path == "/v1/webhooks/acquirer" and "webhook-id" in case.headers:
            case.headers.update({"webhook-id": f"evt_{uuid.uuid4().hex}", "webhook-timestamp": str(int(time.time()))})
            kwargs["auth"] = sign
    if parameters.get("id") in OWN_KEYS:
        case.path_parameters["id"] = "ak_" + "0" * 32
    if case.method == "PUT" and "operation" in parameters:
        # Of one operation, so that the others answer as before.
        case.path_parameters["operation"] = "merchants.change_pricing"
    is_alone = case.meta is None or case.meta.phase.name != TestPhase.STATEFUL
    if is_alone and "id" in parameters and is_positive(case, ParameterLocation.PATH):
        collection = path.split("/{id}")[0].rsplit("/", 1)[-1]
        # Some are left as they are: there must be ids that don't exist.
        if zlib.crc32(str(parameters["id"]).encode()) % 4:
            case.path_parameters["id"] = known.get(COLLECTIONS.get(collection), parameters["id"])
    if isinstance(body, dict) and is_positive(case, ParameterLocation.BODY):
        if "payment_method" in body:
            body = {**body, "payment_method": METHODS[zlib.crc32(str(body["payment_method"]).encode()) % len(METHODS)]}
        if "url" in body:
            body = {**body, "url": "https://shop.example/" + hashlib.sha256(str(body["url"]).encode()).hexdigest()}
        # Otherwise requests are executed without a key, too.
        body = {name: {"enforcement": "enforce", "rollout_percent": 100}.get(name, value) for name, value in body.items()}
        if "charge_id" in body:
            body = {**body, "charge_id": known.get("ch_", body["charge_id"])}
        case.body = body


@schemathesis.hook
def after_call(ctx, case, response):
    if response.status_code in (200, 201) and response.headers.get("content-type") == ["application/json"]:
        for found in re.findall(r'"((?:%s)[0-9a-f]{32})"' % "|".join(COLLECTIONS.values()), response.text):
            known[found[: found.index("_") + 1]] = found


@schemathesis.check
def valid_requests_are_refused_only_for_rules_that_no_schema_can_state(ctx, response, case):
    """`positive_data_acceptance` knows only statuses, and so accepts every 422: this tells them apart by their codes."""
    if case.meta is None or not case.meta.generation.mode.is_positive or response.status_code not in (402, 422):
        return
    problem = response.json()
    if problem["code"] in STATES:
        return
    assert problem["code"] == "validation_failed", f"a valid request is refused: {problem}"
    for error in problem["errors"]:
        explained = any(
            re.fullmatch(path, case.operation.path) and re.fullmatch(pointer, error["pointer"]) and re.fullmatch(detail, error["detail"])
            for path, pointer, detail in RULES
        )
        assert explained, f"a valid request is refused: {error}"
