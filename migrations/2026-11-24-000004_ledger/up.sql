-- The double-entry ledger, guarded by the database itself: the service's role can read these tables
-- and call ledger_post, and has no other way to write them. A bug in the service, or a person in
-- psql with its password, can't unbalance an entry, change one, or overdraw a merchant.

CREATE TABLE ledger_accounts (
    merchant_id uuid NOT NULL,
    id          uuid NOT NULL DEFAULT uuid_v7(),
    kind        text NOT NULL,
    currency    text NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (merchant_id, id),
    CONSTRAINT ledger_accounts_one_per_kind UNIQUE (merchant_id, kind, currency) INCLUDE (id),
    CONSTRAINT ledger_accounts_kind CHECK (kind IN ('acquirer_clearing', 'bank', 'merchant_payable',
        'payouts_in_transit', 'disputes_held', 'fee_revenue')),
    CONSTRAINT ledger_accounts_currency_code CHECK (currency ~ '^[A-Z]{3}$')
);
COMMENT ON TABLE ledger_accounts IS 'One account per merchant, kind and currency, so that no row is shared by all tenants. acquirer_clearing and bank are assets, merchant_payable, payouts_in_transit and disputes_held liabilities, fee_revenue income. Made on first use, never deleted.';

CREATE TABLE journal_entries (
    merchant_id uuid NOT NULL,
    id          uuid NOT NULL,
    source      text NOT NULL,
    created_at  timestamptz NOT NULL,
    PRIMARY KEY (merchant_id, id),
    CONSTRAINT journal_entries_source_once UNIQUE (merchant_id, source)
);
COMMENT ON TABLE journal_entries IS 'What happened, once per source (such as ch_…:capture). Append-only.';

-- No foreign key to ledger_accounts: it would lock the account's row in every posting, which on a
-- busy account costs more than half of the throughput. ledger_post, the only writer, takes account
-- ids from ledger_accounts itself, and accounts can't be deleted.
CREATE TABLE postings (
    merchant_id    uuid NOT NULL,
    entry_id       uuid NOT NULL,
    line           smallint NOT NULL,
    account_id     uuid NOT NULL,
    currency       text NOT NULL,
    amount         numeric(20, 4) NOT NULL,
    transaction_id xid8 NOT NULL DEFAULT pg_current_xact_id(),
    created_at     timestamptz NOT NULL,
    PRIMARY KEY (merchant_id, entry_id, line),
    CONSTRAINT postings_entry FOREIGN KEY (merchant_id, entry_id)
        REFERENCES journal_entries (merchant_id, id),
    CONSTRAINT postings_amount CHECK (amount <> 0)
);
COMMENT ON TABLE postings IS 'The lines of journal entries. A positive amount is a debit, a negative one a credit; per entry and currency they sum to zero. Append-only.';
COMMENT ON COLUMN postings.transaction_id IS 'The writing transaction, which tells a checkpoint whether an earlier posting can still be about to commit.';
-- For balances now, and for lists and balances at a time.
CREATE INDEX postings_by_account ON postings (merchant_id, account_id, transaction_id) INCLUDE (amount);
CREATE INDEX postings_by_entry ON postings (merchant_id, account_id, entry_id, line);
CREATE INDEX postings_by_time ON postings (merchant_id, account_id, created_at) INCLUDE (amount);

CREATE TABLE ledger_checkpoints (
    merchant_id uuid NOT NULL,
    account_id  uuid NOT NULL,
    balance     numeric(24, 4) NOT NULL DEFAULT 0,
    horizon     xid8 NOT NULL DEFAULT '0',
    updated_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (merchant_id, account_id),
    CONSTRAINT ledger_checkpoints_account FOREIGN KEY (merchant_id, account_id)
        REFERENCES ledger_accounts (merchant_id, id)
);
COMMENT ON TABLE ledger_checkpoints IS 'Per account the sum of all postings whose transaction_id is below horizon. A balance is its checkpoint plus the postings from the horizon on. Derived: it can be emptied at any time.';

