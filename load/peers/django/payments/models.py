"""Oncepay's tables, as far as a charge needs them. Its migrations make them, so nothing here is managed."""

import secrets
import time
import uuid

from django.db import models


def uuid7():
    """A time-ordered id (RFC 9562), which keeps inserts on the right-most page of an index."""
    value = time.time_ns() // 1_000_000 << 80 | secrets.randbits(80)
    value = value & ~(0xF << 76) | 7 << 76
    return uuid.UUID(int=value & ~(3 << 62) | 2 << 62)


class ApiKey(models.Model):
    pk = models.CompositePrimaryKey("merchant_id", "id")
    merchant_id = models.UUIDField()
    id = models.UUIDField()
    key_sha256 = models.BinaryField()
    revoked_at = models.DateTimeField(null=True)

    class Meta:
        managed = False
        db_table = "api_keys"


class MerchantPricing(models.Model):
    pk = models.CompositePrimaryKey("merchant_id", "effective_at")
    merchant_id = models.UUIDField()
    effective_at = models.DateTimeField()
    fee_rate = models.DecimalField(max_digits=6, decimal_places=5)
    fee_fixed = models.DecimalField(max_digits=16, decimal_places=4)

    class Meta:
        managed = False
        db_table = "merchant_pricing"


class Charge(models.Model):
    pk = models.CompositePrimaryKey("merchant_id", "id")
    merchant_id = models.UUIDField()
    id = models.UUIDField()
    status = models.TextField()
    currency = models.TextField()
    amount = models.DecimalField(max_digits=16, decimal_places=4)
    amount_captured = models.DecimalField(max_digits=16, decimal_places=4, default=0)
    amount_refunded = models.DecimalField(max_digits=16, decimal_places=4, default=0)
    fee = models.DecimalField(max_digits=16, decimal_places=4, default=0)
    payment_method = models.TextField()
    capture = models.BooleanField()
    description = models.TextField(null=True)
    reference = models.TextField(null=True)
    metadata = models.JSONField(default=dict)
    authorization_id = models.TextField()
    created_at = models.DateTimeField()
    captured_at = models.DateTimeField(null=True)

    class Meta:
        managed = False
        db_table = "charges"


class Event(models.Model):
    pk = models.CompositePrimaryKey("merchant_id", "id")
    merchant_id = models.UUIDField()
    id = models.UUIDField(default=uuid7)
    type = models.TextField()
    object_id = models.UUIDField()
    data = models.JSONField()
    created_at = models.DateTimeField()

    class Meta:
        managed = False
        db_table = "events"
