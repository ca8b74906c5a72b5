"""What a charge is: the request, what it costs, and the rows that it leaves behind."""

from decimal import ROUND_HALF_EVEN, Decimal

from django.db import connection
from django.db.models.functions import Now
from django.utils import timezone
from rest_framework import serializers

from . import processor
from .models import Charge, Event, MerchantPricing, uuid7

SCALES = {"USD": 2, "EUR": 2, "GBP": 2, "CHF": 2, "JPY": 0, "KWD": 3, "BHD": 3}


class ChargeRequest(serializers.Serializer):
    # A string, so that no float touches it.
    amount = serializers.RegexField(r"^[0-9]{1,12}(\.[0-9]{1,4})?\Z")
    currency = serializers.ChoiceField(list(SCALES))
    payment_method = serializers.ChoiceField(["pm_card_visa"])
    capture = serializers.BooleanField(default=True)
    description = serializers.CharField(max_length=500, allow_null=True, default=None)
    reference = serializers.CharField(max_length=255, allow_null=True, default=None)
    metadata = serializers.DictField(child=serializers.CharField(max_length=500), default=dict)

    def validate(self, fields):
        _, _, decimals = fields["amount"].partition(".")
        fields["amount"] = Decimal(fields["amount"])
        if len(decimals) > SCALES[fields["currency"]]:
            raise serializers.ValidationError({"amount": "has more decimals than its currency"})
        if not fields["amount"]:
            raise serializers.ValidationError({"amount": "must be greater than zero"})
        return fields


def authorize(key, fields):
    """Asks the processor for the money, under a key of ours. Not to be called in a transaction."""
    authorization_id = processor.authorize(key, fields["amount"], fields["currency"], fields["payment_method"])
    if fields["capture"]:
        processor.capture(key, authorization_id, fields["amount"])
    return authorization_id


def record(merchant_id, charge_id, fields, authorization_id, created_at):
    """Writes the charge, its journal entry and its event, in the transaction of the caller. Returns the charge."""
    charge = Charge(
        merchant_id=merchant_id, id=charge_id, status="requires_capture", authorization_id=authorization_id,
        created_at=created_at, **fields,
    )
    if charge.capture:
        charge.status = "succeeded"
        charge.amount_captured = charge.amount
        charge.fee = _fee(merchant_id, charge)
        charge.captured_at = timezone.now()
    charge.save(force_insert=True)
    if charge.capture:
        _post_capture(charge)
    data = represent(charge)
    kind = "charge.succeeded" if charge.capture else "charge.authorized"
    Event(merchant_id=merchant_id, type=kind, object_id=charge_id, data=data, created_at=Now()).save(force_insert=True)
    return data


def represent(charge):
    """The charge as the API shows it. By hand: a serializer costs several times as much and says the same."""
    scale = SCALES[charge.currency]
    return {
        "id": f"ch_{charge.id.hex}",
        "object": "charge",
        "status": charge.status,
        "amount": f"{charge.amount:.{scale}f}",
        "amount_captured": f"{charge.amount_captured:.{scale}f}",
        "amount_refunded": f"{charge.amount_refunded:.{scale}f}",
        "currency": charge.currency,
        "payment_method": charge.payment_method,
        "description": charge.description,
        "reference": charge.reference,
        "metadata": charge.metadata,
        "failure": None,
        "fee": f"{charge.fee:.{scale}f}",
        "created_at": _timestamp(charge.created_at),
        "captured_at": charge.captured_at and _timestamp(charge.captured_at),
        "canceled_at": None,
    }


def _timestamp(time):
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _fee(merchant_id, charge):
    prices = MerchantPricing.objects.filter(merchant_id=merchant_id, effective_at__lte=Now()).order_by("-effective_at")
    rate, fixed = prices.values_list("fee_rate", "fee_fixed")[0]
    fee = (rate * charge.amount + fixed).quantize(Decimal(1).scaleb(-SCALES[charge.currency]), ROUND_HALF_EVEN)
    return min(fee, charge.amount)


def _post_capture(charge):
    """The entry goes through `ledger_post`: the service's role has no other way to write the ledger."""
    lines = {
        "acquirer_clearing": charge.amount, "merchant_payable": charge.fee - charge.amount, "fee_revenue": -charge.fee,
    }
    lines = {kind: amount for kind, amount in lines.items() if amount}
    currencies = [charge.currency] * len(lines)
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT ledger_post(%s, %s, %s, %s, %s, %s::numeric[])",
            [
                charge.merchant_id, uuid7(), f"ch_{charge.id.hex}:capture",
                list(lines), currencies, list(lines.values()),
            ],
        )
