"""Merchants by their bearer keys: `sk_test_`, the merchant's id and a secret, 32 hexadecimal digits each."""

import hashlib
import uuid
from dataclasses import dataclass

from rest_framework.authentication import BaseAuthentication, get_authorization_header
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.permissions import BasePermission

from .models import ApiKey

PREFIX = "sk_test_"


@dataclass(frozen=True)
class Merchant:
    id: uuid.UUID


class ApiKeyAuthentication(BaseAuthentication):
    def authenticate(self, request):
        scheme, _, key = get_authorization_header(request).decode("latin-1").partition(" ")
        if scheme.lower() != "bearer":
            return None
        key = key.strip()
        try:
            merchant_id = uuid.UUID(key.removeprefix(PREFIX)[:32])
        except ValueError:
            raise AuthenticationFailed from None
        key_sha256 = hashlib.sha256(key.encode()).digest()
        keys = ApiKey.objects.filter(merchant_id=merchant_id, key_sha256=key_sha256, revoked_at=None)
        if not keys.exists():
            raise AuthenticationFailed
        return Merchant(merchant_id), None

    def authenticate_header(self, request):
        return "Bearer"


class IsMerchant(BasePermission):
    def has_permission(self, request, view):
        return request.user is not None
