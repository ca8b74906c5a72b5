# The types of openapi/openapi.json, by datamodel-codegen: see clients/README.md.

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypeAlias, TypedDict


class AccountBalance(TypedDict):
    """The balance of an account."""

    account_id: str
    """Id of the account."""
    at: str | None
    """Time of the balance, if the request named one."""
    balance: str
    """Balance at the currency's scale, positive on the account's normal side."""
    currency: str
    """ISO 4217 code."""


class AcquirerEvent(TypedDict):
    """An event from the processor."""

    attempts: int
    """Number of attempts to apply the event."""
    body: str
    """Body as received."""
    detail: str | None
    """Reason for the state, if it isn't obvious."""
    event_id: str
    """The processor's id for the event, `webhook-id`."""
    id: str
    """Our id for the event, in the order of receipt."""
    merchant_id: str | None
    """Id of the merchant whose object the event is about, according to the processor."""
    next_attempt_at: str | None
    """Time of the next attempt, if the event is parked."""
    object: Literal["acquirer_event"]
    """Always `acquirer_event`."""
    overdue_at: str | None
    """Time since which the event has been parked for too long."""
    received_at: str
    """Time of receipt."""
    settled_at: str | None
    """Time at which the event got its current state, unless it's parked."""
    state: Literal["applied", "unchanged", "contradicted", "unknown", "parked", "dismissed"]
    """Effect of the event: `applied`, `unchanged`, `contradicted`, `unknown`, `parked` or `dismissed`."""
    type: str
    """Type of the event."""


class AcquirerEventList(TypedDict):
    """A page of a list."""

    data: list[AcquirerEvent]
    """The rows of the page, newest first."""
    has_more: bool
    """Whether there are more rows in the direction of paging."""


class ApiKey(TypedDict):
    """An API key, without the key itself."""

    created_at: str
    """Time of its creation."""
    id: str
    """Time-ordered id."""
    key: NotRequired[str]
    """The secret key. Only in the answer to its creation."""
    name: str
    """Name of the key."""
    object: Literal["api_key"]
    """Always `api_key`."""
    revoked_at: str | None
    """Time of its revocation."""


class ApiKeyList(TypedDict):
    """A page of a list."""

    data: list[ApiKey]
    """The rows of the page, newest first."""
    has_more: bool
    """Whether there are more rows in the direction of paging."""


class Attempt(TypedDict):
    """An attempt at a delivery."""

    duration_ms: int
    """Duration of the attempt, in milliseconds."""
    error: Literal["address_not_allowed", "tls_failed", "timeout", "answer_too_long", "connection_failed", "redirected"] | None
    """
    Reason why there was no answer, or why the answer counts as a failure: `address_not_allowed`,
    `answer_too_long` (more than 32 KiB before its status was known), `connection_failed`, `redirected`, `timeout`
    or `tls_failed`.
    """
    number: int
    """Number of the attempt, from 1."""
    response_excerpt: str | None
    """Beginning of the answer's body."""
    started_at: str
    """Time at which the attempt began."""
    status: int | None
    """HTTP status of the answer, if there was one."""


class CancelCharge(TypedDict):
    """Body of a cancellation, which has no fields."""


class CaptureCharge(TypedDict):
    """Body of a capture."""

    amount: NotRequired[str | None]
    """
    Decimal string in the charge's currency, at most the authorized amount. Default: the authorized
    amount.
    """


class ChangePricing(TypedDict):
    """Body of a new price."""

    effective_at: NotRequired[str | None]
    """
    Time from which the price holds. Default: now. It can't be in the past, so that every capture keeps
    its fee.
    """
    fee_fixed: str
    """
    Fixed amount added to that share, as a decimal string with at most 4 decimals, in the currency of the
    charge. At most 1000000.
    """
    fee_rate: str
    """Share of each captured amount, as a decimal string from 0 to 1 with at most 5 decimals."""


class ChargeFailure(TypedDict):
    """Reason why a charge failed, or was canceled by the processor."""

    code: Literal["card_declined", "insufficient_funds", "authorization_expired"]
    """`card_declined`, `insufficient_funds` or `authorization_expired`."""
    decline_code: str
    """The issuer's reason, or the processor's."""
    message: str
    """The reason as text for people."""


ChargeStatus: TypeAlias = Literal["processing", "requires_capture", "succeeded", "failed", "canceled", "partially_refunded", "refunded", "disputed"]
"""State of a charge."""


class CheckResult(TypedDict):
    """Result of one check."""

    description: str
    """Violation that the check looks for."""
    name: str
    """Name of the check."""
    samples: list[str]
    """Up to five violations."""
    violations: int
    """Number of violations."""


class CreateApiKey(TypedDict):
    """Body of a new API key."""

    name: str
    """Name of the key."""


class CreateMerchant(TypedDict):
    """Body of a new merchant."""

    fee_fixed: str
    """
    Fixed amount added to that share, as a decimal string with at most 4 decimals, in the currency of the
    charge. At most 1000000.
    """
    fee_rate: str
    """Share of each captured amount, as a decimal string from 0 to 1 with at most 5 decimals."""
    name: str
    """Name of the merchant."""


