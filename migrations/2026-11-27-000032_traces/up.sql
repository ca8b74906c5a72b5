-- A payment is followed across services by its trace (W3C Trace Context). What finishes, repeats or reports a request later
-- names the trace of the first request with its key, so that trace is kept with the key.
--
-- Only adds nullable columns, whose rows the release before leaves null.
SET LOCAL lock_timeout = '500ms';

ALTER TABLE idempotency_keys ADD COLUMN traceparent text, ADD COLUMN tracestate text;
COMMENT ON COLUMN idempotency_keys.traceparent IS 'The span of the first request with this key, as in the header of that name. Null: the claim is of a release that didn''t keep it.';
COMMENT ON COLUMN idempotency_keys.tracestate IS 'What the first client''s tracing systems had added to it, as in the header of that name. Null: nothing, or the key is a tombstone.';
GRANT UPDATE (tracestate) ON idempotency_keys TO oncepay_app;
