ALTER TABLE events DROP COLUMN tracestate, DROP COLUMN traceparent;
ALTER TABLE idempotency_keys DROP COLUMN tracestate, DROP COLUMN traceparent;
