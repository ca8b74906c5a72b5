-- ledger_post made accounts for a merchant that doesn't exist, and took an entry without a source. The second could be posted
-- once per merchant and led to nothing.
--
-- Functions of the same signature replace the old ones, which locks no table: this is safe beside load. The release before
-- posts for merchants that exist, and always with a source.
SET LOCAL lock_timeout = '500ms';

-- As before, and: a source is more than white space (check_violation, ledger_holds_source). That is checked first.
CREATE OR REPLACE FUNCTION ledger_hold(p_merchant_id uuid, p_source text, p_currency text, p_amount numeric) RETURNS void
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    payable_id uuid;
BEGIN
    PERFORM public.ledger_require_read_committed();
    IF (btrim(p_source, E' \t\r\n') <> '') IS NOT TRUE THEN
        RAISE EXCEPTION 'a hold needs a source'
            USING ERRCODE = 'check_violation', CONSTRAINT = 'ledger_holds_source', TABLE = 'ledger_holds';
    END IF;
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

-- As before, and: a source is more than white space, and the merchant exists.
--
-- Errors, in the order checked: malformed lines (check_violation, postings_lines), an empty source
-- (journal_entries_source), more decimals than the currency has (postings_scale), unbalanced (postings_balanced), a merchant
-- that doesn't exist (ledger_accounts_merchant), an account in a currency that we don't know and in which the merchant has
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

    IF (btrim(p_source, E' \t\r\n') <> '') IS NOT TRUE THEN
        RAISE EXCEPTION 'an entry needs a source'
            USING ERRCODE = 'check_violation', CONSTRAINT = 'journal_entries_source', TABLE = 'journal_entries';
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
        -- A merchant without an account may be none at all. Looked up only here, since accounts stay for good, and without
        -- a lock: so do merchants, and a posting that locked its merchant's row would wait for all others.
        IF NOT EXISTS (SELECT FROM public.merchants m WHERE m.merchant_id = p_merchant_id) THEN
            RAISE EXCEPTION 'an entry must be of a merchant that exists'
                USING ERRCODE = 'check_violation', CONSTRAINT = 'ledger_accounts_merchant', TABLE = 'ledger_accounts';
        END IF;
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
