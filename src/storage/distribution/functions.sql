-- The functions of a distributed database: run after the migrations, again and again, so each statement replaces what is there. One whose
-- result has got other columns than in a release before is dropped first.
--
-- Merchants are spread over nodes by merchant_id, and one node, the coordinator, takes all statements. So that a statement can be
-- sent to the one node that has its merchant, its functions must not query tables: they'd do so on that node. And what they
-- write must be written in one session there, or a crash could leave half of it. So each of these functions has two parts. The
-- first runs where the statement does. It takes what has to be of one clock and one count of transactions for all nodes: times,
-- ids, the number of the transaction. The second, named `…_on_shard`, is sent to the merchant's node as a whole.
--
-- Everything here is valid on a single Postgres, too, where both parts run in one place.

-- Refuses to run anywhere but on the merchant's node, if there is one: as its owner, the function would write in another session
-- than its caller.
CREATE OR REPLACE FUNCTION require_shard() RETURNS void
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF EXISTS (SELECT FROM pg_extension WHERE extname = 'citus')
        AND current_setting('application_name') NOT LIKE 'citus\_internal%'
    THEN
        RAISE EXCEPTION 'this function can only be called on the node of its merchant'
            USING ERRCODE = 'invalid_transaction_state';
    END IF;
END $$;

-- Citus can't call a function for nobody: a node would crash.
CREATE OR REPLACE FUNCTION require_merchant(p_merchant_id uuid) RETURNS void
    LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF p_merchant_id IS NULL THEN
        RAISE EXCEPTION 'a merchant is needed' USING ERRCODE = 'null_value_not_allowed';
    END IF;
END $$;

-- Which transactions of the coordinator have written numbered rows on this node and haven't ended here. On the coordinator, one whose
-- connection to the node is lost while it commits counts as ended, and its rows may be seen later all the same. So each holds a lock here
-- for as long as it lasts, and whoever relies on a horizon asks for them.
CREATE OR REPLACE FUNCTION number_hold(p_transaction xid8) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    low bigint := p_transaction::text::bigint & 4294967295;
BEGIN
    -- The first key is ours, the second the lower half of the number.
    PERFORM pg_advisory_xact_lock_shared(1346850116, (CASE WHEN low > 2147483647 THEN low - 4294967296 ELSE low END)::integer);
END $$;

-- The horizon, or the oldest of those numbers if it's below.
CREATE OR REPLACE FUNCTION number_settled_on_shard(p_merchant_id uuid, p_horizon xid8) RETURNS xid8
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    horizon bigint := p_horizon::text::bigint;
    behind bigint;
BEGIN
    -- How far each is below the horizon; what is above it seems to be as far below as there are numbers.
    SELECT max(l.behind) INTO behind
    FROM (SELECT (horizon - objid::bigint) & 4294967295 AS behind FROM pg_locks
          WHERE locktype = 'advisory' AND classid = 1346850116 AND objsubid = 2
              AND database = (SELECT oid FROM pg_database WHERE datname = current_database())) l
    WHERE l.behind < 2147483648;
    RETURN (horizon - coalesce(behind, 0))::text::xid8;
END $$;

CREATE OR REPLACE FUNCTION number_settled(p_merchant_id uuid, p_horizon xid8) RETURNS xid8
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    settled xid8;
BEGIN
    PERFORM public.require_merchant(p_merchant_id);
    SELECT s INTO settled FROM public.number_settled_on_shard(p_merchant_id, p_horizon) AS s;
    RETURN settled;
END $$;

-- A balance is the checkpoint, if its horizon is of this cluster, and the postings from there on. The two queries may see different
-- moments: whichever checkpoint it is, the postings from its horizon on complete it.
CREATE OR REPLACE FUNCTION ledger_balance_at(p_merchant_id uuid, p_account_id uuid, p_next_transaction xid8) RETURNS numeric
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    checkpoint record;
    later numeric;
BEGIN
    SELECT c.balance, c.horizon INTO checkpoint FROM public.ledger_checkpoints c
    WHERE c.merchant_id = p_merchant_id AND c.account_id = p_account_id AND c.horizon <= p_next_transaction;
    SELECT sum(p.amount) INTO later FROM public.postings p
    WHERE p.merchant_id = p_merchant_id AND p.account_id = p_account_id
        AND p.transaction_id >= coalesce(checkpoint.horizon, '0'::xid8);
    RETURN coalesce(checkpoint.balance, 0) + coalesce(later, 0);
END $$;

CREATE OR REPLACE FUNCTION ledger_balance(p_merchant_id uuid, p_account_id uuid) RETURNS numeric
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN public.ledger_balance_at(p_merchant_id, p_account_id, pg_snapshot_xmax(pg_current_snapshot()));
END $$;

CREATE OR REPLACE FUNCTION ledger_spendable_at(p_merchant_id uuid, p_account_id uuid, p_next_transaction xid8) RETURNS numeric
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    held numeric;
BEGIN
    SELECT sum(h.amount) INTO held FROM public.ledger_holds h
    WHERE h.merchant_id = p_merchant_id AND h.account_id = p_account_id;
    RETURN -public.ledger_balance_at(p_merchant_id, p_account_id, p_next_transaction) - coalesce(held, 0);
END $$;

CREATE OR REPLACE FUNCTION ledger_spendable(p_merchant_id uuid, p_account_id uuid) RETURNS numeric
    LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN public.ledger_spendable_at(p_merchant_id, p_account_id, pg_snapshot_xmax(pg_current_snapshot()));
END $$;

-- ledger_post, with the same rules and errors in the same order.
--
-- Locks, in each currency in which the entry takes from the merchant, by code: the merchant_payable account.
CREATE OR REPLACE FUNCTION ledger_post_on_shard(
    p_merchant_id uuid, p_entry_id uuid, p_source text, p_kinds text[], p_currencies text[], p_amounts numeric[],
    p_posted_at timestamptz, p_transaction xid8, p_next_transaction xid8
) RETURNS void LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    fits_scale boolean;
    is_balanced boolean;
    line record;
    taken record;
    account uuid;
    accounts uuid[] := '{}';
    held numeric;
    began timestamptz := clock_timestamp();