class CreateRefund(TypedDict):
    """Body of a new refund."""

    amount: NotRequired[str | None]
    """Decimal string in the charge's currency. Default: the whole remaining amount."""
    charge_id: str
    """Id of the charge to refund."""
    metadata: NotRequired[dict[str, str]]
    """Up to 50 entries, names up to 40 and values up to 500 characters."""
    reason: NotRequired[str | None]
    """Free text, without control characters other than tabs and line breaks."""


Currency: TypeAlias = Literal["AED", "AFN", "ALL", "AMD", "AOA", "ARS", "AUD", "AWG", "AZN", "BAM", "BBD", "BDT", "BGN", "BHD", "BIF", "BMD", "BND", "BOB", "BOV", "BRL", "BSD", "BTN", "BWP", "BYN", "BZD", "CAD", "CDF", "CHE", "CHF", "CHW", "CLF", "CLP", "CNY", "COP", "COU", "CRC", "CUC", "CUP", "CVE", "CZK", "DJF", "DKK", "DOP", "DZD", "EGP", "ERN", "ETB", "EUR", "FJD", "FKP", "GBP", "GEL", "GHS", "GIP", "GMD", "GNF", "GTQ", "GYD", "HKD", "HNL", "HRK", "HTG", "HUF", "IDR", "ILS", "INR", "IQD", "IRR", "ISK", "JMD", "JOD", "JPY", "KES", "KGS", "KHR", "KMF", "KPW", "KRW", "KWD", "KYD", "KZT", "LAK", "LBP", "LKR", "LRD", "LSL", "LYD", "MAD", "MDL", "MGA", "MKD", "MMK", "MNT", "MOP", "MRU", "MUR", "MVR", "MWK", "MXN", "MXV", "MYR", "MZN", "NAD", "NGN", "NIO", "NOK", "NPR", "NZD", "OMR", "PAB", "PEN", "PGK", "PHP", "PKR", "PLN", "PYG", "QAR", "RON", "RSD", "RUB", "RWF", "SAR", "SBD", "SCR", "SDG", "SEK", "SGD", "SHP", "SLE", "SLL", "SOS", "SRD", "SSP", "STN", "SVC", "SYP", "SZL", "THB", "TJS", "TMT", "TND", "TOP", "TRY", "TTD", "TWD", "TZS", "UAH", "UGX", "USD", "USN", "UYI", "UYU", "UYW", "UZS", "VED", "VES", "VND", "VUV", "WST", "XAD", "XAF", "XCD", "XCG", "XOF", "XPF", "YER", "ZAR", "ZMW", "ZWG", "ZWL"]
"""ISO 4217 code of a currency, in upper case."""


class CurrencyBalance(TypedDict):
    """Balance of a merchant in one currency."""

    available: str
    """
    Available for payouts and refunds: captured, less fees, refunds, disputes and payouts, including those
    under way. Negative only after a dispute.
    """
    currency: str
    """ISO 4217 code."""
    in_transit: str
    """In payouts that haven't arrived yet."""
    pending: str
    """
    Authorized and not captured yet, or still processing, before fees. Not in any journal entry, since no
    money has moved.
    """


class Delivery(TypedDict):
    """The delivery of an event to an endpoint."""

    attempts: list[Attempt]
    """Attempts with a known outcome, in order."""
    completed_at: str | None
    """Time at which the delivery succeeded or failed."""
    created_at: str
    """Time of its creation."""
    endpoint_id: str
    """Id of the endpoint, which may have been deleted since."""
    event_id: str
    """Id of the event."""
    id: str
    """Time-ordered id."""
    next_attempt_at: str | None
    """Time at which the next attempt is due. `null` unless the delivery is pending."""
    object: Literal["delivery"]
    """Always `delivery`."""
    status: Literal["pending", "succeeded", "failed"]
    """
    `pending` until the delivery has `succeeded`, or has `failed` after many attempts or because its
    endpoint was deleted.
    """


class DeliveryList(TypedDict):
    """A page of a list."""

    data: list[Delivery]
    """The rows of the page, newest first."""
    has_more: bool
    """Whether there are more rows in the direction of paging."""


class DismissAcquirerEvent(TypedDict):
    """Body of a dismissal."""

    reason: str
    """Reason why the event needs no action."""


class Dispute(TypedDict):
    """A contested charge."""

    amount: str
    """Contested amount, at the currency's scale."""
    charge_id: str
    """Id of the contested charge."""
    closed_at: str | None
    """Time at which the dispute was won or lost."""
    created_at: str
    """Time at which the dispute was opened."""
    currency: str
    """ISO 4217 code."""
    id: str
    """Time-ordered id."""
    object: Literal["dispute"]
    """Always `dispute`."""
    reason: str | None
    """The customer's reason."""
    status: Literal["open", "won", "lost"]
    """`open`, then `won` or `lost` from the merchant's point of view."""


class DisputeEvent(TypedDict):
    """A change of an object with the schema `Dispute`."""

    created_at: str
    """Time of the event."""
    data: Dispute
    """The object right after the event."""
    id: str
    """Time-ordered id."""
    object: Literal["event"]
    """Always `event`."""
    type: Literal["dispute.opened", "dispute.won", "dispute.lost"]
    """Type of the event."""


