-- A payout as a team would naturally write it: one transaction, a round trip per statement, on Oncepay's tables. The balance
-- is read after its account is locked: read in one statement, two payouts could spend the same money.
\set n random(1, 9000000000000000)
\set m random(1, 100)
BEGIN;
INSERT INTO idempotency_keys (merchant_id, key, state, operation, fingerprint_version, fingerprint, request_id, request_method, request_path, request_query, request_body, resource_type, resource_id, claim_token, lease_expires_at, recover_at, attempts, recovery_point, created_at, expires_at) VALUES (md5(:m::text)::uuid, md5('payout' || :n), 'in_progress', 'payouts.create', 1, sha256(:n::text::bytea), 'req_01a20d6db71276b4b8d98d9390d3499c', 'POST', '/v1/payouts', '', '{"amount":"1.00","currency":"USD","destination":"ba_main"}', 'payout', md5('p' || :n)::uuid, md5('t' || :n)::uuid, clock_timestamp() + interval '30 s', clock_timestamp() + interval '30 s', 1, 'started', clock_timestamp(), clock_timestamp() + interval '1 day');
SELECT id AS payable FROM ledger_accounts WHERE merchant_id = md5(:m::text)::uuid AND kind = 'merchant_payable' AND currency = 'USD' FOR NO KEY UPDATE \gset
SELECT ledger_spendable(md5(:m::text)::uuid, :payable::uuid) AS spendable \gset
INSERT INTO payouts (merchant_id, id, status, amount, currency, destination, created_at) VALUES (md5(:m::text)::uuid, md5('p' || :n)::uuid, 'in_transit', 1.00, 'USD', 'ba_main', clock_timestamp());
INSERT INTO journal_entries (merchant_id, id, source, created_at) VALUES (md5(:m::text)::uuid, md5('payout entry' || :n)::uuid, 'po_' || md5('p' || :n), clock_timestamp());
INSERT INTO postings (merchant_id, entry_id, line, account_id, currency, amount, created_at) SELECT md5(:m::text)::uuid, md5('payout entry' || :n)::uuid, line.number, a.id, 'USD', line.amount, clock_timestamp() FROM (VALUES (1, 'merchant_payable', 1.00), (2, 'payouts_in_transit', -1.00)) AS line (number, kind, amount) JOIN ledger_accounts a ON a.merchant_id = md5(:m::text)::uuid AND a.kind = line.kind AND a.currency = 'USD';
INSERT INTO events (merchant_id, id, type, object_id, data) VALUES (md5(:m::text)::uuid, uuid_v7(), 'payout.created', md5('p' || :n)::uuid, '{"object": "payout", "amount": "12.50", "currency": "USD", "status": "succeeded"}');
UPDATE idempotency_keys SET state = 'completed', recovery_point = 'finished', claim_token = NULL, lease_expires_at = NULL, recover_at = NULL, response_status = 201, response_headers = '[["Content-Type","application/json"]]', response_body = convert_to(repeat('x', 480), 'UTF8'), completed_at = clock_timestamp() WHERE merchant_id = md5(:m::text)::uuid AND key = md5('payout' || :n);
COMMIT;
