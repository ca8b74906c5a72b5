-- From which master key a secret derives, so that none is told to be another one. New columns have constant defaults, and the
-- release before knows none of this: what it writes has the first master key.
SET LOCAL lock_timeout = '1s';

-- Which master keys secrets derive from. The check value identifies a key; neither the key nor a secret follows from it.
CREATE TABLE master_keys (
    version     integer PRIMARY KEY,
    check_value bytea NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT master_keys_version CHECK (version >= 1),
    CONSTRAINT master_keys_once UNIQUE (check_value),
    CONSTRAINT master_keys_check_value_length CHECK (octet_length(check_value) = 32)
);
COMMENT ON TABLE master_keys IS 'Master keys that this database has been used with. Belongs to no merchant. Append-only: an instance with a key that is not here doesn''t start, unless it also has one that is.';
COMMENT ON COLUMN master_keys.check_value IS 'HMAC of a fixed text under the key.';
GRANT SELECT, INSERT ON master_keys TO oncepay_app;

-- What was derived before has the first version. No foreign key: that version is written by the first start of the service.
ALTER TABLE webhook_endpoints
    ADD COLUMN secret_key_version          integer NOT NULL DEFAULT 1,
    ADD COLUMN previous_secret_key_version integer NOT NULL DEFAULT 1;
COMMENT ON COLUMN webhook_endpoints.secret_key_version IS 'Version of the master key from which the current secret derives.';
COMMENT ON COLUMN webhook_endpoints.previous_secret_key_version IS 'The same of the secret before it, while that signs along.';
GRANT UPDATE (secret_key_version, previous_secret_key_version) ON webhook_endpoints TO oncepay_app;
