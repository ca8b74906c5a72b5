import re

from django.db import transaction
from django.http import HttpResponse
from rest_framework.exceptions import ValidationError
from rest_framework.renderers import JSONRenderer
from rest_framework.views import APIView

from payments import charges

from . import idempotency
from .models import IdempotencyKey


class Charges(APIView):
    def post(self, request):
        key = request.headers.get("Idempotency-Key", "")
        if not re.fullmatch(r"[\x21-\x7e]{1,255}", key):
            raise ValidationError({"Idempotency-Key": "must be 1 to 255 visible ASCII characters"})
        merchant_id, body = request.user.id, idempotency.canonical(request.data)
        sent = idempotency.fingerprint(request, body)

        # Looks before it claims: a replay shouldn't write, nor do anything else that it can do without.
        row = idempotency.look(merchant_id, key, sent)
        if row is None or row.state == IdempotencyKey.IN_PROGRESS:
            form = charges.ChargeRequest(data=request.data)
            form.is_valid(raise_exception=True)
            row = idempotency.take(row, merchant_id, key, request, body, sent)
        if row.state == IdempotencyKey.COMPLETED:
            return answer(row, replayed=True)

        fields = form.validated_data
        authorization_id = charges.authorize(idempotency.processor_key(row), fields)
        with transaction.atomic():
            idempotency.lock(row)
            charge = charges.record(merchant_id, row.resource_id, fields, authorization_id, row.created_at)
            headers = [["Content-Type", "application/json"], ["Location", f"/v1/charges/{charge['id']}"]]
            idempotency.complete(row, 201, headers, JSONRenderer().render(charge))
        return answer(row, replayed=False)


def answer(row, replayed):
    """The stored bytes: the first answer and every retry's are the same."""
    headers = dict(row.response_headers) | {"Idempotent-Replayed": "true" if replayed else "false"}
    return HttpResponse(bytes(row.response_body), status=row.response_status, headers=headers)
