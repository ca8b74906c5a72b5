-- One row per (merchant, idempotency key): the claim while the request runs, its answer afterwards.
-- The primary key is the arbiter of who executes: whatever else fails, two claims of one key can't
-- both be rows. No foreign key to merchants, for the reason given with charges.
CREATE TABLE idempotency_keys (
    merchant_id         uuid NOT NULL,
    key                 text COLLATE "C" NOT NULL,
    state               text NOT NULL,
    operation           text NOT NULL,
    fingerprint_version smallint NOT NULL,
    fingerprint         bytea NOT NULL,
    request_id          text NOT NULL,
    request_method      text NOT NULL,
    request_path        text NOT NULL,
    request_query       text NOT NULL,
    request_body        bytea NOT NULL,
    resource_type       text,
    resource_id         uuid,
    claim_token         uuid,
    lease_expires_at    timestamptz,
    attempts            integer NOT NULL,
    recovery_point      text NOT NULL,
    response_status     smallint,
    response_headers    jsonb,
    response_body       bytea,
    created_at          timestamptz NOT NULL,
    completed_at        timestamptz,
    expires_at          timestamptz NOT NULL,
    PRIMARY KEY (merchant_id, key),
    CONSTRAINT idempotency_keys_key_syntax CHECK (key ~ '^[\x21-\x7e]{1,255}$'),
    CONSTRAINT idempotency_keys_fingerprint_length CHECK (octet_length(fingerprint) = 32),
    CONSTRAINT idempotency_keys_state CHECK (state IN ('in_progress', 'completed')),
    CONSTRAINT idempotency_keys_in_progress CHECK ((state = 'in_progress')
        = (claim_token IS NOT NULL AND lease_expires_at IS NOT NULL)),
    CONSTRAINT idempotency_keys_completed CHECK ((state = 'completed')
        = (response_status IS NOT NULL AND response_headers IS NOT NULL
           AND response_body IS NOT NULL AND completed_at IS NOT NULL)),
    -- An answer that a retry could change must never be kept.
    CONSTRAINT idempotency_keys_only_final_answers CHECK (response_status BETWEEN 200 AND 499),
    CONSTRAINT idempotency_keys_recovery_point CHECK (
        recovery_point IN ('started', 'finished')
        AND (recovery_point = 'finished') = (state = 'completed')),
    CONSTRAINT idempotency_keys_attempts CHECK (attempts >= 1),
    CONSTRAINT idempotency_keys_resource CHECK ((resource_type IS NULL) = (resource_id IS NULL))
);
COMMENT ON TABLE idempotency_keys IS 'Claims and answers of mutating requests. The request itself is kept so that it can be finished without its client.';
COMMENT ON COLUMN idempotency_keys.claim_token IS 'The fence: only the holder of this value may complete the request. Each takeover draws a new one.';
COMMENT ON COLUMN idempotency_keys.lease_expires_at IS 'Until then the holder of the claim has the request to itself; afterwards anybody may take it over. Database clock.';
COMMENT ON COLUMN idempotency_keys.request_id IS 'Of the last attempt, which is the one that the answer was made for.';
COMMENT ON COLUMN idempotency_keys.resource_id IS 'Allocated with the claim, so that every attempt makes or finds the same resource.';
COMMENT ON COLUMN idempotency_keys.response_body IS 'The bytes that were sent, which are the bytes that every retry gets.';

GRANT SELECT, INSERT ON idempotency_keys TO oncepay_app;
GRANT UPDATE (state, request_id, claim_token, lease_expires_at, attempts, recovery_point, response_status,
    response_headers, response_body, completed_at) ON idempotency_keys TO oncepay_app;
