-- Loses which secrets derive from a second master key.
SET LOCAL lock_timeout = '1s';

ALTER TABLE webhook_endpoints
    DROP COLUMN secret_key_version,
    DROP COLUMN previous_secret_key_version;
DROP TABLE master_keys;
