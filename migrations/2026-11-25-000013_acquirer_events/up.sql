-- What the acquirer tells us: each event as it came, and what it has led to.
--
-- That an event takes effect once is the idempotency engine's business, under the event's id. The row here is
-- written in the same transaction. What can't take effect yet, because what it's about isn't there (events
-- overtake each other, and us), is parked until it can.
CREATE TABLE acquirer_events (
    id          uuid PRIMARY KEY,
    event_id    text COLLATE "C" NOT NULL,
    type        text NOT NULL,
    body        bytea NOT NULL,
    merchant_id uuid,
    object_id   uuid,
    state       text NOT NULL,
    detail      text,
    received_at timestamptz NOT NULL,
    attempts    integer NOT NULL DEFAULT 1,
    due_at      timestamptz,
    overdue_at  timestamptz,
    settled_at  timestamptz,
    CONSTRAINT acquirer_events_once UNIQUE (event_id),
    CONSTRAINT acquirer_events_event_id_syntax CHECK (event_id ~ '^[\x21-\x7e]{1,255}$'),
    CONSTRAINT acquirer_events_state CHECK (state IN ('applied', 'unchanged', 'contradicted', 'unknown', 'parked', 'dismissed')),
    CONSTRAINT acquirer_events_parked CHECK ((state = 'parked') = (due_at IS NOT NULL)),
    CONSTRAINT acquirer_events_settled CHECK ((state = 'parked') = (settled_at IS NULL)),
    CONSTRAINT acquirer_events_overdue CHECK (overdue_at IS NULL OR state = 'parked'),
    CONSTRAINT acquirer_events_attempts CHECK (attempts >= 1)
);
COMMENT ON TABLE acquirer_events IS 'Events of the acquirer. Belongs to no merchant: their ids are unique for the acquirer, and not all of them are about a merchant.';
COMMENT ON COLUMN acquirer_events.id IS 'Ours, in the order in which they came.';
COMMENT ON COLUMN acquirer_events.event_id IS 'The acquirer''s.';
COMMENT ON COLUMN acquirer_events.body IS 'The bytes that were signed.';
COMMENT ON COLUMN acquirer_events.state IS 'applied: it has changed something. unchanged: things were so already. contradicted: our books say otherwise. unknown: of a type that we don''t know. parked: it waits for what it''s about. dismissed: an operator has found that nothing is to be done about it.';
COMMENT ON COLUMN acquirer_events.merchant_id IS 'Whose it is, by the acquirer''s word.';
COMMENT ON COLUMN acquirer_events.object_id IS 'The charge, refund, payout or settlement that it''s about.';
COMMENT ON COLUMN acquirer_events.due_at IS 'When it''s tried again.';
COMMENT ON COLUMN acquirer_events.overdue_at IS 'Since when it has been parked for longer than it should take.';

CREATE INDEX acquirer_events_due ON acquirer_events (due_at) WHERE state = 'parked';
CREATE INDEX acquirer_events_by_state ON acquirer_events (state, id) WHERE state IN ('parked', 'contradicted', 'unknown');
-- For lists of what is about an object.
CREATE INDEX acquirer_events_by_object ON acquirer_events (merchant_id, object_id, id);

GRANT SELECT, INSERT ON acquirer_events TO oncepay_app;
GRANT UPDATE (state, detail, attempts, due_at, overdue_at, settled_at, merchant_id, object_id) ON acquirer_events TO oncepay_app;

-- Deletes up to p_batch events that are settled and older than p_keep. The service's role can't delete them in any other
-- way, and never young ones or parked ones.
CREATE FUNCTION acquirer_events_prune(p_keep interval, p_batch integer) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_catalog, pg_temp AS $$
DECLARE
    deleted bigint;
    first_kept uuid := uuid_v7_lowest(statement_timestamp() - p_keep);
BEGIN
    IF p_keep < interval '1 day' THEN
        RAISE EXCEPTION 'the acquirer''s events are kept for a day at least'
            USING ERRCODE = 'check_violation', CONSTRAINT = 'acquirer_events_prune_keep', TABLE = 'acquirer_events';
    END IF;
    WITH old AS MATERIALIZED (
        SELECT id FROM acquirer_events WHERE id < first_kept AND state <> 'parked'
        ORDER BY id LIMIT p_batch FOR UPDATE SKIP LOCKED)
    DELETE FROM acquirer_events e USING old WHERE e.id = old.id;
    GET DIAGNOSTICS deleted = ROW_COUNT;
    RETURN deleted;
END $$;
COMMENT ON FUNCTION acquirer_events_prune IS 'Retention of the acquirer''s events, a batch at a time.';
REVOKE EXECUTE ON FUNCTION acquirer_events_prune FROM PUBLIC;
GRANT EXECUTE ON FUNCTION acquirer_events_prune TO oncepay_app;

-- A refund can come back: the customer's account is closed. Then the money is the merchant's again.
ALTER TABLE refunds
    ADD COLUMN failed_at timestamptz,
    DROP CONSTRAINT refunds_status,
    ADD CONSTRAINT refunds_status CHECK (status IN ('pending', 'succeeded', 'failed')),
    ADD CONSTRAINT refunds_failed_at CHECK ((status = 'failed') = (failed_at IS NOT NULL));
GRANT UPDATE (failed_at) ON refunds TO oncepay_app;

CREATE OR REPLACE FUNCTION refunds_refuse_transition() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF (OLD.status, NEW.status) NOT IN (('pending', 'succeeded'), ('succeeded', 'failed')) THEN
        RAISE EXCEPTION 'a refund can''t become % when it is %', NEW.status, OLD.status
            USING ERRCODE = 'check_violation', CONSTRAINT = 'refunds_transition', TABLE = 'refunds';
    END IF;
    RETURN NEW;
END $$;

CREATE OR REPLACE FUNCTION charges_refuse_transition() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF (OLD.status, NEW.status) NOT IN (
        ('processing', 'requires_capture'), ('processing', 'succeeded'), ('processing', 'failed'),
        ('requires_capture', 'succeeded'), ('requires_capture', 'canceled'),
        ('succeeded', 'partially_refunded'), ('succeeded', 'refunded'), ('succeeded', 'disputed'),
        ('partially_refunded', 'refunded'), ('partially_refunded', 'disputed'),
        -- A refund came back.
        ('refunded', 'partially_refunded'), ('refunded', 'succeeded'), ('partially_refunded', 'succeeded'),
        ('disputed', 'succeeded'), ('disputed', 'partially_refunded'))
    THEN
        RAISE EXCEPTION 'a charge can''t become % when it is %', NEW.status, OLD.status
            USING ERRCODE = 'check_violation', CONSTRAINT = 'charges_transition', TABLE = 'charges';
    END IF;
    RETURN NEW;
END $$;

-- The acquirer's name for a dispute: a charge can be disputed more than once.
ALTER TABLE disputes ADD COLUMN acquirer_id text;
CREATE UNIQUE INDEX disputes_by_acquirer_id ON disputes (merchant_id, acquirer_id);
COMMENT ON COLUMN disputes.acquirer_id IS 'The acquirer''s name for it.';
