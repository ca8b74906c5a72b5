-- One row per charge. A foreign key to merchants is left out on purpose: it would lock the
-- merchant's row (FOR KEY SHARE) for every charge, and on a busy merchant that lock is what the
-- whole database would wait for. Merchants are never deleted, and only an authenticated merchant's
-- id gets here.
CREATE TABLE charges (
    merchant_id          uuid NOT NULL,
    id                   uuid NOT NULL,
    status               text NOT NULL,
    currency             text NOT NULL,
    amount               numeric(16, 4) NOT NULL,
    amount_captured      numeric(16, 4) NOT NULL DEFAULT 0,
    amount_refunded      numeric(16, 4) NOT NULL DEFAULT 0,
    fee                  numeric(16, 4) NOT NULL DEFAULT 0,
    payment_method       text NOT NULL,
    description          text,
    reference            text,
    metadata             jsonb NOT NULL DEFAULT '{}',
    failure_code         text,
    failure_decline_code text,
    failure_message      text,
    authorization_id     text,
    created_at           timestamptz NOT NULL,
    captured_at          timestamptz,
    canceled_at          timestamptz,
    PRIMARY KEY (merchant_id, id),
    CONSTRAINT charges_currency_code CHECK (currency ~ '^[A-Z]{3}$'),
    CONSTRAINT charges_amounts CHECK (
        amount > 0
        AND amount_captured BETWEEN 0 AND amount
        AND amount_refunded BETWEEN 0 AND amount_captured
        AND fee BETWEEN 0 AND amount_captured),
    CONSTRAINT charges_status CHECK (status IN ('requires_capture', 'succeeded', 'failed')),
    -- Each state and the columns that it implies; a row that contradicts its state can't be written.
    CONSTRAINT charges_requires_capture CHECK (status <> 'requires_capture' OR (
        authorization_id IS NOT NULL AND amount_captured = 0 AND captured_at IS NULL)),
    CONSTRAINT charges_succeeded CHECK (status <> 'succeeded' OR (
        authorization_id IS NOT NULL AND amount_captured > 0 AND captured_at IS NOT NULL
        AND amount_refunded = 0)),
    CONSTRAINT charges_failed CHECK ((status = 'failed') = (failure_code IS NOT NULL)
        AND (status <> 'failed' OR (amount_captured = 0 AND captured_at IS NULL))),
    CONSTRAINT charges_canceled CHECK (canceled_at IS NULL OR captured_at IS NULL)
);
COMMENT ON TABLE charges IS 'Payments from a customer to a merchant. Amounts are in the charge''s currency; fee is what the merchant paid us at capture.';
COMMENT ON COLUMN charges.authorization_id IS 'The processor''s name for the authorization; NULL while it has not approved one.';

-- What is authorized and not yet captured, for the pending figure of the balance.
CREATE INDEX charges_pending ON charges (merchant_id, currency) INCLUDE (amount)
    WHERE status = 'requires_capture';

-- What was agreed at creation (amount, currency, payment method, time) can't be changed afterwards.
GRANT SELECT, INSERT ON charges TO oncepay_app;
GRANT UPDATE (status, amount_captured, amount_refunded, fee, description, metadata, failure_code,
    failure_decline_code, failure_message, authorization_id, captured_at, canceled_at)
    ON charges TO oncepay_app;
