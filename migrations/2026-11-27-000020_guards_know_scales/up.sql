-- The guards of the ledger know how many decimals a currency has, and no argument gets past a guard by its form.
--
-- * ledger_post took half a yen, and it summed lines before they were rounded to what is stored: two lines of 0.00005
--   count as 0.0001 in the sum and as 0.0002 in the table. So the service's role could overdraw a merchant.
-- * events_prune and acquirer_events_prune compared an interval, in which a month has 30 days and a year 360. As a time
--   back from now, '-12 months 361 days' lies in the future, and so everything was old.
-- * The trigger function idempotency_policies_changed runs as its owner, and everybody may execute a function unless that is
--   revoked. So the service's role could hang it on a temporary table and write a history of policies that never were.
--
-- Functions of the same signature replace the old ones, which locks no table: this is safe beside load.
SET LOCAL lock_timeout = '1s';

-- The scale of each currency, as the service has it (`src/base/currency.rs`; a test compares the two). A currency that ISO 4217
-- withdraws stays: what is stored in it can still be posted. A function and not a table, so that a posting reads and locks
-- nothing for it.
CREATE FUNCTION currency_scale(p_currency text) RETURNS integer
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CASE
        WHEN p_currency = ANY ('{BIF,CLP,DJF,GNF,ISK,JPY,KMF,KRW,PYG,RWF,UGX,UYI,VND,VUV,XAF,XOF,XPF}'::text[]) THEN 0
        WHEN p_currency = ANY ('{BHD,IQD,JOD,KWD,LYD,OMR,TND}'::text[]) THEN 3
        WHEN p_currency = ANY ('{CLF,UYW}'::text[]) THEN 4
        WHEN p_currency = ANY ('{
            AED,AFN,ALL,AMD,AOA,ARS,AUD,AWG,AZN,BAM,BBD,BDT,BGN,BMD,BND,BOB,BOV,BRL,BSD,BTN,BWP,BYN,BZD,CAD,CDF,CHE,CHF,CHW,
            CNY,COP,COU,CRC,CUC,CUP,CVE,CZK,DKK,DOP,DZD,EGP,ERN,ETB,EUR,FJD,FKP,GBP,GEL,GHS,GIP,GMD,GTQ,GYD,HKD,HNL,HRK,HTG,
            HUF,IDR,ILS,INR,IRR,JMD,KES,KGS,KHR,KPW,KYD,KZT,LAK,LBP,LKR,LRD,LSL,MAD,MDL,MGA,MKD,MMK,MNT,MOP,MRU,MUR,MVR,MWK,
            MXN,MXV,MYR,MZN,NAD,NGN,NIO,NOK,NPR,NZD,PAB,PEN,PGK,PHP,PKR,PLN,QAR,RON,RSD,RUB,SAR,SBD,SCR,SDG,SEK,SGD,SHP,SLE,
            SLL,SOS,SRD,SSP,STN,SVC,SYP,SZL,THB,TJS,TMT,TOP,TRY,TTD,TWD,TZS,UAH,USD,USN,UYU,UZS,VED,VES,WST,XAD,XCD,XCG,YER,
            ZAR,ZMW,ZWG,ZWL}'::text[]) THEN 2
    END;
COMMENT ON FUNCTION currency_scale IS 'Number of decimals that an amount in the currency has; null if it''s no currency that we know.';

-- As before, and: what is stored is what was checked.
--
-- Errors, in the order checked: an amount that isn't positive or has more decimals than its currency (check_violation,
-- ledger_holds_amount), a balance that doesn't cover it (merchant_payable_covered).
CREATE OR REPLACE FUNCTION ledger_hold(p_merchant_id uuid, p_source text, p_currency text, p_amount numeric) RETURNS void
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    payable_id uuid;
BEGIN
    PERFORM public.ledger_require_read_committed();
    -- More than 4 decimals can't be stored, whatever the currency is.
    IF (p_amount > 0 AND p_amount = round(p_amount, coalesce(public.currency_scale(p_currency), 4))) IS NOT TRUE THEN
        RAISE EXCEPTION 'a hold must be positive, with at most as many decimals as its currency has'
            USING ERRCODE = 'check_violation', CONSTRAINT = 'ledger_holds_amount', TABLE = 'ledger_holds';
    END IF;
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

