-- One row per charge. A foreign key to merchants is left out on purpose: it would lock the
-- merchant's row (FOR KEY SHARE) for every charge, and on a busy merchant that lock is what the
-- whole database would wait for. Merchants are never deleted, and only an authenticated merchant's
-- id gets here.
CREATE TABLE charges (
    merchant_id           uuid NOT NULL,
    id                    uuid NOT NULL,
    status                text NOT NULL,
    currency              text NOT NULL,
    amount                numeric(16, 4) NOT NULL,
    amount_captured       numeric(16, 4) NOT NULL DEFAULT 0,
    amount_refunded       numeric(16, 4) NOT NULL DEFAULT 0,
    amount_refund_pending numeric(16, 4) NOT NULL DEFAULT 0,
    fee                   numeric(16, 4) NOT NULL DEFAULT 0,
    payment_method        text NOT NULL,
    capture               boolean NOT NULL,
    in_flight             text,
    description           text,
    reference             text,
    metadata              jsonb NOT NULL DEFAULT '{}',
    failure_code          text,
    failure_decline_code  text,
    failure_message       text,
    authorization_id      text NOT NULL,
    created_at            timestamptz NOT NULL,
    captured_at           timestamptz,
    canceled_at           timestamptz,
    PRIMARY KEY (merchant_id, id),
    CONSTRAINT charges_currency_code CHECK (currency ~ '^[A-Z]{3}$'),
    CONSTRAINT charges_amounts CHECK (
        amount > 0
        AND amount_captured BETWEEN 0 AND amount
        AND amount_refunded >= 0 AND amount_refund_pending >= 0
        AND amount_refunded + amount_refund_pending <= amount_captured
        AND fee BETWEEN 0 AND amount_captured),
    -- Each state and the columns that it implies: a row that contradicts its state can't be written.
    CONSTRAINT charges_status CHECK (CASE status
        WHEN 'processing' THEN amount_captured = 0
        WHEN 'requires_capture' THEN amount_captured = 0
        WHEN 'failed' THEN amount_captured = 0
        WHEN 'canceled' THEN amount_captured = 0
        WHEN 'succeeded' THEN amount_captured > 0 AND amount_refunded = 0
        WHEN 'partially_refunded' THEN amount_refunded > 0 AND amount_refunded < amount_captured
        WHEN 'refunded' THEN amount_captured > 0 AND amount_refunded = amount_captured
        WHEN 'disputed' THEN amount_captured > 0
        ELSE false END),
    CONSTRAINT charges_captured_at CHECK ((amount_captured > 0) = (captured_at IS NOT NULL)),
    CONSTRAINT charges_canceled_at CHECK ((status = 'canceled') = (canceled_at IS NOT NULL)),
    CONSTRAINT charges_failure CHECK ((status = 'failed') = (failure_code IS NOT NULL)),
    CONSTRAINT charges_in_flight CHECK (in_flight IS NULL
        OR in_flight IN ('capture', 'cancel') AND status = 'requires_capture')
);
COMMENT ON TABLE charges IS 'Payments from a customer to a merchant. Amounts are in the charge''s currency; fee is what the merchant paid us at capture.';
COMMENT ON COLUMN charges.capture IS 'Whether the money is captured as soon as it is authorized.';
COMMENT ON COLUMN charges.in_flight IS 'A capture or cancellation that the processor has been asked for; until it is settled, no other may begin.';
COMMENT ON COLUMN charges.amount_refund_pending IS 'In refunds that the processor has been asked for and that are not settled.';
COMMENT ON COLUMN charges.authorization_id IS 'The processor''s name for the authorization, also of a declined one.';

-- The second guard of the state machine: no statement, whoever sends it, makes any other transition.
CREATE FUNCTION charges_refuse_transition() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF (OLD.status, NEW.status) NOT IN (
        ('processing', 'requires_capture'), ('processing', 'succeeded'), ('processing', 'failed'),
        ('requires_capture', 'succeeded'), ('requires_capture', 'canceled'),
        ('succeeded', 'partially_refunded'), ('succeeded', 'refunded'), ('succeeded', 'disputed'),
        ('partially_refunded', 'refunded'), ('partially_refunded', 'disputed'),
        ('disputed', 'succeeded'), ('disputed', 'partially_refunded'))
    THEN
        RAISE EXCEPTION 'a charge can''t become % when it is %', NEW.status, OLD.status
            USING ERRCODE = 'check_violation', CONSTRAINT = 'charges_transition', TABLE = 'charges';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER charges_transition BEFORE UPDATE OF status ON charges
    FOR EACH ROW WHEN (OLD.status IS DISTINCT FROM NEW.status) EXECUTE FUNCTION charges_refuse_transition();

-- For lists, newest first: whole (the primary key), and by each filter. Ids hold the time of creation.
CREATE INDEX charges_by_status ON charges (merchant_id, status, id);
CREATE INDEX charges_by_currency ON charges (merchant_id, currency, id);
CREATE INDEX charges_by_reference ON charges (merchant_id, reference, id) WHERE reference IS NOT NULL;

-- What is authorized or under way, for the pending figure of the balance.
CREATE INDEX charges_pending ON charges (merchant_id, currency) INCLUDE (amount)
    WHERE status IN ('requires_capture', 'processing');

-- What was agreed at creation (amount, currency, payment method, time) can't be changed afterwards.
GRANT SELECT, INSERT ON charges TO oncepay_app;
GRANT UPDATE (status, amount_captured, amount_refunded, amount_refund_pending, fee, in_flight, description,
    metadata, failure_code, failure_decline_code, failure_message, captured_at, canceled_at)
    ON charges TO oncepay_app;
