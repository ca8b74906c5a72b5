ALTER TABLE idempotency_keys DROP COLUMN tracestate, DROP COLUMN traceparent;
