-- The processor can refuse a refund or payout for good, and an operator can give one up that nobody can finish. Then it has
-- failed without having been made, and what was set aside for it is free again. A payout can also come back from the bank
-- after it arrived.
SET LOCAL lock_timeout = '1s';

ALTER TABLE refunds
    ADD COLUMN failure_code text,
    ADD COLUMN failure_message text,
    ADD CONSTRAINT refunds_failure CHECK (failure_code IS NULL AND failure_message IS NULL
        OR status = 'failed' AND failure_code IS NOT NULL AND failure_message IS NOT NULL) NOT VALID;
COMMENT ON COLUMN refunds.failure_code IS 'Why it failed: refund_refused and request_abandoned say that it was never made, refund_returned that the money came back. Null for those that came back before there was this column.';
COMMENT ON COLUMN refunds.failure_message IS 'The same for people.';
GRANT UPDATE (failure_code, failure_message) ON refunds TO oncepay_app;

ALTER TABLE payouts
    ADD COLUMN failure_code text,
    ADD COLUMN failure_message text,
    ADD COLUMN decided_at timestamptz,
    ADD CONSTRAINT payouts_failure CHECK (failure_code IS NULL AND failure_message IS NULL
        OR status = 'failed' AND failure_code IS NOT NULL AND failure_message IS NOT NULL) NOT VALID;
COMMENT ON COLUMN payouts.failure_code IS 'Why it failed: payout_refused and request_abandoned say that it was never made, payout_returned that the money came back. Null for those that came back before there was this column.';
COMMENT ON COLUMN payouts.failure_message IS 'The same for people.';
COMMENT ON COLUMN payouts.decided_at IS 'When it arrived or came back, by the processor''s clock: an older notice that comes later changes nothing. Null where the processor doesn''t tell.';
GRANT UPDATE (failure_code, failure_message, decided_at) ON payouts TO oncepay_app;

CREATE OR REPLACE FUNCTION refunds_refuse_transition() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF (OLD.status, NEW.status) NOT IN (('pending', 'succeeded'), ('pending', 'failed'), ('succeeded', 'failed')) THEN
        RAISE EXCEPTION 'a refund can''t become % when it is %', NEW.status, OLD.status
            USING ERRCODE = 'check_violation', CONSTRAINT = 'refunds_transition', TABLE = 'refunds';
    END IF;
    RETURN NEW;
END $$;

CREATE OR REPLACE FUNCTION payouts_refuse_transition() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF (OLD.status, NEW.status) NOT IN (
        ('pending', 'in_transit'), ('pending', 'failed'),
        ('in_transit', 'paid'), ('in_transit', 'failed'), ('paid', 'failed'))
    THEN
        RAISE EXCEPTION 'a payout can''t become % when it is %', NEW.status, OLD.status
            USING ERRCODE = 'check_violation', CONSTRAINT = 'payouts_transition', TABLE = 'payouts';
    END IF;
    RETURN NEW;
END $$;

-- Frees the money that was set aside for the entry of p_source, which will not come. No lock is needed: whoever computes
-- what can be spent meanwhile finds less than there is, not more.
CREATE FUNCTION ledger_release(p_merchant_id uuid, p_source text) RETURNS void
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    DELETE FROM public.ledger_holds WHERE merchant_id = p_merchant_id AND source = p_source;
$$;
COMMENT ON FUNCTION ledger_release IS 'Frees money that was set aside for an entry that will not come.';
REVOKE ALL ON FUNCTION ledger_release(uuid, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION ledger_release(uuid, text) TO oncepay_app;

-- What was refused or given up is not in effect. Neither is the void of an authorization that lapsed by itself, unless
-- the processor's books have one.
CREATE OR REPLACE VIEW operations_in_effect_here AS
SELECT merchant_id, id, 'ch_' AS prefix, 'authorize' AS kind, currency, amount, created_at, status
FROM charges WHERE status <> 'failed'
UNION ALL
SELECT merchant_id, id, 'ch_', 'capture', currency, amount_captured, created_at, status
FROM charges WHERE captured_at IS NOT NULL
UNION ALL
SELECT c.merchant_id, c.id, 'ch_', 'void', NULL, NULL, c.created_at, c.status
FROM charges c WHERE c.status = 'canceled' AND (c.failure_code IS NULL OR EXISTS (
    SELECT FROM acquirer_operations o WHERE o.merchant_id = c.merchant_id AND o.object_id = c.id AND o.kind = 'void'
        AND o.status IN ('succeeded', 'pending')))
UNION ALL
SELECT merchant_id, id, 're_', 'refund', currency, amount, created_at, status
FROM refunds WHERE status <> 'pending' AND coalesce(failure_code, '') NOT IN ('refund_refused', 'request_abandoned')
UNION ALL
SELECT merchant_id, id, 'po_', 'payout', currency, amount, created_at, status
FROM payouts WHERE status <> 'pending' AND coalesce(failure_code, '') NOT IN ('payout_refused', 'request_abandoned');