CREATE TABLE ledger_holds (
    merchant_id uuid NOT NULL,
    source      text NOT NULL,
    account_id  uuid NOT NULL,
    amount      numeric(20, 4) NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (merchant_id, source),
    CONSTRAINT ledger_holds_account FOREIGN KEY (merchant_id, account_id)
        REFERENCES ledger_accounts (merchant_id, id),
    CONSTRAINT ledger_holds_amount CHECK (amount > 0)
);
COMMENT ON TABLE ledger_holds IS 'Money of merchant_payable that is set aside for an entry to come (of the same source), while the processor is being asked. Not in the balance of the account; it can''t be spent on anything else.';

-- Every function below that runs with its owner's rights looks names up in pg_catalog only and spells
-- out the schema of everything else: were `public` in its path, whoever can create objects there could
-- put an operator or function of a better-matching type in the way, and run it as the owner.

-- The second guard of the balance rule (the first is in ledger_post): it holds for the owner too.
CREATE FUNCTION ledger_refuse_unbalanced() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF EXISTS (SELECT FROM added GROUP BY merchant_id, entry_id, currency HAVING sum(amount) <> 0) THEN
        RAISE EXCEPTION 'postings of an entry must sum to zero per currency'
            USING ERRCODE = 'check_violation', CONSTRAINT = 'postings_balanced', TABLE = 'postings';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER postings_balanced AFTER INSERT ON postings
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION ledger_refuse_unbalanced();

CREATE FUNCTION ledger_refuse_change() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION '% of % refused: the ledger is append-only; post a correcting entry instead', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'restrict_violation', TABLE = TG_TABLE_NAME;
END $$;
CREATE TRIGGER postings_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON postings
    FOR EACH STATEMENT EXECUTE FUNCTION ledger_refuse_change();
CREATE TRIGGER journal_entries_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON journal_entries
    FOR EACH STATEMENT EXECUTE FUNCTION ledger_refuse_change();
CREATE TRIGGER ledger_accounts_permanent BEFORE UPDATE OR DELETE OR TRUNCATE ON ledger_accounts
    FOR EACH STATEMENT EXECUTE FUNCTION ledger_refuse_change();

