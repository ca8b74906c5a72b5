-- The functions as they were before.
GRANT EXECUTE ON FUNCTION idempotency_policies_changed() TO PUBLIC;

CREATE OR REPLACE FUNCTION acquirer_events_prune(p_keep interval, p_batch integer) RETURNS bigint
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

CREATE OR REPLACE FUNCTION events_prune(p_keep_events interval, p_keep_deliveries interval, p_batch integer, p_after uuid,
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

CREATE OR REPLACE FUNCTION ledger_post(
    p_merchant_id uuid, p_entry_id uuid, p_source text,
    p_kinds text[], p_currencies text[], p_amounts numeric[]
) RETURNS void LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    -- One time for the whole entry, so that at no time only some of its postings are there.
    posted_at timestamptz;
    payable record;
    held numeric;
BEGIN
    IF coalesce(cardinality(p_kinds), 0) < 2
        OR cardinality(p_currencies) IS DISTINCT FROM cardinality(p_kinds)
        OR cardinality(p_amounts) IS DISTINCT FROM cardinality(p_kinds)
        OR array_position(p_kinds, NULL) IS NOT NULL
        OR array_position(p_currencies, NULL) IS NOT NULL
        OR array_position(p_amounts, NULL) IS NOT NULL
    THEN
        RAISE EXCEPTION 'an entry needs at least two lines, each with account kind, currency and amount'
            USING ERRCODE = 'check_violation', CONSTRAINT = 'postings_lines', TABLE = 'postings';
    END IF;

    IF EXISTS (SELECT FROM unnest(p_currencies, p_amounts) AS line (currency, amount)
               GROUP BY currency HAVING sum(amount) <> 0) THEN
        RAISE EXCEPTION 'postings of an entry must sum to zero per currency'
            USING ERRCODE = 'check_violation', CONSTRAINT = 'postings_balanced', TABLE = 'postings';
    END IF;

    -- Ordered, so that two first entries of one merchant wait for each other instead of deadlocking.
    IF EXISTS (SELECT FROM unnest(p_kinds, p_currencies) AS line (kind, currency)
               WHERE NOT EXISTS (SELECT FROM public.ledger_accounts a WHERE a.merchant_id = p_merchant_id
                                 AND a.kind = line.kind AND a.currency = line.currency)) THEN
        INSERT INTO public.ledger_accounts (merchant_id, kind, currency)
        SELECT DISTINCT p_merchant_id, line.kind, line.currency
        FROM unnest(p_kinds, p_currencies) AS line (kind, currency)
        ORDER BY 2, 3
        ON CONFLICT ON CONSTRAINT ledger_accounts_one_per_kind DO NOTHING;
    END IF;

    -- In each currency in which this entry takes from the merchant, there must be that much to take: set
    -- aside for this very entry, or free. A dispute takes the money whether it is there or not: the one
    -- case in which a merchant may come to owe us. And what was set aside was covered then; if a dispute
    -- has taken the rest since, so be it.
    FOR payable IN
        SELECT a.id, a.currency, taken.amount, taken.disputed
        FROM (SELECT line.currency,
                     coalesce(sum(line.amount) FILTER (WHERE line.kind = 'merchant_payable'), 0) AS amount,
                     coalesce(-sum(line.amount) FILTER (WHERE line.kind = 'disputes_held'), 0) AS disputed
              FROM unnest(p_kinds, p_currencies, p_amounts) AS line (kind, currency, amount)
              GROUP BY line.currency) taken
        JOIN public.ledger_accounts a ON a.merchant_id = p_merchant_id AND a.kind = 'merchant_payable'
            AND a.currency = taken.currency
        WHERE taken.amount > 0
        ORDER BY a.id FOR NO KEY UPDATE OF a
    LOOP
        PERFORM public.ledger_require_read_committed();
        DELETE FROM public.ledger_holds h
        WHERE h.merchant_id = p_merchant_id AND h.source = p_source AND h.account_id = payable.id
        RETURNING h.amount INTO held;
        IF payable.amount > coalesce(held, 0) AND payable.amount > payable.disputed
            AND payable.amount > public.ledger_spendable(p_merchant_id, payable.id)
        THEN
            RAISE EXCEPTION 'the % balance does not cover this entry', payable.currency
                USING ERRCODE = 'check_violation', CONSTRAINT = 'merchant_payable_covered', TABLE = 'postings';
        END IF;
    END LOOP;

    posted_at := clock_timestamp();
    INSERT INTO public.journal_entries (merchant_id, id, source, created_at)
    VALUES (p_merchant_id, p_entry_id, p_source, posted_at);
    INSERT INTO public.postings (merchant_id, entry_id, line, account_id, currency, amount, created_at)
    SELECT p_merchant_id, p_entry_id, line.number, a.id, line.currency, line.amount, posted_at
    FROM unnest(p_kinds, p_currencies, p_amounts) WITH ORDINALITY AS line (kind, currency, amount, number)
    JOIN public.ledger_accounts a
        ON a.merchant_id = p_merchant_id AND a.kind = line.kind AND a.currency = line.currency;
END $$;

CREATE OR REPLACE FUNCTION ledger_hold(p_merchant_id uuid, p_source text, p_currency text, p_amount numeric) RETURNS void
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    payable_id uuid;
BEGIN
    PERFORM public.ledger_require_read_committed();
    SELECT a.id INTO payable_id FROM public.ledger_accounts a
    WHERE a.merchant_id = p_merchant_id AND a.kind = 'merchant_payable' AND a.currency = p_currency
    FOR NO KEY UPDATE;
    IF NOT FOUND OR public.ledger_spendable(p_merchant_id, payable_id) < p_amount THEN
        RAISE EXCEPTION 'the % balance does not cover this hold', p_currency
            USING ERRCODE = 'check_violation', CONSTRAINT = 'merchant_payable_covered', TABLE = 'ledger_holds';
    END IF;
    INSERT INTO public.ledger_holds (merchant_id, source, account_id, amount)
    VALUES (p_merchant_id, p_source, payable_id, p_amount);
END $$;

DROP FUNCTION currency_scale;
