"""Oncepay's table of idempotency keys."""

from django.db import models


class IdempotencyKey(models.Model):
    IN_PROGRESS, COMPLETED, EXPIRED = "in_progress", "completed", "expired"

    pk = models.CompositePrimaryKey("merchant_id", "key")
    merchant_id = models.UUIDField()
    key = models.TextField()
    state = models.TextField()
    fingerprint = models.BinaryField()
    resource_id = models.UUIDField()
    claim_token = models.UUIDField(null=True)
    lease_expires_at = models.DateTimeField(null=True)
    recover_at = models.DateTimeField(null=True)
    parked_at = models.DateTimeField(null=True)
    attempts = models.IntegerField()
    recovery_point = models.TextField()
    response_status = models.SmallIntegerField(null=True)
    response_headers = models.JSONField(null=True)
    response_body = models.BinaryField(null=True)
    created_at = models.DateTimeField()
    completed_at = models.DateTimeField(null=True)
    expires_at = models.DateTimeField()

    class Meta:
        managed = False
        db_table = "idempotency_keys"
