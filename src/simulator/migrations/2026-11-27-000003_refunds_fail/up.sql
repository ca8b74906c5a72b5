-- A refund can fail after it succeeded: it comes back from the customer's bank. If a settlement has subtracted it meanwhile, the
-- next one adds it again.
SET LOCAL lock_timeout = '1s';

ALTER TABLE operations ADD COLUMN is_owed_back boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN operations.is_owed_back IS 'Of a failed refund that a settlement has subtracted: the next one has to add it.';
CREATE INDEX operations_owed_back ON operations (merchant, currency) WHERE is_owed_back;