BEGIN
    PERFORM public.require_shard();
    IF coalesce(cardinality(p_kinds), 0) < 2
        OR cardinality(p_currencies) IS DISTINCT FROM cardinality(p_kinds)
        OR cardinality(p_amounts) IS DISTINCT FROM cardinality(p_kinds)
        OR array_ndims(p_kinds) + array_ndims(p_currencies) + array_ndims(p_amounts) <> 3
        OR array_position(p_kinds, NULL) IS NOT NULL
        OR array_position(p_currencies, NULL) IS NOT NULL
        OR array_position(p_amounts, NULL) IS NOT NULL
    THEN
        RAISE EXCEPTION 'an entry needs at least two lines, each with account kind, currency and amount'
            USING ERRCODE = 'check_violation', CONSTRAINT = 'postings_lines', TABLE = 'postings',
                DETAIL = 'constraint "postings_lines"';
    END IF;
    IF (btrim(p_source, E' \t\r\n') <> '') IS NOT TRUE THEN
        RAISE EXCEPTION 'an entry needs a source'
            USING ERRCODE = 'check_violation', CONSTRAINT = 'journal_entries_source', TABLE = 'journal_entries',
                DETAIL = 'constraint "journal_entries_source"';
    END IF;
    SELECT bool_and(per_currency.fits_scale), bool_and(per_currency.is_balanced) INTO fits_scale, is_balanced
    FROM (SELECT bool_and(l.amount = round(l.amount, coalesce(public.currency_scale(l.currency), 4))) AS fits_scale,
                 sum(l.amount) = 0 AS is_balanced
          FROM unnest(p_currencies, p_amounts) AS l (currency, amount) GROUP BY l.currency) per_currency;
    IF NOT fits_scale THEN
        RAISE EXCEPTION 'an amount has more decimals than its currency'
            USING ERRCODE = 'check_violation', CONSTRAINT = 'postings_scale', TABLE = 'postings',
                DETAIL = 'constraint "postings_scale"';
    END IF;
    IF NOT is_balanced THEN
        RAISE EXCEPTION 'postings of an entry must sum to zero per currency'
            USING ERRCODE = 'check_violation', CONSTRAINT = 'postings_balanced', TABLE = 'postings',
                DETAIL = 'constraint "postings_balanced"';
    END IF;

    FOR line IN SELECT l.kind, l.currency FROM unnest(p_kinds, p_currencies) WITH ORDINALITY AS l (kind, currency, number)
                ORDER BY l.number
    LOOP
        SELECT a.id INTO account FROM public.ledger_accounts a
        WHERE a.merchant_id = p_merchant_id AND a.kind = line.kind AND a.currency = line.currency;
        accounts := accounts || account;
    END LOOP;
    IF array_position(accounts, NULL) IS NOT NULL THEN
        PERFORM FROM public.merchants m WHERE m.merchant_id = p_merchant_id;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'an entry must be of a merchant that exists'
                USING ERRCODE = 'check_violation', CONSTRAINT = 'ledger_accounts_merchant', TABLE = 'ledger_accounts',
                DETAIL = 'constraint "ledger_accounts_merchant"';
        END IF;
        FOR line IN SELECT DISTINCT l.currency FROM unnest(p_currencies) AS l (currency)
                    WHERE l.currency ~ '^[A-Z]{3}$' AND public.currency_scale(l.currency) IS NULL
        LOOP
            PERFORM FROM public.ledger_accounts a WHERE a.merchant_id = p_merchant_id AND a.currency = line.currency LIMIT 1;
            IF NOT FOUND THEN
                RAISE EXCEPTION 'an account must be in a currency that is known'
                    USING ERRCODE = 'check_violation', CONSTRAINT = 'ledger_accounts_currency', TABLE = 'ledger_accounts',
                DETAIL = 'constraint "ledger_accounts_currency"';
            END IF;
        END LOOP;
        FOR line IN SELECT DISTINCT l.kind, l.currency FROM unnest(p_kinds, p_currencies) AS l (kind, currency) ORDER BY 1, 2
        LOOP
            INSERT INTO public.ledger_accounts (merchant_id, id, kind, currency, created_at)
            VALUES (p_merchant_id, public.uuid_v7(p_posted_at), line.kind, line.currency, p_posted_at)
            ON CONFLICT (merchant_id, kind, currency) DO NOTHING;
        END LOOP;
        accounts := '{}';
        FOR line IN SELECT l.kind, l.currency FROM unnest(p_kinds, p_currencies) WITH ORDINALITY AS l (kind, currency, number)
                    ORDER BY l.number
        LOOP
            SELECT a.id INTO account FROM public.ledger_accounts a
            WHERE a.merchant_id = p_merchant_id AND a.kind = line.kind AND a.currency = line.currency;
            accounts := accounts || account;
        END LOOP;
    END IF;

    -- A checkpoint never stands for a transaction that still runs. If one seems to, a crash or a restore of the coordinator has made it
    -- forget that it has given out such numbers before; or p_transaction is none of its numbers. Without the checkpoint, all postings count.
    DELETE FROM public.ledger_checkpoints c
    WHERE c.merchant_id = p_merchant_id AND c.account_id = ANY (accounts) AND c.horizon > p_transaction;

    FOR taken IN
        SELECT l.currency, sum(l.amount) FILTER (WHERE l.kind = 'merchant_payable') AS amount,
            coalesce(-sum(l.amount) FILTER (WHERE l.kind = 'disputes_held'), 0) AS disputed
        FROM unnest(p_kinds, p_currencies, p_amounts) AS l (kind, currency, amount)
        GROUP BY l.currency HAVING sum(l.amount) FILTER (WHERE l.kind = 'merchant_payable') > 0 ORDER BY l.currency
    LOOP
        SELECT a.id INTO account FROM public.ledger_accounts a
        WHERE a.merchant_id = p_merchant_id AND a.kind = 'merchant_payable' AND a.currency = taken.currency
        FOR NO KEY UPDATE;
        PERFORM public.ledger_require_read_committed();
        held := NULL;
        DELETE FROM public.ledger_holds h
        WHERE h.merchant_id = p_merchant_id AND h.source = p_source AND h.account_id = account
        RETURNING h.amount INTO held;
        IF taken.amount > coalesce(held, 0) AND taken.amount > taken.disputed
            AND taken.amount > public.ledger_spendable_at(p_merchant_id, account, p_next_transaction)
        THEN
            RAISE EXCEPTION 'the % balance does not cover this entry', taken.currency
                USING ERRCODE = 'check_violation', CONSTRAINT = 'merchant_payable_covered', TABLE = 'postings',
                DETAIL = 'constraint "merchant_payable_covered"';
        END IF;
    END LOOP;

    -- It's posted when it has its locks: what it was covered by may have been posted while it waited.
    p_posted_at := p_posted_at + (clock_timestamp() - began);
    PERFORM public.number_hold(p_transaction);
    INSERT INTO public.journal_entries (merchant_id, id, source, created_at)
    VALUES (p_merchant_id, p_entry_id, p_source, p_posted_at);
    INSERT INTO public.postings (merchant_id, entry_id, line, account_id, currency, amount, transaction_id, created_at)
    SELECT p_merchant_id, p_entry_id, l.number, l.account_id, l.currency, l.amount, p_transaction, p_posted_at
    FROM unnest(accounts, p_currencies, p_amounts) WITH ORDINALITY AS l (account_id, currency, amount, number);
END $$;
REVOKE EXECUTE ON FUNCTION ledger_post_on_shard FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ledger_post_on_shard TO oncepay_app;

CREATE OR REPLACE FUNCTION ledger_post(
    p_merchant_id uuid, p_entry_id uuid, p_source text, p_kinds text[], p_currencies text[], p_amounts numeric[]
) RETURNS void LANGUAGE plpgsql VOLATILE SECURITY INVOKER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    posted_at timestamptz := clock_timestamp();
    transaction xid8 := pg_current_xact_id();
    next_transaction xid8 := pg_snapshot_xmax(pg_current_snapshot());
BEGIN
    -- Citus can't call a function for nobody.
    IF p_merchant_id IS NULL THEN
        RAISE EXCEPTION 'an entry must be of a merchant that exists'
            USING ERRCODE = 'check_violation', CONSTRAINT = 'ledger_accounts_merchant', TABLE = 'ledger_accounts',
                DETAIL = 'constraint "ledger_accounts_merchant"';
    END IF;
    PERFORM FROM public.ledger_post_on_shard(p_merchant_id, p_entry_id, p_source, p_kinds, p_currencies, p_amounts,
        posted_at, transaction, next_transaction);
END $$;

CREATE OR REPLACE FUNCTION ledger_correct(
    p_merchant_id uuid, p_entry_id uuid, p_source text, p_kinds text[], p_currencies text[], p_amounts numeric[],
    p_corrects_id uuid, p_reference text, p_reason text
) RETURNS void LANGUAGE plpgsql VOLATILE SECURITY INVOKER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    posted_at timestamptz := clock_timestamp();
    transaction xid8 := pg_current_xact_id();
    next_transaction xid8 := pg_snapshot_xmax(pg_current_snapshot());
BEGIN
    -- Citus can't call a function for nobody.
    IF p_merchant_id IS NULL THEN
        RAISE EXCEPTION 'an entry must be of a merchant that exists'
            USING ERRCODE = 'check_violation', CONSTRAINT = 'ledger_accounts_merchant', TABLE = 'ledger_accounts',
                DETAIL = 'constraint "ledger_accounts_merchant"';
    END IF;
    PERFORM FROM public.ledger_correct_on_shard(p_merchant_id, p_entry_id, p_source, p_kinds, p_currencies, p_amounts,
        p_corrects_id, p_reference, p_reason, posted_at, transaction, next_transaction);