-- The balance of an account, debits positive: one statement, so that the checkpoint and the postings
-- after it come from the same snapshot. (The body is parsed now, so its names can't be redirected.)
--
-- A horizon that no transaction has reached can only come from another cluster, by a dump: transaction
-- ids start afresh there. Such a checkpoint would hide new postings, so it is ignored.
CREATE FUNCTION ledger_balance(p_merchant_id uuid, p_account_id uuid) RETURNS numeric
    LANGUAGE sql STABLE
    RETURN (
        SELECT coalesce(c.balance, 0) + coalesce((
            SELECT sum(p.amount) FROM postings p
            WHERE p.merchant_id = p_merchant_id AND p.account_id = p_account_id
              AND p.transaction_id >= coalesce(c.horizon, '0'::xid8)), 0)
        FROM (VALUES (1)) AS one
        LEFT JOIN ledger_checkpoints c ON c.merchant_id = p_merchant_id AND c.account_id = p_account_id
            AND c.horizon <= pg_snapshot_xmax(pg_current_snapshot()));

-- What a merchant can spend of an account that we owe: its balance (credits positive) less holds.
CREATE FUNCTION ledger_spendable(p_merchant_id uuid, p_account_id uuid) RETURNS numeric
    LANGUAGE sql STABLE
    RETURN -ledger_balance(p_merchant_id, p_account_id) - coalesce((
        SELECT sum(h.amount) FROM ledger_holds h
        WHERE h.merchant_id = p_merchant_id AND h.account_id = p_account_id), 0);

-- The guards of a balance compute it after they have got the lock. Under REPEATABLE READ they would see the
-- balance of before, so that level is refused where it matters.
CREATE FUNCTION ledger_require_read_committed() RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted') THEN
        RAISE EXCEPTION 'the ledger is written at isolation level READ COMMITTED only'
            USING ERRCODE = 'invalid_transaction_state';
    END IF;
END $$;

-- Sets money of merchant_payable aside for the entry of p_source. Refused (check_violation,
-- merchant_payable_covered) when the balance less what is set aside already doesn't cover it.
-- Locks the account's row until the transaction ends.
CREATE FUNCTION ledger_hold(p_merchant_id uuid, p_source text, p_currency text, p_amount numeric) RETURNS void
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
COMMENT ON FUNCTION ledger_hold IS 'Sets money aside for an entry to come.';

-- Writes one journal entry: the only way in for the service's role. The three arrays are the lines;
-- accounts are named by kind and made on first use. Money that was set aside for this source is used up.
--
-- Errors, in the order checked: malformed lines (check_violation, postings_lines), unbalanced
-- (postings_balanced), an unknown kind of account (ledger_accounts_kind), a merchant_payable that doesn't
-- cover what is debited (check_violation, merchant_payable_covered), a source posted before
-- (unique_violation, journal_entries_source_once).
--
-- Locks: none for an entry that only credits merchant_payable, so that captures on one merchant
-- don't queue. A debit of merchant_payable locks that account's row until the transaction ends (in
-- id order) and computes the balance under the lock. The function is VOLATILE on purpose: each
-- statement in it sees what committed before that statement, hence what earlier holders of the lock
-- wrote. Uncommitted credits aren't counted, which errs on the safe side.
CREATE FUNCTION ledger_post(
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
COMMENT ON FUNCTION ledger_post IS 'Posts one balanced journal entry; the only way for the service to write the ledger.';

-- Moves an account's checkpoint up to the oldest transaction that is still running, and not further:
-- a posting written by that transaction or a later one may not be visible yet, although others with
-- higher ids are. Everything below is finished, so each posting is added exactly once. A checkpoint from
-- another cluster (see ledger_balance) is begun anew.
-- Locks the account's checkpoint row, which no posting and no balance read waits for.
CREATE FUNCTION ledger_roll_up(p_merchant_id uuid, p_account_id uuid) RETURNS void
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    checkpoint public.ledger_checkpoints;
    new_horizon xid8;
BEGIN
    PERFORM public.ledger_require_read_committed();
    INSERT INTO public.ledger_checkpoints (merchant_id, account_id) VALUES (p_merchant_id, p_account_id)
    ON CONFLICT DO NOTHING;
    SELECT * INTO checkpoint FROM public.ledger_checkpoints
    WHERE merchant_id = p_merchant_id AND account_id = p_account_id FOR UPDATE;
    IF checkpoint.horizon > pg_snapshot_xmax(pg_current_snapshot()) THEN
        checkpoint.horizon := '0';
        checkpoint.balance := 0;
    END IF;
    -- Taken before the sum: whatever is below it has ended by the time that the sum looks.
    new_horizon := pg_snapshot_xmin(pg_current_snapshot());
    IF new_horizon <= checkpoint.horizon THEN
        RETURN;
    END IF;
    UPDATE public.ledger_checkpoints SET
        balance = checkpoint.balance + coalesce((
            SELECT sum(amount) FROM public.postings p
            WHERE p.merchant_id = p_merchant_id AND p.account_id = p_account_id
              AND p.transaction_id >= checkpoint.horizon AND p.transaction_id < new_horizon), 0),
        horizon = new_horizon,
        updated_at = clock_timestamp()
    WHERE merchant_id = p_merchant_id AND account_id = p_account_id;
END $$;
COMMENT ON FUNCTION ledger_roll_up IS 'Moves the checkpoint of one account as far as is safe.';

REVOKE ALL ON FUNCTION ledger_post(uuid, uuid, text, text[], text[], numeric[]) FROM PUBLIC;
REVOKE ALL ON FUNCTION ledger_hold(uuid, text, text, numeric) FROM PUBLIC;
REVOKE ALL ON FUNCTION ledger_roll_up(uuid, uuid) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ledger_post(uuid, uuid, text, text[], text[], numeric[]) TO oncepay_app;
GRANT EXECUTE ON FUNCTION ledger_hold(uuid, text, text, numeric) TO oncepay_app;
GRANT EXECUTE ON FUNCTION ledger_roll_up(uuid, uuid) TO oncepay_app;
GRANT SELECT ON ledger_accounts, journal_entries, postings, ledger_checkpoints, ledger_holds TO oncepay_app;
