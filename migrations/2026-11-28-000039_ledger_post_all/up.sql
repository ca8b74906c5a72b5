-- A statement that completes many charges called ledger_post for each of them, which took half of its time. Two fifths of that
-- went to the call, to its statements and to the guard of the balance, which cost the same for many entries as for one.
--
-- A new function locks no table: this is safe beside load.
SET LOCAL lock_timeout = '500ms';

-- Posts many entries: that with number n, from 1, is of the merchant p_merchant_ids[n] and the source p_sources[n]. The other
-- arrays have an element per line: the number of its entry, its number in that entry, and what ledger_post takes. What is
-- left of an entry with lists of different length is null.
--
-- Entries that take nothing from a merchant, and whose accounts are there, are posted together: nothing has to be locked for
-- them, and what ledger_post would check is checked here or by the tables. If one of them is another, or breaks a rule, each
-- is posted by ledger_post, which decides.
--
-- Errors, in the order checked: a line without an entry (check_violation, postings_lines), those of ledger_post, of the first
-- entry that breaks a rule.
--
-- Locks: as ledger_post, entry by entry.
CREATE FUNCTION ledger_post_all(
    p_merchant_ids uuid[], p_sources text[],
    p_entries integer[], p_lines bigint[], p_kinds text[], p_currencies text[], p_amounts numeric[]
) RETURNS void LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    WITH entry AS MATERIALIZED (
        SELECT e.number, e.merchant_id, e.source, public.uuid_v7() AS id
        FROM unnest(p_merchant_ids, p_sources) WITH ORDINALITY AS e (merchant_id, source, number)),
    line AS MATERIALIZED (
        SELECT l.entry, e.merchant_id, e.id AS entry_id, l.line, l.kind, l.currency, l.amount, account.id AS account_id
        FROM unnest(p_entries, p_lines, p_kinds, p_currencies, p_amounts) AS l (entry, line, kind, currency, amount)
        LEFT JOIN entry e ON e.number = l.entry
        LEFT JOIN LATERAL (
            SELECT a.id FROM public.ledger_accounts a
            WHERE a.merchant_id = e.merchant_id AND a.kind = l.kind AND a.currency = l.currency LIMIT 1) account ON true),
    -- A row if all entries are plain. The table has the balance of each entry checked, its amounts other than zero, and each
    -- source once.
    plain AS MATERIALIZED (
        SELECT clock_timestamp() AS posted_at
        FROM (SELECT bool_and((account_id IS NOT NULL AND amount = round(amount, public.currency_scale(currency))
                         AND (kind <> 'merchant_payable' OR amount < 0)) IS TRUE) AS are_lines_plain,
                     count(DISTINCT entry) AS entries
              FROM line) lines,
             (SELECT bool_and((btrim(source, E' \t\r\n') <> '') IS TRUE) AS have_sources, count(*) AS entries
              FROM entry) entries
        WHERE lines.are_lines_plain AND entries.have_sources AND lines.entries = entries.entries),
    journal AS (
        INSERT INTO public.journal_entries (merchant_id, id, source, created_at)
        SELECT e.merchant_id, e.id, e.source, plain.posted_at FROM plain CROSS JOIN entry e)
    INSERT INTO public.postings (merchant_id, entry_id, line, account_id, currency, amount, created_at)
    SELECT l.merchant_id, l.entry_id, l.line, l.account_id, l.currency, l.amount, plain.posted_at
    FROM plain CROSS JOIN line l;
    IF FOUND THEN
        RETURN;
    END IF;

    IF EXISTS (SELECT FROM unnest(p_entries) AS l (entry)
               WHERE (l.entry BETWEEN 1 AND cardinality(p_merchant_ids)) IS NOT TRUE) THEN
        RAISE EXCEPTION 'each line needs an entry'
            USING ERRCODE = 'check_violation', CONSTRAINT = 'postings_lines', TABLE = 'postings';
    END IF;
    PERFORM public.ledger_post(e.merchant_id, public.uuid_v7(), e.source, l.kinds, l.currencies, l.amounts)
    FROM (SELECT * FROM unnest(p_merchant_ids, p_sources) WITH ORDINALITY AS e (merchant_id, source, number)
          ORDER BY number) e
    LEFT JOIN LATERAL (
        SELECT array_agg(l.kind ORDER BY l.line) AS kinds, array_agg(l.currency ORDER BY l.line) AS currencies,
            array_agg(l.amount ORDER BY l.line) AS amounts
        FROM unnest(p_entries, p_lines, p_kinds, p_currencies, p_amounts) AS l (entry, line, kind, currency, amount)
        WHERE l.entry = e.number) l ON true;
END $$;
COMMENT ON FUNCTION ledger_post_all IS 'Posts many journal entries, as ledger_post does one.';
REVOKE EXECUTE ON FUNCTION ledger_post_all FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ledger_post_all TO oncepay_app;