END $$;

CREATE OR REPLACE FUNCTION ledger_correct_on_shard(
    p_merchant_id uuid, p_entry_id uuid, p_source text, p_kinds text[], p_currencies text[], p_amounts numeric[],
    p_corrects_id uuid, p_reference text, p_reason text, p_posted_at timestamptz, p_transaction xid8, p_next_transaction xid8
) RETURNS void LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM public.require_shard();
    PERFORM public.ledger_post_on_shard(p_merchant_id, p_entry_id, p_source, p_kinds, p_currencies, p_amounts,
        p_posted_at, p_transaction, p_next_transaction);
    INSERT INTO public.journal_corrections (merchant_id, entry_id, corrects_id, reference, reason)
    VALUES (p_merchant_id, p_entry_id, p_corrects_id, p_reference, p_reason);
END $$;
REVOKE EXECUTE ON FUNCTION ledger_correct_on_shard FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ledger_correct_on_shard TO oncepay_app;

-- Locks: the merchant_payable account.
CREATE OR REPLACE FUNCTION ledger_hold_on_shard(
    p_merchant_id uuid, p_source text, p_currency text, p_amount numeric, p_now timestamptz, p_next_transaction xid8
) RETURNS void LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    payable_id uuid;
BEGIN
    PERFORM public.require_shard();
    PERFORM public.ledger_require_read_committed();
    IF (btrim(p_source, E' \t\r\n') <> '') IS NOT TRUE THEN
        RAISE EXCEPTION 'a hold needs a source'
            USING ERRCODE = 'check_violation', CONSTRAINT = 'ledger_holds_source', TABLE = 'ledger_holds',
                DETAIL = 'constraint "ledger_holds_source"';
    END IF;
    IF (p_amount > 0 AND p_amount = round(p_amount, coalesce(public.currency_scale(p_currency), 4))) IS NOT TRUE THEN
        RAISE EXCEPTION 'a hold must be positive, with at most as many decimals as its currency has'
            USING ERRCODE = 'check_violation', CONSTRAINT = 'ledger_holds_amount', TABLE = 'ledger_holds',
                DETAIL = 'constraint "ledger_holds_amount"';
    END IF;
    SELECT a.id INTO payable_id FROM public.ledger_accounts a
    WHERE a.merchant_id = p_merchant_id AND a.kind = 'merchant_payable' AND a.currency = p_currency
    FOR NO KEY UPDATE;
    IF NOT FOUND OR public.ledger_spendable_at(p_merchant_id, payable_id, p_next_transaction) < p_amount THEN
        RAISE EXCEPTION 'the % balance does not cover this hold', p_currency
            USING ERRCODE = 'check_violation', CONSTRAINT = 'merchant_payable_covered', TABLE = 'ledger_holds',
                DETAIL = 'constraint "merchant_payable_covered"';
    END IF;
    INSERT INTO public.ledger_holds (merchant_id, source, account_id, amount, created_at)
    VALUES (p_merchant_id, p_source, payable_id, p_amount, p_now);
END $$;
REVOKE EXECUTE ON FUNCTION ledger_hold_on_shard FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ledger_hold_on_shard TO oncepay_app;

CREATE OR REPLACE FUNCTION ledger_hold(p_merchant_id uuid, p_source text, p_currency text, p_amount numeric) RETURNS void
    LANGUAGE plpgsql VOLATILE SECURITY INVOKER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    now timestamptz := clock_timestamp();
    next_transaction xid8 := pg_snapshot_xmax(pg_current_snapshot());
BEGIN
    -- Citus can't call a function for nobody.
    IF p_merchant_id IS NULL THEN
        RAISE EXCEPTION 'the % balance does not cover this hold', p_currency
            USING ERRCODE = 'check_violation', CONSTRAINT = 'merchant_payable_covered', TABLE = 'ledger_holds',
                DETAIL = 'constraint "merchant_payable_covered"';
    END IF;
    PERFORM FROM public.ledger_hold_on_shard(p_merchant_id, p_source, p_currency, p_amount, now, next_transaction);
END $$;

CREATE OR REPLACE FUNCTION ledger_release_on_shard(p_merchant_id uuid, p_source text) RETURNS void
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM public.require_shard();
    DELETE FROM public.ledger_holds WHERE merchant_id = p_merchant_id AND source = p_source;
END $$;
REVOKE EXECUTE ON FUNCTION ledger_release_on_shard FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ledger_release_on_shard TO oncepay_app;

CREATE OR REPLACE FUNCTION ledger_release(p_merchant_id uuid, p_source text) RETURNS void
    LANGUAGE plpgsql VOLATILE SECURITY INVOKER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM public.require_merchant(p_merchant_id);
    PERFORM FROM public.ledger_release_on_shard(p_merchant_id, p_source);
END $$;

-- Moves a checkpoint to p_horizon, below which no transaction runs any more, whose sum is seen only afterwards. A checkpoint of another
-- cluster, beyond p_next_transaction, is begun anew.
--
-- Locks: the checkpoint.
CREATE OR REPLACE FUNCTION ledger_roll_up_on_shard(
    p_merchant_id uuid, p_account_id uuid, p_horizon xid8, p_next_transaction xid8, p_now timestamptz
) RETURNS void LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    checkpoint record;
    added numeric;
BEGIN
    PERFORM public.require_shard();
    PERFORM public.ledger_require_read_committed();
    INSERT INTO public.ledger_checkpoints (merchant_id, account_id, updated_at) VALUES (p_merchant_id, p_account_id, p_now)
    ON CONFLICT (merchant_id, account_id) DO NOTHING;
    SELECT c.balance, c.horizon INTO checkpoint FROM public.ledger_checkpoints c
    WHERE c.merchant_id = p_merchant_id AND c.account_id = p_account_id FOR UPDATE;
    IF checkpoint.horizon > p_next_transaction THEN
        checkpoint.horizon := '0';
        checkpoint.balance := 0;
    END IF;
    p_horizon := public.number_settled_on_shard(p_merchant_id, p_horizon);
    IF p_horizon <= checkpoint.horizon THEN
        RETURN;
    END IF;
    SELECT sum(p.amount) INTO added FROM public.postings p
    WHERE p.merchant_id = p_merchant_id AND p.account_id = p_account_id
        AND p.transaction_id >= checkpoint.horizon AND p.transaction_id < p_horizon;
    UPDATE public.ledger_checkpoints SET balance = checkpoint.balance + coalesce(added, 0), horizon = p_horizon,
        updated_at = p_now
    WHERE merchant_id = p_merchant_id AND account_id = p_account_id;
END $$;
REVOKE EXECUTE ON FUNCTION ledger_roll_up_on_shard FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ledger_roll_up_on_shard TO oncepay_app;

CREATE OR REPLACE FUNCTION ledger_roll_up(p_merchant_id uuid, p_account_id uuid) RETURNS void
    LANGUAGE plpgsql VOLATILE SECURITY INVOKER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    horizon xid8 := pg_snapshot_xmin(pg_current_snapshot());
    next_transaction xid8 := pg_snapshot_xmax(pg_current_snapshot());
    now timestamptz := clock_timestamp();
BEGIN
    PERFORM public.require_merchant(p_merchant_id);
    PERFORM FROM public.ledger_roll_up_on_shard(p_merchant_id, p_account_id, horizon, next_transaction, now);
END $$;

