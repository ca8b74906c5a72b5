-- How long after its first claim a key comes back: what a policy's TTL can be derived from.
SET LOCAL lock_timeout = '500ms';

-- Every instance adds to the same rows every few seconds. Half of each page is left free, so that a changed row stays on it.
CREATE TABLE idempotency_retry_delays (
    operation       text NOT NULL,
    found           text NOT NULL,
    at_most_seconds integer NOT NULL,
    slot            smallint NOT NULL,
    day             date NOT NULL,
    since           timestamptz NOT NULL,
    requests        bigint NOT NULL,
    PRIMARY KEY (operation, found, at_most_seconds, slot),
    CONSTRAINT idempotency_retry_delays_found
        CHECK (found IN ('new', 'answer', 'unfinished', 'other_request', 'expired', 'free')),
    CONSTRAINT idempotency_retry_delays_at_most_seconds CHECK (at_most_seconds > 0),
    CONSTRAINT idempotency_retry_delays_slot CHECK (slot = (day - date '2000-01-01') % 90),
    CONSTRAINT idempotency_retry_delays_requests CHECK (requests > 0)
) WITH (fillfactor = 50);
COMMENT ON TABLE idempotency_retry_delays IS 'Numbers of requests by the age of the key that they came with. Belongs to no merchant. A day''s rows take the place of those of 90 days before, so the table stays small and nothing is deleted.';
COMMENT ON COLUMN idempotency_retry_delays.found IS 'What was there under the key: nothing (new), the answer, a request that isn''t finished (unfinished), another request, a tombstone that refuses (expired), or nothing any more, so that the request was executed again (free).';
COMMENT ON COLUMN idempotency_retry_delays.at_most_seconds IS 'Upper bound of the time since the key''s first claim. The lower one is the next smaller bound that the service knows.';
COMMENT ON COLUMN idempotency_retry_delays.slot IS 'Number of the day in a circle of 90.';
COMMENT ON COLUMN idempotency_retry_delays.day IS 'Day in UTC on which the requests were stored, by the database''s clock.';
COMMENT ON COLUMN idempotency_retry_delays.since IS 'When the first of them was stored.';

GRANT SELECT, INSERT, UPDATE (day, since, requests) ON idempotency_retry_delays TO oncepay_app;
