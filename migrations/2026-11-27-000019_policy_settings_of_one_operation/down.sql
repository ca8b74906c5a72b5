COMMENT ON COLUMN idempotency_policies.suspicion_window_seconds IS NULL;
COMMENT ON COLUMN idempotency_policies.on_suspected_duplicate IS NULL;
ALTER TABLE idempotency_policies
    ALTER COLUMN suspicion_window_seconds DROP DEFAULT,
    ALTER COLUMN on_suspected_duplicate DROP DEFAULT;