-- Records an event. Its transaction's number is that of the coordinator, which the feed's horizon counts in.
CREATE OR REPLACE FUNCTION event_record_on_shard(
    p_merchant_id uuid, p_event jsonb, p_now timestamptz, p_transaction xid8
) RETURNS void LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    event record;
BEGIN
    SELECT e.* INTO event FROM jsonb_to_record(p_event)
        AS e (type text, object_id uuid, data jsonb, traceparent text, tracestate text);
    PERFORM public.number_hold(p_transaction);
    INSERT INTO public.events (merchant_id, id, created_at, type, object_id, data, traceparent, tracestate, transaction_id)
    VALUES (p_merchant_id, public.uuid_v7(p_now), p_now, event.type, event.object_id, event.data, event.traceparent,
        event.tracestate, p_transaction);
END $$;

CREATE OR REPLACE FUNCTION event_record(p_merchant_id uuid, p_event jsonb) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    now timestamptz := clock_timestamp();
    transaction xid8 := pg_current_xact_id();
BEGIN
    PERFORM public.require_merchant(p_merchant_id);
    PERFORM FROM public.event_record_on_shard(p_merchant_id, p_event, now, transaction);
END $$;

-- Writes a new charge with its journal entry and its event. Returns the id of the charge that it looks like, if it was asked to look.
CREATE OR REPLACE FUNCTION charge_write_on_shard(
    p_merchant_id uuid, p_effects jsonb, p_entry_id uuid, p_now timestamptz, p_transaction xid8, p_next_transaction xid8
) RETURNS uuid LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    charge public.charges := jsonb_populate_record(NULL::public.charges, p_effects->'charge');
    entry record;
    alike uuid;
BEGIN
    IF p_effects ? 'alike' THEN
        alike := public.charge_alike(p_merchant_id, charge.id, (p_effects->'alike'->>'since')::uuid, charge.reference,
            charge.currency, charge.amount, charge.payment_method);
    END IF;
    SELECT e.* INTO entry FROM jsonb_to_record(nullif(p_effects->'entry', 'null'))
        AS e (source text, kinds text[], currencies text[], amounts numeric[]);
    IF entry.source IS NOT NULL THEN
        PERFORM public.ledger_post_on_shard(p_merchant_id, p_entry_id, entry.source, entry.kinds, entry.currencies,
            entry.amounts, p_now, p_transaction, p_next_transaction);
    END IF;
    INSERT INTO public.charges (merchant_id, id, status, currency, amount, amount_captured, fee, payment_method, capture,
        description, reference, metadata, failure_code, failure_decline_code, failure_message, authorization_id, created_at,
        captured_at)
    VALUES (p_merchant_id, charge.id, charge.status, charge.currency, charge.amount, charge.amount_captured, charge.fee,
        charge.payment_method, charge.capture, charge.description, charge.reference, charge.metadata, charge.failure_code,
        charge.failure_decline_code, charge.failure_message, charge.authorization_id, charge.created_at, charge.captured_at);
    PERFORM public.event_record_on_shard(p_merchant_id, p_effects->'event', p_now, p_transaction);
    RETURN alike;
END $$;

CREATE OR REPLACE FUNCTION charge_write(p_merchant_id uuid, p_effects jsonb) RETURNS uuid
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    now timestamptz := clock_timestamp();
    entry_id uuid := public.uuid_v7(now);
    transaction xid8 := pg_current_xact_id();
    next_transaction xid8 := pg_snapshot_xmax(pg_current_snapshot());
    alike uuid;
BEGIN
    PERFORM public.require_merchant(p_merchant_id);
    SELECT w.alike INTO alike
    FROM public.charge_write_on_shard(p_merchant_id, p_effects, entry_id, now, transaction, next_transaction) AS w (alike);
    RETURN alike;
END $$;

-- Writes the changes of one operation. The ledger comes first, which may refuse. The rows that are changed are locked by now, or
-- nobody else can change them. Events get times of their own, and so ids in their order.
CREATE OR REPLACE FUNCTION changes_write_on_shard(
    p_merchant_id uuid, p_effects jsonb, p_entry_id uuid, p_now timestamptz, p_transaction xid8, p_next_transaction xid8
) RETURNS void LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    part record;
    charge public.charges;
    refund public.refunds;
    payout public.payouts;
BEGIN
    IF p_effects ? 'hold' THEN
        SELECT e.* INTO part FROM jsonb_to_record(p_effects->'hold') AS e (source text, currency text, amount numeric);
        PERFORM public.ledger_hold_on_shard(p_merchant_id, part.source, part.currency, part.amount, p_now,
            p_next_transaction);
    END IF;
    IF p_effects ? 'release' THEN
        PERFORM public.ledger_release_on_shard(p_merchant_id, p_effects->'release'->>'source');
    END IF;
    IF p_effects ? 'entry' THEN
        SELECT e.* INTO part FROM jsonb_to_record(p_effects->'entry')
            AS e (source text, kinds text[], currencies text[], amounts numeric[]);
        PERFORM public.ledger_post_on_shard(p_merchant_id, p_entry_id, part.source, part.kinds, part.currencies, part.amounts,
            p_now, p_transaction, p_next_transaction);
    END IF;
    IF p_effects ? 'charge' THEN
        charge := jsonb_populate_record(NULL::public.charges, p_effects->'charge');
        UPDATE public.charges SET status = charge.status, amount_captured = charge.amount_captured,
            amount_refunded = charge.amount_refunded, amount_refund_pending = charge.amount_refund_pending, fee = charge.fee,
            in_flight = charge.in_flight, description = charge.description, metadata = charge.metadata,
            failure_code = charge.failure_code, failure_decline_code = charge.failure_decline_code,
            failure_message = charge.failure_message, captured_at = charge.captured_at, canceled_at = charge.canceled_at
        WHERE merchant_id = p_merchant_id AND id = charge.id;
    END IF;
    IF p_effects ? 'new_refund' THEN
        refund := jsonb_populate_record(NULL::public.refunds, p_effects->'new_refund');
        INSERT INTO public.refunds (merchant_id, id, charge_id, status, amount, currency, reason, metadata, created_at)
        VALUES (p_merchant_id, refund.id, refund.charge_id, refund.status, refund.amount, refund.currency, refund.reason,
            refund.metadata, refund.created_at);
    END IF;
    IF p_effects ? 'refund' THEN
        refund := jsonb_populate_record(NULL::public.refunds, p_effects->'refund');
        UPDATE public.refunds SET status = refund.status, failed_at = refund.failed_at, failure_code = refund.failure_code,
            failure_message = refund.failure_message
        WHERE merchant_id = p_merchant_id AND id = refund.id;
    END IF;
    IF p_effects ? 'new_payout' THEN
        payout := jsonb_populate_record(NULL::public.payouts, p_effects->'new_payout');
        INSERT INTO public.payouts (merchant_id, id, status, amount, currency, destination, metadata, created_at)
        VALUES (p_merchant_id, payout.id, payout.status, payout.amount, payout.currency, payout.destination, payout.metadata,
            payout.created_at);
    END IF;
    IF p_effects ? 'payout' THEN
        payout := jsonb_populate_record(NULL::public.payouts, p_effects->'payout');
        UPDATE public.payouts SET status = payout.status, settled_at = payout.settled_at, failure_code = payout.failure_code,
            failure_message = payout.failure_message, decided_at = payout.decided_at
        WHERE merchant_id = p_merchant_id AND id = payout.id;
    END IF;
    FOR part IN SELECT e.event, e.number FROM jsonb_array_elements(p_effects->'events') WITH ORDINALITY AS e (event, number)
                ORDER BY e.number
    LOOP
        PERFORM public.event_record_on_shard(p_merchant_id, part.event, p_now + part.number * interval '1 microsecond',
            p_transaction);
    END LOOP;
END $$;

CREATE OR REPLACE FUNCTION changes_write(p_merchant_id uuid, p_effects jsonb) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    now timestamptz := clock_timestamp();
    entry_id uuid := public.uuid_v7(now);
    transaction xid8 := pg_current_xact_id();
    next_transaction xid8 := pg_snapshot_xmax(pg_current_snapshot());
BEGIN
    PERFORM public.require_merchant(p_merchant_id);
    PERFORM FROM public.changes_write_on_shard(p_merchant_id, p_effects, entry_id, now, transaction, next_transaction);