-- As before, and: what is summed is what is stored, since each amount must fit its currency's scale first. (Not a number and
-- the infinities fit any scale, and then don't sum to zero.)
--
-- Errors, in the order checked: malformed lines (check_violation, postings_lines), more decimals than the currency has
-- (postings_scale), unbalanced (postings_balanced), an account in a currency that we don't know and in which the merchant has
-- none (ledger_accounts_currency), an unknown kind of account (ledger_accounts_kind), a merchant_payable that doesn't cover
-- what is debited (merchant_payable_covered), a source posted before (unique_violation, journal_entries_source_once).
--
-- Locks: as before.
CREATE OR REPLACE FUNCTION ledger_post(
    p_merchant_id uuid, p_entry_id uuid, p_source text,
    p_kinds text[], p_currencies text[], p_amounts numeric[]
) RETURNS void LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    -- One time for the whole entry, so that at no time only some of its postings are there.
    posted_at timestamptz;
    fits_scale boolean;
    is_balanced boolean;
    takes_from_merchant boolean;
    payable record;
    held numeric;
BEGIN
    IF coalesce(cardinality(p_kinds), 0) < 2
        OR cardinality(p_currencies) IS DISTINCT FROM cardinality(p_kinds)
        OR cardinality(p_amounts) IS DISTINCT FROM cardinality(p_kinds)
        OR array_ndims(p_kinds) + array_ndims(p_currencies) + array_ndims(p_amounts) <> 3
        OR array_position(p_kinds, NULL) IS NOT NULL
        OR array_position(p_currencies, NULL) IS NOT NULL
        OR array_position(p_amounts, NULL) IS NOT NULL
    THEN
        RAISE EXCEPTION 'an entry needs at least two lines, each with account kind, currency and amount'
            USING ERRCODE = 'check_violation', CONSTRAINT = 'postings_lines', TABLE = 'postings';
    END IF;

    -- All in one pass. More than 4 decimals can't be stored, whatever the currency is.
    SELECT bool_and(per_currency.fits_scale), bool_and(per_currency.is_balanced), bool_or(per_currency.taken > 0)
    INTO fits_scale, is_balanced, takes_from_merchant
    FROM (SELECT bool_and(line.amount = round(line.amount, coalesce(public.currency_scale(line.currency), 4))) AS fits_scale,
                 sum(line.amount) = 0 AS is_balanced,
                 sum(line.amount) FILTER (WHERE line.kind = 'merchant_payable') AS taken
          FROM unnest(p_kinds, p_currencies, p_amounts) AS line (kind, currency, amount)
          GROUP BY line.currency) per_currency;
    IF NOT fits_scale THEN
        RAISE EXCEPTION 'an amount has more decimals than its currency'
            USING ERRCODE = 'check_violation', CONSTRAINT = 'postings_scale', TABLE = 'postings';
    END IF;
    IF NOT is_balanced THEN
        RAISE EXCEPTION 'postings of an entry must sum to zero per currency'
            USING ERRCODE = 'check_violation', CONSTRAINT = 'postings_balanced', TABLE = 'postings';
    END IF;

    IF EXISTS (SELECT FROM unnest(p_kinds, p_currencies) AS line (kind, currency)
               WHERE NOT EXISTS (SELECT FROM public.ledger_accounts a WHERE a.merchant_id = p_merchant_id
                                 AND a.kind = line.kind AND a.currency = line.currency)) THEN
        -- What is no code at all is refused by the table.
        IF EXISTS (SELECT FROM unnest(p_currencies) AS line (currency)
                   WHERE line.currency ~ '^[A-Z]{3}$' AND public.currency_scale(line.currency) IS NULL
                       AND NOT EXISTS (SELECT FROM public.ledger_accounts a
                                       WHERE a.merchant_id = p_merchant_id AND a.currency = line.currency)) THEN
            RAISE EXCEPTION 'an account must be in a currency that is known'
                USING ERRCODE = 'check_violation', CONSTRAINT = 'ledger_accounts_currency', TABLE = 'ledger_accounts';
        END IF;
        -- Ordered, so that two first entries of one merchant wait for each other instead of deadlocking.
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
    IF takes_from_merchant THEN
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
    END IF;

    posted_at := clock_timestamp();
    INSERT INTO public.journal_entries (merchant_id, id, source, created_at)
    VALUES (p_merchant_id, p_entry_id, p_source, posted_at);
    INSERT INTO public.postings (merchant_id, entry_id, line, account_id, currency, amount, created_at)
    SELECT p_merchant_id, p_entry_id, line.number, a.id, line.currency, line.amount, posted_at
    FROM unnest(p_kinds, p_currencies, p_amounts) WITH ORDINALITY AS line (kind, currency, amount, number)
    JOIN public.ledger_accounts a
        ON a.merchant_id = p_merchant_id AND a.kind = line.kind AND a.currency = line.currency;
END $$;

