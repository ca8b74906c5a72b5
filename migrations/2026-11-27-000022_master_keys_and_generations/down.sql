-- Loses which keys were executed afresh, and which secrets derive from a second master key. Requests in progress with a
-- generation would call the processor under other keys: let them finish first.
SET LOCAL lock_timeout = '1s';

ALTER TABLE webhook_endpoints
    DROP COLUMN secret_key_version,
    DROP COLUMN previous_secret_key_version;
DROP TABLE master_keys;
DROP TRIGGER idempotency_keys_takeover ON idempotency_keys;
DROP FUNCTION idempotency_keys_leave;
DROP TRIGGER idempotency_keys_next_generation ON idempotency_keys;
DROP FUNCTION idempotency_keys_number;
DROP TRIGGER idempotency_keys_generation ON idempotency_keys;
DROP FUNCTION idempotency_keys_remember;
DROP TABLE forgotten_idempotency_keys;
DROP FUNCTION idempotency_key_digest;
ALTER TABLE idempotency_keys
    DROP CONSTRAINT idempotency_keys_generation,
    DROP COLUMN takeovers,
    DROP COLUMN generation;
