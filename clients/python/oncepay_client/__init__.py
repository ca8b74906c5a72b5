"""A client of Oncepay that keeps its idempotency keys. See clients/README.md."""