END $$;

-- The deliveries of new events, at the time of the event: the clocks of nodes may differ.
CREATE OR REPLACE FUNCTION events_fan_out() RETURNS trigger
    LANGUAGE plpgsql SET search_path = public, pg_catalog, pg_temp AS $$
DECLARE
    event record;
    endpoint record;
BEGIN
    FOR event IN SELECT n.merchant_id, n.id, n.type, n.created_at FROM new_events n LOOP
        FOR endpoint IN SELECT e.id FROM webhook_endpoints e
            WHERE e.merchant_id = event.merchant_id AND e.status = 'enabled' AND e.event_types && ARRAY['*', event.type]
        LOOP
            INSERT INTO webhook_deliveries (merchant_id, id, event_id, endpoint_id, due_at, created_at)
            VALUES (event.merchant_id, uuid_v7(event.created_at), event.id, endpoint.id, event.created_at, event.created_at);
        END LOOP;
    END LOOP;
    RETURN NULL;
END $$;

-- Deletes up to p_batch deliveries of one merchant that are older than p_deliveries_before, and up to p_batch events older than
-- p_events_before with their deliveries.
--
-- Locks: the rows, and skips those that others have locked.
CREATE OR REPLACE FUNCTION events_prune_on_shard(
    p_merchant_id uuid, p_events_before timestamptz, p_deliveries_before timestamptz, p_batch integer,
    OUT events_deleted bigint, OUT deliveries_deleted bigint
) LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    youngest timestamptz := statement_timestamp() - interval '23 hours';
    old uuid[];
BEGIN
    PERFORM public.require_shard();
    IF (p_events_before <= youngest AND p_deliveries_before <= youngest) IS NOT TRUE THEN
        RAISE EXCEPTION 'events and deliveries are kept for a day at least'
            USING ERRCODE = 'check_violation', CONSTRAINT = 'events_prune_keep', TABLE = 'events',
                DETAIL = 'constraint "events_prune_keep"';
    END IF;
    IF (p_batch >= 1) IS NOT TRUE THEN
        RAISE EXCEPTION 'a batch has at least one row'
            USING ERRCODE = 'check_violation', CONSTRAINT = 'events_prune_batch', TABLE = 'events',
                DETAIL = 'constraint "events_prune_batch"';
    END IF;
    SELECT array_agg(d.id) INTO old FROM (
        SELECT id FROM public.webhook_deliveries
        WHERE merchant_id = p_merchant_id AND id < public.uuid_v7_lowest(p_deliveries_before)
        ORDER BY id LIMIT p_batch FOR UPDATE SKIP LOCKED) d;
    DELETE FROM public.webhook_deliveries WHERE merchant_id = p_merchant_id AND id = ANY (old);
    GET DIAGNOSTICS deliveries_deleted = ROW_COUNT;
    SELECT array_agg(e.id) INTO old FROM (
        SELECT id FROM public.events
        WHERE merchant_id = p_merchant_id AND id < public.uuid_v7_lowest(p_events_before)
        ORDER BY id LIMIT p_batch FOR UPDATE SKIP LOCKED) e;
    DELETE FROM public.events WHERE merchant_id = p_merchant_id AND id = ANY (old);
    GET DIAGNOSTICS events_deleted = ROW_COUNT;
    DELETE FROM public.webhook_deliveries WHERE merchant_id = p_merchant_id AND event_id = ANY (old);
END $$;
REVOKE EXECUTE ON FUNCTION events_prune_on_shard FROM PUBLIC;
GRANT EXECUTE ON FUNCTION events_prune_on_shard TO oncepay_app;

-- Records that events from before this time are deleted. Comes before the deletion: a missing event must never look like one that was
-- lost.
CREATE OR REPLACE FUNCTION event_retention_note(p_events_before timestamptz) RETURNS void
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF (p_events_before <= statement_timestamp() - interval '1 day') IS NOT TRUE THEN
        RAISE EXCEPTION 'events are kept for a day at least'
            USING ERRCODE = 'check_violation', CONSTRAINT = 'events_prune_keep', TABLE = 'events',
                DETAIL = 'constraint "events_prune_keep"';
    END IF;
    INSERT INTO public.event_retention AS r (events_before) VALUES (p_events_before)
    ON CONFLICT (one) DO UPDATE SET events_before = excluded.events_before WHERE r.events_before < excluded.events_before;
END $$;
REVOKE EXECUTE ON FUNCTION event_retention_note FROM PUBLIC;
GRANT EXECUTE ON FUNCTION event_retention_note TO oncepay_app;

-- Refuses to update columns that the service isn't granted, as privileges on columns would.
CREATE OR REPLACE FUNCTION columns_refuse_update() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT pg_has_role((SELECT c.relowner FROM pg_class c WHERE c.oid = TG_RELID), 'USAGE') THEN
        RAISE EXCEPTION 'permission denied for table %', TG_TABLE_NAME USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NULL;
END $$;

-- The accounts of a merchant with their balances, debits positive, and what is set aside of them. One query, so of one moment.
CREATE OR REPLACE FUNCTION ledger_balances(p_merchant_id uuid) RETURNS TABLE (
    id uuid, kind text, currency text, balance numeric, held numeric
) LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    next_transaction xid8 := pg_snapshot_xmax(pg_current_snapshot());
BEGIN
    RETURN QUERY SELECT a.id, a.kind, a.currency,
        coalesce(c.balance, 0) + coalesce((
            SELECT sum(p.amount) FROM public.postings p
            WHERE p.merchant_id = p_merchant_id AND p.account_id = a.id AND p.transaction_id >= coalesce(c.horizon, '0')), 0),
        coalesce((SELECT sum(h.amount) FROM public.ledger_holds h
            WHERE h.merchant_id = p_merchant_id AND h.account_id = a.id), 0)
    FROM public.ledger_accounts a
    LEFT JOIN public.ledger_checkpoints c
        ON c.merchant_id = p_merchant_id AND c.account_id = a.id AND c.horizon <= next_transaction
    WHERE a.merchant_id = p_merchant_id;
END $$;

-- What a merchant has in each currency: available, pending, in transit. One query, so of one moment.
CREATE OR REPLACE FUNCTION merchant_balances(p_merchant_id uuid) RETURNS TABLE (
    currency text, available numeric, pending numeric, in_transit numeric
) LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    next_transaction xid8 := pg_snapshot_xmax(pg_current_snapshot());
BEGIN
    RETURN QUERY SELECT part.currency, sum(part.available), sum(part.pending), sum(part.in_transit) FROM (
        SELECT a.currency, CASE a.kind WHEN 'merchant_payable' THEN -account.balance - account.held ELSE 0 END AS available,
            0 AS pending, CASE a.kind WHEN 'payouts_in_transit' THEN -account.balance ELSE 0 END AS in_transit
        FROM public.ledger_accounts a
        LEFT JOIN public.ledger_checkpoints c
            ON c.merchant_id = p_merchant_id AND c.account_id = a.id AND c.horizon <= next_transaction
        CROSS JOIN LATERAL (SELECT
            coalesce(c.balance, 0) + coalesce((
                SELECT sum(p.amount) FROM public.postings p
                WHERE p.merchant_id = p_merchant_id AND p.account_id = a.id
                    AND p.transaction_id >= coalesce(c.horizon, '0')), 0) AS balance,
            coalesce((SELECT sum(h.amount) FROM public.ledger_holds h
                WHERE h.merchant_id = p_merchant_id AND h.account_id = a.id), 0) AS held) AS account
        WHERE a.merchant_id = p_merchant_id AND a.kind IN ('merchant_payable', 'payouts_in_transit')
        UNION ALL
        SELECT a.currency, 0, 0, 0 FROM public.ledger_accounts a WHERE a.merchant_id = p_merchant_id
        UNION ALL
        SELECT c.currency, 0, c.amount, 0 FROM public.charges c
        WHERE c.merchant_id = p_merchant_id AND c.status IN ('requires_capture', 'processing')) AS part
    GROUP BY part.currency;
