-- Two things that the database must know so that the outside world isn't told two stories: how often a key was
-- deliberately executed afresh, and from which master key a secret derives. All new columns are nullable or have constant
-- defaults, and the release before knows none of this: what it writes is told from what this one writes.
SET LOCAL lock_timeout = '1s';

-- The processor's key for a call derives from (merchant, key, generation). It used to derive from the time of the claim, and a
-- claim that was lost (with an asynchronous standby, or a restore from a backup) came back as another payment.
ALTER TABLE idempotency_keys
    ADD COLUMN generation integer,
    ADD COLUMN takeovers  integer NOT NULL DEFAULT 0,
    -- One less than the greatest number, so that the next generation is a number, too. Not validated here, which would read the
    -- table while nothing else can; idempotency_generations_valid does that.
    ADD CONSTRAINT idempotency_keys_generation CHECK (generation >= 0 AND generation < 2147483647) NOT VALID;
COMMENT ON COLUMN idempotency_keys.generation IS 'How often the key had been executed and forgotten before this claim. Null: the processor''s keys derive from created_at, as those of earlier releases, of requests that don''t call it, and of requests without a client''s key.';
COMMENT ON COLUMN idempotency_keys.takeovers IS 'How often the claim got another token. Who changes the token of a claim with a generation without counting here is of the release before, and changes nothing: see idempotency_keys_takeover.';
GRANT UPDATE (takeovers) ON idempotency_keys TO oncepay_app;

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

-- Whatever number a claim brings, it gets the one that's next, so the service can't make up generations here either. All but a
-- few claims bring 0 and don't come here: it would cost each of them a second look-up. A made-up 0 does no harm beyond its
-- claim, in which the processor answers with the payment that it knows.
CREATE FUNCTION idempotency_keys_number() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    NEW.generation := coalesce((SELECT f.generation + 1 FROM public.forgotten_idempotency_keys f
        WHERE f.merchant_id = NEW.merchant_id AND f.key_digest = public.idempotency_key_digest(NEW.key)), 0);
    RETURN NEW;
END $$;
REVOKE EXECUTE ON FUNCTION idempotency_keys_number FROM PUBLIC;
CREATE TRIGGER idempotency_keys_next_generation BEFORE INSERT ON idempotency_keys
    FOR EACH ROW WHEN (NEW.generation <> 0) EXECUTE FUNCTION idempotency_keys_number();

-- An instance of the release before that takes a request over derives the processor's keys from created_at, whatever this
-- release has called the processor with: another payment. So its UPDATE finds no row here, as if another attempt had been
-- faster, and the request is left to the instances that know generations. A completion sets no token and doesn't come here.
CREATE FUNCTION idempotency_keys_leave() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN NULL;
END $$;
REVOKE EXECUTE ON FUNCTION idempotency_keys_leave FROM PUBLIC;
CREATE TRIGGER idempotency_keys_takeover BEFORE UPDATE ON idempotency_keys
    FOR EACH ROW WHEN (OLD.generation IS NOT NULL AND NEW.claim_token IS NOT NULL
        AND NEW.claim_token IS DISTINCT FROM OLD.claim_token AND NEW.takeovers = OLD.takeovers)
    EXECUTE FUNCTION idempotency_keys_leave();

GRANT SELECT ON forgotten_idempotency_keys TO oncepay_app;

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
