-- Money returned to the customer, in one part or several per charge.
CREATE TABLE refunds (
    merchant_id uuid NOT NULL,
    id          uuid NOT NULL,
    charge_id   uuid NOT NULL,
    status      text NOT NULL,
    amount      numeric(16, 4) NOT NULL,
    currency    text NOT NULL,
    reason      text,
    metadata    jsonb NOT NULL DEFAULT '{}',
    created_at  timestamptz NOT NULL,
    PRIMARY KEY (merchant_id, id),
    CONSTRAINT refunds_charge FOREIGN KEY (merchant_id, charge_id) REFERENCES charges (merchant_id, id),
    CONSTRAINT refunds_amount CHECK (amount > 0),
    CONSTRAINT refunds_currency_code CHECK (currency ~ '^[A-Z]{3}$'),
    CONSTRAINT refunds_status CHECK (status IN ('pending', 'succeeded'))
);
COMMENT ON TABLE refunds IS 'A pending refund is one that the processor has been asked for; its amount is reserved in the charge and held in the ledger.';

CREATE INDEX refunds_by_charge ON refunds (merchant_id, charge_id, id);

CREATE FUNCTION refunds_refuse_transition() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF OLD.status <> 'pending' THEN
        RAISE EXCEPTION 'a refund can''t become % when it is %', NEW.status, OLD.status
            USING ERRCODE = 'check_violation', CONSTRAINT = 'refunds_transition', TABLE = 'refunds';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER refunds_transition BEFORE UPDATE OF status ON refunds
    FOR EACH ROW WHEN (OLD.status IS DISTINCT FROM NEW.status) EXECUTE FUNCTION refunds_refuse_transition();

GRANT SELECT, INSERT ON refunds TO oncepay_app;
GRANT UPDATE (status) ON refunds TO oncepay_app;
