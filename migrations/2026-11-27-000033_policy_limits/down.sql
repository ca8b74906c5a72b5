-- Loses the limits. The history of changes keeps them.
ALTER TABLE idempotency_policies DROP COLUMN concurrency_max, DROP COLUMN burst, DROP COLUMN rate_per_second;