class DisputeList(TypedDict):
    """A page of a list."""

    data: list[Dispute]
    """The rows of the page, newest first."""
    has_more: bool
    """Whether there are more rows in the direction of paging."""


EndpointStatus: TypeAlias = Literal["enabled", "disabled"]
"""
Whether the service sends messages. The merchant sets it; the service disables an endpoint that fails for
too long.
"""


Enforcement: TypeAlias = Literal["enforce", "observe", "off"]
"""Whether idempotency keys have effect."""


EventFilter: TypeAlias = Literal["*", "charge.authorized", "charge.succeeded", "charge.processing", "charge.failed", "charge.captured", "charge.canceled", "charge.updated", "charge.refunded", "charge.refund_failed", "charge.disputed", "charge.dispute_won", "refund.succeeded", "refund.failed", "payout.created", "payout.paid", "payout.failed", "settlement.paid", "dispute.opened", "dispute.won", "dispute.lost", "webhook_endpoint.disabled"]
"""An event type, or `*` for all."""


EventType: TypeAlias = Literal["charge.authorized", "charge.succeeded", "charge.processing", "charge.failed", "charge.captured", "charge.canceled", "charge.updated", "charge.refunded", "charge.refund_failed", "charge.disputed", "charge.dispute_won", "refund.succeeded", "refund.failed", "payout.created", "payout.paid", "payout.failed", "settlement.paid", "dispute.opened", "dispute.won", "dispute.lost", "webhook_endpoint.disabled"]
"""What an event tells of. Names are part of the API and never change meaning; there can be new ones."""


class FieldError(TypedDict):
    """One invalid field."""

    detail: str
    """Description of the problem."""
    pointer: str
    """Location of the field: a JSON pointer (RFC 6901) into the body."""


FingerprintKind: TypeAlias = Literal["canonical_json", "raw_body"]
"""The form of the body that is compared."""


class IncomingEvent(TypedDict):
    """An event as the processor sends it."""

    data: NotRequired[Any]
    """
    The object of the event, which the types above require: `merchant`, and `reference` with the id of the
    charge, refund or payout. A dispute also has `dispute`, the processor's id for it, and `reason`. A failed
    charge has `operation` with its `decline_code`. A settlement has `merchant`, `id` (`set_…`), `amount` and
    `currency`.
    """
    timestamp: NotRequired[Any]
    """Time of the event, in RFC 3339. Anything else is ignored."""
    type: str
    """
    Type of the event: `charge.succeeded`, `charge.failed`, `charge.captured`, `refund.failed`,
    `payout.paid`, `payout.failed`, `settlement.paid`, `dispute.opened`, `dispute.won` or `dispute.lost`.
    Other types are stored and acknowledged.
    """


class JournalCorrection(TypedDict):
    """Reason of a correcting entry, as the API shows it."""

    corrects: str | None
    """Id of the entry that is corrected, if it's one."""
    reason: str
    """The reason as text for people."""
    reference: str
    """What the correction goes back to, such as a dispute or a letter of the bank."""


class KeyResource(TypedDict):
    """The resource that a request created or changed."""

    id: str
    """Id of the resource."""
    type: Literal["acquirer_event", "api_key", "charge", "event", "merchant", "payout", "refund", "webhook_endpoint"]
    """Type of the resource."""
    url: str
    """Path of the resource."""


class KeyStatus(TypedDict):
    """Status of the request with an idempotency key."""

    attempts: int
    """Number of attempts, without replays and refusals."""
    completed_at: str | None
    """Time of the answer."""
    created_at: str
    """Time of the key's first claim."""
    expires_at: str
    """Time until which the answer is kept."""
    key: str
    """The key, without quotes."""
    object: Literal["idempotency_key"]
    """Always `idempotency_key`."""
    operation: str
    """Name of the requested operation."""
    recovery_point: Literal["started", "finished"]
    """`started`: nothing is final yet. `finished`: effects and answer are durable."""
    resource: KeyResource | None
    response_status: int | None
    """HTTP status of the answer."""
    status: Literal["in_progress", "completed", "expired"]
    """
    `in_progress`: there is no answer yet. `completed`: sending the request again replays the answer.
    `expired`: the answer is no longer kept, and the key is refused.
    """
    trace_id: str | None
    """Trace of the first request with the key, which its effects belong to."""


class MessageDataCharge1(TypedDict):
    """The type and id of an object that is too large to send."""

    id: str
    object: str


class MessageDataDispute1(TypedDict):
    """The type and id of an object that is too large to send."""

    id: str
    object: str


MessageDataDispute: TypeAlias = Dispute | MessageDataDispute1
"""The object right after the event."""


MessageDataOmitted: TypeAlias = bool
"""`true` if the message would be larger than 64 KiB. `data` then has only `id` and `object`; retrieve the event for the rest. Otherwise absent."""


class MessageDataPayout1(TypedDict):
    """The type and id of an object that is too large to send."""

    id: str
    object: str


class MessageDataRefund1(TypedDict):
    """The type and id of an object that is too large to send."""

    id: str
    object: str


MessageId: TypeAlias = str


