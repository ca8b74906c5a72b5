-- Merchants are the tenants. Every table that holds a merchant's rows starts its primary key and
-- its unique and foreign keys with merchant_id, so that the database can later be distributed by
-- that column and each transaction still runs on one node.

-- Time-ordered identifiers (RFC 9562, version 7) of the time `at`, by default now. Postgres before 18 has
-- no such function. Time order keeps index inserts on the right-most page; that the time is the
-- database's makes ids of different instances comparable, so that lists by id are lists by time.
CREATE FUNCTION uuid_v7(at timestamptz DEFAULT clock_timestamp()) RETURNS uuid
    LANGUAGE sql VOLATILE PARALLEL SAFE
    RETURN encode(
        set_bit(set_bit(
            overlay(uuid_send(gen_random_uuid())
                PLACING substring(int8send(floor(extract(epoch FROM at) * 1000)::bigint) FROM 3)
                FROM 1 FOR 6),
            52, 1), 53, 1),
        'hex')::uuid;

CREATE TABLE merchants (
    merchant_id uuid PRIMARY KEY,
    name        text NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE merchants IS 'Tenants. Never deleted.';

CREATE TABLE merchant_pricing (
    merchant_id  uuid NOT NULL,
    effective_at timestamptz NOT NULL,
    fee_rate     numeric(6, 5) NOT NULL,
    fee_fixed    numeric(16, 4) NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (merchant_id, effective_at),
    CONSTRAINT merchant_pricing_merchant FOREIGN KEY (merchant_id) REFERENCES merchants (merchant_id),
    CONSTRAINT merchant_pricing_fee_rate_range CHECK (fee_rate BETWEEN 0 AND 1),
    CONSTRAINT merchant_pricing_fee_fixed_range CHECK (fee_fixed >= 0)
);
COMMENT ON TABLE merchant_pricing IS 'What a merchant pays per capture from a time on: fee_rate * amount + fee_fixed, in the currency of the charge. Append-only.';

CREATE TABLE api_keys (
    merchant_id uuid NOT NULL,
    id          uuid NOT NULL DEFAULT uuid_v7(),
    name        text NOT NULL,
    key_sha256  bytea NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    revoked_at  timestamptz,
    PRIMARY KEY (merchant_id, id),
    CONSTRAINT api_keys_secret_once UNIQUE (merchant_id, key_sha256),
    CONSTRAINT api_keys_merchant FOREIGN KEY (merchant_id) REFERENCES merchants (merchant_id),
    CONSTRAINT api_keys_sha256_length CHECK (octet_length(key_sha256) = 32)
);
COMMENT ON TABLE api_keys IS 'What authenticates a merchant. Only the SHA-256 of a key is stored; the key itself names the merchant, so the lookup starts with merchant_id.';

CREATE TABLE operator_keys (
    id          uuid PRIMARY KEY DEFAULT uuid_v7(),
    name        text NOT NULL,
    key_sha256  bytea NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    revoked_at  timestamptz,
    CONSTRAINT operator_keys_secret_once UNIQUE (key_sha256),
    CONSTRAINT operator_keys_sha256_length CHECK (octet_length(key_sha256) = 32)
);
COMMENT ON TABLE operator_keys IS 'What authenticates the people who run the service. Belongs to no merchant.';

GRANT SELECT, INSERT ON merchants, merchant_pricing, api_keys TO oncepay_app;
GRANT UPDATE (revoked_at) ON api_keys TO oncepay_app;
GRANT SELECT ON operator_keys TO oncepay_app;
