"""The requests that change something, by generate.py: see clients/README.md."""

from collections.abc import Mapping
from typing import Any, cast
from urllib.parse import quote

from .types import (
    ApiKey,
    CancelCharge,
    CaptureCharge,
    Charge,
    CreateApiKey,
    CreateCharge,
    CreatePayout,
    CreateRefund,
    CreateWebhookEndpoint,
    DeliveryList,
    Payout,
    RedeliverEvent,
    Refund,
    RotateSecret,
    UpdateCharge,
    UpdateWebhookEndpoint,
    WebhookEndpoint,
)


class Operations:
    """One method for each request."""

    def once(self, name: str, method: str, path: str, body: Mapping[str, object] | None) -> Any:
        """Makes a request that has no method of its own, such as one with a query. Returns the body of its answer."""
        raise NotImplementedError

    def api_keys_create(self, name: str, body: CreateApiKey) -> ApiKey:
        """Create an API key."""
        return cast(ApiKey, self.once(name, "POST", "/v1/api-keys", body))

    def api_keys_revoke(self, name: str, id: str) -> ApiKey:
        """Revoke an API key."""
        return cast(ApiKey, self.once(name, "DELETE", f'/v1/api-keys/{quote(id, safe="")}', None))

    def charges_create(self, name: str, body: CreateCharge) -> Charge:
        """Create a charge."""
        return cast(Charge, self.once(name, "POST", "/v1/charges", body))

    def charges_update(self, name: str, id: str, body: UpdateCharge) -> Charge:
        """Update a charge."""
        return cast(Charge, self.once(name, "PATCH", f'/v1/charges/{quote(id, safe="")}', body))

    def charges_cancel(self, name: str, id: str, body: CancelCharge | None = None) -> Charge:
        """Cancel a charge."""
        return cast(Charge, self.once(name, "POST", f'/v1/charges/{quote(id, safe="")}/cancel', body))

    def charges_capture(self, name: str, id: str, body: CaptureCharge | None = None) -> Charge:
        """Capture a charge."""
        return cast(Charge, self.once(name, "POST", f'/v1/charges/{quote(id, safe="")}/capture', body))

    def events_redeliver(self, name: str, id: str, body: RedeliverEvent | None = None) -> DeliveryList:
        """Deliver an event again."""
        return cast(DeliveryList, self.once(name, "POST", f'/v1/events/{quote(id, safe="")}/redeliver', body))

    def payouts_create(self, name: str, body: CreatePayout) -> Payout:
        """Create a payout."""
        return cast(Payout, self.once(name, "POST", "/v1/payouts", body))

    def refunds_create(self, name: str, body: CreateRefund) -> Refund:
        """Create a refund."""
        return cast(Refund, self.once(name, "POST", "/v1/refunds", body))

    def webhook_endpoints_create(self, name: str, body: CreateWebhookEndpoint) -> WebhookEndpoint:
        """Create a webhook endpoint."""
        return cast(WebhookEndpoint, self.once(name, "POST", "/v1/webhook-endpoints", body))

    def webhook_endpoints_delete(self, name: str, id: str) -> WebhookEndpoint:
        """Delete a webhook endpoint."""
        return cast(WebhookEndpoint, self.once(name, "DELETE", f'/v1/webhook-endpoints/{quote(id, safe="")}', None))

    def webhook_endpoints_update(self, name: str, id: str, body: UpdateWebhookEndpoint) -> WebhookEndpoint:
        """Update a webhook endpoint."""
        return cast(WebhookEndpoint, self.once(name, "PATCH", f'/v1/webhook-endpoints/{quote(id, safe="")}', body))

    def webhook_endpoints_rotate_secret(self, name: str, id: str, body: RotateSecret | None = None) -> WebhookEndpoint:
        """Rotate a webhook endpoint's secret."""
        return cast(WebhookEndpoint, self.once(name, "POST", f'/v1/webhook-endpoints/{quote(id, safe="")}/rotate-secret', body))
