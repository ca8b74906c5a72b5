-- All rows from before have null here. Reads every row while reads and writes go on.
SET LOCAL lock_timeout = '1s';

ALTER TABLE idempotency_keys VALIDATE CONSTRAINT idempotency_keys_generation;
