-- Two things that the database must know so that the outside world isn't told two stories: how often a key was
-- deliberately executed afresh, and from which master key a secret derives. All new columns are nullable or have constant
-- defaults, and the release before knows none of this: what it writes is told from what this one writes.
SET LOCAL lock_timeout = '1s';

-- The processor's key for a call derives from (merchant, key, generation). It used to derive from the time of the claim, and a
-- claim that was lost (with an asynchronous standby, or a restore from a backup) came back as another payment.
ALTER TABLE idempotency_keys ADD COLUMN generation integer;
COMMENT ON COLUMN idempotency_keys.generation IS 'How often the key had been executed and forgotten before this claim. Null: the processor''s keys derive from created_at, as those of earlier releases, of requests that don''t call it, and of requests without a client''s key.';

-- A key that was forgotten and comes back is a new payment, for which the processor must not answer with the old one, however
-- long it remembers keys. So it's remembered for good which generation was the last, in as few bytes as possible.
CREATE TABLE forgotten_idempotency_keys (
    merchant_id uuid NOT NULL,
    key_digest  bytea NOT NULL,
    generation  integer NOT NULL,
    PRIMARY KEY (merchant_id, key_digest),
    CONSTRAINT forgotten_idempotency_keys_digest_length CHECK (octet_length(key_digest) = 16),
    CONSTRAINT forgotten_idempotency_keys_generation CHECK (generation >= 0)
);
COMMENT ON TABLE forgotten_idempotency_keys IS 'Keys under which the processor may have been called and that have been deleted since, whoever deleted them. Written by a trigger, never deleted. No foreign key to merchants, for the reason given with charges.';
COMMENT ON COLUMN forgotten_idempotency_keys.key_digest IS 'The first half of the SHA-256 of the key: see idempotency_key_digest.';
COMMENT ON COLUMN forgotten_idempotency_keys.generation IS 'That of the deleted row; the next claim has the next one.';

CREATE FUNCTION idempotency_key_digest(p_key text) RETURNS bytea
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN substr(sha256(convert_to(p_key, 'UTF8')), 1, 16);
COMMENT ON FUNCTION idempotency_key_digest IS 'What is kept of a key that has been forgotten.';

-- Runs as its owner: the service can't make up generations.
CREATE FUNCTION idempotency_keys_remember() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO public.forgotten_idempotency_keys AS f (merchant_id, key_digest, generation)
    VALUES (OLD.merchant_id, public.idempotency_key_digest(OLD.key), OLD.generation)
    ON CONFLICT (merchant_id, key_digest) DO UPDATE SET generation = excluded.generation
        WHERE f.generation < excluded.generation;
    RETURN NULL;
END $$;
REVOKE EXECUTE ON FUNCTION idempotency_keys_remember FROM PUBLIC;
CREATE TRIGGER idempotency_keys_generation AFTER DELETE ON idempotency_keys
    FOR EACH ROW WHEN (OLD.generation IS NOT NULL) EXECUTE FUNCTION idempotency_keys_remember();

-- An instance of the release before that takes a request over derives the processor's keys from created_at, whatever this
-- release has called the processor with. So claims get generations only when all instances have been replaced.
CREATE TABLE idempotency_generation_start (
    one         boolean PRIMARY KEY DEFAULT true CHECK (one),
    claims_from timestamptz NOT NULL
);
COMMENT ON TABLE idempotency_generation_start IS 'One row: claims from that time on have a generation. A day after the migration, in which the instances of the release before are to be replaced; at once in a new database.';
INSERT INTO idempotency_generation_start (claims_from)
SELECT clock_timestamp() + CASE WHEN EXISTS (SELECT FROM idempotency_keys) THEN interval '1 day' ELSE interval '0' END;

GRANT SELECT ON forgotten_idempotency_keys, idempotency_generation_start TO oncepay_app;

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