END $$;

-- Stores the outcome of an attempt at a delivery, if it's that of the last attempt and isn't stored yet, and what it says of the
-- endpoint. state is null if it isn't. p_too_old: what has been tried since before is given up.
--
-- Locks: the delivery, then the endpoint if that changes.
CREATE OR REPLACE FUNCTION delivery_note_on_shard(
    p_merchant_id uuid, p_id uuid, p_number integer, p_tried_since timestamptz, p_has_succeeded boolean, p_pause interval,
    p_retry_after interval, p_attempt jsonb, p_now timestamptz, p_too_old timestamptz,
    OUT state text, OUT endpoint_is_given_up boolean
) LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    delivery record;
    v_completed_at timestamptz;
    endpoint record;
    -- A name of its own: that of the column is that of a parameter, too.
    v_state text := CASE WHEN p_has_succeeded THEN 'succeeded' WHEN p_tried_since < p_too_old THEN 'failed' ELSE 'pending' END;
BEGIN
    SELECT d.endpoint_id, d.due_at INTO delivery FROM public.webhook_deliveries d
    WHERE d.merchant_id = p_merchant_id AND d.id = p_id AND d.attempt_count = p_number AND d.completed_at IS NULL
        AND d.claimed_until > '-infinity' FOR UPDATE;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    IF NOT p_has_succeeded THEN
        delivery.due_at := p_now + p_pause;
    END IF;
    IF v_state <> 'pending' THEN
        v_completed_at := p_now;
    END IF;
    UPDATE public.webhook_deliveries d SET state = v_state, completed_at = v_completed_at, due_at = delivery.due_at,
        claimed_until = '-infinity', attempts = d.attempts || p_attempt
    WHERE d.merchant_id = p_merchant_id AND d.id = p_id;
    state := v_state;
    SELECT e.status, e.failing_since, e.first_accepted_at, e.paused_until INTO endpoint FROM public.webhook_endpoints e
    WHERE e.merchant_id = p_merchant_id AND e.id = delivery.endpoint_id;
    endpoint_is_given_up := NOT p_has_succeeded AND endpoint.status = 'enabled'
        AND coalesce(endpoint.failing_since < p_too_old, false);
    IF (endpoint.failing_since IS NULL) <> p_has_succeeded OR p_has_succeeded AND endpoint.first_accepted_at IS NULL
        OR NOT p_has_succeeded AND p_retry_after IS NOT NULL
    THEN
        SELECT e.status, e.failing_since, e.first_accepted_at, e.paused_until INTO endpoint FROM public.webhook_endpoints e
        WHERE e.merchant_id = p_merchant_id AND e.id = delivery.endpoint_id FOR NO KEY UPDATE;
        IF p_has_succeeded THEN
            endpoint.failing_since := NULL;
            endpoint.first_accepted_at := coalesce(endpoint.first_accepted_at, p_now);
            endpoint.paused_until := NULL;
        ELSE
            endpoint.failing_since := coalesce(endpoint.failing_since, p_now);
            endpoint.paused_until := greatest(endpoint.paused_until, p_now + p_retry_after);
        END IF;
        UPDATE public.webhook_endpoints e SET failing_since = endpoint.failing_since,
            first_accepted_at = endpoint.first_accepted_at, paused_until = endpoint.paused_until
        WHERE e.merchant_id = p_merchant_id AND e.id = delivery.endpoint_id;
    END IF;
END $$;

-- Many entries, each as ledger_post posts it.
CREATE OR REPLACE FUNCTION ledger_post_all(
    p_merchant_ids uuid[], p_sources text[],
    p_entries integer[], p_lines bigint[], p_kinds text[], p_currencies text[], p_amounts numeric[]
) RETURNS void LANGUAGE plpgsql VOLATILE SECURITY INVOKER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    entry record;
BEGIN
    IF EXISTS (SELECT FROM unnest(p_entries) AS l (entry)
               WHERE (l.entry BETWEEN 1 AND cardinality(p_merchant_ids)) IS NOT TRUE) THEN
        RAISE EXCEPTION 'each line needs an entry'
            USING ERRCODE = 'check_violation', CONSTRAINT = 'postings_lines', TABLE = 'postings',
                DETAIL = 'constraint "postings_lines"';
    END IF;
    FOR entry IN
        SELECT e.merchant_id, e.source, l.kinds, l.currencies, l.amounts
        FROM unnest(p_merchant_ids, p_sources) WITH ORDINALITY AS e (merchant_id, source, number)
        LEFT JOIN LATERAL (
            SELECT array_agg(l.kind ORDER BY l.line) AS kinds, array_agg(l.currency ORDER BY l.line) AS currencies,
                array_agg(l.amount ORDER BY l.line) AS amounts
            FROM unnest(p_entries, p_lines, p_kinds, p_currencies, p_amounts) AS l (entry, line, kind, currency, amount)
            WHERE l.entry = e.number) l ON true
        ORDER BY e.number
    LOOP
        PERFORM public.ledger_post(entry.merchant_id, public.uuid_v7(), entry.source, entry.kinds, entry.currencies,
            entry.amounts);
    END LOOP;
END $$;

-- The retention of all merchants, for people. The service goes from merchant to merchant, in a transaction for each.
CREATE OR REPLACE FUNCTION events_prune(
    p_keep_events interval, p_keep_deliveries interval, p_batch integer, p_after uuid,
    OUT events_deleted bigint, OUT deliveries_deleted bigint, OUT next_after uuid
) LANGUAGE plpgsql VOLATILE SECURITY INVOKER SET search_path = pg_catalog, pg_temp SET "TimeZone" = 'UTC' AS $$
DECLARE
    events_before timestamptz := date_trunc('milliseconds', statement_timestamp() - p_keep_events);
    deliveries_before timestamptz := statement_timestamp() - p_keep_deliveries;
    youngest timestamptz := statement_timestamp() - interval '1 day';
    of_merchant record;
    merchant uuid;
    merchants uuid[] := '{}';
BEGIN
    IF (events_before <= youngest AND deliveries_before <= youngest) IS NOT TRUE THEN
        RAISE EXCEPTION 'events and deliveries are kept for a day at least'
            USING ERRCODE = 'check_violation', CONSTRAINT = 'events_prune_keep', TABLE = 'events',
                DETAIL = 'constraint "events_prune_keep"';
    END IF;
    IF (p_batch >= 1) IS NOT TRUE THEN
        RAISE EXCEPTION 'a batch has at least one row'
            USING ERRCODE = 'check_violation', CONSTRAINT = 'events_prune_batch', TABLE = 'events',
                DETAIL = 'constraint "events_prune_batch"';
    END IF;
    events_deleted := 0;
    deliveries_deleted := 0;
    FOR merchant IN
        SELECT m.merchant_id FROM public.merchants m
        WHERE m.merchant_id > coalesce(p_after, '00000000-0000-0000-0000-000000000000') ORDER BY 1 LIMIT p_batch
    LOOP
        merchants := merchants || merchant;
    END LOOP;
    FOREACH merchant IN ARRAY merchants LOOP
        SELECT p.* INTO of_merchant
        FROM public.events_prune_on_shard(merchant, events_before, deliveries_before, p_batch) AS p;
        events_deleted := events_deleted + of_merchant.events_deleted;
        deliveries_deleted := deliveries_deleted + of_merchant.deliveries_deleted;
    END LOOP;
    IF events_deleted > 0 THEN
        PERFORM public.event_retention_note(events_before);
    END IF;
    next_after := merchants[p_batch];
END $$;

