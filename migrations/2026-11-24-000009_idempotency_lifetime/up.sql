-- The life of a key after its answer, and of a request that nobody finishes.
--
--   in_progress ──▶ completed ──▶ expired (a tombstone) ──▶ deleted
--
-- New columns have constant defaults, so that no row is rewritten; the indexes are partial, so that a row
-- is in one of them at a time and completing a key adds one entry. On a large table in service, create the
-- indexes beforehand with CONCURRENTLY: IF NOT EXISTS passes over them here.
ALTER TABLE idempotency_keys
    ADD COLUMN tombstone_seconds integer NOT NULL DEFAULT 2592000,
    ADD COLUMN forget_at         timestamptz,
    ADD COLUMN recover_at        timestamptz,
    ADD COLUMN recoveries        integer NOT NULL DEFAULT 0,
    ADD COLUMN last_error        text,
    ADD COLUMN parked_at         timestamptz,
    ADD COLUMN waited            boolean NOT NULL DEFAULT false;
UPDATE idempotency_keys SET recover_at = lease_expires_at WHERE state = 'in_progress';

COMMENT ON COLUMN idempotency_keys.tombstone_seconds IS 'How long after expires_at the key is refused rather than free. Fixed by the claim.';
COMMENT ON COLUMN idempotency_keys.forget_at IS 'When a tombstone may be deleted: expires_at plus tombstone_seconds.';
COMMENT ON COLUMN idempotency_keys.recover_at IS 'When the recovery worker may take an unfinished request on: the end of its lease, or later after failures.';
COMMENT ON COLUMN idempotency_keys.recoveries IS 'How often the recovery worker has taken the request on since it was last told to.';
COMMENT ON COLUMN idempotency_keys.last_error IS 'Code of the error that ended the last attempt that failed.';
COMMENT ON COLUMN idempotency_keys.parked_at IS 'Since when the request waits for an operator: recovery has failed too often.';
COMMENT ON COLUMN idempotency_keys.waited IS 'Whether a duplicate on some instance waits for the answer and wants to be notified of it.';

-- A tombstone keeps what is needed to refuse the key and to tell what it was, and nothing else.
ALTER TABLE idempotency_keys
    DROP CONSTRAINT idempotency_keys_state,
    DROP CONSTRAINT idempotency_keys_in_progress,
    DROP CONSTRAINT idempotency_keys_completed,
    DROP CONSTRAINT idempotency_keys_recovery_point,
    ADD CONSTRAINT idempotency_keys_state CHECK (state IN ('in_progress', 'completed', 'expired')),
    ADD CONSTRAINT idempotency_keys_in_progress CHECK ((state = 'in_progress')
        = (claim_token IS NOT NULL AND lease_expires_at IS NOT NULL AND recover_at IS NOT NULL)),
    ADD CONSTRAINT idempotency_keys_answered CHECK ((state <> 'in_progress')
        = (response_status IS NOT NULL AND completed_at IS NOT NULL)),
    ADD CONSTRAINT idempotency_keys_completed CHECK ((state = 'completed')
        = (response_headers IS NOT NULL AND response_body IS NOT NULL)),
    ADD CONSTRAINT idempotency_keys_expired CHECK ((state = 'expired') = (forget_at IS NOT NULL)
        AND (state <> 'expired' OR octet_length(request_body) = 0)),
    ADD CONSTRAINT idempotency_keys_recovery_point CHECK (
        recovery_point IN ('started', 'finished')
        AND (recovery_point = 'finished') = (state <> 'in_progress')),
    ADD CONSTRAINT idempotency_keys_parked CHECK (parked_at IS NULL OR state = 'in_progress'),
    ADD CONSTRAINT idempotency_keys_tombstone CHECK (tombstone_seconds >= 0),
    ADD CONSTRAINT idempotency_keys_recoveries CHECK (recoveries >= 0);

-- Unfinished requests, oldest first: for the recovery worker, operators and metrics.
CREATE INDEX IF NOT EXISTS idempotency_keys_in_progress ON idempotency_keys (created_at) WHERE state = 'in_progress';
-- For the reaper.
CREATE INDEX IF NOT EXISTS idempotency_keys_to_expire ON idempotency_keys (expires_at) WHERE state = 'completed';
CREATE INDEX IF NOT EXISTS idempotency_keys_to_forget ON idempotency_keys (forget_at) WHERE state = 'expired';

-- Every key is inserted, updated once and deleted once: with the default of a fifth of the table, a large
-- table would carry millions of dead rows between two vacuums.
ALTER TABLE idempotency_keys SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.05);

-- The second guard of a key's life: an answer is never changed, and a key isn't forgotten while it's
-- remembered, whoever asks.
CREATE FUNCTION idempotency_keys_guard() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF TG_OP = 'UPDATE' AND OLD.state = 'completed' AND NEW.state = 'expired' AND OLD.expires_at <= clock_timestamp() THEN
        RETURN NEW;
    ELSIF TG_OP = 'DELETE' AND OLD.state <> 'in_progress' AND OLD.expires_at <= clock_timestamp() THEN
        RETURN OLD;
    END IF;
    RAISE EXCEPTION 'an idempotency key that is % can''t be changed in this way', OLD.state
        USING ERRCODE = 'check_violation', CONSTRAINT = 'idempotency_keys_life', TABLE = 'idempotency_keys';
END $$;
CREATE TRIGGER idempotency_keys_life_update BEFORE UPDATE ON idempotency_keys
    FOR EACH ROW WHEN (OLD.state <> 'in_progress') EXECUTE FUNCTION idempotency_keys_guard();
CREATE TRIGGER idempotency_keys_life_delete BEFORE DELETE ON idempotency_keys
    FOR EACH ROW EXECUTE FUNCTION idempotency_keys_guard();

GRANT UPDATE (request_method, request_path, request_query, request_body, expires_at, forget_at, recover_at,
    recoveries, last_error, parked_at, waited) ON idempotency_keys TO oncepay_app;
GRANT DELETE ON idempotency_keys TO oncepay_app;
