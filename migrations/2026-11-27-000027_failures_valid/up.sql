-- Reads every row while reads and writes go on.
SET LOCAL lock_timeout = '1s';

ALTER TABLE charges VALIDATE CONSTRAINT charges_failure;
ALTER TABLE refunds VALIDATE CONSTRAINT refunds_failure;
ALTER TABLE payouts VALIDATE CONSTRAINT payouts_failure;