-- Stores the answer of a request that holds its claim; expires_at is null if it doesn't. p_now: since when the answer is kept.
CREATE OR REPLACE FUNCTION key_complete_on_shard(
    p_merchant_id uuid, p_key text, p_token uuid, p_status smallint, p_headers jsonb, p_body bytea, p_now timestamptz,
    OUT expires_at timestamptz, OUT waited boolean
) LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    claimed record;
    v_expires_at timestamptz;
BEGIN
    SELECT k.created_at, k.expires_at, k.waited INTO claimed FROM public.idempotency_keys k
    WHERE k.merchant_id = p_merchant_id AND k.key = p_key AND k.claim_token = p_token FOR UPDATE;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    v_expires_at := p_now + (claimed.expires_at - claimed.created_at);
    UPDATE public.idempotency_keys k SET state = 'completed', recovery_point = 'finished', claim_token = NULL,
        lease_expires_at = NULL, recover_at = NULL, parked_at = NULL, response_status = p_status, response_headers = p_headers,
        response_body = p_body, completed_at = p_now, expires_at = v_expires_at
    WHERE k.merchant_id = p_merchant_id AND k.key = p_key AND k.claim_token = p_token;
    expires_at := v_expires_at;
    waited := claimed.waited;
END $$;

-- The same, and tells the instances if one has a request that waits for the answer: they listen on the coordinator.
CREATE OR REPLACE FUNCTION key_complete(
    p_merchant_id uuid, p_key text, p_token uuid, p_status smallint, p_headers jsonb, p_body bytea, p_digest text,
    OUT expires_at timestamptz
) LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    now timestamptz := clock_timestamp();
    completed record;
BEGIN
    PERFORM public.require_merchant(p_merchant_id);
    SELECT c.expires_at, c.waited INTO completed
    FROM public.key_complete_on_shard(p_merchant_id, p_key, p_token, p_status, p_headers, p_body, now) AS c;
    expires_at := completed.expires_at;
    IF completed.waited THEN
        PERFORM pg_notify('oncepay_answers', p_digest);
    END IF;
END $$;

-- Takes over a claim of the key's life that began at p_created_at, if its lease has ended and nobody has locked it. attempts is null
-- if not.
CREATE OR REPLACE FUNCTION key_take_over_on_shard(
    p_merchant_id uuid, p_key text, p_created_at timestamptz, p_token uuid, p_request_id text, p_is_recovery boolean,
    p_now timestamptz, p_lease_ends timestamptz,
    OUT resource_id uuid, OUT attempts integer, OUT recoveries integer, OUT generation integer, OUT traceparent text,
    OUT tracestate text, OUT created_at timestamptz
) LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    abandoned record;
BEGIN
    SELECT k.resource_id, k.attempts, k.recoveries, k.generation, k.traceparent, k.tracestate, k.created_at, k.recover_at,
        k.takeovers
    INTO abandoned FROM public.idempotency_keys k
    WHERE k.merchant_id = p_merchant_id AND k.key = p_key AND k.created_at = p_created_at AND k.lease_expires_at <= p_now
        AND k.parked_at IS NULL AND (NOT p_is_recovery OR k.recover_at <= p_now)
    FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    abandoned.attempts := abandoned.attempts + 1;
    abandoned.takeovers := abandoned.takeovers + 1;
    IF p_is_recovery THEN
        abandoned.recoveries := abandoned.recoveries + 1;
        abandoned.recover_at := p_lease_ends;
    END IF;
    UPDATE public.idempotency_keys k SET claim_token = p_token, request_id = p_request_id, attempts = abandoned.attempts,
        takeovers = abandoned.takeovers, recoveries = abandoned.recoveries, lease_expires_at = p_lease_ends,
        recover_at = abandoned.recover_at
    WHERE k.merchant_id = p_merchant_id AND k.key = p_key;
    resource_id := abandoned.resource_id;
    attempts := abandoned.attempts;
    recoveries := abandoned.recoveries;
    generation := abandoned.generation;
    traceparent := abandoned.traceparent;
    tracestate := abandoned.tracestate;
    created_at := abandoned.created_at;
END $$;

CREATE OR REPLACE FUNCTION key_take_over(
    p_merchant_id uuid, p_key text, p_created_at timestamptz, p_token uuid, p_request_id text, p_is_recovery boolean,
    p_lease_s double precision,
    OUT resource_id uuid, OUT attempts integer, OUT recoveries integer, OUT generation integer, OUT traceparent text,
    OUT tracestate text, OUT created_at timestamptz, OUT taken_at timestamptz
) LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    now timestamptz := clock_timestamp();
    lease_ends timestamptz := now + make_interval(secs => p_lease_s);
    taken record;
BEGIN
    PERFORM public.require_merchant(p_merchant_id);
    SELECT t.* INTO taken FROM public.key_take_over_on_shard(p_merchant_id, p_key, p_created_at, p_token, p_request_id,
        p_is_recovery, now, lease_ends) AS t;
    resource_id := taken.resource_id;
    attempts := taken.attempts;
    recoveries := taken.recoveries;
    generation := taken.generation;
    traceparent := taken.traceparent;
    tracestate := taken.tracestate;
    created_at := taken.created_at;
    taken_at := now;
END $$;

-- Releases the lease of an attempt that ended without an outcome, and parks the request if it was the recovery worker's last. is_parked
-- is null if another attempt has taken over.
CREATE OR REPLACE FUNCTION key_release_on_shard(
    p_merchant_id uuid, p_key text, p_token uuid, p_error text, p_is_recovery boolean, p_recover_in_s double precision,
    p_pause_s double precision, p_attempts_max integer, p_now timestamptz, OUT is_parked boolean
) LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    claimed record;
    v_recover_at timestamptz;
    v_recoveries integer;
    v_parked_at timestamptz;
BEGIN
    SELECT k.recoveries, k.last_error, k.recover_at INTO claimed FROM public.idempotency_keys k
    WHERE k.merchant_id = p_merchant_id AND k.key = p_key AND k.claim_token = p_token FOR UPDATE;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    v_recover_at := greatest(
        CASE WHEN p_is_recovery AND claimed.recoveries > 0 OR claimed.last_error IS NULL
            THEN p_now + make_interval(secs => p_recover_in_s) ELSE claimed.recover_at END,
        p_now + make_interval(secs => p_pause_s));
    v_recoveries := CASE WHEN p_is_recovery AND p_pause_s IS NOT NULL THEN greatest(claimed.recoveries - 1, 0)
        ELSE claimed.recoveries END;
    v_parked_at := CASE WHEN p_is_recovery AND p_pause_s IS NULL AND claimed.recoveries >= p_attempts_max THEN p_now END;
    UPDATE public.idempotency_keys k SET lease_expires_at = p_now, last_error = p_error, recover_at = v_recover_at,
        recoveries = v_recoveries, parked_at = v_parked_at
    WHERE k.merchant_id = p_merchant_id AND k.key = p_key AND k.claim_token = p_token;
    is_parked := v_parked_at IS NOT NULL;
END $$;

CREATE OR REPLACE FUNCTION key_release(
    p_merchant_id uuid, p_key text, p_token uuid, p_error text, p_is_recovery boolean, p_recover_in_s double precision,
    p_pause_s double precision, p_attempts_max integer, OUT is_parked boolean
) LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    now timestamptz := clock_timestamp();
BEGIN
    PERFORM public.require_merchant(p_merchant_id);
    SELECT r.is_parked INTO is_parked FROM public.key_release_on_shard(p_merchant_id, p_key, p_token, p_error, p_is_recovery,
        p_recover_in_s, p_pause_s, p_attempts_max, now) AS r (is_parked);
END $$;

