-- Whom a merchant wants to be told of events, and what is to be delivered to them: the outbox. Deliveries are rows that
-- are written by the statement that records the event, so that a change, its event and what is to be sent about
-- it are all there or none is.
CREATE TABLE webhook_endpoints (
    merchant_id                uuid NOT NULL,
    id                         uuid NOT NULL,
    url                        text NOT NULL,
    event_types                text[] NOT NULL,
    description                text,
    status                     text NOT NULL DEFAULT 'enabled',
    secret_version             integer NOT NULL DEFAULT 1,
    previous_secret_expires_at timestamptz,
    failing_since              timestamptz,
    disabled_at                timestamptz,
    created_at                 timestamptz NOT NULL,
    PRIMARY KEY (merchant_id, id),
    CONSTRAINT webhook_endpoints_url CHECK (length(url) BETWEEN 1 AND 2048),
    CONSTRAINT webhook_endpoints_event_types CHECK (cardinality(event_types) > 0),
    CONSTRAINT webhook_endpoints_status CHECK (status IN ('enabled', 'disabled', 'deleted')),
    CONSTRAINT webhook_endpoints_disabled_at CHECK (status <> 'disabled' OR disabled_at IS NOT NULL),
    CONSTRAINT webhook_endpoints_secret_version CHECK (secret_version >= 1)
);
COMMENT ON TABLE webhook_endpoints IS 'Where a merchant wants to be told of events. A deleted one stays, since deliveries refer to it.';
COMMENT ON COLUMN webhook_endpoints.event_types IS 'Which ones; * stands for all.';
COMMENT ON COLUMN webhook_endpoints.secret_version IS 'Which of the secrets that can be derived for it is the current one.';
COMMENT ON COLUMN webhook_endpoints.previous_secret_expires_at IS 'Until then messages are signed with the secret before it, too.';
COMMENT ON COLUMN webhook_endpoints.failing_since IS 'The first failed attempt after the last one that succeeded.';

-- For each event it's asked who wants it.
CREATE INDEX webhook_endpoints_enabled ON webhook_endpoints (merchant_id) WHERE status = 'enabled';

CREATE TABLE webhook_deliveries (
    merchant_id   uuid NOT NULL,
    id            uuid NOT NULL DEFAULT uuid_v7(),
    event_id      uuid NOT NULL,
    endpoint_id   uuid NOT NULL,
    state         text NOT NULL DEFAULT 'pending',
    due_at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    claimed_until timestamptz NOT NULL DEFAULT '-infinity',
    attempt_count integer NOT NULL DEFAULT 0,
    attempts      jsonb NOT NULL DEFAULT '[]',
    created_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    completed_at  timestamptz,
    PRIMARY KEY (merchant_id, id),
    CONSTRAINT webhook_deliveries_state CHECK (state IN ('pending', 'succeeded', 'failed')),
    CONSTRAINT webhook_deliveries_completed_at CHECK ((state = 'pending') = (completed_at IS NULL)),
    CONSTRAINT webhook_deliveries_attempt_count CHECK (attempt_count >= 0)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.05);
COMMENT ON TABLE webhook_deliveries IS 'Events to be sent, one row per endpoint. No foreign keys: each would lock the row of its endpoint for every event. Endpoints are never deleted, and events go with their deliveries.';
COMMENT ON COLUMN webhook_deliveries.claimed_until IS 'Until then whoever claimed it has it to itself. Not in an index, so that claiming moves no index entry.';
COMMENT ON COLUMN webhook_deliveries.attempt_count IS 'Attempts that were begun. The number of the last one is the fence for its outcome.';
COMMENT ON COLUMN webhook_deliveries.attempts IS 'Attempts whose outcome is known: when, how long, which status or error, the beginning of the answer.';

-- What is due, by endpoint: so that the endpoints that wait can be told without reading what waits for each of them. What
-- is delivered is in no index but those by which it's read, so that sending costs the same however much there is.
CREATE INDEX webhook_deliveries_due ON webhook_deliveries (merchant_id, endpoint_id, due_at) WHERE state = 'pending';
CREATE INDEX webhook_deliveries_by_event ON webhook_deliveries (merchant_id, event_id, id);

-- One delivery per event and endpoint that wants it. Statement-level, so that many events cost one look.
CREATE FUNCTION events_fan_out() RETURNS trigger
    LANGUAGE plpgsql SET search_path = public, pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO webhook_deliveries (merchant_id, event_id, endpoint_id)
    SELECT event.merchant_id, event.id, endpoint.id
    FROM new_events event JOIN webhook_endpoints endpoint ON endpoint.merchant_id = event.merchant_id
    WHERE endpoint.status = 'enabled' AND endpoint.event_types && ARRAY['*', event.type];
    RETURN NULL;
END $$;
CREATE TRIGGER events_fan_out AFTER INSERT ON events
    REFERENCING NEW TABLE AS new_events FOR EACH STATEMENT EXECUTE FUNCTION events_fan_out();

