-- A client that keeps a cursor meanwhile misses what is recorded until the migration runs again: let it go on after an event's id.
SET LOCAL lock_timeout = '1s';

ALTER TABLE events DROP COLUMN transaction_id, DROP COLUMN epoch;
DROP FUNCTION event_feed_horizon;
DROP FUNCTION event_feed_next_epoch;
DROP FUNCTION event_feed_cluster;
DROP TABLE event_feed;
