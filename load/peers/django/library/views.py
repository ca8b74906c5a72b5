import hashlib

from django.db import transaction
from django.utils import timezone
from idempotency_key.decorators import idempotency_key
from rest_framework.decorators import api_view
from rest_framework.response import Response

from payments import charges
from payments.models import uuid7


@idempotency_key
@api_view(["POST"])
def create_charge(request):
    """The middleware has looked the key up before, and stores the answer afterwards."""
    form = charges.ChargeRequest(data=request.data)
    form.is_valid(raise_exception=True)
    merchant_id, fields, created_at = request.user.id, form.validated_data, timezone.now()

    # The processor gets a key, too, so that it can tell when a charge is made twice.
    processor_key = hashlib.sha256(merchant_id.bytes + request.headers["Idempotency-Key"].encode()).hexdigest()[:32]
    authorization_id = charges.authorize(processor_key, fields)
    with transaction.atomic():
        charge = charges.record(merchant_id, uuid7(), fields, authorization_id, created_at)
    return Response(charge, status=201, headers={"Location": f"/v1/charges/{charge['id']}"})
