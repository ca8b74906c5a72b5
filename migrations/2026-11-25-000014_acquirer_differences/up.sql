-- Events are deleted when they are old: an object without any is compared by when it was made. And the acquirer captures what it
-- approves later by itself, and then tells us: that we don't know of the capture is no difference until that is overdue.
CREATE OR REPLACE FUNCTION acquirer_differences(grace interval)
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
    -- An object that has changed since the reading may have been asked for after it. One without events is so old that
    -- they were deleted.
    AND coalesce(
        (SELECT max(e.created_at) FROM events e WHERE e.merchant_id = o.merchant_id AND e.object_id = o.id),
        o.created_at) < r.read_at - grace
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
        WHEN 'capture' THEN t.first_read_at < statement_timestamp() - interval '1 hour' OR NOT EXISTS (
            SELECT FROM ours o WHERE o.merchant_id = t.merchant_id AND o.id = t.object_id AND o.status = 'processing')
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
