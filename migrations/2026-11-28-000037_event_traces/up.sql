-- Each event is kept with the trace of the request that made it, so that its deliveries can name it.
--
-- Only adds nullable columns, whose rows the release before leaves null.
SET LOCAL lock_timeout = '500ms';

ALTER TABLE events ADD COLUMN traceparent text, ADD COLUMN tracestate text;
COMMENT ON COLUMN events.traceparent IS 'The span that the change belongs to; deliveries of the event are its children. Null: the event is of a release that didn''t keep it.';
COMMENT ON COLUMN events.tracestate IS 'What the merchant''s tracing systems had added to it. Null: nothing.';
