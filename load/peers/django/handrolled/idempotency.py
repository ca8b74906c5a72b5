"""At most one execution per (merchant, key), by the rules of Oncepay and in its table.

    autocommit        look, take            INSERT … ON CONFLICT DO NOTHING: one of many wins
    no transaction    the processor is called
    one transaction   lock, …, complete     nothing is written unless the claim is still ours

A worker that dies in between leaves a claim whose lease runs out. Whoever sends the request again takes it over.
"""

import hashlib
import json
import uuid
from datetime import timedelta

from django.db import connection
from django.db.models import F
from django.db.models.functions import Now
from rest_framework.exceptions import APIException

from payments.models import uuid7

from .models import IdempotencyKey

LEASE = timedelta(seconds=30)
LIFETIME = timedelta(days=1)


class InProgress(APIException):
    status_code = 409
    default_detail = "The first request with this idempotency key is still running."


class KeyReused(APIException):
    status_code = 422
    default_detail = "This idempotency key was used for another request."


class KeyExpired(APIException):
    status_code = 422
    default_detail = "The answer to this idempotency key isn't kept any more."


def canonical(data):
    """The body without what doesn't matter: white space and the order of members."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def fingerprint(request, body):
    """As Oncepay makes it, so that either answers a retry of what the other has executed."""
    query = "&".join(sorted(filter(None, request.META["QUERY_STRING"].split("&"))))
    digest = hashlib.sha256((1).to_bytes(2, "big"))
    for part in (request.method.encode(), request.path.encode(), query.encode(), body):
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.digest()


def look(merchant_id, key, sent):
    """What is there under the key, if it's of the request with the fingerprint `sent`. All that a replay does."""
    row = IdempotencyKey.objects.filter(merchant_id=merchant_id, key=key).only(
        "state", "fingerprint", "response_status", "response_headers", "response_body", "resource_id", "created_at"
    ).first()
    if row and row.fingerprint != sent:
        raise KeyReused
    if row and row.state == IdempotencyKey.EXPIRED:
        raise KeyExpired
    return row


def take(row, merchant_id, key, request, body, sent):
    """The key's row: ours to execute, or just completed by somebody else. `row` is what `look` has seen."""
    if row is None:
        claimed = _claim(merchant_id, key, request, body, sent)
        if claimed:
            return claimed
        row = look(merchant_id, key, sent)
    if row is None or row.state == IdempotencyKey.IN_PROGRESS and not _take_over(row):
        raise InProgress
    return row


def lock(row):
    """Locks the key until the transaction ends. Whoever was too slow and was taken over writes nothing."""
    locked = IdempotencyKey.objects.select_for_update().filter(merchant_id=row.merchant_id, key=row.key)
    if locked.values_list("claim_token", flat=True).first() != row.claim_token:
        raise InProgress


def complete(row, status, headers, body):
    """Stores the answer."""
    row.response_status, row.response_headers, row.response_body = status, headers, body
    IdempotencyKey.objects.filter(merchant_id=row.merchant_id, key=row.key).update(
        state=IdempotencyKey.COMPLETED, recovery_point="finished",
        claim_token=None, lease_expires_at=None, recover_at=None,
        response_status=status, response_headers=headers, response_body=body,
        completed_at=Now(), expires_at=Now() + LIFETIME,
    )


def processor_key(row):
    """Names this request towards the processor: the same in every attempt."""
    created_at = round(row.created_at.timestamp() * 1_000_000)
    return hashlib.sha256(row.merchant_id.bytes + created_at.to_bytes(8, "big") + row.key.encode()).hexdigest()[:32]


def _claim(merchant_id, key, request, body, sent):
    """`None` if somebody else was faster.

    In SQL, as `bulk_create(ignore_conflicts=True)` doesn't tell whether it has inserted the row, and with the
    database's clock, as clocks of servers needn't agree.
    """
    row = IdempotencyKey(
        merchant_id=merchant_id, key=key, state=IdempotencyKey.IN_PROGRESS, fingerprint=sent,
        resource_id=uuid7(), claim_token=uuid.uuid4(),
    )
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO idempotency_keys (merchant_id, key, state, operation, fingerprint_version, fingerprint, "
            "request_id, request_method, request_path, request_query, request_body, resource_type, resource_id, "
            "claim_token, lease_expires_at, recover_at, attempts, recovery_point, created_at, expires_at) "
            "SELECT %s, %s, 'in_progress', 'charges.create', 1, %s, %s, %s, %s, %s, %s, 'charge', %s, %s, "
            "now + %s, now + %s, 1, 'started', now, now + %s FROM clock_timestamp() AS now "
            "ON CONFLICT DO NOTHING RETURNING created_at",
            [
                merchant_id, key, sent, f"req_{uuid7().hex}", request.method, request.path,
                request.META["QUERY_STRING"], body, row.resource_id, row.claim_token, LEASE, LEASE, LIFETIME,
            ],
        )
        inserted = cursor.fetchone()
    if inserted is None:
        return None
    row.created_at = inserted[0]
    return row


def _take_over(row):
    """Makes an abandoned request ours. False if it's still being executed."""
    row.claim_token = uuid.uuid4()
    abandoned = IdempotencyKey.objects.filter(
        merchant_id=row.merchant_id, key=row.key, state=IdempotencyKey.IN_PROGRESS,
        created_at=row.created_at, lease_expires_at__lte=Now(), parked_at=None,
    )
    taken = abandoned.update(
        claim_token=row.claim_token, lease_expires_at=Now() + LEASE, attempts=F("attempts") + 1
    )
    return taken == 1
