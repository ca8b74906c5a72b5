-- A refund as a team would naturally write it: one transaction, a round trip per statement, on Oncepay's tables. It takes
-- the next of the captured charges that load/bench has prepared, and fails if there is none. The balance is read after its
-- account is locked: read in one statement, two refunds could spend the same money.
\set i :i + 1
\set n :first + :i * :stride + :client_id
\set m :n % 100 + 1
BEGIN;
INSERT INTO idempotency_keys (merchant_id, key, state, operation, fingerprint_version, fingerprint, request_id, request_method, request_path, request_query, request_body, resource_type, resource_id, claim_token, lease_expires_at, recover_at, attempts, recovery_point, created_at, expires_at) VALUES (md5(:m::text)::uuid, md5('refund' || :n), 'in_progress', 'refunds.create', 1, sha256(:n::text::bytea), 'req_01a20d6db71276b4b8d98d9390d3499c', 'POST', '/v1/refunds', '', '{"charge_id":"ch_01900000000270008000000000000001"}', 'refund', md5('r' || :n)::uuid, md5('t' || :n)::uuid, clock_timestamp() + interval '30 s', clock_timestamp() + interval '30 s', 1, 'started', clock_timestamp(), clock_timestamp() + interval '1 day');
SELECT amount_captured - amount_refunded - amount_refund_pending AS refundable FROM charges WHERE merchant_id = md5(:m::text)::uuid AND id = ('01900000000270008000' || lpad(to_hex(:n::bigint), 12, '0'))::uuid AND status = 'succeeded' FOR UPDATE \gset
SELECT id AS payable FROM ledger_accounts WHERE merchant_id = md5(:m::text)::uuid AND kind = 'merchant_payable' AND currency = 'USD' FOR NO KEY UPDATE \gset
SELECT ledger_spendable(md5(:m::text)::uuid, :payable::uuid) AS spendable \gset
INSERT INTO refunds (merchant_id, id, charge_id, status, amount, currency, created_at) VALUES (md5(:m::text)::uuid, md5('r' || :n)::uuid, ('01900000000270008000' || lpad(to_hex(:n::bigint), 12, '0'))::uuid, 'succeeded', 12.50, 'USD', clock_timestamp());
UPDATE charges SET status = 'refunded', amount_refunded = 12.50 WHERE merchant_id = md5(:m::text)::uuid AND id = ('01900000000270008000' || lpad(to_hex(:n::bigint), 12, '0'))::uuid;
INSERT INTO journal_entries (merchant_id, id, source, created_at) VALUES (md5(:m::text)::uuid, md5('refund entry' || :n)::uuid, 're_' || md5('r' || :n), clock_timestamp());
INSERT INTO postings (merchant_id, entry_id, line, account_id, currency, amount, created_at) SELECT md5(:m::text)::uuid, md5('refund entry' || :n)::uuid, line.number, a.id, 'USD', line.amount, clock_timestamp() FROM (VALUES (1, 'merchant_payable', 12.50), (2, 'acquirer_clearing', -12.50)) AS line (number, kind, amount) JOIN ledger_accounts a ON a.merchant_id = md5(:m::text)::uuid AND a.kind = line.kind AND a.currency = 'USD';
INSERT INTO events (merchant_id, id, type, object_id, data) VALUES (md5(:m::text)::uuid, uuid_v7(), 'charge.refunded', ('01900000000270008000' || lpad(to_hex(:n::bigint), 12, '0'))::uuid, '{"object": "charge", "amount": "12.50", "currency": "USD", "status": "succeeded"}'), (md5(:m::text)::uuid, uuid_v7(), 'refund.succeeded', md5('r' || :n)::uuid, '{"object": "refund", "amount": "12.50", "currency": "USD", "status": "succeeded"}');
UPDATE idempotency_keys SET state = 'completed', recovery_point = 'finished', claim_token = NULL, lease_expires_at = NULL, recover_at = NULL, response_status = 201, response_headers = '[["Content-Type","application/json"]]', response_body = convert_to(repeat('x', 480), 'UTF8'), completed_at = clock_timestamp() WHERE merchant_id = md5(:m::text)::uuid AND key = md5('refund' || :n);
COMMIT;
