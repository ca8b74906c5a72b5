-- Whoever polls events goes on after the last one seen, so what commits later must not sort before it. Ids do, and times: they
-- are drawn in one order and committed in another. So events are also in the order of their transactions, and only those are
-- read whose transactions are older than every one that still runs: no later commit can sort before them.
--
-- Transaction ids start afresh in another cluster, as after a dump, and fall back when commits were lost with a server. So they
-- count within an epoch, which begins when the database finds itself in another cluster or on another timeline.
--
-- Both columns get a constant first, which rewrites no row: what is there already is older than all that follows.
SET LOCAL lock_timeout = '1s';

CREATE TABLE event_feed (
    one     boolean PRIMARY KEY DEFAULT true,
    epoch   integer NOT NULL,
    cluster text NOT NULL,
    CONSTRAINT event_feed_one CHECK (one)
);
COMMENT ON TABLE event_feed IS 'One row: the epoch of new events.';
COMMENT ON COLUMN event_feed.cluster IS 'The cluster and the timeline in which the epoch began.';

CREATE FUNCTION event_feed_cluster() RETURNS text
    LANGUAGE sql VOLATILE
    RETURN (SELECT system_identifier::text FROM pg_control_system())
        || '/' || substring(pg_walfile_name(pg_current_wal_lsn()) FOR 8);
COMMENT ON FUNCTION event_feed_cluster IS 'The cluster that this database is in, and the timeline that it writes.';
REVOKE EXECUTE ON FUNCTION event_feed_cluster FROM PUBLIC;

-- The number of an epoch that begins now: seconds, so that two clusters that were restored from the same backup begin
-- different ones.
CREATE FUNCTION event_feed_next_epoch(p_epoch integer) RETURNS integer
    LANGUAGE sql VOLATILE
    RETURN greatest(p_epoch + 1, extract(epoch FROM clock_timestamp() - timestamptz '2026-01-01 00:00:00+00')::integer);
COMMENT ON FUNCTION event_feed_next_epoch IS 'The number of the epoch after this one.';
REVOKE EXECUTE ON FUNCTION event_feed_next_epoch FROM PUBLIC;

INSERT INTO event_feed (epoch, cluster) VALUES (1, event_feed_cluster());

-- The end of what can be read: events of earlier epochs, and those of this one whose transactions are below the horizon. It's
-- fixed before the events are read. Begins an epoch where one is due: it locks the table of events for a moment. If somebody reads
-- that table, it fails instead of waiting (lock_not_available): a statement that waits for this lock holds up all later ones,
-- also the completion of charges.
CREATE FUNCTION event_feed_horizon(OUT epoch integer, OUT horizon xid8)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_cluster text := public.event_feed_cluster();
    v_known text;
BEGIN
    SELECT f.epoch, f.cluster INTO epoch, v_known FROM public.event_feed f;
    IF v_known <> v_cluster THEN
        -- Another session may have done it meanwhile.
        SELECT f.epoch, f.cluster INTO epoch, v_known FROM public.event_feed f FOR UPDATE;
        IF v_known <> v_cluster THEN
            epoch := public.event_feed_next_epoch(epoch);
            LOCK TABLE public.events IN ACCESS EXCLUSIVE MODE NOWAIT;
            EXECUTE format('ALTER TABLE public.events ALTER COLUMN epoch SET DEFAULT %s', epoch);
            UPDATE public.event_feed f SET epoch = event_feed_horizon.epoch, cluster = v_cluster;
        END IF;
    END IF;
    horizon := pg_snapshot_xmin(pg_current_snapshot());
END $$;
COMMENT ON FUNCTION event_feed_horizon IS 'How far events can be read without missing any that commits later.';
REVOKE EXECUTE ON FUNCTION event_feed_horizon FROM PUBLIC;
GRANT EXECUTE ON FUNCTION event_feed_horizon TO oncepay_app;

ALTER TABLE events
    ADD COLUMN epoch integer NOT NULL DEFAULT 0,
    ADD COLUMN transaction_id xid8 NOT NULL DEFAULT '0';
ALTER TABLE events
    ALTER COLUMN epoch SET DEFAULT 1,
    ALTER COLUMN transaction_id SET DEFAULT pg_current_xact_id();
COMMENT ON COLUMN events.epoch IS 'Within it transaction_id is in order; 0: from before there were epochs.';
COMMENT ON COLUMN events.transaction_id IS 'The writing transaction, which tells a reader whether an earlier event can still be about to commit.';
