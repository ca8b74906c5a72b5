-- The least that a replay can cost: one row of one key.
\set n random(1, 1000)
SELECT * FROM idempotency_keys WHERE merchant_id = md5('1')::uuid AND key = 'select-' || :n;
