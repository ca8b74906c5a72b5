-- Two settings are of `charges.create` alone. The service writes them for that operation only, so the rows of the others
-- take the defaults. The table has a row per operation, and changing a default rewrites nothing.
SET LOCAL lock_timeout = '1s';

ALTER TABLE idempotency_policies
    ALTER COLUMN on_suspected_duplicate SET DEFAULT 'report',
    ALTER COLUMN suspicion_window_seconds SET DEFAULT 600;
COMMENT ON COLUMN idempotency_policies.on_suspected_duplicate IS 'Of `charges.create` alone: what happens to a charge that looks like another one.';
COMMENT ON COLUMN idempotency_policies.suspicion_window_seconds IS 'Of `charges.create` alone: how far back other charges are looked at; 0 turns it off.';
