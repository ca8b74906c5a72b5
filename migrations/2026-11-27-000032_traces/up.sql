-- A payment is followed across services by its trace (W3C Trace Context). What finishes, repeats or reports a request later
-- names the trace of the first request with its key, so that trace is kept with the key and with each event.
--
-- Only adds nullable columns, whose rows the release before leaves null. In the service's lock order: keys, then events.
SET LOCAL lock_timeout = '500ms';

ALTER TABLE idempotency_keys ADD COLUMN traceparent text, ADD COLUMN tracestate text;
COMMENT ON COLUMN idempotency_keys.traceparent IS 'The span of the first request with this key, as in the header of that name. Null: the claim is of a release that didn''t keep it.';
COMMENT ON COLUMN idempotency_keys.tracestate IS 'What the first client''s tracing systems had added to it, as in the header of that name. Null: nothing, or the key is a tombstone.';
GRANT UPDATE (tracestate) ON idempotency_keys TO oncepay_app;

ALTER TABLE events ADD COLUMN traceparent text, ADD COLUMN tracestate text;
COMMENT ON COLUMN events.traceparent IS 'The span that the change belongs to; deliveries of the event are its children. Null: the event is of a release that didn''t keep it.';
COMMENT ON COLUMN events.tracestate IS 'What the merchant''s tracing systems had added to it. Null: nothing.';
