-- One merchant could take the service away from all others. So a policy also limits what a merchant may ask of an
-- operation. The release before doesn't name these columns: its rows take the defaults, which limit nothing.
SET LOCAL lock_timeout = '500ms';

ALTER TABLE idempotency_policies
    ADD COLUMN rate_per_second integer NOT NULL DEFAULT 0,
    ADD COLUMN burst integer NOT NULL DEFAULT 0,
    ADD COLUMN concurrency_max integer NOT NULL DEFAULT 0;
-- Every write is checked. The rows that are there have the defaults, so there is nothing to validate.
ALTER TABLE idempotency_policies
    ADD CONSTRAINT idempotency_policies_rate_per_second CHECK (rate_per_second BETWEEN 0 AND 100000) NOT VALID,
    ADD CONSTRAINT idempotency_policies_burst CHECK (burst BETWEEN 0 AND 1000000) NOT VALID,
    ADD CONSTRAINT idempotency_policies_concurrency_max CHECK (concurrency_max BETWEEN 0 AND 100000) NOT VALID;
COMMENT ON COLUMN idempotency_policies.rate_per_second IS 'Requests per second that each instance takes from one merchant; 0: any number.';
COMMENT ON COLUMN idempotency_policies.burst IS 'Requests that it takes at once after a pause; 0: as many as in a second.';
COMMENT ON COLUMN idempotency_policies.concurrency_max IS 'Requests of one merchant that each instance has under way at the same time; 0: any number.';
GRANT UPDATE (rate_per_second, burst, concurrency_max) ON idempotency_policies TO oncepay_app;
