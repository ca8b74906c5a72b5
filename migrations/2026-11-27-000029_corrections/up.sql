-- Networks reverse disputes after their end, dispute charges that were refunded, and dispute a part of a charge. Banks return
-- payouts that arrived. What was booked stays, and a correcting entry follows, which names the entry that it corrects.
SET LOCAL lock_timeout = '1s';

ALTER TABLE disputes ADD COLUMN decided_at timestamptz;
COMMENT ON COLUMN disputes.decided_at IS 'When it was decided last, by the processor''s clock: an older decision that comes later changes nothing. Null where the processor doesn''t tell.';
GRANT UPDATE (decided_at) ON disputes TO oncepay_app;

CREATE OR REPLACE FUNCTION disputes_refuse_transition() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF (OLD.status, NEW.status) NOT IN (('open', 'won'), ('open', 'lost'), ('won', 'lost'), ('lost', 'won')) THEN
        RAISE EXCEPTION 'a dispute can''t become % when it is %', NEW.status, OLD.status
            USING ERRCODE = 'check_violation', CONSTRAINT = 'disputes_transition', TABLE = 'disputes';
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
        -- The bank takes the money although it was returned.
        ('refunded', 'disputed'),
        ('disputed', 'succeeded'), ('disputed', 'partially_refunded'), ('disputed', 'refunded'))
    THEN
        RAISE EXCEPTION 'a charge can''t become % when it is %', NEW.status, OLD.status
            USING ERRCODE = 'check_violation', CONSTRAINT = 'charges_transition', TABLE = 'charges';
    END IF;
    RETURN NEW;
END $$;

-- Why an entry corrects the books. A table of its own, since entries never change and few have one.
CREATE TABLE journal_corrections (
    merchant_id uuid NOT NULL,
    entry_id    uuid NOT NULL,
    corrects_id uuid,
    reference   text NOT NULL,
    reason      text NOT NULL,
    PRIMARY KEY (merchant_id, entry_id),
    CONSTRAINT journal_corrections_entry FOREIGN KEY (merchant_id, entry_id)
        REFERENCES journal_entries (merchant_id, id),
    CONSTRAINT journal_corrections_corrects FOREIGN KEY (merchant_id, corrects_id)
        REFERENCES journal_entries (merchant_id, id)
);
COMMENT ON TABLE journal_corrections IS 'One row per correcting entry. Append-only.';
COMMENT ON COLUMN journal_corrections.corrects_id IS 'The entry that it corrects, if there is one.';
COMMENT ON COLUMN journal_corrections.reference IS 'What it goes back to: the processor''s name for a dispute, our id of a payout, or what an operator gives.';
CREATE TRIGGER journal_corrections_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON journal_corrections
    FOR EACH STATEMENT EXECUTE FUNCTION ledger_refuse_change();
GRANT SELECT ON journal_corrections TO oncepay_app;

-- Posts an entry as ledger_post does, with its errors and locks, and says what it corrects, and why.
CREATE FUNCTION ledger_correct(
    p_merchant_id uuid, p_entry_id uuid, p_source text,
    p_kinds text[], p_currencies text[], p_amounts numeric[],
    p_corrects_id uuid, p_reference text, p_reason text
) RETURNS void LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM public.ledger_post(p_merchant_id, p_entry_id, p_source, p_kinds, p_currencies, p_amounts);
    INSERT INTO public.journal_corrections (merchant_id, entry_id, corrects_id, reference, reason)
    VALUES (p_merchant_id, p_entry_id, p_corrects_id, p_reference, p_reason);
END $$;
COMMENT ON FUNCTION ledger_correct IS 'Posts one balanced journal entry that corrects the books.';
REVOKE ALL ON FUNCTION ledger_correct(uuid, uuid, text, text[], text[], numeric[], uuid, text, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ledger_correct(uuid, uuid, text, text[], text[], numeric[], uuid, text, text) TO oncepay_app;
