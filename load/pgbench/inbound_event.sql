-- An event of the processor, which decides on a pending charge, as a team would naturally write it: one transaction, a round
-- trip per statement, on Oncepay's tables. It takes the next of the pending charges that load/bench has prepared, and fails if
-- there is none. The stored event is what a repetition would run into, so a key of its own isn't needed.
\set i :i + 1
\set n :first + :i * :stride + :client_id
\set m :n % 100 + 1
BEGIN;
INSERT INTO acquirer_events (id, event_id, type, body, merchant_id, object_id, state, received_at, settled_at) VALUES (uuid_v7(), 'evt_' || md5('v' || :n), 'charge.succeeded', convert_to('{"type":"charge.succeeded","data":{"merchant":"mer_01a22103cca8722d8088dc0315e140e1","reference":"ch_01900000000470008000000000000001"}}', 'UTF8'), md5(:m::text)::uuid, ('01900000000470008000' || lpad(to_hex(:n::bigint), 12, '0'))::uuid, 'applied', clock_timestamp(), clock_timestamp());
SELECT amount AS pending FROM charges WHERE merchant_id = md5(:m::text)::uuid AND id = ('01900000000470008000' || lpad(to_hex(:n::bigint), 12, '0'))::uuid AND status = 'processing' FOR UPDATE \gset
UPDATE charges SET status = 'succeeded', amount_captured = 12.50, fee = 0.66, captured_at = clock_timestamp() WHERE merchant_id = md5(:m::text)::uuid AND id = ('01900000000470008000' || lpad(to_hex(:n::bigint), 12, '0'))::uuid;
INSERT INTO journal_entries (merchant_id, id, source, created_at) VALUES (md5(:m::text)::uuid, md5('inbound_event entry' || :n)::uuid, 'ch_' || replace(('01900000000470008000' || lpad(to_hex(:n::bigint), 12, '0'))::uuid::text, '-', '') || chr(58) || 'capture', clock_timestamp());
INSERT INTO postings (merchant_id, entry_id, line, account_id, currency, amount, created_at) SELECT md5(:m::text)::uuid, md5('inbound_event entry' || :n)::uuid, line.number, a.id, 'USD', line.amount, clock_timestamp() FROM (VALUES (1, 'acquirer_clearing', 12.50), (2, 'merchant_payable', -11.84), (3, 'fee_revenue', -0.66)) AS line (number, kind, amount) JOIN ledger_accounts a ON a.merchant_id = md5(:m::text)::uuid AND a.kind = line.kind AND a.currency = 'USD';
INSERT INTO events (merchant_id, id, type, object_id, data) VALUES (md5(:m::text)::uuid, uuid_v7(), 'charge.succeeded', ('01900000000470008000' || lpad(to_hex(:n::bigint), 12, '0'))::uuid, '{"object": "charge", "amount": "12.50", "currency": "USD", "status": "succeeded"}');
COMMIT;