class ObjectFailure(TypedDict):
    """Reason why a refund or payout failed."""

    code: Literal["refund_refused", "refund_returned", "payout_refused", "payout_returned", "request_abandoned"]
    """
    `refund_refused` or `payout_refused`: the processor refused it, so no money has moved. `refund_returned` or
    `payout_returned`: the money came back. `request_abandoned`: an operator ended the request.
    """
    message: str
    """The reason as text for people."""


OlderThan: TypeAlias = str
"""A number of seconds, a number with a unit, or a time."""


OnExpired: TypeAlias = Literal["reject", "execute"]
"""Treatment of a key that comes back after its lifetime."""


OnMismatch: TypeAlias = Literal["reject", "replay"]
"""Treatment of a key that comes back with another request."""


class OperatorKeyStatus(KeyStatus):
    """A key as operators see it."""

    id: str
    """Id of the key among those of all merchants, used as a cursor of lists."""
    last_error: str | None
    """Error code of the last failed attempt."""
    lease_expires_at: str | None
    """If in progress: end of the current attempt's lease."""
    merchant_id: str
    """Owner of the key. All zeros for operators, all `f` for the processor."""
    parked_at: str | None
    """Time since which the request has waited for an operator."""
    recover_at: str | None
    """If in progress: time at which the service takes the request over by itself."""
    recoveries: int
    """Number of attempts by the service itself since an operator last asked for a retry."""
    request_id: str
    """Request id of the last attempt, as in the log."""


class OperatorKeyStatusList(TypedDict):
    """A page of a list."""

    data: list[OperatorKeyStatus]
    """The rows of the page, newest first."""
    has_more: bool
    """Whether there are more rows in the direction of paging."""


class Payout(TypedDict):
    """Money sent to the merchant's bank."""

    amount: str
    """Amount, at the currency's scale."""
    created_at: str
    """Time of the first request for the payout."""
    currency: str
    """ISO 4217 code."""
    destination: str
    """Name of the bank account that receives the money."""
    failure: ObjectFailure | None
    id: str
    """Time-ordered id."""
    metadata: dict[str, str]
    """Free-form entries."""
    object: Literal["payout"]
    """Always `payout`."""
    settled_at: str | None
    """Time at which the payout arrived or failed."""
    status: Literal["pending", "in_transit", "paid", "failed"]
    """`pending` until the processor accepts the payout, then `in_transit`, then `paid` or `failed`."""


class PayoutEvent(TypedDict):
    """A change of an object with the schema `Payout`."""

    created_at: str
    """Time of the event."""
    data: Payout
    """The object right after the event."""
    id: str
    """Time-ordered id."""
    object: Literal["event"]
    """Always `event`."""
    type: Literal["payout.created", "payout.paid", "payout.failed"]
    """Type of the event."""


class PayoutList(TypedDict):
    """A page of a list."""

    data: list[Payout]
    """The rows of the page, newest first."""
    has_more: bool
    """Whether there are more rows in the direction of paging."""


class Policy(TypedDict):
    """The rules by which an operation treats its idempotency keys and its callers."""

    burst: int
    """
    Requests that an instance takes from one merchant at once, if that has sent none for a while. 0: as many as in a
    second.
    """
    concurrency_max: int
    """
    Requests of one merchant that an instance has under way at the same time, including duplicates that wait. 0: any
    number. Further ones are refused with `rate_limited`.
    """
    enforcement: Enforcement
    """Whether keys have effect."""
    fingerprint: FingerprintKind
    """The form of the body that is compared."""
    on_expired: OnExpired
    """Treatment of a key that comes back after its lifetime."""
    on_mismatch: OnMismatch
    """Treatment of a key that comes back with another request."""
    on_suspected_duplicate: NotRequired[Literal["report", "reject"]]
    """Only for `charges.create`. Treatment of a charge that looks like another one under another key: with `report` it's created, and the answer names the other; with `reject` it's refused."""
    rate_per_second: int
    """
    Requests per second that an instance takes from one merchant. 0: any number. Further ones are refused with
    `rate_limited`. A request that finds its key known, whatever its answer, counts a tenth.
    """
    rollout_percent: int
    """
    Percentage of merchants for which `enforcement` holds. For the others the next weaker one holds
    (`observe` instead of `enforce`, `off` instead of `observe`). Raising the percentage never drops a
    merchant.
    """
    suspicion_window_seconds: NotRequired[int]
    """Only for `charges.create`. Time over which earlier charges are compared; 0 turns the check off."""
    tombstone_seconds: int
    """Time after that for which the key is refused rather than free."""
    ttl_seconds: int
    """Time for which an answer is kept and replayed."""
    wait_max_seconds: int
    """Maximum wait that a duplicate can ask for with `Prefer: wait=N`."""


class PolicyChange(TypedDict):
    """A change of a policy."""

    after: Policy
    """Policy after the change."""
    before: Policy
    """Policy before the change."""
    changed_at: str
    """Time of the change."""
    changed_by: str
    """Author of the change: name and id of the operator's key, or the user of the command line."""
    id: str
    """Time-ordered id."""
    object: Literal["idempotency_policy_change"]
    """Always `idempotency_policy_change`."""
    operation: str
    """Name of the operation."""


