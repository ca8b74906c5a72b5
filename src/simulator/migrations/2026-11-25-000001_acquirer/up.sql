-- Everything that the acquirer knows. It shares nothing with Oncepay but the protocol.

CREATE TABLE authorizations (
    id         text PRIMARY KEY,
    status     text NOT NULL,
    amount     numeric NOT NULL,
    currency   text NOT NULL,
    captured   numeric NOT NULL DEFAULT 0,
    refunded   numeric NOT NULL DEFAULT 0,
    CONSTRAINT authorizations_status CHECK (status IN ('pending', 'open', 'captured', 'voided', 'declined')),
    CONSTRAINT authorizations_captured CHECK (captured BETWEEN 0 AND amount),
    CONSTRAINT authorizations_refunded CHECK (refunded BETWEEN 0 AND captured)
);

CREATE TABLE operations (
    id               text PRIMARY KEY,
    sequence         bigint NOT NULL DEFAULT pg_current_xact_id()::text::bigint,
    kind             text NOT NULL,
    idempotency_key  text NOT NULL,
    target           text NOT NULL,
    status           text NOT NULL,
    decline_code     text,
    refusal          jsonb,
    authorization_id text,
    amount           numeric,
    currency         text,
    merchant         text NOT NULL,
    reference        text NOT NULL,
    created_at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    decide_at        timestamptz,
    settlement_id    text,
    CONSTRAINT operations_key UNIQUE (idempotency_key),
    CONSTRAINT operations_sequence UNIQUE (sequence),
    CONSTRAINT operations_kind CHECK (kind IN ('authorize', 'capture', 'void', 'refund', 'payout')),
    CONSTRAINT operations_status
        CHECK (status IN ('pending', 'succeeded', 'declined', 'refused', 'failed', 'paid')),
    CONSTRAINT operations_pending CHECK ((status = 'pending') = (decide_at IS NOT NULL)),
    CONSTRAINT operations_refusal CHECK ((status = 'refused') = (refusal IS NOT NULL)),
    CONSTRAINT operations_amount CHECK ((amount IS NULL) = (currency IS NULL) AND amount > 0)
);
COMMENT ON COLUMN operations.sequence IS 'Id of the transaction that wrote the status. Readers go by it, see the query of the list. It ties the table to its server: a dump restored elsewhere needs new numbers.';
COMMENT ON CONSTRAINT operations_sequence ON operations IS 'At most one operation per transaction.';
COMMENT ON COLUMN operations.target IS 'What was acted on: payment method, authorization or destination, as requested.';
COMMENT ON COLUMN operations.decide_at IS 'When a pending operation is decided.';

CREATE INDEX operations_undecided ON operations (decide_at) WHERE decide_at IS NOT NULL;
CREATE INDEX operations_unsettled ON operations (merchant, currency)
    WHERE settlement_id IS NULL AND status = 'succeeded' AND kind IN ('capture', 'refund');

CREATE TABLE failed_once (
    idempotency_key text PRIMARY KEY
);
COMMENT ON TABLE failed_once IS 'Keys with pm_card_error_once that have had their failure.';

CREATE TABLE settlements (
    id              text PRIMARY KEY,
    merchant        text NOT NULL,
    currency        text NOT NULL,
    amount          numeric NOT NULL,
    operation_count bigint NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT settlements_amount CHECK (amount > 0)
);

CREATE TABLE outbox (
    id             text PRIMARY KEY,
    type           text NOT NULL,
    body           text NOT NULL,
    deliveries_due integer NOT NULL,
    attempts       integer NOT NULL DEFAULT 0,
    due_at         timestamptz NOT NULL,
    created_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    delivered_at   timestamptz,
    CONSTRAINT outbox_deliveries_due CHECK (deliveries_due >= 0)
);
COMMENT ON COLUMN outbox.body IS 'The bytes that are signed and sent, each time the same.';
COMMENT ON COLUMN outbox.due_at IS 'When it''s sent next. Claiming moves it to the end of the claim, so what a dead sender had claimed becomes due by itself.';
COMMENT ON COLUMN outbox.deliveries_due IS 'How often it''s still to be delivered; 0 without delivered_at means given up.';

CREATE INDEX outbox_due ON outbox (due_at) WHERE deliveries_due > 0;
