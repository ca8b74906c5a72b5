-- The schema before has no tombstones and no parked requests: tombstones are forgotten, parked requests
-- wait for their client's retry again.
REVOKE DELETE ON idempotency_keys FROM oncepay_app;
REVOKE UPDATE (request_method, request_path, request_query, request_body, expires_at)
    ON idempotency_keys FROM oncepay_app;
DROP TRIGGER idempotency_keys_life_delete ON idempotency_keys;
DROP TRIGGER idempotency_keys_life_update ON idempotency_keys;
DROP FUNCTION idempotency_keys_guard;
DELETE FROM idempotency_keys WHERE state = 'expired';
ALTER TABLE idempotency_keys RESET (autovacuum_vacuum_scale_factor, autovacuum_vacuum_insert_scale_factor);
DROP INDEX idempotency_keys_to_forget;
DROP INDEX idempotency_keys_to_expire;
DROP INDEX idempotency_keys_in_progress;
ALTER TABLE idempotency_keys
    DROP CONSTRAINT idempotency_keys_recoveries,
    DROP CONSTRAINT idempotency_keys_tombstone,
    DROP CONSTRAINT idempotency_keys_parked,
    DROP CONSTRAINT idempotency_keys_recovery_point,
    DROP CONSTRAINT idempotency_keys_expired,
    DROP CONSTRAINT idempotency_keys_completed,
    DROP CONSTRAINT idempotency_keys_answered,
    DROP CONSTRAINT idempotency_keys_in_progress,
    DROP CONSTRAINT idempotency_keys_state,
    ADD CONSTRAINT idempotency_keys_state CHECK (state IN ('in_progress', 'completed')),
    ADD CONSTRAINT idempotency_keys_in_progress CHECK ((state = 'in_progress')
        = (claim_token IS NOT NULL AND lease_expires_at IS NOT NULL)),
    ADD CONSTRAINT idempotency_keys_completed CHECK ((state = 'completed')
        = (response_status IS NOT NULL AND response_headers IS NOT NULL
           AND response_body IS NOT NULL AND completed_at IS NOT NULL)),
    ADD CONSTRAINT idempotency_keys_recovery_point CHECK (
        recovery_point IN ('started', 'finished')
        AND (recovery_point = 'finished') = (state = 'completed')),
    DROP COLUMN waited,
    DROP COLUMN parked_at,
    DROP COLUMN last_error,
    DROP COLUMN recoveries,
    DROP COLUMN recover_at,
    DROP COLUMN forget_at,
    DROP COLUMN tombstone_seconds;