class PolicyChangeList(TypedDict):
    """A page of a list."""

    data: list[PolicyChange]
    """The rows of the page, newest first."""
    has_more: bool
    """Whether there are more rows in the direction of paging."""


class Price(TypedDict):
    """The merchant's price per capture, from a time on."""

    effective_at: str
    """Time from which the price holds."""
    fee_fixed: str
    """Fixed amount added to that share, in the currency of the charge."""
    fee_rate: str
    """Share of the captured amount, 0 to 1."""


ProblemCode: TypeAlias = Literal["api_key_missing", "api_key_invalid", "api_key_revoked", "operator_key_not_allowed", "operator_key_required", "webhook_signature_invalid", "route_not_found", "method_not_allowed", "request_malformed", "head_timeout", "uri_too_long", "headers_too_large", "http_version_unsupported", "body_too_large", "media_type_unsupported", "body_timeout", "body_incomplete", "idempotency_key_missing", "idempotency_key_invalid", "json_malformed", "validation_failed", "idempotency_key_reused", "idempotency_key_expired", "idempotency_request_in_progress", "precondition_failed", "idempotency_key_not_found", "idempotency_key_not_in_progress", "operation_not_found", "duplicate_suspected", "duplicate_in_progress", "outcome_unknown", "database_unavailable", "transient_conflict", "processor_unavailable", "rate_limited", "overloaded", "secret_unavailable", "instance_stopping", "database_unfit", "internal", "card_declined", "insufficient_funds", "charge_not_capturable", "capture_exceeds_authorization", "charge_not_cancelable", "charge_not_refundable", "refund_exceeds_captured", "insufficient_balance", "refund_refused", "payout_refused", "request_abandoned", "refund_not_found", "payout_not_found", "dispute_not_found", "acquirer_event_not_found", "account_not_found", "journal_entry_not_found", "merchant_not_found", "api_key_not_found", "last_api_key", "webhook_endpoint_not_found", "webhook_endpoint_limit_reached", "webhook_endpoint_disabled", "event_not_found", "metadata_too_large", "charge_not_found"]
"""Causes of error answers that this version knows. Codes never change meaning, and a later version can have more."""


class Receipt(TypedDict):
    """The service's answer to the processor."""

    detail: str | None
    """Reason for the state, if it isn't obvious."""
    id: str
    """Id of the event."""
    object: Literal["acquirer_event"]
    """Always `acquirer_event`."""
    state: Literal["applied", "unchanged", "contradicted", "unknown", "parked"]
    """
    Effect of the event: `applied`, `unchanged` (the object was in that state already), `contradicted`
    (our books rule it out), `unknown` (the service doesn't know the type) or `parked` (the service
    retries it when the object is there).
    """
    type: str
    """Type of the event."""


class RedeliverEvent(TypedDict):
    """Body of a redelivery. May be empty."""

    endpoint_id: NotRequired[str | None]
    """
    Id of the only endpoint to deliver to, whatever event types it receives. Default: all enabled
    endpoints that receive this type.
    """


class Refund(TypedDict):
    """Money returned to the customer."""

    amount: str
    """Amount, at the currency's scale."""
    charge_id: str
    """Id of the refunded charge."""
    created_at: str
    """Time of the first request for the refund."""
    currency: str
    """ISO 4217 code, that of the charge."""
    failed_at: str | None
    """Time at which the refund was refused or the money came back."""
    failure: ObjectFailure | None
    id: str
    """Time-ordered id."""
    metadata: dict[str, str]
    """Free-form entries."""
    object: Literal["refund"]
    """Always `refund`."""
    reason: str | None
    """Free text."""
    status: Literal["pending", "succeeded", "failed"]
    """
    `pending` until the processor has made the refund, then `succeeded`; `failed` if the processor refused it or the
    money came back.
    """


class RefundEvent(TypedDict):
    """A change of an object with the schema `Refund`."""

    created_at: str
    """Time of the event."""
    data: Refund
    """The object right after the event."""
    id: str
    """Time-ordered id."""
    object: Literal["event"]
    """Always `event`."""
    type: Literal["refund.succeeded", "refund.failed"]
    """Type of the event."""


class RefundList(TypedDict):
    """A page of a list."""

    data: list[Refund]
    """The rows of the page, newest first."""
    has_more: bool
    """Whether there are more rows in the direction of paging."""


class ReplacePolicy(TypedDict):
    """A change of a policy. Omitted fields stay as they are."""

    burst: NotRequired[int]
    """Requests that it takes at once after a pause. 0: as many as in a second."""
    concurrency_max: NotRequired[int]
    """Requests of one merchant that each instance has under way at the same time. 0: any number."""
    enforcement: NotRequired[Enforcement]
    """Whether keys have effect."""
    fingerprint: NotRequired[FingerprintKind]
    """The form of the body that is compared. Claimed keys keep theirs."""
    on_expired: NotRequired[OnExpired]
    """Treatment of a key that comes back after its lifetime."""
    on_mismatch: NotRequired[OnMismatch]
    """Treatment of a key that comes back with another request."""
    on_suspected_duplicate: NotRequired[Literal["report", "reject"]]
    """Only for `charges.create`. Treatment of a charge that looks like another one under another key: with `report` it's created, and the answer names the other; with `reject` it's refused."""
    operation: NotRequired[str | None]
    """Name of the operation. Optional, since the path has it."""
    rate_per_second: NotRequired[int]
    """Requests per second that each instance takes from one merchant. 0: any number."""
    rollout_percent: NotRequired[int]
    """Percentage of merchants that it applies to."""
    suspicion_window_seconds: NotRequired[int]
    """Only for `charges.create`. Time over which earlier charges are compared; 0 turns the check off."""
    tombstone_seconds: NotRequired[int]
    """Time after that for which the key is refused."""
    ttl_seconds: NotRequired[int]
    """Time for which an answer is kept. Claimed keys keep their lifetime."""
    wait_max_seconds: NotRequired[int]
    """Maximum wait that a duplicate can ask for."""


