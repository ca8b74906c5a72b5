-- Identifiers are in the order of their microseconds, not of their milliseconds only: what one transaction makes in a row, such as
-- the events of a refund, is read in the order in which it happened. (RFC 9562, section 6.2, method 3: the 12 bits after the
-- time hold the fraction of its millisecond, in 4096ths.) What has the same microsecond is in any order, as it was before.
--
-- One expression that names its argument once: only such a function is put into the statement that calls it, if the argument
-- is volatile, as the clock is.
CREATE OR REPLACE FUNCTION uuid_v7(at timestamptz DEFAULT clock_timestamp()) RETURNS uuid
    LANGUAGE sql VOLATILE PARALLEL SAFE
    RETURN (
        -- 12 digits of milliseconds, the version, 3 digits of their fraction.
        overlay(lpad(to_hex(floor(extract(epoch FROM at) * 4096000)::bigint), 15, '0') PLACING '7' FROM 13 FOR 0)
        -- The variant and 62 random bits. The hyphen between them means nothing.
        || substring(gen_random_uuid()::text FROM 20)
    )::uuid;
