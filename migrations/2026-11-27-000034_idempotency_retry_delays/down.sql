-- Loses the counts.
DROP TABLE idempotency_retry_delays;