ResolveIdempotencyKey = TypedDict(
    "ResolveIdempotencyKey",
    {
        "as": Literal["failed"],
        "reason": str,
    },
)


class RotateSecret(TypedDict):
    """Body of a rotation. May be empty."""

    overlap_seconds: NotRequired[int]
    """
    Time for which the old secret also signs messages, in seconds: 0 to 604800 (seven days). Default: a
    day.
    """


class Settlement(TypedDict):
    """A payment from the processor for a merchant's charges."""

    amount: str
    """Amount, at the currency's scale. Negative if we had to pay the processor."""
    created_at: str
    """Time at which the service learned of the settlement."""
    currency: str
    """ISO 4217 code."""
    id: str
    """The processor's id."""
    object: Literal["settlement"]
    """Always `settlement`."""


class SettlementEvent(TypedDict):
    """A change of an object with the schema `Settlement`."""

    created_at: str
    """Time of the event."""
    data: Settlement
    """The object right after the event."""
    id: str
    """Time-ordered id."""
    object: Literal["event"]
    """Always `event`."""
    type: Literal["settlement.paid"]
    """Type of the event."""


Side: TypeAlias = Literal["debit", "credit"]
"""Side of an account."""


class TrialBalanceLine(TypedDict):
    """An account in the trial balance."""

    account_id: str
    """Id of the account."""
    credit: str
    """Balance, if it is on the credit side; otherwise zero."""
    currency: str
    """ISO 4217 code."""
    debit: str
    """Balance, if it is on the debit side; otherwise zero."""
    kind: Literal["acquirer_clearing", "bank", "merchant_payable", "payouts_in_transit", "disputes_held", "fee_revenue"]
    """Kind of the account."""


class TrialBalanceTotal(TypedDict):
    """The column sums of a currency."""

    credit: str
    """Sum of the credit column, equal to that of the debit column."""
    currency: str
    """ISO 4217 code."""
    debit: str
    """Sum of the debit column."""


class UpdateCharge(TypedDict):
    """A merge patch (RFC 7396): omitted fields stay, and `null` removes."""

    description: NotRequired[str | None]
    """New text, or `null` to remove it."""
    metadata: NotRequired[dict[str, str | None]]
    """Entries to set, or to remove with `null`. `null` instead of the object removes all entries."""


class UpdateWebhookEndpoint(TypedDict):
    """A merge patch (RFC 7396): omitted fields stay."""

    description: NotRequired[str | None]
    """New text, or `null` to remove it."""
    event_types: NotRequired[list[EventFilter]]
    """New list of event types that the endpoint receives."""
    status: NotRequired[EndpointStatus]
    """
    `disabled` stops sending: pending deliveries keep waiting, and events that happen meanwhile are never
    delivered. `enabled`, after that, resets the endpoint: its failures are forgotten, and pending
    deliveries are attempted for as long as new ones.
    """
    url: NotRequired[str]
    """New URL that messages are sent to."""


class WebhookEndpoint(TypedDict):
    """A merchant's destination for events."""

    created_at: str
    """Time of its creation."""
    description: str | None
    """Free text."""
    disabled_at: str | None
    """Time at which the endpoint was disabled."""
    event_types: list[EventFilter]
    """Event types that the endpoint receives; `*` stands for all."""
    failing_since: str | None
    """Time of the first failed delivery after the last successful one."""
    id: str
    """Time-ordered id."""
    object: Literal["webhook_endpoint"]
    """Always `webhook_endpoint`."""
    previous_secret_expires_at: str | None
    """Time until which the previous secret signs messages, too."""
    secret: NotRequired[str]
    """
    Secret that signs the messages, as defined by [Standard Webhooks](https://www.standardwebhooks.com).
    Only in the answer to the endpoint's creation and to a rotation.
    """
    status: Literal["enabled", "disabled", "deleted"]
    """`enabled` or `disabled`; `deleted` in the answer to its deletion."""
    url: str
    """URL that messages are sent to."""


class WebhookEndpointEvent(TypedDict):
    """A change of an object with the schema `WebhookEndpoint`."""

    created_at: str
    """Time of the event."""
    data: WebhookEndpoint
    """The object right after the event."""
    id: str
    """Time-ordered id."""
    object: Literal["event"]
    """Always `event`."""
    type: Literal["webhook_endpoint.disabled"]
    """Type of the event."""


