-- The rules of idempotency, as data: one row per operation, which every instance follows within a
-- second or two of a change. Rows for new operations are added by the service when it starts.
CREATE TABLE idempotency_policies (
    operation                text PRIMARY KEY,
    enforcement              text NOT NULL,
    rollout_percent          smallint NOT NULL,
    ttl_seconds              integer NOT NULL,
    tombstone_seconds        integer NOT NULL,
    on_mismatch              text NOT NULL,
    fingerprint              text NOT NULL,
    on_expired               text NOT NULL,
    wait_max_seconds         smallint NOT NULL,
    on_suspected_duplicate   text NOT NULL,
    suspicion_window_seconds integer NOT NULL,
    updated_at               timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_by               text NOT NULL,
    CONSTRAINT idempotency_policies_enforcement CHECK (enforcement IN ('enforce', 'observe', 'off')),
    CONSTRAINT idempotency_policies_rollout_percent CHECK (rollout_percent BETWEEN 0 AND 100),
    CONSTRAINT idempotency_policies_ttl_seconds CHECK (ttl_seconds BETWEEN 60 AND 2592000),
    CONSTRAINT idempotency_policies_tombstone_seconds CHECK (tombstone_seconds BETWEEN 0 AND 31536000),
    CONSTRAINT idempotency_policies_on_mismatch CHECK (on_mismatch IN ('reject', 'replay')),
    CONSTRAINT idempotency_policies_fingerprint CHECK (fingerprint IN ('canonical_json', 'raw_body')),
    CONSTRAINT idempotency_policies_on_expired CHECK (on_expired IN ('reject', 'execute')),
    CONSTRAINT idempotency_policies_wait_max_seconds CHECK (wait_max_seconds BETWEEN 0 AND 30),
    CONSTRAINT idempotency_policies_on_suspected_duplicate CHECK (on_suspected_duplicate IN ('report', 'reject')),
    CONSTRAINT idempotency_policies_suspicion_window_seconds CHECK (suspicion_window_seconds BETWEEN 0 AND 86400)
);
COMMENT ON TABLE idempotency_policies IS 'How each operation treats its idempotency keys. Belongs to no merchant.';

CREATE TABLE idempotency_policy_changes (
    id         uuid PRIMARY KEY DEFAULT uuid_v7(),
    operation  text NOT NULL,
    changed_at timestamptz NOT NULL,
    changed_by text NOT NULL,
    before     jsonb NOT NULL,
    after      jsonb NOT NULL
);
COMMENT ON TABLE idempotency_policy_changes IS 'Who changed which policy when, and how. Written by a trigger, so that no way of changing passes it by.';
CREATE INDEX idempotency_policy_changes_by_operation ON idempotency_policy_changes (operation, id);

-- Runs as its owner, since the service itself may only read the history.
CREATE FUNCTION idempotency_policies_changed() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO public.idempotency_policy_changes (id, operation, changed_at, changed_by, before, after)
    VALUES (public.uuid_v7(), NEW.operation, NEW.updated_at, NEW.updated_by,
        to_jsonb(OLD) - '{operation,updated_at,updated_by}'::text[],
        to_jsonb(NEW) - '{operation,updated_at,updated_by}'::text[]);
    PERFORM pg_notify('oncepay_policies', NEW.operation);
    RETURN NULL;
END $$;
CREATE TRIGGER idempotency_policies_change AFTER UPDATE ON idempotency_policies
    FOR EACH ROW EXECUTE FUNCTION idempotency_policies_changed();

GRANT SELECT, INSERT ON idempotency_policies TO oncepay_app;
GRANT UPDATE (enforcement, rollout_percent, ttl_seconds, tombstone_seconds, on_mismatch, fingerprint, on_expired,
    wait_max_seconds, on_suspected_duplicate, suspicion_window_seconds, updated_at, updated_by)
    ON idempotency_policies TO oncepay_app;
GRANT SELECT ON idempotency_policy_changes TO oncepay_app;
