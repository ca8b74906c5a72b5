"""Tests openapi_compat.py with the released document: each planted change that breaks clients is found, and no other is."""

import copy
import json
import pathlib
import unittest

from openapi_compat import breaking

RELEASED = json.loads((pathlib.Path(__file__).parent.parent / "openapi/released.json").read_text())
SCHEMAS = "components/schemas/"
CREATE = "paths/~v1~charges/post/"

# Place, what comes there (None: nothing; a function: of what is there), and words of what is found.
BREAKING = [
    ("paths/~v1~balance/get", None, "GET /v1/balance is gone"),
    ("paths/~v1~charges", None, "POST /v1/charges is gone"),
    ("paths/~v1~balance/get/operationId", "balance.read", "operationId"),
    ("paths/~v1~balance/get/security", [{"operator_key": []}], "security"),
    ("paths/~v1~charges/get/parameters", lambda them: [p for p in them if p.get("name") != "reference"], "reference: the parameter is gone"),
    (CREATE + "parameters", lambda them: [*them, {"name": "x", "in": "query", "required": True, "schema": {}}], "x: the parameter is required"),
    ("components/parameters/Limit/schema/maximum", 50, "maximum 100 isn't 50"),
    ("components/parameters/Limit/required", True, "limit: the parameter is required"),
    (CREATE + "responses/402", None, "402: the answer is gone"),
    (CREATE + "responses/202", {"description": ""}, "202: a client doesn't expect"),
    (CREATE + "responses/201/headers/Idempotent-Replayed", None, "the header Idempotent-Replayed is gone"),
    ("components/headers/RetryAfter/schema/type", "string", "Retry-After: the type string isn't integer"),
    (SCHEMAS + "Charge/properties/fee", None, "/fee"),
    (SCHEMAS + "Charge/required", lambda them: [name for name in them if name != "fee"], "/fee: it's required, and may be missing"),
    (SCHEMAS + "Charge/properties/amount/type", ["string", "null"], "isn't string"),
    (SCHEMAS + "ApiKey/properties/key", None, "/key: it's gone"),
    (SCHEMAS + "ChargeStatus/enum", lambda them: [*them, "held"], "held isn't among the values"),
    (SCHEMAS + "CreateCharge/required", lambda them: [*them, "reference"], "/reference: it's required"),
    (SCHEMAS + "CreateCharge/properties/reference", None, "/reference: it's refused"),
    (SCHEMAS + "CreateCharge/properties/reference/maxLength", 100, "maxLength 255 isn't 100"),
    (SCHEMAS + "CreateCharge/properties/capture/type", "string", "isn't string"),
    (SCHEMAS + "CreateCharge/properties/amount/pattern", "^[0-9]+$", "pattern"),
    (SCHEMAS + "Currency/enum", lambda them: [code for code in them if code != "JPY"], "JPY isn't among the values"),
    (SCHEMAS + "CreateWebhookEndpoint/properties/event_types/maxItems", 3, "maxItems None isn't 3"),
    (SCHEMAS + "ChargeEvent/properties/data", {"$ref": "#/components/schemas/Refund"}, "GET /v1/events"),
    ("webhooks/charge.failed", None, "the message charge.failed is gone"),
    (SCHEMAS + "Payout/properties/status/enum", lambda them: [*them, "held"], "the message payout.paid"),
]
COMPATIBLE = [
    ("paths/~v1~new", {"get": {"responses": {}}}),
    (CREATE + "parameters", lambda them: [*them, {"name": "x", "in": "query", "schema": {}}]),
    (CREATE + "responses/418", {"description": ""}),
    (CREATE + "description", "Other words."),
    ("components/parameters/Limit/schema/maximum", 1000),
    (SCHEMAS + "Charge/properties/new", {"type": "string"}),
    (SCHEMAS + "CreateCharge/properties/new", {"type": "string"}),
    (SCHEMAS + "CreateCharge/required", lambda them: [name for name in them if name != "payment_method"]),
    (SCHEMAS + "CreateCharge/properties/reference/maxLength", 300),
    (SCHEMAS + "Currency/enum", lambda them: [*them, "XYZ"]),
    (SCHEMAS + "ProblemCode/enum", lambda them: [*them, "new_code"]),
    (SCHEMAS + "ChargeEvent/properties/type/enum", lambda them: [*them, "charge.new"]),
    (SCHEMAS + "Event/oneOf", lambda them: [*them, {"type": "object", "properties": {"type": {"enum": ["new"]}}}]),
    (SCHEMAS + "Payout/properties/status/enum", lambda them: them[:-1]),
    ("webhooks/charge.new", {"post": {"responses": {}}}),
]


def changed(place, value):
    document = copy.deepcopy(RELEASED)
    *parents, last = (part.replace("~", "/") for part in place.split("/"))
    part = document
    for name in parents:
        part = part[name]
    if value is None:
        del part[last]
    else:
        part[last] = value(part[last]) if callable(value) else value
    return document


class Compatibility(unittest.TestCase):
    def test_the_same_document_breaks_nothing(self):
        self.assertEqual(list(breaking(RELEASED, RELEASED)), [])

    def test_what_breaks_clients_is_found(self):
        for place, value, words in BREAKING:
            with self.subTest(place):
                self.assertIn(words, "\n".join(breaking(RELEASED, changed(place, value))))

    def test_what_breaks_no_client_is_not_found(self):
        for place, value in COMPATIBLE:
            with self.subTest(place):
                self.assertEqual(list(breaking(RELEASED, changed(place, value))), [])


if __name__ == "__main__":
    unittest.main()