-- As before, and: an age is compared as a time back from now, in UTC, where a day has 24 hours.
CREATE OR REPLACE FUNCTION events_prune(
    p_keep_events interval, p_keep_deliveries interval, p_batch integer, p_after uuid,
    OUT events_deleted bigint, OUT deliveries_deleted bigint, OUT next_after uuid
)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
DECLARE
    v_events_before timestamptz := date_trunc('milliseconds', statement_timestamp() - p_keep_events);
    v_deliveries_before timestamptz := statement_timestamp() - p_keep_deliveries;
    v_youngest timestamptz := statement_timestamp() - interval '1 day';
    v_first_event uuid;
    v_first_delivery uuid;
    v_merchants uuid[];
BEGIN
    IF (v_events_before <= v_youngest AND v_deliveries_before <= v_youngest) IS NOT TRUE THEN
        RAISE EXCEPTION 'events and deliveries are kept for a day at least'
            USING ERRCODE = 'check_violation', CONSTRAINT = 'events_prune_keep', TABLE = 'events';
    END IF;
    -- A limit of null is none.
    IF (p_batch >= 1) IS NOT TRUE THEN
        RAISE EXCEPTION 'a batch has at least one row'
            USING ERRCODE = 'check_violation', CONSTRAINT = 'events_prune_batch', TABLE = 'events';
    END IF;
    v_first_event := public.uuid_v7_lowest(v_events_before);
    v_first_delivery := public.uuid_v7_lowest(v_deliveries_before);
    v_merchants := ARRAY(
        SELECT merchant_id FROM public.merchants
        WHERE merchant_id > coalesce(p_after, '00000000-0000-0000-0000-000000000000')
        ORDER BY merchant_id LIMIT p_batch);
    WITH old AS MATERIALIZED (
        SELECT d.ctid FROM unnest(v_merchants) AS m (id) CROSS JOIN LATERAL (
            SELECT ctid FROM public.webhook_deliveries WHERE merchant_id = m.id AND id < v_first_delivery
            ORDER BY id LIMIT p_batch FOR UPDATE SKIP LOCKED) d
        LIMIT p_batch)
    DELETE FROM public.webhook_deliveries d USING old WHERE d.ctid = old.ctid;
    GET DIAGNOSTICS deliveries_deleted = ROW_COUNT;
    WITH old AS MATERIALIZED (
        SELECT e.ctid FROM unnest(v_merchants) AS m (id) CROSS JOIN LATERAL (
            SELECT ctid FROM public.events WHERE merchant_id = m.id AND id < v_first_event
            ORDER BY id LIMIT p_batch FOR UPDATE SKIP LOCKED) e
        LIMIT p_batch),
    gone AS (
        DELETE FROM public.events e USING old WHERE e.ctid = old.ctid RETURNING e.merchant_id, e.id),
    with_it AS (
        DELETE FROM public.webhook_deliveries d USING gone WHERE d.merchant_id = gone.merchant_id AND d.event_id = gone.id)
    SELECT count(*) INTO events_deleted FROM gone;
    IF events_deleted > 0 THEN
        INSERT INTO public.event_retention AS r (events_before) VALUES (v_events_before)
        ON CONFLICT (one) DO UPDATE SET events_before = excluded.events_before
            WHERE r.events_before < excluded.events_before;
    END IF;
    next_after := v_merchants[p_batch];
END $$;

-- As before, and: see events_prune.
CREATE OR REPLACE FUNCTION acquirer_events_prune(p_keep interval, p_batch integer) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
DECLARE
    deleted bigint;
    kept_from timestamptz := statement_timestamp() - p_keep;
    first_kept uuid;
BEGIN
    IF (kept_from <= statement_timestamp() - interval '1 day') IS NOT TRUE THEN
        RAISE EXCEPTION 'the acquirer''s events are kept for a day at least'
            USING ERRCODE = 'check_violation', CONSTRAINT = 'acquirer_events_prune_keep', TABLE = 'acquirer_events';
    END IF;
    IF (p_batch >= 1) IS NOT TRUE THEN
        RAISE EXCEPTION 'a batch has at least one row'
            USING ERRCODE = 'check_violation', CONSTRAINT = 'acquirer_events_prune_batch', TABLE = 'acquirer_events';
    END IF;
    first_kept := public.uuid_v7_lowest(kept_from);
    WITH old AS MATERIALIZED (
        SELECT id FROM public.acquirer_events WHERE id < first_kept AND state <> 'parked'
        ORDER BY id LIMIT p_batch FOR UPDATE SKIP LOCKED)
    DELETE FROM public.acquirer_events e USING old WHERE e.id = old.id;
    GET DIAGNOSTICS deleted = ROW_COUNT;
    RETURN deleted;
END $$;

-- A trigger runs its function whoever may execute it; making a trigger needs that right.
REVOKE EXECUTE ON FUNCTION idempotency_policies_changed() FROM PUBLIC;