class WebhookEndpointList(TypedDict):
    """A page of a list."""

    data: list[WebhookEndpoint]
    """The rows of the page, newest first."""
    has_more: bool
    """Whether there are more rows in the direction of paging."""


class Account(TypedDict):
    """An account of the ledger: one per kind and currency."""

    created_at: str
    """Time of the first posting to the account."""
    currency: str
    """ISO 4217 code."""
    id: str
    """Time-ordered id."""
    kind: Literal["acquirer_clearing", "bank", "merchant_payable", "payouts_in_transit", "disputes_held", "fee_revenue"]
    """
    Kind of the account: `acquirer_clearing`, `bank`, `merchant_payable`, `payouts_in_transit`,
    `disputes_held` or `fee_revenue`.
    """
    normal_side: Side
    """Side on which the account grows."""
    object: Literal["ledger_account"]
    """Always `ledger_account`."""


class AccountList(TypedDict):
    """A page of a list."""

    data: list[Account]
    """The rows of the page, newest first."""
    has_more: bool
    """Whether there are more rows in the direction of paging."""


class AuditReport(TypedDict):
    """Result of an audit."""

    checks: list[CheckResult]
    """Results of all checks."""
    clean: bool
    """Whether no check found a violation."""


class Balance(TypedDict):
    """Balance of a merchant, per currency."""

    balances: list[CurrencyBalance]
    """One entry per currency with any movement, sorted by code."""


class Charge(TypedDict):
    """A payment from a customer to the merchant."""

    amount: str
    """Authorized amount, at the currency's scale."""
    amount_captured: str
    """Captured part of `amount`."""
    amount_refunded: str
    """Refunded part of `amount_captured`."""
    canceled_at: str | None
    """Time at which the authorization was voided."""
    captured_at: str | None
    """Time of the capture."""
    created_at: str
    """Time of the first request for the charge."""
    currency: str
    """ISO 4217 code."""
    description: str | None
    """Free text."""
    failure: ChargeFailure | None
    fee: str
    """The merchant's fee for the capture. Zero before it."""
    id: str
    """Time-ordered id."""
    metadata: dict[str, str]
    """Free-form entries."""
    object: Literal["charge"]
    """Always `charge`."""
    payment_method: str
    """Token of the payment method."""
    reference: str | None
    """The merchant's own name for the payment."""
    status: ChargeStatus
    """State of the charge."""


class ChargeEvent(TypedDict):
    """A change of an object with the schema `Charge`."""

    created_at: str
    """Time of the event."""
    data: Charge
    """The object right after the event."""
    id: str
    """Time-ordered id."""
    object: Literal["event"]
    """Always `event`."""
    type: Literal["charge.authorized", "charge.succeeded", "charge.processing", "charge.failed", "charge.captured", "charge.canceled", "charge.updated", "charge.refunded", "charge.refund_failed", "charge.disputed", "charge.dispute_won"]
    """Type of the event."""


class ChargeList(TypedDict):
    """A page of a list."""

    data: list[Charge]
    """The rows of the page, newest first."""
    has_more: bool
    """Whether there are more rows in the direction of paging."""


class CreateCharge(TypedDict):
    """Body of a new charge."""

    amount: str
    """
    Decimal string greater than zero, with at most as many decimals as the currency has and 12 digits
    before the point.
    """
    capture: NotRequired[bool]
    """Whether to capture at once. If false, the money is only held. Default: true."""
    currency: Currency
    """ISO 4217 code of a currency in use, in upper case."""
    description: NotRequired[str | None]
    """Free text, without control characters other than tabs and line breaks."""
    metadata: NotRequired[dict[str, str]]
    """Up to 50 entries, names up to 40 and values up to 500 characters."""
    payment_method: str
    """Token of a payment method."""
    reference: NotRequired[str | None]
    """Your own name for the payment, without control characters and in Unicode normalization form C."""


class CreatePayout(TypedDict):
    """Body of a new payout."""

    amount: str
    """
    Decimal string greater than zero, with at most as many decimals as the currency has and 12 digits
    before the point.
    """
    currency: Currency
    """ISO 4217 code in upper case."""
    destination: str
    """
    Your name for the bank account of the merchant that receives the money, without control characters and in
    Unicode normalization form C.
    """
    metadata: NotRequired[dict[str, str]]
    """Up to 50 entries, names up to 40 and values up to 500 characters."""


class CreateWebhookEndpoint(TypedDict):
    """Body of a new webhook endpoint."""

    description: NotRequired[str | None]
    """Free text."""
    event_types: NotRequired[list[EventFilter]]
    """Event types that the endpoint receives, or `*` for all. Default: `*`."""
    url: str
    """
    URL that messages are sent to: an https URL of a public host, without user name, password and
    fragment.
    """


Event: TypeAlias = ChargeEvent | DisputeEvent | PayoutEvent | RefundEvent | SettlementEvent | WebhookEndpointEvent
"""A change of an object. `type` tells what `data` is. A later version can have more types: skip an event whose type you don't know."""


class EventPage(TypedDict):
    """A page of events."""

    data: list[Event]
    """The events of the page: newest first, or oldest first with `after`."""
    has_more: bool
    """Whether there are more events in the direction of paging."""
    next: NotRequired[str]
    """The `after` of the next page. Only in answers to requests with `after`, and in each of them."""


