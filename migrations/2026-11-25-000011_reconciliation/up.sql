-- What the acquirer says it did, copied so that a query can hold it against what we say.
CREATE TABLE acquirer_operations (
    id               text PRIMARY KEY,
    sequence         bigint NOT NULL,
    kind             text NOT NULL,
    status           text NOT NULL,
    idempotency_key  text NOT NULL,
    authorization_id text,
    merchant_id      uuid,
    object_id        uuid,
    reference        text NOT NULL,
    currency         text,
    amount           numeric,
    created_at       timestamptz NOT NULL,
    first_read_at    timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE acquirer_operations IS 'Operations as the acquirer lists them. A copy: what is read again replaces it.';
COMMENT ON COLUMN acquirer_operations.merchant_id IS 'Ours, if the acquirer''s text is the id of one. Nothing guarantees that, so nothing refers to it.';
COMMENT ON COLUMN acquirer_operations.object_id IS 'The charge, refund or payout that the reference names.';

CREATE INDEX acquirer_operations_by_object ON acquirer_operations (merchant_id, object_id, kind);
CREATE INDEX acquirer_operations_by_authorization ON acquirer_operations (authorization_id, kind);

CREATE TABLE acquirer_reads (
    one        boolean PRIMARY KEY DEFAULT true CHECK (one),
    sequence   bigint NOT NULL DEFAULT 0,
    since      timestamptz NOT NULL DEFAULT clock_timestamp(),
    due_at     timestamptz NOT NULL DEFAULT '-infinity',
    read_at    timestamptz
);
COMMENT ON TABLE acquirer_reads IS 'One row: how far the acquirer''s list has been read.';
COMMENT ON COLUMN acquirer_reads.since IS 'When it was first read. Older objects may have been made with another processor.';
COMMENT ON COLUMN acquirer_reads.due_at IS 'When the next instance may read it.';
COMMENT ON COLUMN acquirer_reads.read_at IS 'Begin of the last reading that got to the end: all that was done by then has been read.';

-- What holds or moves money, by either side's books. A void gives money up, so it has no amount.
CREATE VIEW operations_in_effect_here AS
SELECT merchant_id, id, 'ch_' AS prefix, 'authorize' AS kind, currency, amount, created_at, status
FROM charges WHERE status <> 'failed'
UNION ALL
SELECT merchant_id, id, 'ch_', 'capture', currency, amount_captured, created_at, status
FROM charges WHERE captured_at IS NOT NULL
UNION ALL
SELECT merchant_id, id, 'ch_', 'void', NULL, NULL, created_at, status
FROM charges WHERE status = 'canceled'
UNION ALL
SELECT merchant_id, id, 're_', 'refund', currency, amount, created_at, status
FROM refunds WHERE status <> 'pending'
UNION ALL
SELECT merchant_id, id, 'po_', 'payout', currency, amount, created_at, status
FROM payouts WHERE status <> 'pending';
COMMENT ON VIEW operations_in_effect_here IS 'What the acquirer must have done, by our charges, refunds and payouts.';

CREATE VIEW operations_in_effect_there AS
SELECT * FROM acquirer_operations WHERE status IN ('succeeded', 'pending', 'paid', 'failed');
COMMENT ON VIEW operations_in_effect_there IS 'What the acquirer has done, or is about to, by its own books.';

-- Where the two sides disagree. "In effect" means that money was held or moved.
--
--   missing_at_acquirer     ours is in effect, theirs isn't. Not judged within `grace` of the last reading.
--   missing_here            theirs is in effect, ours isn't, and no request is under way that would change it.
--   orphaned_authorization  the same, of an authorization that could still be voided.
--   amount_differs          both are in effect, with another amount or currency.
--   duplicate               two of theirs are in effect for one of ours.
CREATE FUNCTION acquirer_differences(grace interval)
    RETURNS TABLE (difference text, kind text, merchant_id uuid, reference text, operation_id text,
                   authorization_id text, currency text, ours numeric, theirs numeric, first_read_at timestamptz)
    -- Compiling its many subqueries takes seconds, running them on a small table milliseconds.
    LANGUAGE sql STABLE SET jit = off SET search_path = public, pg_catalog, pg_temp AS $$
WITH ours AS (
    SELECT * FROM operations_in_effect_here
), theirs AS (
    SELECT *, kind = 'authorize' AND EXISTS (
            SELECT FROM acquirer_operations v
            WHERE v.authorization_id = a.authorization_id AND v.kind = 'void' AND v.status = 'succeeded') AS is_voided
    FROM operations_in_effect_there a
)
SELECT 'missing_at_acquirer', o.kind, o.merchant_id, o.prefix || replace(o.id::text, '-', ''), NULL, NULL,
       o.currency, o.amount, NULL, NULL
FROM ours o, acquirer_reads r
WHERE o.created_at >= r.since AND r.read_at IS NOT NULL
    AND NOT EXISTS (
        SELECT FROM theirs t WHERE t.merchant_id = o.merchant_id AND t.object_id = o.id AND t.kind = o.kind)
    -- A decision that we haven't been told yet.
    AND NOT (o.status = 'processing' AND EXISTS (
        SELECT FROM acquirer_operations t
        WHERE t.merchant_id = o.merchant_id AND t.object_id = o.id AND t.kind = o.kind))
    -- An object that has changed since the reading may have been asked for after it.
    AND (SELECT max(e.created_at) FROM events e WHERE e.merchant_id = o.merchant_id AND e.object_id = o.id)
        < r.read_at - grace
UNION ALL
SELECT CASE WHEN t.kind = 'authorize' AND t.status = 'succeeded' AND NOT EXISTS (
                SELECT FROM theirs c WHERE c.authorization_id = t.authorization_id AND c.kind = 'capture')
            THEN 'orphaned_authorization' ELSE 'missing_here' END,
       t.kind, t.merchant_id, t.reference, t.id, t.authorization_id, t.currency, NULL, t.amount, t.first_read_at
FROM theirs t
WHERE NOT EXISTS (
        SELECT FROM ours o WHERE o.merchant_id = t.merchant_id AND o.id = t.object_id AND o.kind = t.kind)
    AND NOT EXISTS (
        SELECT FROM idempotency_keys k
        WHERE k.state = 'in_progress' AND k.merchant_id = t.merchant_id AND k.resource_id = t.object_id)
    AND CASE t.kind
        WHEN 'authorize' THEN NOT t.is_voided
        -- Voiding an orphan leaves a void without a charge, which is as it should be.
        WHEN 'void' THEN EXISTS (
            SELECT FROM ours o WHERE o.merchant_id = t.merchant_id AND o.id = t.object_id AND o.kind = 'authorize')
        ELSE true END
UNION ALL
SELECT 'amount_differs', t.kind, t.merchant_id, t.reference, t.id, t.authorization_id, o.currency, o.amount,
       t.amount, t.first_read_at
FROM theirs t JOIN ours o ON o.merchant_id = t.merchant_id AND o.id = t.object_id AND o.kind = t.kind
WHERE (o.amount, o.currency) IS DISTINCT FROM (t.amount, t.currency) AND t.kind <> 'void'
UNION ALL
SELECT 'duplicate', t.kind, t.merchant_id, t.reference, t.id, t.authorization_id, t.currency, NULL, t.amount,
       t.first_read_at
FROM (SELECT *, row_number() OVER (PARTITION BY merchant_id, reference, kind ORDER BY created_at, id) AS nth
      FROM theirs WHERE NOT is_voided) t
WHERE t.nth > 1
$$;
COMMENT ON FUNCTION acquirer_differences IS 'Where the acquirer''s operations and ours disagree, as of the last reading.';

GRANT SELECT ON operations_in_effect_here, operations_in_effect_there TO oncepay_app;
GRANT SELECT, INSERT, UPDATE ON acquirer_operations, acquirer_reads TO oncepay_app;
