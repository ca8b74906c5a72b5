-- Money sent to the merchant's bank.
CREATE TABLE payouts (
    merchant_id uuid NOT NULL,
    id          uuid NOT NULL,
    status      text NOT NULL,
    amount      numeric(16, 4) NOT NULL,
    currency    text NOT NULL,
    destination text NOT NULL,
    metadata    jsonb NOT NULL DEFAULT '{}',
    created_at  timestamptz NOT NULL,
    settled_at  timestamptz,
    PRIMARY KEY (merchant_id, id),
    CONSTRAINT payouts_amount CHECK (amount > 0),
    CONSTRAINT payouts_currency_code CHECK (currency ~ '^[A-Z]{3}$'),
    CONSTRAINT payouts_status CHECK (status IN ('pending', 'in_transit', 'paid', 'failed')),
    CONSTRAINT payouts_settled_at CHECK ((status IN ('paid', 'failed')) = (settled_at IS NOT NULL))
);
COMMENT ON TABLE payouts IS 'A pending payout is one that the processor has been asked for; its amount is held in the ledger. In transit it is on its way, then paid or failed.';

CREATE FUNCTION payouts_refuse_transition() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF (OLD.status, NEW.status) NOT IN
        (('pending', 'in_transit'), ('in_transit', 'paid'), ('in_transit', 'failed'))
    THEN
        RAISE EXCEPTION 'a payout can''t become % when it is %', NEW.status, OLD.status
            USING ERRCODE = 'check_violation', CONSTRAINT = 'payouts_transition', TABLE = 'payouts';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER payouts_transition BEFORE UPDATE OF status ON payouts
    FOR EACH ROW WHEN (OLD.status IS DISTINCT FROM NEW.status) EXECUTE FUNCTION payouts_refuse_transition();

GRANT SELECT, INSERT ON payouts TO oncepay_app;
GRANT UPDATE (status, settled_at) ON payouts TO oncepay_app;