class Merchant(TypedDict):
    """A merchant."""

    api_key: NotRequired[ApiKey]
    """The merchant's first API key. Only in the answer to its creation."""
    created_at: str
    """Time of its creation."""
    id: str
    """Time-ordered id."""
    name: str
    """Name of the merchant."""
    object: Literal["merchant"]
    """Always `merchant`."""
    prices: list[Price]
    """The current price and the future ones, each with the time from which it holds."""


class MerchantList(TypedDict):
    """A page of a list."""

    data: list[Merchant]
    """The rows of the page, newest first."""
    has_more: bool
    """Whether there are more rows in the direction of paging."""


MessageDataCharge: TypeAlias = Charge | MessageDataCharge1
"""The object right after the event."""


MessageDataPayout: TypeAlias = Payout | MessageDataPayout1
"""The object right after the event."""


MessageDataRefund: TypeAlias = Refund | MessageDataRefund1
"""The object right after the event."""


class NewPosting(TypedDict):
    """A line of a correcting entry."""

    account_kind: Literal["acquirer_clearing", "bank", "merchant_payable", "payouts_in_transit", "disputes_held", "fee_revenue"]
    """Kind of the account."""
    amount: str
    """Decimal string greater than zero, with at most as many decimals as the currency has."""
    currency: Currency
    """ISO 4217 code in upper case."""
    side: Side
    """Debit or credit."""


class OperationPolicy(Policy):
    """The idempotency policy of an operation."""

    operation: str
    """Name of the operation."""


class OperationPolicyList(TypedDict):
    """A page of a list."""

    data: list[OperationPolicy]
    """The rows of the page, newest first."""
    has_more: bool
    """Whether there are more rows in the direction of paging."""


class PostJournalEntry(TypedDict):
    """Body of a correcting entry."""

    merchant_id: str
    """Id of the merchant whose books are corrected."""
    postings: list[NewPosting]
    """The lines: debits and credits are equal in each currency."""
    reason: str
    """The reason, which the merchant sees."""
    reference: str
    """What the correction goes back to, such as a letter of the bank."""


class Posting(TypedDict):
    """One line of a journal entry."""

    account_id: str
    """Id of the account."""
    account_kind: Literal["acquirer_clearing", "bank", "merchant_payable", "payouts_in_transit", "disputes_held", "fee_revenue"]
    """Kind of the account."""
    amount: str
    """Positive amount, at the currency's scale."""
    created_at: str
    """Time of the posting."""
    currency: str
    """ISO 4217 code."""
    entry_id: str
    """Id of the entry."""
    id: str
    """Id of the entry and the number of the line."""
    side: Side
    """Debit or credit."""


class PostingList(TypedDict):
    """A page of a list."""

    data: list[Posting]
    """The rows of the page, newest first."""
    has_more: bool
    """Whether there are more rows in the direction of paging."""


class Problem(TypedDict):
    """Body of every error answer: an RFC 9457 problem with a few more members."""

    charge_id: NotRequired[str]
    """
    With `card_declined` and `insufficient_funds`: the failed charge. With `duplicate_suspected`: the
    earlier charge.
    """
    code: ProblemCode | str
    """
    Machine-readable cause: one code per cause. A later version can have more codes: treat one that you don't know by
    `status` and `retryable`.
    """
    decline_code: NotRequired[str]
    """With `card_declined` and `insufficient_funds`: the issuer's reason."""
    detail: str
    """One sentence about this occurrence."""
    errors: NotRequired[list[FieldError]]
    """With `validation_failed`: all invalid fields."""
    instance: str
    """Path of the request."""
    payout_id: NotRequired[str]
    """With `payout_refused`: the failed payout."""
    refund_id: NotRequired[str]
    """With `refund_refused`: the failed refund."""
    refusal_code: NotRequired[str]
    """With `refund_refused` and `payout_refused`: the processor's reason."""
    request_id: str
    """Id of the request that this answer was made for. A replay has the first request's id."""
    retryable: bool
    """Whether the same request can succeed when sent again with the same idempotency key."""
    status: int
    """The HTTP status, repeated."""
    title: str
    """Short title, the same for every occurrence of the code."""
    type: str
    """Path of the page that explains the code."""


class TrialBalance(TypedDict):
    """All accounts with their balances in two columns of equal sums."""

    accounts: list[TrialBalanceLine]
    """One line per account."""
    at: str | None
    """Time of the balances, if the request named one."""
    totals: list[TrialBalanceTotal]
    """One line per currency, with the sums of the columns."""


class Entry(TypedDict):
    """A journal entry with its postings, whose debits and credits are equal."""

    correction: JournalCorrection | None
    created_at: str
    """Time of the posting."""
    id: str
    """Time-ordered id."""
    object: Literal["journal_entry"]
    """Always `journal_entry`."""
    postings: list[Posting]
    """Lines of the entry."""
    source: str
    """Source of the entry, the change that it records. A source is posted once."""


class EntryList(TypedDict):
    """A page of a list."""

    data: list[Entry]
    """The rows of the page, newest first."""
    has_more: bool
    """Whether there are more rows in the direction of paging."""
