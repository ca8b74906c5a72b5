"""The peer with idempotency written by hand."""

from payments.settings import *  # noqa: F403

INSTALLED_APPS = ["payments", "handrolled"]
ROOT_URLCONF = "handrolled.urls"