-- The guard of a key's life, whose times are the coordinator's. A node whose clock is behind refuses nothing that is due by those.
CREATE OR REPLACE FUNCTION idempotency_keys_guard() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    is_over boolean := OLD.expires_at <= clock_timestamp() + interval '1 minute';
BEGIN
    IF TG_OP = 'UPDATE' AND OLD.state = 'completed' AND NEW.state = 'expired' AND is_over THEN
        RETURN NEW;
    ELSIF TG_OP = 'DELETE' AND OLD.state <> 'in_progress' AND is_over THEN
        RETURN OLD;
    END IF;
    RAISE EXCEPTION 'an idempotency key that is % can''t be changed in this way', OLD.state
        USING ERRCODE = 'check_violation', CONSTRAINT = 'idempotency_keys_life', TABLE = 'idempotency_keys',
            DETAIL = 'constraint "idempotency_keys_life"';
END $$;

-- Deletes a key that is free again. Its advisory lock is the caller's.
CREATE OR REPLACE FUNCTION key_forget_on_shard(p_merchant_id uuid, p_key text, p_executes boolean, p_now timestamptz) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    stored record;
BEGIN
    SELECT k.expires_at, k.tombstone_seconds INTO stored FROM public.idempotency_keys k
    WHERE k.merchant_id = p_merchant_id AND k.key = p_key AND k.state <> 'in_progress' AND k.expires_at <= p_now FOR UPDATE;
    IF FOUND AND (p_executes OR stored.expires_at + make_interval(secs => stored.tombstone_seconds) <= p_now) THEN
        DELETE FROM public.idempotency_keys k WHERE k.merchant_id = p_merchant_id AND k.key = p_key;
    END IF;
END $$;

CREATE OR REPLACE FUNCTION key_forget(p_merchant_id uuid, p_key text, p_executes boolean) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    now timestamptz := clock_timestamp();
BEGIN
    PERFORM public.require_merchant(p_merchant_id);
    PERFORM FROM public.key_forget_on_shard(p_merchant_id, p_key, p_executes, now);
END $$;

-- Turns those of a merchant's keys whose answers have expired into tombstones. Locks each, and skips those that others have locked.
-- lag_s: the seconds for which the oldest had been due.
CREATE OR REPLACE FUNCTION keys_shrink_on_shard(
    p_merchant_id uuid, p_keys text[], p_now timestamptz, OUT count bigint, OUT lag_s double precision
) LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    due record;
    v_forget_at timestamptz;
BEGIN
    count := 0;
    FOR due IN
        SELECT k.key, k.expires_at, k.tombstone_seconds FROM public.idempotency_keys k
        WHERE k.merchant_id = p_merchant_id AND k.key = ANY (p_keys) AND k.state = 'completed' AND k.expires_at <= p_now
        FOR UPDATE SKIP LOCKED
    LOOP
        v_forget_at := due.expires_at + make_interval(secs => due.tombstone_seconds);
        UPDATE public.idempotency_keys k SET state = 'expired', forget_at = v_forget_at,
            request_query = '', request_body = '', response_headers = NULL, response_body = NULL, tracestate = NULL
        WHERE k.merchant_id = p_merchant_id AND k.key = due.key;
        count := count + 1;
        lag_s := greatest(lag_s, extract(epoch FROM p_now - due.expires_at)::double precision);
    END LOOP;
END $$;

CREATE OR REPLACE FUNCTION keys_shrink(p_merchant_id uuid, p_keys text[], OUT count bigint, OUT lag_s double precision)
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    now timestamptz := statement_timestamp();
BEGIN
    PERFORM public.require_merchant(p_merchant_id);
    SELECT s.count, s.lag_s INTO count, lag_s FROM public.keys_shrink_on_shard(p_merchant_id, p_keys, now) AS s;
END $$;

-- Deletes those of a merchant's tombstones that have expired. Otherwise as keys_shrink.
CREATE OR REPLACE FUNCTION keys_forget_on_shard(
    p_merchant_id uuid, p_keys text[], p_now timestamptz, OUT count bigint, OUT lag_s double precision
) LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    due record;
BEGIN
    count := 0;
    FOR due IN
        SELECT k.key, k.forget_at FROM public.idempotency_keys k
        WHERE k.merchant_id = p_merchant_id AND k.key = ANY (p_keys) AND k.state = 'expired' AND k.forget_at <= p_now
        FOR UPDATE SKIP LOCKED
    LOOP
        DELETE FROM public.idempotency_keys k WHERE k.merchant_id = p_merchant_id AND k.key = due.key;
        count := count + 1;
        lag_s := greatest(lag_s, extract(epoch FROM p_now - due.forget_at)::double precision);
    END LOOP;
END $$;

CREATE OR REPLACE FUNCTION keys_forget(p_merchant_id uuid, p_keys text[], OUT count bigint, OUT lag_s double precision)
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    now timestamptz := statement_timestamp();
BEGIN
    PERFORM public.require_merchant(p_merchant_id);
    SELECT s.count, s.lag_s INTO count, lag_s FROM public.keys_forget_on_shard(p_merchant_id, p_keys, now) AS s;
END $$;

-- The planner's estimate of the rows of the table of keys, on all nodes, -1 where there is none; its size in bytes with all indexes, and
-- that of the indexes. A node that doesn't answer counts for nothing.
DROP FUNCTION IF EXISTS idempotency_keys_size();
CREATE OR REPLACE FUNCTION idempotency_keys_size(OUT estimated_rows bigint, OUT bytes bigint, OUT index_bytes bigint)
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    IF EXISTS (SELECT FROM pg_extension WHERE extname = 'citus') THEN
        EXECUTE $q$
            SELECT coalesce(sum(nullif((r.result::json ->> 'rows')::bigint, -1)), -1), coalesce(sum((r.result::json ->> 'bytes')::bigint), 0),
                coalesce(sum((r.result::json ->> 'index_bytes')::bigint), 0)
            FROM (SELECT CASE WHEN success THEN result END AS result FROM run_command_on_workers($r$
                SELECT json_build_object('rows', coalesce(sum(c.reltuples::bigint) FILTER (WHERE c.reltuples >= 0), -1),
                    'bytes', sum(pg_total_relation_size(c.oid)), 'index_bytes', sum(pg_indexes_size(c.oid)))
                FROM pg_class c WHERE c.relkind = 'r' AND c.relnamespace = 'public'::regnamespace AND c.relname ~ '^idempotency_keys_[0-9]+$'
            $r$)) r $q$ INTO estimated_rows, bytes, index_bytes;
    ELSE
        SELECT c.reltuples::bigint, pg_total_relation_size(c.oid), pg_indexes_size(c.oid) INTO estimated_rows, bytes, index_bytes
        FROM pg_class c WHERE c.oid = 'public.idempotency_keys'::regclass;
    END IF;
END $$;

-- Sizes of keys that aren't in progress, by operation, from a part of each shard.
CREATE OR REPLACE FUNCTION idempotency_keys_sample(p_percent double precision)
    RETURNS TABLE (operation text, is_tombstone boolean, bytes numeric, sampled_rows bigint)
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    sample text := 'SELECT k.operation, k.state = ''expired'' AS is_tombstone, sum(pg_column_size(k.*)) AS bytes, count(*) AS sampled_rows '
        || 'FROM %s k TABLESAMPLE SYSTEM (' || p_percent || ') WHERE k.state <> ''in_progress'' GROUP BY 1, 2';
BEGIN
    IF EXISTS (SELECT FROM pg_extension WHERE extname = 'citus') THEN
        RETURN QUERY EXECUTE 'SELECT s.* FROM run_command_on_shards(''idempotency_keys'', $1) r, '
            || 'json_to_recordset(CASE WHEN r.success THEN r.result ELSE ''[]'' END::json) '
            || 'AS s (operation text, is_tombstone boolean, bytes numeric, sampled_rows bigint)'
            USING 'SELECT coalesce(json_agg(sampled), ''[]'') FROM (' || sample || ') sampled';
    ELSE
        RETURN QUERY EXECUTE 'SELECT s.operation, s.is_tombstone, s.bytes::numeric, s.sampled_rows FROM ('
            || replace(sample, '%s', 'idempotency_keys') || ') s';
    END IF;
END $$;