-- How far back events are kept.
CREATE TABLE event_retention (
    one           boolean PRIMARY KEY DEFAULT true CHECK (one),
    events_before timestamptz NOT NULL
);
COMMENT ON TABLE event_retention IS 'At most one row: events from before that time have been deleted, so that it proves nothing that they aren''t there.';

-- The lowest identifier of a time: below all that uuid_v7 makes from then on.
CREATE FUNCTION uuid_v7_lowest(at timestamptz) RETURNS uuid
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN encode(
        overlay(decode(repeat('00', 16), 'hex')
            -- Ids begin in 1970.
            PLACING substring(int8send(greatest(floor(extract(epoch FROM at) * 1000)::bigint, 0)) FROM 3) FROM 1 FOR 6),
        'hex')::uuid;

-- Deletes up to p_batch events, and deliveries, that are older than they are kept; deliveries go with their event. The service's
-- role can't delete events in any other way, and never young ones.
--
-- What is old is found by its id, which holds its time, merchant by merchant: so it costs the same however much there is, and
-- needs no index of its own. (A BRIN index on the time finds it fast only until new rows fill the space of deleted ones: its
-- ranges then hold old and new times, and never shrink.) A call looks at up to p_batch merchants after p_after, and says
-- after which to go on; null: there are no more.
CREATE FUNCTION events_prune(p_keep_events interval, p_keep_deliveries interval, p_batch integer, p_after uuid,
                             OUT events_deleted bigint, OUT deliveries_deleted bigint, OUT next_after uuid)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_catalog, pg_temp AS $$
DECLARE
    v_events_before timestamptz := date_trunc('milliseconds', statement_timestamp() - p_keep_events);
    v_first_event uuid := uuid_v7_lowest(v_events_before);
    v_first_delivery uuid := uuid_v7_lowest(statement_timestamp() - p_keep_deliveries);
    v_merchants uuid[] := ARRAY(
        SELECT merchant_id FROM merchants
        WHERE merchant_id > coalesce(p_after, '00000000-0000-0000-0000-000000000000')
        ORDER BY merchant_id LIMIT p_batch);
BEGIN
    IF least(p_keep_events, p_keep_deliveries) < interval '1 day' THEN
        RAISE EXCEPTION 'events and deliveries are kept for a day at least'
            USING ERRCODE = 'check_violation', CONSTRAINT = 'events_prune_keep', TABLE = 'events';
    END IF;
    WITH old AS MATERIALIZED (
        SELECT d.ctid FROM unnest(v_merchants) AS m (id) CROSS JOIN LATERAL (
            SELECT ctid FROM webhook_deliveries WHERE merchant_id = m.id AND id < v_first_delivery
            ORDER BY id LIMIT p_batch FOR UPDATE SKIP LOCKED) d
        LIMIT p_batch)
    DELETE FROM webhook_deliveries d USING old WHERE d.ctid = old.ctid;
    GET DIAGNOSTICS deliveries_deleted = ROW_COUNT;
    WITH old AS MATERIALIZED (
        SELECT e.ctid FROM unnest(v_merchants) AS m (id) CROSS JOIN LATERAL (
            SELECT ctid FROM events WHERE merchant_id = m.id AND id < v_first_event
            ORDER BY id LIMIT p_batch FOR UPDATE SKIP LOCKED) e
        LIMIT p_batch),
    gone AS (
        DELETE FROM events e USING old WHERE e.ctid = old.ctid RETURNING e.merchant_id, e.id),
    with_it AS (
        DELETE FROM webhook_deliveries d USING gone WHERE d.merchant_id = gone.merchant_id AND d.event_id = gone.id)
    SELECT count(*) INTO events_deleted FROM gone;
    IF events_deleted > 0 THEN
        INSERT INTO event_retention AS r (events_before) VALUES (v_events_before)
        ON CONFLICT (one) DO UPDATE SET events_before = excluded.events_before
            WHERE r.events_before < excluded.events_before;
    END IF;
    next_after := v_merchants[p_batch];
END $$;
COMMENT ON FUNCTION events_prune IS 'Retention of events and deliveries, a batch at a time.';

GRANT SELECT, INSERT ON webhook_endpoints, webhook_deliveries TO oncepay_app;
GRANT UPDATE (url, event_types, description, status, secret_version, previous_secret_expires_at, failing_since, disabled_at)
    ON webhook_endpoints TO oncepay_app;
GRANT UPDATE (state, due_at, claimed_until, attempt_count, attempts, completed_at) ON webhook_deliveries TO oncepay_app;
GRANT SELECT ON event_retention TO oncepay_app;
REVOKE EXECUTE ON FUNCTION events_prune FROM PUBLIC;
GRANT EXECUTE ON FUNCTION events_prune TO oncepay_app;
