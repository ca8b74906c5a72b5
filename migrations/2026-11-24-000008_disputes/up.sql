-- Charges that a customer contests with the issuer. The money is taken from the merchant while a
-- dispute is open, and given back if the merchant wins.
CREATE TABLE disputes (
    merchant_id uuid NOT NULL,
    id          uuid NOT NULL,
    charge_id   uuid NOT NULL,
    status      text NOT NULL,
    amount      numeric(16, 4) NOT NULL,
    currency    text NOT NULL,
    reason      text,
    created_at  timestamptz NOT NULL,
    closed_at   timestamptz,
    PRIMARY KEY (merchant_id, id),
    CONSTRAINT disputes_charge FOREIGN KEY (merchant_id, charge_id) REFERENCES charges (merchant_id, id),
    CONSTRAINT disputes_amount CHECK (amount > 0),
    CONSTRAINT disputes_currency_code CHECK (currency ~ '^[A-Z]{3}$'),
    CONSTRAINT disputes_status CHECK (status IN ('open', 'won', 'lost')),
    CONSTRAINT disputes_closed_at CHECK ((status = 'open') = (closed_at IS NULL))
);
COMMENT ON TABLE disputes IS 'Opened, won and lost by the acquirer''s word.';

CREATE INDEX disputes_by_charge ON disputes (merchant_id, charge_id, id);

CREATE FUNCTION disputes_refuse_transition() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF OLD.status <> 'open' THEN
        RAISE EXCEPTION 'a dispute can''t become % when it is %', NEW.status, OLD.status
            USING ERRCODE = 'check_violation', CONSTRAINT = 'disputes_transition', TABLE = 'disputes';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER disputes_transition BEFORE UPDATE OF status ON disputes
    FOR EACH ROW WHEN (OLD.status IS DISTINCT FROM NEW.status) EXECUTE FUNCTION disputes_refuse_transition();

GRANT SELECT, INSERT ON disputes TO oncepay_app;
GRANT UPDATE (status, closed_at) ON disputes TO oncepay_app;
